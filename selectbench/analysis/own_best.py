"""How each option came to its own best, as ranking.json says it. Every key is documented here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from selectbench.analysis.as_fast import is_as_fast
from selectbench.analysis.formulas import peak_memory_bytes
from selectbench.analysis.search import (
    Attempt,
    Attempts,
    Key,
    best,
    edge,
    fastest,
    speed_attempts,
    tuning_attempts,
)
from selectbench.analysis.shown import Number, Shown
from selectbench.record.record import Completed, FailureKind, Record
from selectbench.suite.job import Job
from selectbench.suite.metrics import METRICS
from selectbench.suite.search_space import Axis, axes_of, with_values
from selectbench.suite.stage import MICRO_BATCH_SIZE, speed_job, tuned_options, tuning_job
from selectbench.suite.suite import Option, Suite
from selectbench.suite.tune import Tune

FLAT = 0.01
"""Share of the best within which a value is as good."""

JUST = 0.01
"""Share of a range by which a value lies just beyond it."""


class Tried(Shown):
    """One setting and what came of it."""

    values: dict[str, int | float]
    """By path."""
    value: Number | None
    """Of the metric that is searched by; None: it failed."""
    peak_memory_bytes: Number | None
    """Of the trial; None: not known."""
    outcome: Literal["completed"] | FailureKind
    """How the trial ended."""
    chosen: bool
    """Whether the contest takes it."""
    as_fast: bool
    """Of a trial of speed that was not chosen: whether it is as fast, as far as one short trial can tell."""


class OwnBest(Shown):
    """One option's search."""

    option: str
    metric: str
    """What is searched by."""
    tried: list[Tried]
    """In the order of the values."""
    chosen: dict[str, int | float] | None
    """What the contest takes; None: nothing worked, it takes what the suite says."""
    extensions: int
    """Values beyond, or between, those that were planned first."""
    edges: dict[str, Literal["low", "high"]]
    """By path, the end of what was tried that the best lies on even so, where the setting goes on beyond it."""
    together: bool
    """Whether several settings were looked for together, whose ranges are not extended."""
    flat_low: Number | None
    """Lower end of the values within 1 % of the best, in straight lines between those tried; None: of several
    settings at once."""
    flat_high: Number | None
    """Its upper end."""
    flat_is_open: bool
    """Whether it reaches an end of what was tried: it may be wider."""
    source: str | None
    """Where the range comes from; None: the suite."""
    trials: int
    tokens: int
    """That all the trials were to train on."""
    wall_seconds: Number
    """Of all its trials."""


class Search(Shown):
    """Everything before the contest, and what it cost."""

    sizes: list[OwnBest]
    """The fastest micro-batch size of each option; empty: not searched."""
    tuning: list[OwnBest]
    """The best settings of each option; empty: not tuned."""
    seed: int | None
    """Of tuning, which the contest does not use; None: not tuned."""
    wall_seconds: Number
    """Of all trials before the contest."""
    contest_wall_seconds: Number
    """Of all trials of the contest."""


def search(declared: Suite, sized: Suite, records: Sequence[Record]) -> Search | None:
    """Of a suite as declared; `sized`: the same with the chosen micro-batch sizes. None: nothing was searched."""
    if declared.tune is None and declared.best_of is None:
        return None
    before = [r.wall_seconds for r in records if r.phase == "tune"]
    contest = [r.wall_seconds for r in records if r.phase == "contest"]
    return Search(
        sizes=_sizes(declared, speed_attempts(declared, records)) if declared.best_of else [],
        tuning=_tuning(sized, tuning_attempts(sized, records)) if declared.tune else [],
        seed=declared.tune.seed if declared.tune else None,
        wall_seconds=math.fsum(before), contest_wall_seconds=math.fsum(contest),
    )  # fmt: skip


def _sizes(suite: Suite, attempts: Attempts) -> list[OwnBest]:
    return [_sized(suite, option, attempts.get(option.name, {})) for option in tuned_options(suite)]


def _sized(suite: Suite, option: Option, attempts: Mapping[Key, Attempt]) -> OwnBest:
    own, chosen = _ordered(attempts), fastest(attempts)
    side = _end_of(own, chosen, suite.job.of(option.choices))
    return _own_best(
        option, "tokens_per_second", own, chosen, speed_job(suite),
        edges={MICRO_BATCH_SIZE: side} if side else {},
    )  # fmt: skip


def _tuning(suite: Suite, attempts: Attempts) -> list[OwnBest]:
    assert suite.tune is not None
    return [
        _tuned(suite, suite.tune, option, _ordered(attempts.get(option.name, {})))
        for option in tuned_options(suite)
    ]


def _tuned(suite: Suite, tune: Tune, option: Option, own: list[Attempt]) -> OwnBest:
    axes = axes_of(tune, option.choices)
    alone = axes[0] if len(axes) == 1 and len(own) > 1 else None
    low, high, is_open = flat_range(tune, alone, own) if alone else (None, None, False)
    from_class = [a for a in axes if tune.parameters[a.path].log is None and tune.parameters[a.path].linear is None]
    return _own_best(
        option, tune.metric, own, best(tune, own), tuning_job(suite),
        extensions=max(0, len(own) - tune.first_trials), edges=_edges(tune, axes, own, option),
        together=len(tune.parameters) > 1, flat_low=low, flat_high=high, flat_is_open=is_open,
        source=option.choices.optimizer.lr_range_source if from_class else None,
    )  # fmt: skip


def _own_best(
    option: Option, metric: str, own: list[Attempt], chosen: Attempt | None, job: Job, *, extensions: int = 0,
    edges: dict[str, Literal["low", "high"]], together: bool = False, flat_low: float | None = None,
    flat_high: float | None = None, flat_is_open: bool = False, source: str | None = None,
) -> OwnBest:  # fmt: skip
    """`own`: what was tried, in the order of the values; `job`: that of the stage."""
    does = job.of(option.choices)
    return OwnBest(
        option=option.name, metric=metric, tried=[_tried(attempt, chosen) for attempt in own],
        chosen=chosen.values if chosen else None, extensions=extensions, edges=edges, together=together,
        flat_low=flat_low, flat_high=flat_high, flat_is_open=flat_is_open, source=source, trials=len(own),
        tokens=len(own) * does.max_steps * does.tokens_per_step,
        wall_seconds=math.fsum(attempt.record.wall_seconds for attempt in own),
    )  # fmt: skip


def _edges(
    tune: Tune, axes: Sequence[Axis], own: Sequence[Attempt], option: Option
) -> dict[str, Literal["low", "high"]]:
    """Of settings with values beyond: a share of 0 has none below it."""
    if best(tune, own) is None or len(own) < 2:
        return {}
    sides = {axis: edge(tune, axis, own) for axis in axes}
    past = {axis: axis.at(1 + JUST if side == "high" else -JUST) for axis, side in sides.items()}
    return {
        axis.path: side for axis, side in sides.items()
        if side is not None and with_values(option.choices, {axis.path: past[axis]}) is not None
    }  # fmt: skip


def _ordered(attempts: Mapping[Key, Attempt]) -> list[Attempt]:
    return [attempts[key] for key in sorted(attempts)]


def _tried(attempt: Attempt, chosen: Attempt | None) -> Tried:
    outcome = attempt.record.outcome
    done = isinstance(outcome, Completed)
    return Tried(
        values=attempt.values, value=attempt.value, chosen=attempt is chosen,
        outcome="completed" if isinstance(outcome, Completed) else outcome.kind,
        as_fast=attempt is not chosen and _is_as_fast(attempt, chosen),
        peak_memory_bytes=peak_memory_bytes(outcome.measurement) if done else None,  # type: ignore[union-attr]
    )  # fmt: skip


def _is_as_fast(attempt: Attempt, fastest: Attempt | None) -> bool:
    if fastest is None or set(attempt.values) != {MICRO_BATCH_SIZE}:
        return False
    ours, theirs = attempt.record.outcome, fastest.record.outcome
    if not isinstance(ours, Completed) or not isinstance(theirs, Completed):
        return False
    return is_as_fast(ours.measurement, theirs.measurement)


def _end_of(own: Sequence[Attempt], chosen: Attempt | None, job: Job) -> Literal["high"] | None:
    """`high` where the largest was the fastest and one twice as large would cut the step too."""
    if chosen is None or chosen is not own[-1]:
        return None
    ranks = chosen.record.identity.world_size if chosen.record.identity else 1
    return None if job.global_batch_size % (2 * int(chosen.values[MICRO_BATCH_SIZE]) * ranks) else "high"


def flat_range(tune: Tune, axis: Axis, own: Sequence[Attempt]) -> tuple[float | None, float | None, bool]:
    """The values around the best whose figure is within FLAT of it, and whether that reaches an end.

    Between two that were tried the figure is taken to change in a straight line over the axis's scale; a value that
    failed ends the range at the one before it.
    """
    chosen = best(tune, own)
    if chosen is None or chosen.value is None:
        return None, None, False
    sign = -1.0 if METRICS[tune.metric].better == "more" else 1.0
    bound = sign * chosen.value + FLAT * abs(chosen.value)
    place = own.index(chosen)
    down, low_open = _reach(axis, own[: place + 1][::-1], sign, bound)
    up, high_open = _reach(axis, own[place:], sign, bound)
    return down, up, low_open or high_open


def _reach(axis: Axis, path: Sequence[Attempt], sign: float, bound: float) -> tuple[float, bool]:
    """How far along the path from the best the figure stays within the bound, and whether the path ends first."""
    here = path[0]
    for following in path[1:]:
        if following.value is None:
            return here.values[axis.path], False
        assert here.value is not None
        before, after = sign * here.value, sign * following.value
        if after > bound:
            ends = [axis.share(attempt.values[axis.path]) for attempt in (here, following)]
            return axis.at(ends[0] + (bound - before) / (after - before) * (ends[1] - ends[0])), False
        here = following
    return here.values[axis.path], True
