"""Run folders side by side: read, compared, gated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selectbench.analysis.compared import Compared, ReadRun, compare
from selectbench.analysis.gate import Gate, hold_gate
from selectbench.errors import ExitCode, UserError
from selectbench.launch.publish import read_run
from selectbench.record.store import require_records

GATE_EXIT = {
    "pass": ExitCode.OK, "regression": ExitCode.REGRESSION, "inconclusive": ExitCode.INCONCLUSIVE,
}  # fmt: skip
"""The process's status by the gate's verdict."""


def compare_runs(reference: Path, runs: Sequence[Path]) -> list[Compared]:
    """Each of the runs against the reference. Raises UserError for a folder that is none, or of another suite."""
    first = _read(reference)
    return [compare(_of_the_same_suite(_read(run), first), first) for run in runs]


def gate_run(run: Path, against: Path, limits: Sequence[str], *, any_machine: bool) -> Gate:
    """The limits given, else those of the run's suite, else of the reference's. Raises UserError for wrong use."""
    ours, reference = _read(run), _read(against)
    if run.resolve() == against.resolve():
        raise UserError(f"{run}: a run against itself shows nothing; name the reference with --against")
    _of_the_same_suite(ours, reference)
    return hold_gate(ours, reference, limits or ours.suite.gate or reference.suite.gate, any_machine=any_machine)


def _read(folder: Path) -> ReadRun:
    stored = read_run(folder)
    require_records(folder)
    return ReadRun(str(folder), stored.suite, stored.records, stored.environment, stored.notes)


def _of_the_same_suite(run: ReadRun, reference: ReadRun) -> ReadRun:
    common = {option.name for option in run.suite.options} & {option.name for option in reference.suite.options}
    if not common:
        raise UserError(
            f"{run.name} and {reference.name} have no option in common: they answer different questions"
        )
    return run
