"""What a suite looks for before the contest: each option's own best settings. Declared here, run nowhere."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from selectbench.strict import Strict
from selectbench.suite.evaluate import Steps
from selectbench.suite.metrics import QualityMetric

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
