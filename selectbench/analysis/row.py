"""The answer as data: what ranking.json holds. Every key is documented here."""

from __future__ import annotations

from typing import Any, Literal

from selectbench.analysis.formulas import MemoryKind
from selectbench.analysis.gpu_row import GpuRow, Unknown
from selectbench.analysis.shown import Shown
from selectbench.record.record import FailureKind

SCHEMA_VERSION = 1
"""Grows when a key's meaning changes; keys are added without it."""


class MetricValue(Shown):
    """One metric of one option over its completed seeds."""

    value: float | None
    """Mean over the completed seeds of the trials' own values (so perplexity is the mean of perplexities).

    Seeds whose GPUs were in a state that spoils the metric are left out where there are others."""
    ratio_to_baseline: float | None
    """Mean over the seeds that both this option and the baseline completed, over the baseline's mean there."""
    standard_deviation: float | None
    """Of one seed to the next (n - 1 in the denominator); None below two seeds."""
    n: int
    """Seeds that `value` is a mean over."""
    left_out: list[int] = []  # noqa: RUF012 (pydantic copies it)
    """Seeds whose value the state of the GPUs spoils."""
    unclean: bool = False
    """Whether every seed was spoiled: `value` is then of those, is shown, and is compared with nothing."""


class Failure(Shown):
    """A trial that yielded no measurement."""

    seed: int
    kind: FailureKind
    detail: str
    note: str | None = None
    """Why it is no finding about the option: the state of the GPUs may have caused it."""


class ConstraintVerdict(Shown):
    """What the measurements say of one constraint, on means and without a test of significance."""

    constraint: str
    """As the suite writes it."""
    verdict: Literal["holds", "fails", "not_judged"]
    """`not_judged`: the run has no figures to judge it by, so no claim is made."""
    detail: str
    """The figure it was judged by, or why it could not be."""


class Violation(Shown):
    """An undeclared difference of an option's job, or something else than was asked for."""

    field: str
    """The identity's field, as `record/record.py` explains it."""
    baseline: Any
    """What `against` had, with the first of the seeds."""
    option: Any
    """What this option had, with the first of the seeds."""
    against: str
    """The option compared with: the baseline, or the first one that completed where it did not."""
    asked: Any = None
    """What the suite asks for and the trial did not do; None: the difference is from `against`."""
    seeds: list[int]
    """With which it was found."""


class Certificate(Shown):
    """Whether an option did the baseline's job."""

    comparable: bool | None
    """Whether there is no violation; None: no seed completed, so there is nothing to compare."""
    compared_with: list[str]
    """The baseline, or what took its place in seeds that it did not complete; empty: nothing but itself."""
    differs_as_declared: list[str]
    """Identity fields that differ and that a choice in which the options differ may change."""
    violations: list[Violation]
    """By field; any takes the row out of the ranking."""
    not_verified: list[str]
    """Identity fields that a trial could not see, or `field: reason`; never assumed to be equal."""


class MemoryByRank(Shown):
    """Memory of an option's ranks, means over the completed seeds."""

    peak_bytes_by_rank: list[float | None]
    """In the order of ranks; peak_memory_bytes is the largest of a trial. Empty: seeds differ in ranks."""
    expected_model_state_bytes: float | None
    """Parameters, gradients and optimizer state of one rank by `analysis/model_states.py`; None: no formula."""
    measured_model_state_bytes: float | None
    """The same as found, of the rank that keeps most; None: a part is hidden."""


class Scaling(Shown):
    """How speed grew with the number of ranks."""

    world_size: int
    """Ranks."""
    speedup: float | None
    """Tokens per second over the baseline's."""
    efficiency: float | None
    """The speed-up over the ratio of ranks; 1 is ideal."""


class Row(Shown):
    """One option."""

    option: str
    rank: int | None
    """From 1 among the eligible rows; None: not ranked."""
    status: Literal["completed", "partial", "failed", "not_comparable"]
    """partial: some seeds failed or are missing; failed: every seed failed; not_comparable: another job."""
    n: int
    """Seeds completed."""
    planned: int
    """Seeds of the suite."""
    missing_seeds: list[int]
    """Seeds without any record."""
    differs_in: list[str]
    """Dimensions in which it differs from the baseline."""
    eligible: bool
    """Whether it may be ranked: it completed a seed, did the same job and fails no constraint."""
    constraints: list[ConstraintVerdict]
    """One each, in the suite's order; empty where nothing completed or the job was another."""
    constraint_failures: list[str]
    """Why it is not eligible though it completed."""
    identity: Certificate
    """Whether it did the baseline's job."""
    notes: list[str]
    """What must not be concluded from it."""
    metrics: dict[str, MetricValue]
    memory: MemoryByRank | None
    """None: not measured by rank."""
    scaling: Scaling | None
    """None where all rows have as many ranks, or its number is not known."""
    failures: list[Failure]
    gpu: GpuRow | None = None
    """What was seen of its GPUs; None: no trial of it had GPU meters."""
    cost_unknown: list[Unknown] = []  # noqa: RUF012 (pydantic copies it)
    """Why a price of the suite can't be applied; empty: each can, or there is none."""


class Ranking(Shown):
    """The answer to a suite's question."""

    schema_version: int = SCHEMA_VERSION
    suite: str
    baseline: str
    question: str
    answer: str
    """One or more sentences: what to take, how sure that is, and what was not answered."""
    objective: str
    """The metric that ranks."""
    device: Literal["cpu", "cuda"]
    quick: bool
    """Speed and memory only."""
    seeds: list[int]
    memory_kind: MemoryKind | None
    """What peak_memory_bytes is; None where no trial measured it."""
    rows: list[Row]
    """Ranked rows by rank, then those that fail a constraint, did another job, are missing, failed."""
    warnings: list[str]
