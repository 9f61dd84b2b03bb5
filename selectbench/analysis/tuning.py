"""What the trials before the contest found: micro-batch sizes, tuned settings, and how each option was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selectbench.analysis.metrics import FORMULAS, finite, observe, peak_memory_bytes
from selectbench.analysis.result import OwnBest, Search, Tried
from selectbench.record.record import Completed, Failed, Record, has_ended
from selectbench.suite import stages
from selectbench.suite.job import Job
from selectbench.suite.metrics import METRICS
from selectbench.suite.suite import MICRO_BATCH_SIZE, AnyJob, Option, Suite, Tune, Values

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
    def failure(self) -> str | None:
        """How it failed, or None."""
        return self.record.outcome.kind if isinstance(self.record.outcome, Failed) else None


SPEED = "tokens_per_second"
Key = tuple[tuple[str, int | float], ...]
Attempts = Mapping[str, Mapping[Key, Attempt]]
"""By option and values."""


def _key(values: Values) -> Key:
    return tuple(sorted(values.items()))


def speed_attempts(suite: Suite, records: Sequence[Record]) -> Attempts:
    """Trials of speed, by tokens per second."""
    return _attempts(suite, [r for r in records if set(r.trial.tried) == {MICRO_BATCH_SIZE}], SPEED)


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
        if record.phase != "tune" or record.trial.tunes not in names or not has_ended(record.outcome):
            continue
        completed = isinstance(record.outcome, Completed)
        value = finite(FORMULAS[metric], observe(record, suite)) if completed else None
        attempt = Attempt(dict(record.trial.tried), value, record)
        found.setdefault(record.trial.tunes, {})[_key(record.trial.tried)] = attempt
    return found


def best(metric: str, attempts: Iterable[Attempt]) -> Attempt | None:
    """The best by it, of equals the first; None: all failed, or do not tell it."""
    known = [attempt for attempt in attempts if attempt.value is not None]
    return min(known, key=lambda attempt: _sign(metric) * (attempt.value or 0.0), default=None)


def _sign(metric: str) -> float:
    """Times which less of a value is better."""
    return -1.0 if METRICS[metric].better == "more" else 1.0


def speed_candidates(suite: Suite, ranks: Mapping[str, int], attempts: Attempts) -> dict[str, list[Values]]:
    """Sizes to try for each option; none above one that ran out of memory."""
    assert suite.best_of is not None
    found: dict[str, list[Values]] = {}
    for option in suite.asked_options:
        own = attempts.get(option.name, {}).values()
        too_large = [attempt.values[MICRO_BATCH_SIZE] for attempt in own if attempt.failure == "oom"]
        sizes = stages.sizes_to_try(suite.best_of, suite.job_of(option), ranks[option.name])
        found[option.name] = [{MICRO_BATCH_SIZE: s} for s in sizes if not too_large or s <= min(too_large)]
    return found


def tuning_candidates(suite: Suite, attempts: Attempts) -> dict[str, list[Values]]:
    """Settings to try for each option, those that were tried already among them."""
    assert suite.tune is not None
    options = {option.name: option for option in suite.asked_options}
    axes = {name: stages.axes_of(suite.tune, option.choices) for name, option in options.items()}
    tried = {name: stages.first_values(suite.tune, axes[name]) for name in options}
    if len(suite.tune.parameters) > 1:
        return tried
    for _ in range(EXTENSIONS):
        own = {
            name: [attempts.get(name, {}).get(_key(values)) for values in every] for name, every in tried.items()
        }
        if any(None in every for every in own.values()):
            break  # some have no outcome yet
        known = {name: [a for a in every if a is not None] for name, every in own.items()}
        # What can't be had here, whatever its settings, is tried no more.
        able = [name for name in tried if any(a.failure in (None, "diverged") for a in known[name])]
        past = {name: _past_the_edge(suite.tune, axes[name][0], known[name], options[name]) for name in able}
        if not any(past.values()):
            break  # no option's best lies on an edge
        more = {name: past[name] or _in_between(suite.tune, axes[name][0], known[name]) for name in able}
        tried |= {name: [*tried[name], values] for name, values in more.items() if values is not None}
    return tried


def edge(tune: Tune, axis: stages.Axis, attempts: Sequence[Attempt]) -> Literal["low", "high"] | None:
    """Where no value was tried beyond the best's; `low` where all failed."""
    found = best(tune.metric, attempts)
    if found is None:
        return "low"
    place, tried = found.values[axis.path], [a.values[axis.path] for a in attempts]
    return "low" if place == min(tried) else "high" if place == max(tried) else None


def _past_the_edge(tune: Tune, axis: stages.Axis, attempts: Sequence[Attempt], option: Option) -> Values | None:
    if (side := edge(tune, axis, attempts)) is None:
        return None
    values = {axis.path: stages.beyond(axis, [a.values[axis.path] for a in attempts], upwards=side == "high")}
    return values if stages.with_values(option.choices, values) is not None else None


def _in_between(tune: Tune, axis: stages.Axis, attempts: Sequence[Attempt]) -> Values | None:
    """Between the best and the better of its neighbours."""
    found = best(tune.metric, attempts)
    if found is None:
        return None
    ordered = sorted(attempts, key=lambda a: a.values[axis.path])
    place = ordered.index(found)
    beside = [ordered[i] for i in (place - 1, place + 1) if 0 <= i < len(ordered)]
    other = best(tune.metric, beside) or beside[0]
    return {axis.path: stages.between(axis, found.values[axis.path], other.values[axis.path])}


def with_fastest_sizes(suite: Suite, records: Sequence[Record]) -> Suite:
    """With the fastest micro-batch sizes; the very suite where nothing was searched."""
    if suite.best_of is None:
        return suite
    return _with_settings(
        suite, {name: best(SPEED, _ordered(own)) for name, own in speed_attempts(suite, records).items()}
    )


def with_best_settings(suite: Suite, records: Sequence[Record]) -> Suite:
    """With all that was found; an option for which nothing worked keeps what the suite gives it."""
    sized = with_fastest_sizes(suite, records)
    if sized.tune is None:
        return sized
    tune, attempts = sized.tune, tuning_attempts(sized, records)
    return _with_settings(sized, {name: best(tune.metric, list(own.values())) for name, own in attempts.items()})


def _with_settings(suite: Suite, chosen: Mapping[str, Attempt | None]) -> Suite:
    values = {name: attempt.values for name, attempt in chosen.items() if attempt is not None}
    return stages.with_settings(suite, values) if values else suite


# How each option came to its own best, as ranking.json says it.

FLAT = 0.01
"""Share of the best within which a value is as good."""
JUST = 0.01
"""Share of a range by which a value lies just beyond it."""


def search(declared: Suite, sized: Suite, records: Sequence[Record]) -> Search | None:
    """Of a suite as declared; `sized`: the same with the chosen micro-batch sizes. None: nothing was searched."""
    if declared.tune is None and declared.best_of is None:
        return None
    before = [r.wall_seconds for r in records if r.phase == "tune"]
    contest = [r.wall_seconds for r in records if r.phase == "contest"]
    sizes, tuning = speed_attempts(declared, records), tuning_attempts(sized, records)
    options = sized.asked_options
    return Search(
        sizes=[_sized(declared, o, sizes) for o in declared.asked_options] if declared.best_of else [],
        tuning=[_tuned(sized, declared.tune, o, tuning) for o in options] if declared.tune else [],
        seed=declared.tune.seed if declared.tune else None,
        wall_seconds=math.fsum(before), contest_wall_seconds=math.fsum(contest),
    )  # fmt: skip


def _sized(suite: Suite, option: Option, attempts: Attempts) -> OwnBest:
    own = _ordered(attempts.get(option.name, {}))
    chosen = best(SPEED, own)
    edges: dict[str, Literal["low", "high"]] = {}
    if chosen is not None and chosen is own[-1]:  # the largest: one twice as large would cut the step too
        ranks = chosen.record.identity.world_size if chosen.record.identity else 1
        twice = 2 * int(chosen.values[MICRO_BATCH_SIZE]) * ranks
        edges = {} if suite.job_of(option).global_batch_size % twice else {MICRO_BATCH_SIZE: "high"}
    return _own_best(option, SPEED, own, chosen, stages.speed_job(suite), edges)


def _tuned(suite: Suite, tune: Tune, option: Option, attempts: Attempts) -> OwnBest:
    own, axes = _ordered(attempts.get(option.name, {})), stages.axes_of(tune, option.choices)
    flat = flat_range(tune, axes[0], own) if len(axes) == 1 and len(own) > 1 else (None, None, False)
    from_class = [a for a in axes if tune.parameters[a.path].log is None and tune.parameters[a.path].linear is None]
    return _own_best(
        option, tune.metric, own, best(tune.metric, own), stages.tuning_job(suite), _edges(tune, axes, own, option),
        extensions=max(0, len(own) - tune.first_trials), together=len(tune.parameters) > 1,
        flat_low=flat[0], flat_high=flat[1], flat_is_open=flat[2],
        source=option.built.optimizer.lr_range_source if from_class else None,
    )  # fmt: skip


def _own_best(
    option: Option, metric: str, own: list[Attempt], chosen: Attempt | None, job: AnyJob,
    edges: dict[str, Literal["low", "high"]], **more: Any,
) -> OwnBest:  # fmt: skip
    """`own`: what was tried, in the order of the values; `job`: that of the stage; `more`: as `OwnBest` has it."""
    if isinstance(job, Job):
        does = job.of(option.built)
        tokens = len(own) * does.max_steps * does.tokens_per_step
    else:
        of_scripts = [a.record.outcome.measurement for a in own if isinstance(a.record.outcome, Completed)]
        tokens = sum(m.tokens_per_step * (m.steps_applied + m.steps_skipped) for m in of_scripts)
    return OwnBest(
        option=option.name, metric=metric, tried=[_tried(attempt, chosen) for attempt in own],
        chosen=chosen.values if chosen else None, edges=edges, trials=len(own), tokens=tokens,
        wall_seconds=math.fsum(attempt.record.wall_seconds for attempt in own), **more,
    )  # fmt: skip


def _edges(
    tune: Tune, axes: Sequence[stages.Axis], own: Sequence[Attempt], option: Option
) -> dict[str, Literal["low", "high"]]:
    """Of settings with values beyond: a share of 0 has none below it."""
    if best(tune.metric, own) is None or len(own) < 2:
        return {}
    sides = {axis: edge(tune, axis, own) for axis in axes}
    past = {axis: axis.at(1 + JUST if side == "high" else -JUST) for axis, side in sides.items()}
    return {
        axis.path: side for axis, side in sides.items()
        if side is not None and stages.with_values(option.choices, {axis.path: past[axis]}) is not None
    }  # fmt: skip


def _ordered(attempts: Mapping[Key, Attempt]) -> list[Attempt]:
    """By their values."""
    return [attempts[key] for key in sorted(attempts)]


def _tried(attempt: Attempt, chosen: Attempt | None) -> Tried:
    outcome = attempt.record.outcome
    completed = outcome if isinstance(outcome, Completed) else None
    return Tried(
        values=attempt.values, value=attempt.value, chosen=attempt is chosen,
        outcome="completed" if isinstance(outcome, Completed) else outcome.kind,
        peak_memory_bytes=peak_memory_bytes(completed.measurement) if completed else None,
    )  # fmt: skip


def flat_range(tune: Tune, axis: stages.Axis, own: Sequence[Attempt]) -> tuple[float | None, float | None, bool]:
    """Values within FLAT of the best, in straight lines over the axis's scale, and whether that reaches an end."""
    chosen, sign = best(tune.metric, own), _sign(tune.metric)
    if chosen is None or chosen.value is None:
        return None, None, False
    bound = sign * chosen.value + FLAT * abs(chosen.value)
    place = own.index(chosen)
    down, low_open = _reach(axis, own[: place + 1][::-1], sign, bound)
    up, high_open = _reach(axis, own[place:], sign, bound)
    return down, up, low_open or high_open


def _reach(axis: stages.Axis, path: Sequence[Attempt], sign: float, bound: float) -> tuple[float, bool]:
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
