"""What a run does next: settings that make each option fastest, then those that make it best, then the contest.

Each stage is a suite of its own, planned as any other. What was chosen follows from the records alone, so that a
run that was cut off goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selectbench.analysis.search import (
    speed_attempts,
    speed_candidates,
    tuning_attempts,
    tuning_candidates,
)
from selectbench.analysis.settled import settled_by_records, settled_sizes
from selectbench.data.prepare import Prepared
from selectbench.launch.attempts import pending
from selectbench.launch.preparation import Preparation
from selectbench.plan.plan import PlannedTrial, make_plan
from selectbench.record.environment import code_sha256
from selectbench.record.record import Record
from selectbench.record.store import FILE_NAME, read_records
from selectbench.suite.search_space import Values
from selectbench.suite.stage import speed_suite, tuning_suite
from selectbench.suite.suite import Suite

CONTEST = "contest"
"""The title of the last stage."""


@dataclass(frozen=True)
class Stage:
    """Trials that can be run now, with what they are launched from."""

    title: str
    preparation: Preparation
    trials: list[tuple[PlannedTrial, int]]
    """In order, each with the number of its attempt."""


def next_stage(
    preparation: Preparation, folder: Path, *, retry_failed: bool, ended: frozenset[str] = frozenset()
) -> Stage | None:
    """The first stage with trials to run; None: the run is complete.

    `ended`: ids of trials that this process has run; one that failed is not tried again at once.
    """
    records, _ = read_records(folder / FILE_NAME)
    for title, planned in _STAGES:
        stage = planned(preparation, records)
        if stage is None:
            continue
        found = pending(stage.plan.trials, stage.suite, folder, retry_failed=retry_failed)
        still_open = [(trial, attempt) for trial, attempt in found if trial.trial.trial_id not in ended]
        if still_open:
            return Stage(title, stage, still_open)
    return None


def _for_speed(preparation: Preparation, records: Sequence[Record]) -> Preparation | None:
    suite = preparation.suite
    if suite.best_of is None:
        return None
    ranks = {planned.option.name: planned.world_size for planned in preparation.plan.options}
    tried = speed_candidates(suite, ranks, speed_attempts(suite, records))
    return _of(preparation, speed_suite, suite, _that_can_run(preparation, tried))


def _for_quality(preparation: Preparation, records: Sequence[Record]) -> Preparation | None:
    if preparation.suite.tune is None:
        return None
    suite = settled_sizes(preparation.suite, records)
    tried = tuning_candidates(suite, tuning_attempts(suite, records))
    return _of(preparation, tuning_suite, suite, _that_can_run(preparation, tried))


def _contest(preparation: Preparation, records: Sequence[Record]) -> Preparation:
    suite = settled_by_records(preparation.suite, records)
    return preparation if suite is preparation.suite else _planned(preparation, suite, preparation.prepared)


_STAGES: tuple[tuple[str, Callable[[Preparation, Sequence[Record]], Preparation | None]], ...] = (
    ("micro-batch size", _for_speed), ("tuning", _for_quality), (CONTEST, _contest),
)  # fmt: skip


def _that_can_run(preparation: Preparation, tried: Mapping[str, list[Values]]) -> dict[str, list[Values]]:
    """Without options that this machine can't run: the contest says so."""
    return {
        name: values for name, values in tried.items() if values and not preparation.plan.planned(name).unsupported
    }


def _of(
    preparation: Preparation, make: Callable[[Suite, Mapping[str, Sequence[Values]]], Suite], suite: Suite,
    tried: Mapping[str, list[Values]],
) -> Preparation | None:  # fmt: skip
    if not tried:
        return None
    stage = make(suite, tried)
    prepared = {option.name: preparation.prepared[option.tunes or ""] for option in stage.options}
    return _planned(preparation, stage, prepared)


def _planned(preparation: Preparation, suite: Suite, prepared: Mapping[str, Prepared]) -> Preparation:
    plan = make_plan(suite, preparation.machine, prepared, code_sha256())
    return replace(preparation, suite=suite, prepared=prepared, plan=plan)
