"""What a run does next: settings that make each option fastest, then those that make it best, then the contest.

Each stage is a suite of its own, planned as any other. What was chosen follows from the records alone, so that a
run that was cut off goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selectbench.analysis.search import speed_attempts, speed_candidates, tuning_attempts, tuning_candidates
from selectbench.analysis.settled import settled_by_records, settled_sizes
from selectbench.data.prepared import Prepared
from selectbench.launch.attempts import pending
from selectbench.launch.preparation import Preparation
from selectbench.machine import Machine
from selectbench.plan.plan import Plan, PlannedTrial, make_plan
from selectbench.record.environment import code_sha256
from selectbench.record.record import Record
from selectbench.record.store import FILE_NAME, read_records
from selectbench.suite.search_space import Values
from selectbench.suite.stage import speed_suite, tuning_suite
from selectbench.suite.suite import Suite

CONTEST = "contest"
"""The title of the last stage."""


@dataclass(frozen=True)
class Ground:
    """What a stage is planned on, and its plan."""

    suite: Suite
    machine: Machine
    prepared: Mapping[str, Prepared] | None
    """By option; None: the data could not be prepared."""
    plan: Plan

    @classmethod
    def of_run(cls, preparation: Preparation) -> Ground:
        """Of a run that was prepared."""
        return cls(preparation.suite, preparation.machine, preparation.prepared, preparation.plan)

    def of(self, suite: Suite) -> Ground:
        """The same for the suite of a stage."""
        prepared = self.prepared and {o.name: self.prepared[o.tunes or o.name] for o in suite.options}
        return Ground(suite, self.machine, prepared, make_plan(suite, self.machine, prepared, code_sha256()))


@dataclass(frozen=True)
class Stage:
    """Trials that can be run now, with what they are launched from."""

    title: str
    preparation: Preparation
    trials: list[tuple[PlannedTrial, int]]
    """In order, each with the number of its attempt."""
    done: int
    """Trials of the stage that have an outcome."""


def next_stage(
    preparation: Preparation, folder: Path, *, retry_failed: bool, ended: frozenset[str] = frozenset()
) -> Stage | None:
    """The first stage with trials to run; None: the run is complete.

    `ended`: ids of trials that this process has run; one that failed is not tried again at once.
    """
    records, _ = read_records(folder / FILE_NAME)
    own = Ground.of_run(preparation)
    for title, stage in stages(own, records):
        found = pending(stage.plan.trials, stage.suite, folder, retry_failed=retry_failed)
        still_open = [(trial, attempt) for trial, attempt in found if trial.trial.trial_id not in ended]
        if still_open:
            prepared = stage.prepared or {}
            own_part = replace(preparation, suite=stage.suite, prepared=prepared, plan=stage.plan)
            return Stage(title, own_part, still_open, len(stage.plan.trials) - len(still_open))
    return None


def stages(own: Ground, records: Sequence[Record]) -> list[tuple[str, Ground]]:
    """Every stage as far as the records tell it, with its title; `own`: the suite as its file declares it."""
    found = [("micro-batch size", _for_speed(own, records)), ("tuning", _for_quality(own, records))]
    settled = settled_by_records(own.suite, records)
    contest = own if settled is own.suite else own.of(settled)
    return [*((title, own.of(suite)) for title, suite in found if suite is not None), (CONTEST, contest)]


def _for_speed(own: Ground, records: Sequence[Record]) -> Suite | None:
    suite = own.suite
    if suite.best_of is None:
        return None
    ranks = {planned.option.name: planned.world_size for planned in own.plan.options}
    return _of_candidates(own, suite, speed_candidates(suite, ranks, speed_attempts(suite, records)), speed_suite)


def _for_quality(own: Ground, records: Sequence[Record]) -> Suite | None:
    if own.suite.tune is None:
        return None
    suite = settled_sizes(own.suite, records)
    return _of_candidates(own, suite, tuning_candidates(suite, tuning_attempts(suite, records)), tuning_suite)


def _of_candidates(
    own: Ground, suite: Suite, tried: Mapping[str, Sequence[Values]],
    make: Callable[[Suite, Mapping[str, Sequence[Values]]], Suite],
) -> Suite | None:  # fmt: skip
    """Without options that this machine can't run: the contest says so."""
    runnable = {name: v for name, v in tried.items() if v and not own.plan.planned(name).unsupported}
    return make(suite, runnable) if runnable else None
