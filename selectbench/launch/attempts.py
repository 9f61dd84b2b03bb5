"""Which trials are still to be run, and which a second time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selectbench.analysis.gpu_state import is_unclean
from selectbench.plan.plan import PlannedTrial
from selectbench.record.record import Completed, Failed, Record
from selectbench.record.store import FILE_NAME, read_records
from selectbench.suite.suite import Suite

STATE_MAY_MATTER = ("oom", "timeout", "crashed")
"""Failures that a busy or hot GPU may have caused; what diverged or can't be had here stays so."""


def pending(
    trials: Sequence[PlannedTrial], suite: Suite, folder: Path, *, retry_failed: bool
) -> list[tuple[PlannedTrial, int]]:
    """The trials to run, in order, each with the number of its attempt."""
    records, _ = read_records(folder / FILE_NAME)
    attempts: dict[str, list[Record]] = {}
    for record in records:
        attempts.setdefault(record.trial.trial_id, []).append(record)
    found = []
    for planned in trials:
        before = attempts.get(planned.trial.trial_id, [])
        if _is_open(before, suite, retry_failed=retry_failed):
            found.append((planned, before[-1].attempt + 1 if before else 1))
    return found


def _is_open(attempts: Sequence[Record], suite: Suite, *, retry_failed: bool) -> bool:
    if not attempts or is_rerun_due(attempts, suite):
        return True
    outcome = attempts[-1].outcome
    if isinstance(outcome, Completed):
        return False
    return outcome.kind == "interrupted" or (retry_failed and outcome.kind != "unsupported")


def is_rerun_due(attempts: Sequence[Record], suite: Suite) -> bool:
    """Whether the trial's last attempt, the first such, had GPUs that were throttled or shared.

    `attempts`: all of one trial, in order. Always False where the suite does not ask for it.
    """
    if not suite.meters.rerun_unclean or not _matters(attempts[-1]):
        return False
    return sum(_matters(record) for record in attempts) == 1


def _matters(record: Record) -> bool:
    outcome = record.outcome
    fits = outcome.kind in STATE_MAY_MATTER if isinstance(outcome, Failed) else True
    return fits and is_unclean(record)
