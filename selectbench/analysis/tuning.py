"""What the trials before the contest found: micro-batch sizes, tuned settings, and how each option was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from selectbench.analysis.formulas import finite, observe, peak_memory_bytes, tokens_per_second
from selectbench.analysis.metrics import FORMULAS, Number, Shown
from selectbench.analysis.summary import mean, standard_deviation
from selectbench.record.record import Completed, Failed, FailureKind, Measurement, Record
from selectbench.suite.job import Job
from selectbench.suite.metrics import METRICS
from selectbench.suite.stages import (
    Axis,
    axes_of,
    between,
    beyond,
    first_values,
    settled,
    sizes_to_try,
    speed_job,
    tuned_options,
    tuning_job,
    with_values,
)
from selectbench.suite.suite import MICRO_BATCH_SIZE, Option, Suite, Tune, Values

# What tuning and the search for the fastest found: pure functions on the records of trials before the contest.
#
# The grid of one setting is extended where the best value lies on its edge, up to EXTENSIONS times; whenever any
# option's is, every other option gets one more value too, between its best and the better neighbour of that, so
# that all are tried equally often. What has failed or diverged is never best.


EXTENSIONS = 3
"""Most values beyond a grid's edge."""


@dataclass(frozen=True)
class Attempt:
    """One setting that was tried."""

    values: Values
    value: float | None
    """Of what is searched by; None: it failed, or the figure is not known."""
    record: Record

    @property
    def failed(self) -> Failed | None:
        """How it failed, or None."""
        return self.record.outcome if isinstance(self.record.outcome, Failed) else None


Key = tuple[tuple[str, int | float], ...]
Attempts = Mapping[str, Mapping[Key, Attempt]]
"""By option and values."""


def key_of(values: Values) -> Key:
    """Values as a key."""
    return tuple(sorted(values.items()))


def speed_attempts(suite: Suite, records: Sequence[Record]) -> Attempts:
    """Trials of speed, by tokens per second."""
    return _attempts(suite, [r for r in records if set(r.trial.tried) == {MICRO_BATCH_SIZE}], "tokens_per_second")


def tuning_attempts(suite: Suite, records: Sequence[Record]) -> Attempts:
    """Trials of quality, by the tuning's metric."""
    if suite.tune is None:
        return {}
    found = [r for r in records if r.trial.tried and set(r.trial.tried) <= set(suite.tune.parameters)]
    return _attempts(suite, found, suite.tune.metric)


def _attempts(suite: Suite, records: Sequence[Record], metric: str) -> Attempts:
    names = {option.name for option in suite.options}
    found: dict[str, dict[Key, Attempt]] = {}
    for record in records:
        if record.phase == "tune" and record.trial.tunes in names and not _was_interrupted(record):
            value = None
            if isinstance(record.outcome, Completed):
                value = finite(FORMULAS[metric], observe(record, suite))
            attempt = Attempt(dict(record.trial.tried), value, record)
            found.setdefault(record.trial.tunes, {})[key_of(record.trial.tried)] = attempt
    return found


def _was_interrupted(record: Record) -> bool:
    """Such a trial is run again, and says nothing."""
    return isinstance(record.outcome, Failed) and record.outcome.kind == "interrupted"


def fastest(attempts: Mapping[Key, Attempt]) -> Attempt | None:
    """The fastest that fits; of equals the one of the smaller size. None: none does."""
    known = [attempt for _, attempt in sorted(attempts.items()) if attempt.value is not None]
    return max(known, key=lambda a: a.value or 0.0, default=None)


def best(tune: Tune, attempts: Sequence[Attempt]) -> Attempt | None:
    """The best by the tuning's metric; None: all failed."""
    sign = -1.0 if METRICS[tune.metric].better == "more" else 1.0
    known = [a for a in attempts if a.value is not None]
    return min(known, key=lambda a: sign * (a.value or 0.0), default=None)


def speed_candidates(suite: Suite, ranks: Mapping[str, int], attempts: Attempts) -> dict[str, list[Values]]:
    """Sizes to try for each option; none above one that ran out of memory."""
    assert suite.best_of is not None
    found: dict[str, list[Values]] = {}
    for option in tuned_options(suite):
        own = attempts.get(option.name, {})
        too_large = [
            a.values[MICRO_BATCH_SIZE] for a in own.values() if a.failed is not None and a.failed.kind == "oom"
        ]
        sizes = sizes_to_try(suite.best_of, suite.job.of(option.choices), ranks[option.name])
        found[option.name] = [{MICRO_BATCH_SIZE: s} for s in sizes if not too_large or s <= min(too_large)]
    return found


def tuning_candidates(suite: Suite, attempts: Attempts) -> dict[str, list[Values]]:
    """Settings to try for each option, those that were tried already among them."""
    assert suite.tune is not None
    options = {option.name: option for option in tuned_options(suite)}
    axes = {name: axes_of(suite.tune, option.choices) for name, option in options.items()}
    tried = {name: first_values(suite.tune, axes[name]) for name in options}
    if len(suite.tune.parameters) > 1:
        return tried
    for _ in range(EXTENSIONS):
        more = _one_more(suite.tune, options, axes, tried, attempts)
        if more is None:
            return tried
        for name, values in more.items():
            tried[name] = [*tried[name], values]
    return tried


def _one_more(
    tune: Tune, options: Mapping[str, Option], axes: Mapping[str, Sequence[Axis]],
    tried: Mapping[str, Sequence[Values]], attempts: Attempts,
) -> dict[str, Values] | None:  # fmt: skip
    """One more for each option; None: some have no outcome yet, or no option's best lies on an edge."""
    own = {name: [attempts.get(name, {}).get(key_of(values)) for values in every] for name, every in tried.items()}
    if any(attempt is None for every in own.values() for attempt in every):
        return None
    known = {name: [a for a in every if a is not None] for name, every in own.items()}
    past = {name: _past_the_edge(tune, axes[name][0], known[name], options[name]) for name in tried}
    if not any(past.values()):
        return None
    found = {name: past[name] or _in_between(tune, axes[name][0], known[name]) for name in tried}
    return {name: values for name, values in found.items() if values is not None}


def edge(tune: Tune, axis: Axis, attempts: Sequence[Attempt]) -> Literal["low", "high"] | None:
    """Where no value was tried beyond the best's; `low` where all failed."""
    found = best(tune, attempts)
    if found is None:
        return "low"
    place, tried = found.values[axis.path], [a.values[axis.path] for a in attempts]
    return "low" if place == min(tried) else "high" if place == max(tried) else None


def _past_the_edge(tune: Tune, axis: Axis, attempts: Sequence[Attempt], option: Option) -> Values | None:
    if _never_ran(attempts) or (side := edge(tune, axis, attempts)) is None:
        return None
    values = {axis.path: beyond(axis, [a.values[axis.path] for a in attempts], upwards=side == "high")}
    return values if with_values(option.choices, values) is not None else None


def _never_ran(attempts: Sequence[Attempt]) -> bool:
    """Whether the option can't be had here, whatever its settings."""
    return all(a.failed is not None and a.failed.kind != "diverged" for a in attempts)


def _in_between(tune: Tune, axis: Axis, attempts: Sequence[Attempt]) -> Values | None:
    """Between the best and the better of its neighbours."""
    found = best(tune, attempts)
    if found is None or _never_ran(attempts):
        return None
    ordered = sorted(attempts, key=lambda a: a.values[axis.path])
    place = ordered.index(found)
    beside = [ordered[i] for i in (place - 1, place + 1) if 0 <= i < len(ordered)]
    other = best(tune, beside) or beside[0]
    return {axis.path: between(axis, found.values[axis.path], other.values[axis.path])}


def chosen_sizes(attempts: Attempts) -> dict[str, Values]:
    """The fastest of each option that has one."""
    found = {name: fastest(own) for name, own in attempts.items()}
    return {name: attempt.values for name, attempt in found.items() if attempt is not None}


def chosen_values(suite: Suite, attempts: Attempts) -> dict[str, Values]:
    """The best of each option that has one."""
    if suite.tune is None:
        return {}
    found = {name: best(suite.tune, list(own.values())) for name, own in attempts.items()}
    return {name: attempt.values for name, attempt in found.items() if attempt is not None}


# The suite as its contest runs it: every option with what the trials before found best for it.


def settled_sizes(suite: Suite, records: Sequence[Record]) -> Suite:
    """With the fastest micro-batch sizes; the very suite where nothing was searched."""
    chosen = chosen_sizes(speed_attempts(suite, records)) if suite.best_of else {}
    return settled(suite, chosen) if chosen else suite


def settled_by_records(suite: Suite, records: Sequence[Record]) -> Suite:
    """With all that was found; an option for which nothing worked keeps what the suite gives it."""
    sized = settled_sizes(suite, records)
    chosen = chosen_values(sized, tuning_attempts(sized, records))
    return settled(sized, chosen) if chosen else sized


# Whether a trial of speed is as fast as the fastest, as far as one short trial of each can tell.


SHARE = 0.02
"""Of the fastest's speed: no smaller difference is told apart, however even the steps were."""
ERRORS = 2.0
"""Standard errors of the difference within which it is chance, as in a 95 % interval."""
EQUAL_SPEED_RULE = (
    "As fast: as far as one short trial can tell. Such a size lies within "
    f"{SHARE:.0%} of the fastest, or within {ERRORS:g} standard errors of the difference by the spread of the step "
    "times where that is more; trials can differ by more, as steps do not show what changes from one trial to the "
    "next. The size that was fastest is taken all the same."
)


def is_as_fast(trial: Measurement, fastest: Measurement) -> bool:
    """Whether their speeds, in tokens per second, lie within what one trial of each leaves open.

    The standard error is that of the difference of two mean step times whose spreads need not be equal (Welch
    1947, Biometrika 34), each as a share of its mean: the least that chance does. In the kept runs of `results/`,
    on CPU cores, two trials of one option, of 27 to 477 timed steps, were as fast by this rule in 130 of 229 pairs;
    by the 2 % alone in 80.
    """
    speeds = tokens_per_second(trial), tokens_per_second(fastest)
    if speeds[0] is None or not speeds[1]:
        return False
    error = math.sqrt(_relative_error(trial) ** 2 + _relative_error(fastest) ** 2)
    return 1 - speeds[0] / speeds[1] <= max(SHARE, ERRORS * error)


def _relative_error(m: Measurement) -> float:
    """Of the mean step time, as a share of it; 0 where fewer than two steps are known."""
    spread, centre = standard_deviation(m.step_seconds), mean(m.step_seconds)
    return spread / centre / math.sqrt(m.timed_steps) if spread and centre else 0.0


# How each option came to its own best, as ranking.json says it. Every key is documented here.


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
