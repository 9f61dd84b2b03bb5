"""What the trials before the contest showed: micro-batch sizes, tuned settings, and how each option was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selectbench.analysis.metrics import FORMULAS, finite, observe, peak_memory_bytes
from selectbench.analysis.result import OptionSearch, Search, TriedSetting
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
    """Value of the metric that is searched by; None: the trial failed, or the figure is not known."""
    record: Record

    @property
    def failure(self) -> str | None:
        """The kind of its failure; None: it completed."""
        return self.record.outcome.kind if isinstance(self.record.outcome, Failed) else None


SPEED = "tokens_per_second"
Key = tuple[tuple[str, int | float], ...]
Attempts = Mapping[str, Mapping[Key, Attempt]]
"""Attempts by option and the values tried."""


def _key(values: Values) -> Key:
    return tuple(sorted(values.items()))


def speed_attempts(suite: Suite, records: Sequence[Record]) -> Attempts:
    """Trials of speed, by tokens per second."""
    return _attempts_by_option(suite, [r for r in records if set(r.trial.tried) == {MICRO_BATCH_SIZE}], SPEED)


def tuning_attempts(suite: Suite, records: Sequence[Record]) -> Attempts:
    """Trials of quality, by the tuning's metric."""
    if suite.tune is None:
        return {}
    trials = [r for r in records if r.trial.tried and set(r.trial.tried) <= set(suite.tune.parameters)]
    return _attempts_by_option(suite, trials, suite.tune.metric)


def _attempts_by_option(suite: Suite, records: Sequence[Record], metric: str) -> Attempts:
    names = {option.name for option in suite.options}
    attempts: dict[str, dict[Key, Attempt]] = {}
    for record in records:
        if record.phase != "tune" or record.trial.tunes not in names or not has_ended(record.outcome):
            continue
        completed = isinstance(record.outcome, Completed)
        value = finite(FORMULAS[metric], observe(record, suite)) if completed else None
        attempt = Attempt(dict(record.trial.tried), value, record)
        attempts.setdefault(record.trial.tunes, {})[_key(record.trial.tried)] = attempt
    return attempts


def best(metric: str, attempts: Iterable[Attempt]) -> Attempt | None:
    """The attempt with the best value, of equal ones the first; None: no attempt has a value."""
    known = [attempt for attempt in attempts if attempt.value is not None]
    return min(known, key=lambda attempt: _loss_sign(metric) * (attempt.value or 0.0), default=None)


def _loss_sign(metric: str) -> float:
    """Factor after which smaller values are better."""
    return -1.0 if METRICS[metric].better == "more" else 1.0


def speed_candidates(suite: Suite, ranks: Mapping[str, int], attempts: Attempts) -> dict[str, list[Values]]:
    """Sizes to try for each option; none above one that ran out of memory."""
    assert suite.best_of is not None
    candidates: dict[str, list[Values]] = {}
    for option in suite.without_control:
        tried = attempts.get(option.name, {}).values()
        too_large = [attempt.values[MICRO_BATCH_SIZE] for attempt in tried if attempt.failure == "oom"]
        sizes = stages.sizes_to_try(suite.best_of, suite.job_of(option), ranks[option.name])
        candidates[option.name] = [{MICRO_BATCH_SIZE: s} for s in sizes if not too_large or s <= min(too_large)]
    return candidates


def tuning_candidates(suite: Suite, attempts: Attempts) -> dict[str, list[Values]]:
    """Settings to try for each option, those that were tried already among them."""
    assert suite.tune is not None
    options = {option.name: option for option in suite.without_control}
    axes = {name: stages.axes_of(suite.tune, option.choices) for name, option in options.items()}
    tried = {name: stages.first_values(suite.tune, axes[name]) for name in options}
    if len(suite.tune.parameters) > 1:
        return tried
    for _ in range(EXTENSIONS):
        outcomes = {
            name: [attempts.get(name, {}).get(_key(values)) for values in grid] for name, grid in tried.items()
        }
        if any(None in attempted for attempted in outcomes.values()):
            break  # some have no outcome yet
        ended = {name: [a for a in attempted if a is not None] for name, attempted in outcomes.items()}
        # An option that cannot run here, whatever its settings, is tried no more.
        runnable = [name for name in tried if any(a.failure in (None, "diverged") for a in ended[name])]
        beyond = {name: _beyond_edge(suite.tune, axes[name][0], ended[name], options[name]) for name in runnable}
        if not any(beyond.values()):
            break  # no option's best lies on an edge
        more = {name: beyond[name] or _between_best(suite.tune, axes[name][0], ended[name]) for name in runnable}
        tried |= {name: [*tried[name], values] for name, values in more.items() if values is not None}
    return tried


def edge(tune: Tune, axis: stages.Axis, attempts: Sequence[Attempt]) -> Literal["low", "high"] | None:
    """The end of the tried values that the best lies on; None: it lies inside; `low` where all failed."""
    chosen = best(tune.metric, attempts)
    if chosen is None:
        return "low"
    value, tried = chosen.values[axis.path], [a.values[axis.path] for a in attempts]
    return "low" if value == min(tried) else "high" if value == max(tried) else None


def _beyond_edge(tune: Tune, axis: stages.Axis, attempts: Sequence[Attempt], option: Option) -> Values | None:
    if (side := edge(tune, axis, attempts)) is None:
        return None
    values = {axis.path: stages.beyond(axis, [a.values[axis.path] for a in attempts], upwards=side == "high")}
    return values if stages.with_values(option.choices, values) is not None else None


def _between_best(tune: Tune, axis: stages.Axis, attempts: Sequence[Attempt]) -> Values | None:
    """A value between the best and the better of its neighbours; None: no attempt has a value."""
    chosen = best(tune.metric, attempts)
    if chosen is None:
        return None
    ordered = sorted(attempts, key=lambda a: a.values[axis.path])
    place = ordered.index(chosen)
    neighbours = [ordered[i] for i in (place - 1, place + 1) if 0 <= i < len(ordered)]
    neighbour = best(tune.metric, neighbours) or neighbours[0]
    return {axis.path: stages.between(axis, chosen.values[axis.path], neighbour.values[axis.path])}


def with_fastest_sizes(suite: Suite, records: Sequence[Record]) -> Suite:
    """The suite with the fastest micro-batch sizes; the same object where nothing was searched."""
    if suite.best_of is None:
        return suite
    return _with_settings(
        suite, {name: best(SPEED, _by_values(sizes)) for name, sizes in speed_attempts(suite, records).items()}
    )


def with_best_settings(suite: Suite, records: Sequence[Record]) -> Suite:
    """The suite with the best sizes and settings; an option for which nothing worked keeps those of the suite."""
    sized = with_fastest_sizes(suite, records)
    if sized.tune is None:
        return sized
    tune, attempts = sized.tune, tuning_attempts(sized, records)
    return _with_settings(sized, {name: best(tune.metric, [*tried.values()]) for name, tried in attempts.items()})


def _with_settings(suite: Suite, chosen: Mapping[str, Attempt | None]) -> Suite:
    values = {name: attempt.values for name, attempt in chosen.items() if attempt is not None}
    return stages.with_settings(suite, values) if values else suite


# How the best settings of each option were chosen, as ranking.json says it.

FLAT = 0.01
"""Share of the best within which a value is as good."""
SLIGHTLY = 0.01
"""Share of a range by which a value lies just beyond it."""


def search(declared: Suite, sized: Suite, records: Sequence[Record]) -> Search | None:
    """The search of a suite as declared; `sized`: with the chosen micro-batch sizes. None: nothing was searched."""
    if declared.tune is None and declared.best_of is None:
        return None
    before = [r.wall_seconds for r in records if r.phase == "tune"]
    contest = [r.wall_seconds for r in records if r.phase == "contest"]
    sizes, tuning = speed_attempts(declared, records), tuning_attempts(sized, records)
    options = sized.without_control
    return Search(
        sizes=[_size_search(declared, o, sizes) for o in declared.without_control] if declared.best_of else [],
        tuning=[_setting_search(sized, declared.tune, o, tuning) for o in options] if declared.tune else [],
        seed=declared.tune.seed if declared.tune else None,
        wall_seconds=math.fsum(before), contest_wall_seconds=math.fsum(contest),
    )  # fmt: skip


def _size_search(suite: Suite, option: Option, attempts: Attempts) -> OptionSearch:
    tried = _by_values(attempts.get(option.name, {}))
    chosen = best(SPEED, tried)
    edges: dict[str, Literal["low", "high"]] = {}
    if chosen is not None and chosen is tried[-1]:  # the largest: one twice as large would cut the step too
        ranks = chosen.record.identity.world_size if chosen.record.identity else 1
        twice = 2 * int(chosen.values[MICRO_BATCH_SIZE]) * ranks
        edges = {} if suite.job_of(option).global_batch_size % twice else {MICRO_BATCH_SIZE: "high"}
    return _search_result(option, SPEED, tried, chosen, stages.speed_job(suite), edges)


def _setting_search(suite: Suite, tune: Tune, option: Option, attempts: Attempts) -> OptionSearch:
    tried, axes = _by_values(attempts.get(option.name, {})), stages.axes_of(tune, option.choices)
    flat = flat_range(tune, axes[0], tried) if len(axes) == 1 and len(tried) > 1 else (None, None, False)
    from_class = [a for a in axes if tune.parameters[a.path].log is None and tune.parameters[a.path].linear is None]
    return _search_result(
        option, tune.metric, tried, best(tune.metric, tried), stages.tuning_job(suite),
        _edges_left(tune, axes, tried, option), extensions=max(0, len(tried) - tune.first_trials),
        together=len(tune.parameters) > 1, flat_low=flat[0], flat_high=flat[1], flat_is_open=flat[2],
        source=option.built.optimizer.lr_range_source if from_class else None,
    )  # fmt: skip


def _search_result(
    option: Option, metric: str, tried: list[Attempt], chosen: Attempt | None, job: AnyJob,
    edges: dict[str, Literal["low", "high"]], **more: Any,
) -> OptionSearch:  # fmt: skip
    """`tried`: in the order of the values; `job`: the stage's; `more`: further fields of `OptionSearch`."""
    if isinstance(job, Job):
        trial_job = job.of(option.built)
        tokens = len(tried) * trial_job.max_steps * trial_job.tokens_per_step
    else:
        of_scripts = [a.record.outcome.measurement for a in tried if isinstance(a.record.outcome, Completed)]
        tokens = sum(m.tokens_per_step * (m.steps_applied + m.steps_skipped) for m in of_scripts)
    return OptionSearch(
        option=option.name, metric=metric, tried=[_tried_setting(attempt, chosen) for attempt in tried],
        chosen=chosen.values if chosen else None, edges=edges, trials=len(tried), tokens=tokens,
        wall_seconds=math.fsum(attempt.record.wall_seconds for attempt in tried), **more,
    )  # fmt: skip


def _edges_left(
    tune: Tune, axes: Sequence[stages.Axis], tried: Sequence[Attempt], option: Option
) -> dict[str, Literal["low", "high"]]:
    """The ends that a best value lies on, by setting that has values beyond: a share of 0 has none below it."""
    if best(tune.metric, tried) is None or len(tried) < 2:
        return {}
    sides = {axis: edge(tune, axis, tried) for axis in axes}
    beyond = {axis: axis.at(1 + SLIGHTLY if side == "high" else -SLIGHTLY) for axis, side in sides.items()}
    return {
        axis.path: side for axis, side in sides.items()
        if side is not None and stages.with_values(option.choices, {axis.path: beyond[axis]}) is not None
    }  # fmt: skip


def _by_values(attempts: Mapping[Key, Attempt]) -> list[Attempt]:
    """Attempts in the order of their values."""
    return [attempts[key] for key in sorted(attempts)]


def _tried_setting(attempt: Attempt, chosen: Attempt | None) -> TriedSetting:
    outcome = attempt.record.outcome
    completed = outcome if isinstance(outcome, Completed) else None
    return TriedSetting(
        values=attempt.values, value=attempt.value, chosen=attempt is chosen,
        outcome="completed" if isinstance(outcome, Completed) else outcome.kind,
        peak_memory_bytes=peak_memory_bytes(completed.measurement) if completed else None,
    )  # fmt: skip


def flat_range(tune: Tune, axis: stages.Axis, tried: Sequence[Attempt]) -> tuple[float | None, float | None, bool]:
    """Ends of the values within FLAT of the best, linear over the axis's scale, and whether one is a tried end."""
    chosen, sign = best(tune.metric, tried), _loss_sign(tune.metric)
    if chosen is None or chosen.value is None:
        return None, None, False
    bound = sign * chosen.value + FLAT * abs(chosen.value)
    place = tried.index(chosen)
    down, low_open = _flat_end(axis, tried[: place + 1][::-1], sign, bound)
    up, high_open = _flat_end(axis, tried[place:], sign, bound)
    return down, up, low_open or high_open


def _flat_end(axis: stages.Axis, path: Sequence[Attempt], sign: float, bound: float) -> tuple[float, bool]:
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
