"""From a run folder's records alone to its ranking.json and its reports."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selectbench.analysis.counted import counted
from selectbench.analysis.own_best import search
from selectbench.analysis.ranking import Ranking, rank
from selectbench.analysis.settled import settled_by_records
from selectbench.data.enough import evaluable
from selectbench.errors import UserError
from selectbench.json_text import json_text
from selectbench.plan.warnings import heldout_warnings, suite_warnings, vocabulary_warnings
from selectbench.record.record import Completed, Record
from selectbench.record.run_files import (
    BENCHMARK,
    ENVIRONMENT,
    PAGE,
    RANKING,
    REPORT,
    SUITE,
    TABLE,
    read_json,
    write_whole,
)
from selectbench.record.store import FILE_NAME, read_records
from selectbench.report import html, markdown
from selectbench.report.files import benchmark_json, best_head, render_csv
from selectbench.report.sections import report
from selectbench.suite.load import load_suite
from selectbench.suite.suite import Suite
from selectbench.yaml_text import suite_yaml

COMMAND = "selectbench run suite.yaml"
"""What repeats a run, typed in its folder."""
_OF_A_CONTEST = ("options", "control", "gate", "tune", "best_of")
"""Keys that say nothing of an option by itself."""
SHORT = "There is less held-out text than was asked for (see the warnings)."


@dataclass(frozen=True)
class StoredRun:
    """What a run folder holds."""

    suite: Suite
    """As its contest ran it: options with what was found best for them."""
    declared: Suite
    """As its file says it."""
    records: list[Record]
    environment: dict[str, Any]
    notes: list[str]
    """A line about each line of the records that could not be used as it stands."""

    @cached_property
    def counted(self) -> list[Record]:
        """Records that count."""
        return counted(self.records)

    def ranking(self) -> Ranking:
        """The answer, computed anew."""
        passes = self.environment.get("data", {}).get("epochs")
        limits = (self.environment.get(key) for key in ("cores_by_affinity", "cores_by_cgroup"))
        cores = min((float(limit) for limit in limits if limit is not None), default=None)
        entries = {name: facts.get("vocab_size") for name, facts in self._data_by_option().items()}
        short = heldout_warnings(self.suite, self._heldout_tokens())
        warnings = [
            *short, *suite_warnings(self.suite, passes, cores), *vocabulary_warnings(self.suite, entries)
        ]  # fmt: skip
        ranking = rank(self.suite, self.records, warnings=[*warnings, *self.notes])
        if short:
            ranking = ranking.model_copy(update={"answer": f"{ranking.answer} {SHORT}"})
        found = search(self.declared, self.suite, self.records)
        return ranking if found is None else ranking.model_copy(update={"search": found})

    def _data_by_option(self) -> dict[str, dict[str, Any]]:
        """What is known of the data of each option: of its own, or of the suite's."""
        data = self.environment.get("data") or {}
        others = data.get("by_option") or {}
        return {option.name: others.get(option.name, data) for option in self.suite.options}

    def _heldout_tokens(self) -> dict[str, int | None]:
        """All that there were to score, by option; of pairs as many as were scored."""
        facts = self._data_by_option()
        found = {
            name: None if one.get("heldout_tokens") is None or one.get("kind") == "pairs"
            else evaluable(one["heldout_tokens"], self.suite.job.seq_len)
            for name, one in facts.items()
        }  # fmt: skip
        for record in self.records:
            if facts.get(record.trial.option, {}).get("kind") == "pairs" and isinstance(record.outcome, Completed):
                found[record.trial.option] = record.outcome.measurement.heldout_tokens
        return found


def read_run(folder: Path) -> StoredRun:
    """Read a run folder; the current machine doesn't matter. Raises UserError."""
    if not (folder / SUITE).is_file():
        raise UserError(f"{folder}: not a run folder: it has no {SUITE} (see `selectbench run --help`)")
    environment = read_json(folder / ENVIRONMENT)
    records, notes = read_records(folder / FILE_NAME)
    suite = load_suite(str(folder / SUITE), device="cpu", require_files=False)
    return StoredRun(settled_by_records(suite, records), suite, records, environment, notes)


def publish(folder: Path, stored: StoredRun) -> Ranking:
    """Write ranking.json and every report of a run that was read. Raises UserError where they can't be."""
    ranking = stored.ranking()
    try:
        made = files(stored, ranking)
        for name, text in made.items():
            write_whole(folder / name, text)
        for stale in set(folder.glob("best*")) - {folder / name for name in made}:
            stale.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot write the report: {error.strerror}; the records are kept") from None
    return ranking


def files(stored: StoredRun, ranking: Ranking) -> dict[str, str]:
    """Everything that follows from a run's records, by file name."""
    parts = (stored.suite, ranking, stored.counted, stored.environment)
    return {
        RANKING: ranking_text(ranking), REPORT: report_text(stored, ranking),
        PAGE: html.render(report(*parts, COMMAND, "page")),
        TABLE: render_csv(ranking), BENCHMARK: benchmark_json(*parts), **best_files(stored, ranking),
    }  # fmt: skip


def report_text(stored: StoredRun, ranking: Ranking) -> str:
    """report.md."""
    parts = (stored.suite, ranking, stored.counted, stored.environment, COMMAND)
    return markdown.render(report(*parts, "markdown"))


def best_files(stored: StoredRun, ranking: Ranking) -> dict[str, str]:
    """The suite of each option that a verdict names, and DeepSpeed's configuration where it trained it."""
    found: dict[str, str] = {}
    for verdict in ranking.verdicts:
        if verdict.option is None or verdict.file is None:
            continue
        own = suite_yaml(suite_of_option(stored.suite, verdict.option))
        found[verdict.file] = best_head(ranking, verdict.file) + own
        configs = [
            r.resolved_config for r in stored.counted if r.trial.option == verdict.option and r.resolved_config
        ]
        if configs:
            found[verdict.file.replace(".yaml", "_deepspeed.json")] = json_text(configs[-1])
    return found


def suite_of_option(suite: Suite, option: str) -> dict[str, Any]:
    """The suite as plain data with this option alone, which is its own baseline."""
    kept = {key: value for key, value in suite.resolved.items() if key not in _OF_A_CONTEST}
    every = suite.option(option).choices.model_dump(mode="json")
    choices = {key: value for key, value in every.items() if value is not None}
    return {**kept, "choices": choices, "options": {option: {}}, "baseline": option}


def ranking_text(ranking: Ranking) -> str:
    """ranking.json."""
    return json_text(ranking.model_dump(mode="json"))
