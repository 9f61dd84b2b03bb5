"""The stages of a run: which trials are still to be run, what follows from the records, and a budget of time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selectbench import units
from selectbench.analysis.family import DEFAULT_SPREAD, detectable
from selectbench.analysis.metrics import is_unclean
from selectbench.analysis.tuning import (
    settled_by_records,
    settled_sizes,
    speed_attempts,
    speed_candidates,
    tuning_attempts,
    tuning_candidates,
)
from selectbench.data.prepared import Prepared
from selectbench.errors import UserError
from selectbench.launch.preparation import Preparation
from selectbench.machine import Machine
from selectbench.plan.duration import History, past_trials, stage_costs
from selectbench.plan.plan import Plan, PlannedTrial, make_plan
from selectbench.record.environment import code_sha256
from selectbench.record.record import Completed, Failed, Record
from selectbench.record.store import FILE_NAME, read_records
from selectbench.suite.stages import speed_suite, tuning_suite
from selectbench.suite.suite import Suite, Values

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


# What a run does next: settings that make each option fastest, then those that make it best, then the contest.
#
# Each stage is a suite of its own, planned as any other. What was chosen follows from the records alone, so that a
# run that was cut off goes on where it was.


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


# The best use of a given time: rounds are cut, schedules never.


_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_GRAMMAR = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(d|h|min|m|s)\s*")


def budget_of(text: str) -> float:
    """Seconds of `2h`, `90min`, `45 s`. Raises UserError."""
    found = _GRAMMAR.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise UserError(f"--budget {text}: expected a time with its unit, such as 2h, 90min or 45s")
    return float(found[1]) * _UNITS[found[2]]


def within_budget(
    preparation: Preparation, seconds: float, results: Path, notify: Callable[[str], None]
) -> Preparation:
    """What is run within the time, told line by line. Raises UserError where not one round fits."""
    own = Ground.of_run(preparation)
    try:
        kept, told = within(seconds, own, past_trials(results / own.suite.name, own.machine))
    except UserError:
        preparation.claim.release()
        raise
    for line in told:
        notify(line)
    return replace(preparation, suite=kept.suite, plan=kept.plan)


def within(seconds: float, own: Ground, history: History) -> tuple[Ground, list[str]]:
    """The suite with as many rounds as fit, and what can be told with them. Raises UserError where not one fits."""
    costs = stage_costs([(title, stage.plan) for title, stage in stages(own, [])], own.machine, history)
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    planned = len(own.suite.seeds)
    if len(known) < len(costs):
        return own, ["--budget: how long trials take is not known here; run once with --quick, then ask again"]
    *_, contest = costs
    each = (known[-1] - contest.start_seconds) / planned
    before = math.fsum([*known[:-1], contest.start_seconds])
    rounds = min(planned, math.floor((seconds - before) / each)) if each else planned
    if rounds < 1:
        raise UserError(
            f"--budget: {units.duration(seconds)} is too short: one round takes about {units.duration(each)}"
            + (f" and what comes before {units.duration(before)}" if before else "")
            + "; a schedule is never cut: lower job.max_steps, or leave options out"
        )
    suite = _with_rounds(own.suite, rounds)
    expected = units.duration(before + rounds * each)
    head = f"--budget {units.duration(seconds)}: {rounds} of {planned} rounds, about {expected} in all"
    return own.of(suite), [head, told_with(own, rounds)]


def _with_rounds(suite: Suite, rounds: int) -> Suite:
    """The suite with its first rounds alone."""
    seeds = suite.seeds[:rounds]
    return suite.model_copy(update={"seeds": seeds, "resolved": {**suite.resolved, "seeds": seeds}})


def told_with(own: Ground, rounds: int) -> str:
    """Which differences so many rounds tell, and which not."""
    if rounds < 2:
        return "one round tells no verdict: there is no measure of spread, and figures are only shown"
    suite = own.suite
    able = sum(planned.unsupported is None for planned in own.plan.options)
    tests = max(1, (able - 1) + able * len(suite.decide.constraints))
    least = detectable(rounds, able, tests)
    return (
        f"{rounds} rounds tell differences from about {least:.1%} on (with a chance of 80 %, if a trial's figures "
        f"vary by {DEFAULT_SPREAD:.0%}, as speed does on an idle machine); smaller ones, and constraints nearer to "
        "their bound, will stay undecided"
    )
