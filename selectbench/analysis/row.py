"""The answer as data: what ranking.json holds. Every key is documented here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from selectbench.analysis.metrics import MemoryKind
from selectbench.record.record import FailureKind

SCHEMA_VERSION = 1
"""Grows when a key's meaning changes; keys are added without it."""


class Shown(BaseModel):
    """A mapping of ranking.json: no NaN, no infinity, unknown is None."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class MetricValue(Shown):
    """One metric of one option over its completed seeds."""

    value: float | None
    """Mean over the completed seeds of the trials' own values (so perplexity is the mean of perplexities)."""
    ratio_to_baseline: float | None
    """Mean over the seeds that both this option and the baseline completed, over the baseline's mean there."""
    standard_deviation: float | None
    """Of one seed to the next (n - 1 in the denominator); None below two seeds."""
    n: int
    """Seeds with a value."""


class Failure(Shown):
    """A trial that yielded no measurement."""

    seed: int
    kind: FailureKind
    detail: str


class ConstraintVerdict(Shown):
    """What the measurements say of one constraint, on means and without a test of significance."""

    constraint: str
    """As the suite writes it."""
    verdict: Literal["holds", "fails", "not_judged"]
    """`not_judged`: the run has no figures to judge it by, so no claim is made."""
    detail: str
    """The figure it was judged by, or why it could not be."""


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
    not_comparable: list[str]
    """In what its job was another: field and both values."""
    metrics: dict[str, MetricValue]
    failures: list[Failure]


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
