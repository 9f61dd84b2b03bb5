"""Tuning: what a suite declares, and the values that are tried."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from selectbench.choices import Choices
from selectbench.choices.choice import Choice
from selectbench.settings import Strict
from selectbench.suite.job import Steps
from selectbench.suite.metrics import QualityMetric

# What a suite looks for before the contest: each option's own best settings. Declared here, run nowhere.


Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
TUNING_SEED = 1000
"""Of tuning trials where the suite states none; the contest may not use it."""
Ends = Annotated[list[float], Field(min_length=2, max_length=2)]
_SHARE = r"^(0?\.[0-9]+|1(\.0*)?)x$"


class Range(Strict):
    """Where one setting is looked for; without ends, where the optimizer's class says."""

    log: Ends | None = None
    """Both ends; values are a constant factor apart: `[1e-4, 1e-2]`."""
    linear: Ends | None = None
    """Both ends; values are a constant distance apart."""
    n: Annotated[int, Field(ge=2, le=100)] | None = None
    """How many values, where this setting alone is tuned."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.log is not None and self.linear is not None:
            raise ValueError("log or linear, not both")
        low, high = self.log or self.linear or (1.0, 2.0)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"the ends must be finite, found [{low:g}, {high:g}]")
        if self.log is not None and low <= 0:
            raise ValueError(
                f"a logarithmic range begins above 0, found [{low:g}, {high:g}]: for example [1e-4, 1e-2]"
            )
        if low >= high:
            found = "is empty" if low == high else "is upside down"
            raise ValueError(f"the range [{low:g}, {high:g}] {found}: write [smaller, larger]")
        return self


class Budget(Strict):
    """What a tuning trial may take; it completes a schedule of its own within."""

    max_steps: str | Steps = "0.5x"
    """Optimizer steps: `0.5x` is half of the job's, a number is so many; where options set global batches of their
    own, as many more as make them divide the tokens."""

    @field_validator("max_steps")
    @classmethod
    def _is_a_share(cls, max_steps: str | int) -> str | int:
        if isinstance(max_steps, str) and not re.match(_SHARE, max_steps):
            raise ValueError(f"expected steps, or a share of the job's such as 0.5x, found {max_steps!r}")
        return max_steps

    def steps(self, max_steps: int) -> int:
        """Of a tuning trial, at least 1."""
        if isinstance(self.max_steps, int):
            return self.max_steps
        return max(1, math.ceil(float(self.max_steps.removesuffix("x")) * max_steps))


class Tune(Strict):
    """Tuning for quality: every option gets as many trials and tokens, on a seed that the contest does not use."""

    parameters: Annotated[dict[str, Range], Field(min_length=1)]
    """Settings by their path, `optimizer.lr`, each with its range."""
    trials: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Trials of each option where several settings are tuned; one alone says `n`."""
    budget: Budget = Budget()
    """What one trial may take."""
    seed: Seed = TUNING_SEED
    """Of every tuning trial."""
    metric: QualityMetric = "final_loss"
    """What the best setting is best by."""

    @model_validator(mode="after")
    def _says_how_many(self) -> Tune:
        several = len(self.parameters) > 1
        counted = [path for path, found in self.parameters.items() if found.n is not None]
        if several and counted:
            raise ValueError(f"parameters.{counted[0]}.n: of several settings `trials` says how many in all")
        if several and self.trials is None:
            raise ValueError("trials: of several settings say how many trials each option gets, such as 16")
        if not several and self.trials is not None:
            raise ValueError("trials: of one setting `n` says how many: {n: 5}")
        return self

    @property
    def first_trials(self) -> int:
        """Trials of each option before any range is extended."""
        (alone, *_) = self.parameters.values()
        return self.trials or alone.n or DEFAULT_N


DEFAULT_N = 5
"""Values of a single setting where the suite does not say."""


class BestOf(Strict):
    """Settings that each option takes at their fastest, found in short trials of speed alone."""

    micro_batch_size: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2)] | Literal["auto"]
    """Sequences per forward pass and rank; auto: 1, 2, 4, ... as far as the step can be cut so. The global batch
    stays the option's."""
    max_steps: Annotated[int, Field(ge=5, le=10_000)] = 20
    """Optimizer steps of such a trial, at most the job's; where global batches differ, of the largest one."""
    seed: Seed = TUNING_SEED
    """Of these trials."""


# The values that tuning tries: grids, what lies beyond or between them, and sequences over several settings.


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
