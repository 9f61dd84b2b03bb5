"""The answer as data: what ranking.json holds. Every key is documented here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from selectbench.analysis.comparison import (
    Comparison,
    FactorView,
    Family,
    NamedVerdict,
    ScoreDifference,
    Settling,
    ToLoss,
)
from selectbench.analysis.formulas import MemoryKind
from selectbench.analysis.gpu_row import GpuRow, Unknown
from selectbench.analysis.own_best import Search
from selectbench.analysis.shown import Number, Shown
from selectbench.record.record import FailureKind

SCHEMA_VERSION = 1
"""Grows when a key's meaning changes; keys are added without it."""


class MetricValue(Shown):
    """One metric of one option over its completed seeds."""

    value: Number | None
    """Mean over the completed seeds of the trials' own values (so perplexity is the mean of perplexities).

    Seeds whose GPUs were in a state that spoils the metric are left out where there are others."""
    ratio_to_baseline: Number | None
    """Geometric mean, over the seeds that both completed, of this option's value over the baseline's."""
    ratio_low: Number | None = None
    """Lower end of the ratio's 95 % interval: of the objective the simultaneous one, of all other metrics the
    interval by itself, with which nothing is claimed. None: the baseline itself, or no measure of spread."""
    ratio_high: Number | None = None
    """Its upper end."""
    standard_deviation: Number | None
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
    """What the measurements say of one constraint: a test of non-inferiority in the suite's family."""

    constraint: str
    """As the suite writes it."""
    verdict: Literal["holds", "fails", "undecided", "not_judged"]
    """`holds` and `fails` are claims; `undecided`: the figures allow neither; `not_judged`: there are none."""
    detail: str
    """The figure it was judged by with its simultaneous interval, or why it could not be."""
    p_adjusted: Number | None = None
    """Probability of such a distance from the bound by chance, adjusted for the family; None: no test was made."""
    settling: Settling | None = None
    """What would probably decide it, where it is undecided and spread is known."""


class Violation(Shown):
    """An undeclared difference of an option's job, or something else than was asked for."""

    field: str
    """The identity's field, as `record/record.py` explains it; or `settings`, or a loss below its source's."""
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

    peak_bytes_by_rank: list[Number | None]
    """In the order of ranks; peak_memory_bytes is the largest of a trial. Empty: seeds differ in ranks."""
    expected_model_state_bytes: Number | None
    """Parameters, gradients and optimizer state of one rank by `plan/model_states.py`; None: no formula."""
    measured_model_state_bytes: Number | None
    """The same as found, of the rank that keeps most; None: a part is hidden."""


class Scaling(Shown):
    """How speed grew with the number of ranks."""

    world_size: int
    """Ranks."""
    speedup: Number | None
    """Tokens per second over the baseline's."""
    efficiency: Number | None
    """The speed-up over the ratio of ranks; 1 is ideal."""


class Row(Shown):
    """One option."""

    option: str
    rank: int | None
    """1 and the number of eligible rows shown to be better by the objective; it may be lower by as many as it is
    tied with. None: not eligible, or no measure of spread to tell ranks by."""
    tied_with: list[str] = []  # noqa: RUF012 (pydantic copies it)
    """Other ranked rows that it was shown to be neither better nor worse than."""
    control: bool = False
    """Whether it is the baseline's second row, which only tells how far chance goes."""
    against_baseline: Comparison | None = None
    """By the objective; None: the baseline itself, or no seed that both completed."""
    against_best: Comparison | None = None
    """By the objective, of an eligible row against the first one; adjusted for the order of all rows."""
    pareto: bool | None = None
    """Whether no other row dominates it over speed, memory, energy and quality, as far as they are known; None: not
    comparable or not completed."""
    dominated_by: list[str] = []  # noqa: RUF012
    """Rows that are shown to be better in one of these, and are worse in none by more than matters."""
    to_loss: ToLoss | None = None
    """Until its held-out loss was the baseline's final one; None: no evaluations to tell it by."""
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
    """Whether it may be ranked: it completed a seed, did the same job, fails no constraint and is no control."""
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
    family: Family | None = None
    """The tests that were declared; None in files of an older selectbench."""
    verdicts: list[NamedVerdict] = []  # noqa: RUF012
    """Which option to take, by what is asked."""
    factors: FactorView | None = None
    """None: the options are no grid."""
    score_differences: list[ScoreDifference] = []  # noqa: RUF012
    """Of every option with each score of generated text; empty: none was asked for, or long ago."""
    search: Search | None = None
    """How each option came to its own best; left out where nothing was searched."""
    warnings: list[str]

    @model_serializer(mode="wrap")
    def _as_asked(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        return {key: value for key, value in found.items() if key != "search" or value is not None}
