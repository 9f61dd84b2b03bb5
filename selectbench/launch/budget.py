"""The best use of a given time: rounds are cut, schedules never."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from selectbench import units
from selectbench.analysis.family import DEFAULT_SPREAD, detectable
from selectbench.errors import UserError
from selectbench.launch.preparation import Preparation
from selectbench.launch.stages import Ground, stages
from selectbench.plan.estimate import stage_costs
from selectbench.plan.history import History, past_trials
from selectbench.suite.suite import Suite

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
