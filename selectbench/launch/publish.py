"""From a run folder's records alone to its ranking.json and report.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selectbench.analysis.ranking import Ranking, rank
from selectbench.errors import UserError
from selectbench.launch.preparation import read_json
from selectbench.plan.plan import suite_warnings
from selectbench.record.record import Record
from selectbench.record.run_folder import ENVIRONMENT, RANKING, REPORT, SUITE, write_whole
from selectbench.record.store import FILE_NAME, read_records
from selectbench.report.markdown import render
from selectbench.suite.load import load_suite
from selectbench.suite.suite import Suite

COMMAND = "selectbench run suite.yaml"
"""What repeats a run, typed in its folder."""


@dataclass(frozen=True)
class StoredRun:
    """What a run folder holds."""

    suite: Suite
    records: list[Record]
    environment: dict[str, Any]
    notes: list[str]
    """A line about each line of the records that could not be used as it stands."""

    def ranking(self) -> Ranking:
        """The answer, computed anew."""
        passes = self.environment.get("data", {}).get("epochs")
        limits = (self.environment.get(key) for key in ("cores_by_affinity", "cores_by_cgroup"))
        cores = min((float(limit) for limit in limits if limit is not None), default=None)
        warnings = suite_warnings(self.suite, passes, cores)
        return rank(self.suite, self.records, warnings=[*warnings, *self.notes])


def read_run(folder: Path) -> StoredRun:
    """Read a run folder; the current machine doesn't matter. Raises UserError."""
    if not (folder / SUITE).is_file():
        raise UserError(f"{folder}: not a run folder: it has no {SUITE} (see `selectbench run --help`)")
    environment = read_json(folder / ENVIRONMENT)
    records, notes = read_records(folder / FILE_NAME)
    suite = load_suite(str(folder / SUITE), device="cpu", require_files=False)
    return StoredRun(suite, records, environment, notes)


def publish(folder: Path, stored: StoredRun) -> Ranking:
    """Write ranking.json and report.md of a run that was read. Raises UserError where they can't be."""
    ranking = stored.ranking()
    report = render(stored.suite, ranking, stored.records, stored.environment, COMMAND)
    try:
        write_whole(folder / RANKING, ranking_text(ranking))
        write_whole(folder / REPORT, report)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the report: {error.strerror}; the records are kept") from None
    return ranking


def ranking_text(ranking: Ranking) -> str:
    """ranking.json."""
    return json.dumps(ranking.model_dump(mode="json"), indent=2) + "\n"
