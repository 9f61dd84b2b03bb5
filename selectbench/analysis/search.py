"""What tuning and the search for the fastest found: pure functions on the records of trials before the contest.

The grid of one setting is extended where the best value lies on its edge, up to EXTENSIONS times; whenever any
option's is, every other option gets one more value too, between its best and the better neighbour of that, so that
all are tried equally often. What has failed or diverged is never best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from selectbench.analysis.formulas import finite
from selectbench.analysis.metrics import FORMULAS
from selectbench.analysis.observed import observe
from selectbench.record.record import Completed, Failed, Record
from selectbench.suite.metrics import METRICS
from selectbench.suite.search_space import Axis, Values, axes_of, between, beyond, first_values, with_values
from selectbench.suite.stage import MICRO_BATCH_SIZE, sizes_to_try, tuned_options
from selectbench.suite.suite import Option, Suite
from selectbench.suite.tune import Tune

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
