"""The values that tuning tries: grids, what lies beyond or between them, and sequences over several settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from selectbench.choices import Choice, Choices
from selectbench.suite.tune import DEFAULT_N, Range, Tune

Values = dict[str, int | float]
"""By path."""
_DIGITS = 3
"""Significant ones of a value: a learning rate is not known better."""


@dataclass(frozen=True)
class Axis:
    """Where an option's setting is looked for."""

    path: str
    low: float
    high: float
    logarithmic: bool

    def at(self, share: float) -> float:
        """The value at a share of the way from the low end, 0, to the high one, 1; beyond them too."""
        if self.logarithmic:
            return rounded(self.low * (self.high / self.low) ** share)
        return rounded(self.low + share * (self.high - self.low))

    def share(self, value: float) -> float:
        """Where a value lies."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def rounded(value: float) -> float:
    """With three significant digits."""
    return float(f"{value:.{_DIGITS}g}")


def axes_of(tune: Tune, choices: Choices) -> list[Axis]:
    """Of the settings that the option has. Raises ValueError for one whose range is not known."""
    return [axis(path, found, choices) for path, found in tune.parameters.items() if has(choices, path)]


def has(choices: Choices, path: str) -> bool:
    """Whether the option has the setting."""
    dimension, _, setting = path.partition(".")
    return setting in getattr(type(getattr(choices, dimension, None)), "model_fields", {})


def axis(path: str, found: Range, choices: Choices) -> Axis:
    """The range of the suite, or the one of the option's class. Raises ValueError where there is neither."""
    if ends := found.log or found.linear:
        return Axis(path, ends[0], ends[1], found.log is not None)
    chosen = choices.optimizer if path == "optimizer.lr" else None
    if chosen is None or chosen.lr_range is None:
        name = getattr(getattr(choices, path.partition(".")[0]), "name", "")
        raise ValueError(f"no range is known for {path} of {name}: give one, such as {{log: [1e-4, 1e-2]}}")
    low, high = chosen.lr_range
    return Axis(path, low, high, True)


def with_values(choices: Choices, values: Values) -> Choices | None:
    """The option with these settings; None where one is out of its setting's bounds."""
    for path, value in values.items():
        dimension, _, setting = path.partition(".")
        before = getattr(choices, dimension)
        try:
            after: object = value
            if isinstance(before, Choice):
                after = type(before).model_validate({**before.model_dump(), setting: value})
        except ValidationError:
            return None
        choices = choices.model_copy(update={dimension: after})
    return choices


def first_values(tune: Tune, axes: Sequence[Axis]) -> list[Values]:
    """Of one setting a grid, of several a sequence that fills their box evenly."""
    if len(axes) > 1:
        return _sequence(axes, tune.first_trials, tune.seed)
    (only,) = axes
    n = tune.first_trials if len(tune.parameters) == 1 else tune.trials or DEFAULT_N
    return [{only.path: only.at(i / (n - 1))} for i in range(n)]


def _sequence(axes: Sequence[Axis], trials: int, seed: int) -> list[Values]:
    """A scrambled Sobol sequence (Sobol 1967; Owen 1998), as scipy draws it."""
    from scipy.stats import qmc  # half a second that most suites need not pay

    sampler = qmc.Sobol(len(axes), scramble=True, seed=seed)
    points = sampler.random_base2(math.ceil(math.log2(trials)))[:trials]
    return [{a.path: a.at(float(s)) for a, s in zip(axes, point, strict=True)} for point in points]


def beyond(axis: Axis, tried: Sequence[float], *, upwards: bool) -> float:
    """One more value past an end of those tried, as far as the two at that end lie apart."""
    shares = sorted(map(axis.share, tried))
    last, before = (shares[-1], shares[-2]) if upwards else (shares[0], shares[1])
    return axis.at(2 * last - before)


def between(axis: Axis, value: float, other: float) -> float:
    """The value half-way between two."""
    return axis.at((axis.share(value) + axis.share(other)) / 2)
