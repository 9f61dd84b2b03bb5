"""A suite: one question, with everything resolved. `load` makes it from a file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from selectbench.choices import Choices
from selectbench.errors import did_you_mean
from selectbench.strict import Strict
from selectbench.suite.job import Job
from selectbench.suite.left_open import LeftOpen
from selectbench.suite.metrics import DECIDING, Objective, default_threshold, undecidable_reason
from selectbench.suite.search_space import Values
from selectbench.suite.tune import BestOf, Seed, Tune

CONTROL = "control"
"""The name of the baseline's second row."""


class Decide(Strict):
    """What decides between the options."""

    objective: Objective = "tokens_per_second"
    """The metric to rank by; whether more or less is better follows from it."""
    constraints: list[str] = Field(default_factory=lambda: ["final_perplexity <= 1.01x baseline"])
    """What a row must hold to be ranked: `METRIC <= 1.01x baseline`, or `peak_memory_bytes <= 80 GiB`."""
    thresholds: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    """Smallest difference that matters to you, as a share of the value, by metric: `{tokens_per_second: 0.02}`."""

    @field_validator("objective", mode="before")
    @classmethod
    def _may_decide(cls, metric: object) -> object:
        if reason := undecidable_reason(metric):
            raise ValueError(reason)
        return metric

    @field_validator("thresholds")
    @classmethod
    def _of_known_metrics(cls, thresholds: dict[str, float]) -> dict[str, float]:
        for metric in thresholds:
            if reason := undecidable_reason(metric):
                raise ValueError(reason)
            if metric not in DECIDING:
                hint = did_you_mean(metric, DECIDING) or f" (known: {', '.join(DECIDING)})"
                raise ValueError(f"unknown metric {metric!r}{hint}")
        return thresholds


class Limits(Strict):
    """When a trial is given up."""

    trial_seconds: Annotated[float, Field(gt=0)] | None = None
    """Longest time of one trial; null: no bound."""
    stall_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Longest silence of a trial, no step, evaluation or compilation ending in it."""


class Cost(Strict):
    """What a GPU and its electricity cost; either price alone will do."""

    usd_per_gpu_hour: Annotated[float, Field(gt=0)] | None = None
    """Rent of one GPU; null: not counted."""
    usd_per_kwh: Annotated[float, Field(gt=0)] | None = None
    """Of the energy that the GPUs' own meters count; null: not counted."""

    @model_validator(mode="after")
    def _has_a_price(self) -> Cost:
        if self.usd_per_gpu_hour is None and self.usd_per_kwh is None:
            raise ValueError("a price is missing: usd_per_gpu_hour, usd_per_kwh or both")
        return self


Interval = Annotated[float, Field(ge=0.005, le=10)]


class MeterSettings(Strict):
    """How the GPUs are watched while a trial runs."""

    memory_interval_seconds: Interval = 0.05
    """Time between two readings of a GPU's memory."""
    interval_seconds: Interval = 0.1
    """Time between two readings of all else: power, clocks, temperature, processes."""
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Longest wait before a trial until the GPU's memory is back where it was before the first one."""
    rerun_unclean: bool = False
    """Run a trial a second time where its GPU was throttled or shared."""


class Option(Strict):
    """One row of the ranking: a named set of choices."""

    name: str
    """As the suite calls it, unique."""
    choices: Choices
    """Every dimension, resolved."""
    differs_in: list[str]
    """Dimensions in which it differs from the baseline, `optimizer.lr` where only a setting does."""
    tunes: str | None = None
    """The option that this one is a trial setting of, in the suite of a tuning stage; None: a row of its own."""
    tried: Values = Field(default_factory=dict)
    """What is tried then, by path."""


class Suite(Strict):
    """One question, ready to be planned."""

    name: str
    """Names the results folder."""
    question: str
    """What the answer's sentence answers."""
    profile: str | None
    """The profile that was merged in."""
    device: Literal["cpu", "cuda"]
    """What the job runs on."""
    quick: bool = False
    """Speed and memory only: no claim of quality."""
    job: Job
    """The work that is identical for every option."""
    options: list[Option]
    """In the file's order."""
    baseline: str
    """The option that the others are compared with."""
    seeds: list[Seed]
    """One round each."""
    decide: Decide
    """What decides."""
    limits: Limits
    """When a trial is given up."""
    cost: Cost | None = None
    """Prices; None: nothing is said of cost."""
    meters: MeterSettings = MeterSettings()
    """How the GPUs are watched."""
    control: bool = False
    """Whether the baseline runs a second time, as the option CONTROL."""
    tune: Tune | None = None
    """Settings that each option takes at their best; None: none."""
    best_of: BestOf | None = None
    """Settings that each option takes at their fastest; None: none."""
    gate: list[str] = Field(default_factory=list)
    """Limits that `selectbench gate` holds a run to."""
    code: list[str] = Field(default_factory=list)
    """Folders of own code, absolute."""
    left_open: LeftOpen = LeftOpen()
    """Shared choices that the machine settles; a plan takes suites in which nothing is open."""
    resolved: dict[str, Any]
    """The merged file as plain data: loading it again gives this suite; written as `suite.yaml`."""

    def threshold(self, metric: str) -> float:
        """Smallest difference that matters: the suite's, or the default; 0 for a metric that decides nothing."""
        return self.decide.thresholds.get(metric, default_threshold(metric, self.device))

    def option(self, name: str) -> Option:
        """The option of that name. Raises KeyError."""
        for option in self.options:
            if option.name == name:
                return option
        raise KeyError(name)
