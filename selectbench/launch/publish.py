"""A run's folder from its records alone: past runs, ranking and reports, comparisons, a CI job's summary."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from selectbench.analysis.gate import Compared, Gate, ReadRun, compare, hold_gate
from selectbench.analysis.ranking import rank
from selectbench.analysis.recommendation import BEST_FILES
from selectbench.analysis.result import Ranking
from selectbench.analysis.scores import references
from selectbench.analysis.summary import counted
from selectbench.analysis.tuning import search, with_best_settings
from selectbench.data.prepared import sequences
from selectbench.errors import ExitCode, UserError
from selectbench.planning.plan import heldout_warnings, suite_warnings, unused_row_warnings, vocabulary_warnings
from selectbench.record.environment import read_environment
from selectbench.record.record import ApiAnswers, Completed, Record, has_ended
from selectbench.record.run_folder import (
    BENCHMARK,
    ENVIRONMENT,
    PAGE,
    RANKING,
    RECORDS_FILE,
    REPORT,
    SUITE,
    TABLE,
    PastRun,
    find_run,
    plain_suite,
    planned_trials,
    read_answers,
    read_json,
    read_lines,
    read_records,
    require_records,
    write_whole,
)
from selectbench.report.files import benchmark_json, best_head, render_csv, render_html, render_markdown
from selectbench.report.sections import report
from selectbench.suite.load import load_suite
from selectbench.suite.suite import Suite
from selectbench.text import json_text, suite_yaml

_NAME = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)")


def past_runs(results: Path) -> list[PastRun]:
    """Every folder RESULTS/SUITE/RUN that holds a suite, the newest first; RESULTS may be one of the inner folders.

    Raises UserError where there is no such folder.
    """
    if not results.is_dir():
        raise UserError(f"{results}: there is no such folder; runs are kept where `run --results DIR` put them")
    depths = ("", "*/", "*/*/")  # a run, a folder of runs, or folders of these
    folders = [suite.parent for depth in depths for suite in results.glob(f"{depth}{SUITE}")]
    return [_past_run(folder) for folder in sorted(folders, key=lambda f: f.name, reverse=True)]


def _past_run(folder: Path) -> PastRun:
    """What `list` says of the run; its note says what of its folder can't be read."""
    match = _NAME.match(folder.name)
    started_at = "{}-{}-{} {}:{}".format(*match.groups()) if match else None
    try:
        suite, environment = plain_suite(folder), read_environment(folder / ENVIRONMENT)
        planned = planned_trials(folder, suite)
        records, _ = read_records(folder / RECORDS_FILE)
        ended = [record for record in counted(records) if has_ended(record.outcome)]
        done = planned & {(record.trial.option, record.trial.seed) for record in ended}
    except UserError as error:
        note = str(error).splitlines()[0]
        return PastRun(folder=str(folder), suite=folder.parent.name, started_at=started_at, note=note)
    gpus = dict.fromkeys(str(gpu.get("name")) for gpu in environment.get("gpus") or [])
    on_gpus = suite.get("device") == "cuda" and gpus
    try:
        answer = str(read_json(folder / RANKING)["answer"])
    except (UserError, KeyError, TypeError):
        answer = None
    return PastRun(
        folder=str(folder), suite=str(suite.get("name") or folder.parent.name), started_at=started_at,
        device=str(suite.get("device")), hardware=", ".join(gpus) if on_gpus else environment.get("cpu_model"),
        trials_done=len(done), trials_planned=len(planned), answer=answer,
    )  # fmt: skip


# From a run folder's records alone to its ranking.json and its reports.


COMMAND = "selectbench run suite.yaml"
"""The command that repeats a run, typed in its folder."""
_CONTEST_KEYS = ("options", "control", "gate", "tune", "best_of", "screen", "looks", "references")
"""Keys of a suite that say nothing of a single option."""
SHORT = "There is less held-out text than was asked for (see the warnings)."


@dataclass(frozen=True)
class StoredRun(ReadRun):
    """What a run folder holds."""

    declared: Suite = field(kw_only=True)
    """The suite as the run's file states it, before settings were searched."""
    unchecked: int = 0
    """Number of records without a checksum."""
    answers: Mapping[str, ApiAnswers] = field(default_factory=dict)
    """Of models behind an API, by reference."""

    @cached_property
    def counted(self) -> list[Record]:
        """The records that count, one for each trial."""
        return counted(self.records)

    def ranking(self) -> Ranking:
        """The ranking, computed from the records."""
        passes = self.environment.get("data", {}).get("epochs")
        limits = (self.environment.get(key) for key in ("cores_by_affinity", "cores_by_cgroup"))
        least = min((float(limit) for limit in limits if limit is not None), default=None)
        cores = None if least is None else least * self.environment.get("nodes", 1)
        entries = {name: facts.get("vocab_size") for name, facts in self._data_by_option().items()}
        short = heldout_warnings(self.suite, self._heldout_tokens())
        warnings = [
            *short, *suite_warnings(self.suite, passes, cores), *vocabulary_warnings(self.suite, entries),
            *unused_row_warnings(self.suite, self.environment.get("data", {}).get("unused_rows") or {}),
        ]  # fmt: skip
        ranking = rank(self.suite, self.records, warnings=[*warnings, *self.notes])
        if short:
            ranking = ranking.model_copy(update={"answer": f"{ranking.answer} {SHORT}"})
        more: dict[str, object] = {"search": search(self.declared, self.suite, self.records)}
        if asked := {name: one for name, one in self.answers.items() if name in self.suite.references}:
            more["references"] = references(asked)
        return ranking.model_copy(update=more)

    def _data_by_option(self) -> dict[str, dict[str, Any]]:
        """The facts on each option's data, which are the suite's where the option has none of its own."""
        data = self.environment.get("data") or {}
        by_option = data.get("by_option") or {}
        return {option.name: by_option.get(option.name, data) for option in self.suite.options}

    def _heldout_tokens(self) -> dict[str, int | None]:
        """How many held-out tokens there are by option; of pairs and chats, how many were scored."""
        if self.suite.command is not None:
            return {}
        facts, seq_len = self._data_by_option(), self.suite.built.seq_len
        by_targets = {name for name, data in facts.items() if data.get("kind") in ("pairs", "chat")}
        tokens = {
            name: None if data.get("heldout_tokens") is None or name in by_targets
            else sequences(data["heldout_tokens"], seq_len) * seq_len
            for name, data in facts.items()
        }  # fmt: skip
        for record in self.records:
            if record.trial.option in by_targets and isinstance(record.outcome, Completed):
                tokens[record.trial.option] = record.outcome.measurement.heldout_tokens
        return tokens


def read_run(folder: Path) -> StoredRun:
    """Read a run folder, of whatever machine. Raises UserError."""
    if not (folder / SUITE).is_file():
        raise UserError(f"{folder}: not a run folder: it has no {SUITE} (see `selectbench run --help`)")
    environment = read_environment(folder / ENVIRONMENT)
    records, notes, unchecked = read_lines(folder / RECORDS_FILE)
    suite = load_suite(str(folder / SUITE), device="cpu", require_files=False)
    answers = read_answers(folder)
    chosen = with_best_settings(suite, records)
    return StoredRun(
        str(folder), chosen, records, environment, notes, unchecked=unchecked, answers=answers, declared=suite
    )


def publish(folder: Path, stored: StoredRun, notify: Callable[[str], None]) -> Ranking:
    """Write ranking.json and every report of a run, and remove suites that only an earlier ranking named best.

    A folder in the way of a file is left alone and reported. Raises UserError where no file can be written.
    """
    ranking = stored.ranking()
    contents = files(stored, ranking)
    try:
        for name in (*contents, *(name for file in BEST_FILES for name in (file, _deepspeed_file(file)))):
            if (folder / name).is_dir():
                notify(f"{folder / name}: a folder has the name of a file of the report: it is left as it is")
            elif name in contents:
                write_whole(folder / name, contents[name])
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the report: {error.strerror}; the records are kept") from None
    return ranking


def files(stored: StoredRun, ranking: Ranking) -> dict[str, str]:
    """Everything that follows from a run's records, by file name; ranking.json is the last to be written."""
    parts = (stored.suite, ranking, stored.counted, stored.environment)
    return {
        REPORT: report_text(stored, ranking),
        PAGE: render_html(report(*parts, COMMAND, "page", stored.unchecked)),
        TABLE: render_csv(ranking), BENCHMARK: benchmark_json(*parts), **best_files(stored, ranking),
        RANKING: ranking_text(ranking),
    }  # fmt: skip


def report_text(stored: StoredRun, ranking: Ranking) -> str:
    """report.md."""
    parts = (stored.suite, ranking, stored.counted, stored.environment, COMMAND)
    return render_markdown(report(*parts, "markdown", stored.unchecked))


def best_files(stored: StoredRun, ranking: Ranking) -> dict[str, str]:
    """The suite of each option that a verdict names, and DeepSpeed's configuration where it trained it."""
    contents: dict[str, str] = {}
    for verdict in ranking.verdicts:
        if verdict.option is None or verdict.file is None:
            continue
        option_suite = suite_yaml(suite_of_option(stored.suite, verdict.option))
        contents[verdict.file] = best_head(ranking, verdict.file) + option_suite
        configs = [
            r.resolved_config for r in stored.counted if r.trial.option == verdict.option and r.resolved_config
        ]
        if configs:
            contents[_deepspeed_file(verdict.file)] = json_text(configs[-1])
    return contents


def _deepspeed_file(suite: str) -> str:
    """The name of DeepSpeed's configuration file by that of the option's suite."""
    return suite.replace(".yaml", "_deepspeed.json")


def suite_of_option(suite: Suite, option: str) -> dict[str, Any]:
    """The suite as plain data with this option alone, which is its own baseline."""
    job = {key: value for key, value in suite.resolved.items() if key not in _CONTEST_KEYS}
    written = suite.option(option).choices.as_written()
    settings = {key: value for key, value in written.items() if value is not None}
    return {**job, "choices": settings, "options": {option: {}}, "baseline": option}


def ranking_text(ranking: Ranking) -> str:
    """ranking.json."""
    return json_text(ranking.model_dump(mode="json"))


# The summary of a CI job: Markdown appended to the file that GITHUB_STEP_SUMMARY names.


MOST_BYTES = 1_000_000
"""GitHub takes no more than 1 MiB a step: docs.github.com, "Workflow commands", adding a job summary."""
VARIABLE = "GITHUB_STEP_SUMMARY"


def add_to_job_summary(make_text: Callable[[], str]) -> str | None:
    """Append the text where the variable is set. Returns why that failed, as it must fail no run; else None."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    text = make_text().encode()
    try:
        with Path(name).open("ab") as stream:
            if stream.tell() + len(text) > MOST_BYTES:
                return f"{VARIABLE}: {name} is full: nothing was added"
            stream.write(text)
    except OSError as error:
        return f"{VARIABLE}: cannot write {name}: {error.strerror}"
    return None


# Run folders side by side: read, compared, gated.


GATE_EXIT = {
    "pass": ExitCode.OK, "regression": ExitCode.REGRESSION, "inconclusive": ExitCode.INCONCLUSIVE,
}  # fmt: skip
"""The process's exit status by the gate's verdict."""


def compare_runs(reference: str | Path, runs: Sequence[str | Path], results: Path) -> list[Compared]:
    """Compare each of the runs with the reference; `find_run` finds all of them.

    Raises UserError for a folder that is no run, or one of another suite.
    """
    reference_folder = find_run(reference, results)
    reference_run = _read(reference_folder)
    folders = [_find_other_run(run, reference, reference_folder, results) for run in runs]
    return [compare(_of_the_same_suite(_read(folder), reference_run), reference_run) for folder in folders]


def gate_run(
    run: str | Path, against: str | Path, limits: Sequence[str], results: Path, *, any_machine: bool
) -> Gate:
    """Hold a run against limits: those given, else its suite's, else the reference's. Raises UserError."""
    folder = find_run(run, results)
    stored, reference = _read(folder), _read(_find_other_run(against, run, folder, results))
    _of_the_same_suite(stored, reference)
    gate_limits = limits or stored.suite.gate or reference.suite.gate
    return hold_gate(stored, reference, gate_limits, any_machine=any_machine)


def _find_other_run(run: str | Path, first: str | Path, first_folder: Path, results: Path) -> Path:
    """The folder of a run, by default of the first run's suite. Raises UserError where it is the first run."""
    folder = find_run(run, results, first_folder.resolve().parent.name)
    if folder.resolve() == first_folder.resolve():
        both = str(first) if str(first) == str(run) else f"{first} and {run} are both {folder}"
        raise UserError(f"{both}: a run against itself shows nothing; name another one")
    return folder


def _read(folder: Path) -> StoredRun:
    stored = read_run(folder)
    require_records(folder)
    return stored


def _of_the_same_suite(run: ReadRun, reference: ReadRun) -> ReadRun:
    common = {option.name for option in run.suite.options} & {option.name for option in reference.suite.options}
    if not common:
        raise UserError(
            f"{run.name} and {reference.name} have no option in common: they answer different questions"
        )
    return run
