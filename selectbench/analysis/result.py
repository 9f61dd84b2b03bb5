"""What ranking.json holds. Every key is documented here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from selectbench.analysis.metrics import MemoryKind, Method, UtilizationName, Verdict
from selectbench.gpu.devices import MatmulDtype
from selectbench.record.record import FailureKind

Decision = Literal["better", "worse", "no_difference", "undecided"]
Spread = Literal["pooled", "moderated", "own", "none", "unknown"]
VerdictName = Literal["fastest", "smallest_memory", "cheapest", "best_quality"]


def rounded(value: float) -> float:
    """To the 12 digits that a figure is worth: later ones are rounding, and differ between processors."""
    return float(f"{value:.12g}")


Number = Annotated[float, AfterValidator(rounded)]


class Shown(BaseModel):
    """A mapping of ranking.json: no NaN, no infinity, unknown is None."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Sparse(Shown):
    """One that leaves out the keys of RARE where they hold nothing."""

    RARE: ClassVar[frozenset[str]]

    @model_serializer(mode="wrap")
    def _without_rare(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value or key not in self.RARE}


class ExtraSeeds(Shown):
    """The seeds that would probably settle an open question."""

    seeds: int
    """More seeds for every option."""
    seconds: Number | None
    """Expected time of these rounds; None: not known."""


class Comparison(Shown):
    """One option's metric against another's, over the seeds that both completed."""

    against: str
    ratio: Number | None
    """Geometric mean, over those seeds, of this option's value over the other's with the same seed; None: more or
    less than a float holds."""
    low: Number | None
    high: Number | None
    """Ends of the ratio's simultaneous interval, of the level that `family` says; None: no measure of spread."""
    p: Number | None
    """Two-sided probability of such a difference by chance, by itself; None: no measure of spread."""
    p_adjusted: Number | None
    """The same adjusted for all tests of its family (Holm 1979)."""
    decision: Decision
    """`better` or `worse`: p_adjusted is at most alpha, and the measured difference is above the metric's
    threshold; `no_difference`: the whole interval lies within the threshold; else `undecided`."""
    spread: Spread
    """Whose: `pooled` over all options, `moderated` between that and its own, `own` of this pair, `none`: all
    seeds show the very same difference, so that the threshold alone decides; `unknown`: one seed."""
    degrees_of_freedom: Number | None
    """Of the spread; None where there is none."""
    seeds: int
    """Seeds that both completed; nodes or lanes where these are counted."""
    settling: ExtraSeeds | None = None
    """What would probably decide it, where it is undecided and spread is known."""
    exceeds: bool = False
    """Whether the true difference is shown to exceed the threshold too: the whole interval lies beyond it."""


class ScoreDifference(Shown):
    """An option's score of generated text against the baseline's, over draws of the test sentences; no claim."""

    score: str
    """`bleu`, `chrf`, `rouge_l`, `exact_match` or `token_f1`."""
    option: str
    against: str
    """The baseline."""
    seeds: int
    """Those that both completed; the figures are of the mean over them."""
    sentences: int | None = None
    """How many were drawn from; None, as the four figures: not compared."""
    difference: Number | None = None
    """This option's score less the baseline's."""
    low: Number | None = None
    high: Number | None = None
    """Ends of its 95 % interval, by itself."""
    p: Number | None = None
    """Two-sided, not adjusted."""
    not_compared: str | None = None


class Family(Shown):
    """The tests whose joint error is held."""

    alpha: float
    """Probability that any claim of the family is false, at most."""
    looks: list[int] = []
    """Seeds at each judgement of a run that was extended, this one the last; empty: it is the first."""
    objective: str
    """Every option against the baseline on this metric ..."""
    constraints: list[str]
    """... and every option on each of these constraints."""
    tests: int
    """Number of these tests; options without figures, and values without any spread, take no part."""
    thresholds: dict[str, float]
    """Smallest difference that matters, as a share, by metric."""


class ToLoss(Shown):
    """What an option took until its held-out loss was the baseline's final one; means over `seeds`."""

    seconds: Number | None
    """Training time, warm-up and compilation among it, evaluation not."""
    tokens: Number | None
    joules: Number | None
    """Energy of the GPUs; None: not known."""
    usd: Number | None
    """Rent and electricity at the suite's prices; None: not known."""
    reached: list[int]
    """Seeds with which it got there."""
    not_reached: list[int]
    """Seeds with which it did not, or diverged; any makes the four figures None: the others would flatter it."""


class NamedVerdict(Shown):
    """One answer to one way of asking which option is best."""

    name: VerdictName
    title: str
    """`Fastest at equal quality`."""
    option: str | None
    """The best by the means among the rows that qualify; None: no row qualifies."""
    headline: str
    """The option, or in its place that none is shown to be better than the baseline, or that the answer is open."""
    sentence: str
    confidence: str = ""
    sure: bool
    """Whether it was shown to be better than every other row that qualifies."""
    tied_with: list[str] = []
    """Rows that qualify and that it was not shown to be better than."""
    choices: dict[str, Any] = {}
    """The option's settings, every dimension, as a suite writes them."""
    file: str | None = None
    """The suite of this option alone, in the run's folder."""
    command: str | None = None


class Effect(Shown):
    """How much a factor's level changes the objective."""

    factor: str
    """A dimension or a setting, `optimizer.lr`; aliases of one another are joined by ` = `."""
    level: str
    against: str
    """The baseline's level."""
    ratio: Number
    """Of the objective, averaged over the other factors' levels (geometric)."""
    low: Number | None
    high: Number | None
    """Ends of its own 95 % interval over seeds; None below two seeds."""


class Interaction(Shown):
    """The effect of two levels together, beyond that of each alone."""

    factors: list[str]
    levels: list[str]
    ratio: Number
    """Of the objective over what the main effects alone would give."""
    low: Number | None
    high: Number | None


class Share(Shown):
    """One factor's part in the gain of the best row over the baseline."""

    factor: str
    level: str
    ratio: Number


class FactorView(Shown):
    """A grid taken apart: main effects and the strongest interactions, shown without a claim."""

    effects: list[Effect]
    """By factor, strongest first."""
    interactions: list[Interaction]
    best: str | None
    """The row whose gain is taken apart."""
    best_ratio: Number | None
    """Its ratio to the baseline by the means."""
    shares: list[Share]
    """Their product with `together` is best_ratio."""
    together: Number | None
    """What the factors do beyond the product of their main effects."""


class TrialState(Shown):
    """The verdict on the GPUs of one trial, by the rule of `analysis/metrics.py`."""

    seed: int
    verdict: Verdict
    detail: str
    """What speaks against the GPUs; '' where they were clean."""


class Unknown(Shown):
    """Why a figure is not known, and the seeds of the trials that it is true of."""

    reason: str
    seeds: list[int]

    @classmethod
    def by_reason(cls, reasons: Mapping[int, str | None]) -> list[Unknown]:
        """One for each reason that some seed has; seeds without one are left out."""
        seeds: dict[str, list[int]] = {}
        for seed, reason in reasons.items():
            if reason:
                seeds.setdefault(reason, []).append(seed)
        return [cls(reason=reason, seeds=affected) for reason, affected in seeds.items()]


class DeviceMemory(Shown):
    """By the devices' own account, of the fullest GPU; means over unshared seeds, or all where each was shared."""

    peak_bytes: Number | None
    """The most in use while training, what was in use before among it: what must fit."""
    peak_over_idle_bytes: Number | None
    """The most in use less what was in use right before the trial."""
    idle_bytes: Number | None
    total_bytes: Number | None
    """Of the smallest of the GPUs."""
    driver_reserved_bytes: Number | None
    """Kept by the driver itself, in no other figure."""


class Arithmetic(Shown):
    """What an option's matrix products take and its GPUs could do; the shares themselves are metrics."""

    dtype: MatmulDtype
    """The dtype of the matrix products."""
    model_flops_per_token: Number | None
    """Forward and backward pass; None: the model's work does not follow from its shape."""
    hardware_flops_per_token: Number | None
    """The same with what activation checkpointing computes again."""
    peak_flops_per_second: Number | None
    """By data sheet, dense, in this dtype, of a trial's GPUs together; None: not known of each."""
    matmul_flops_per_second: Number | None
    """The same, as measured on them by `doctor --calibrate`."""
    unknown: dict[UtilizationName, list[Unknown]]
    """Why a seed's share is not known, by metric; those that are known throughout are left out."""


class GpuRow(Shown):
    """An option's GPUs: means over them and over its clean completed seeds, or over all where none is clean."""

    names: list[str]
    """As the driver calls them, each once."""
    states: dict[Verdict, int]
    """Trials by verdict, failed ones among them."""
    by_seed: list[TrialState]
    energy_method: Method | None
    """The least direct way in which a seed's energy was found; None: no seed's is known."""
    energy_unknown: list[Unknown]
    memory: DeviceMemory
    arithmetic: Arithmetic
    state: dict[str, Number | None]
    """The figures of `suite.metrics.GPU_STATE` by name: means over GPUs and seeds, or the highest of any."""
    clock_limit_shares: dict[str, Number] | None
    """By reason that held the clocks down, the share of readings in which it did; None: not known."""


class TriedSetting(Shown):
    """One setting that was tried, and its outcome."""

    values: dict[str, int | float]
    """By path."""
    value: Number | None
    """Value of the metric that is searched by; None: the trial failed."""
    peak_memory_bytes: Number | None
    """Of the trial; None: not known."""
    outcome: Literal["completed"] | FailureKind
    chosen: bool


class OptionSearch(Shown):
    """One option's search."""

    option: str
    metric: str
    """What is searched by."""
    tried: list[TriedSetting]
    """In the order of the values."""
    chosen: dict[str, int | float] | None
    """What the contest takes; None: nothing worked, it takes what the suite says."""
    extensions: int = 0
    """Values beyond, or between, those that were planned first."""
    edges: dict[str, Literal["low", "high"]]
    """By path, the end of what was tried that the best lies on even so, where the setting goes on beyond it."""
    together: bool = False
    """Whether several settings were looked for together, whose ranges are not extended."""
    flat_low: Number | None = None
    flat_high: Number | None = None
    """Ends of the values within 1 % of the best, in straight lines between those tried; None: of several."""
    flat_is_open: bool = False
    """Whether it reaches an end of what was tried: it may be wider."""
    source: str | None = None
    """Where the range comes from; None: the suite."""
    trials: int
    tokens: int
    """Tokens that all the trials were to train on."""
    wall_seconds: Number


class Search(Shown):
    """The searches before the contest, and their cost."""

    sizes: list[OptionSearch]
    """The fastest micro-batch size of each option; empty: not searched."""
    tuning: list[OptionSearch]
    """The best settings of each option; empty: not tuned."""
    seed: int | None
    """The seed of tuning, which the contest does not use; None: not tuned."""
    wall_seconds: Number
    """Time of all trials before the contest."""
    contest_wall_seconds: Number
    """Time of all trials of the contest."""


class ScreenTrial(Shown):
    """One short trial of speed."""

    outcome: Literal["completed"] | FailureKind
    figures: dict[str, Number | None]
    """Of speed and memory, by metric; None: not known, or spoiled by the state of the GPUs."""
    wall_seconds: Number


class ScreenBound(Shown):
    """One bound on an option's short trials."""

    bound: str
    """As the suite writes it."""
    metric: str
    values: list[Number | None]
    """Of each trial; None: not known, which misses no bound."""
    missed: list[bool]
    against: Number | None
    """The worse value of the baseline's two trials, which the bound is a factor of; None: it is no factor."""


class Screening(Shown):
    """The short trials of one option before the contest: one, and another where the first misses a bound."""

    screened_out: bool
    """Whether both miss the same bound: it takes no part in the contest."""
    trials: list[ScreenTrial]
    bounds: list[ScreenBound]
    """Those that could be judged; empty for the baseline."""


class Interference(Shown):
    """An equivalence test of the baseline beside neighbours against the baseline alone, by one metric."""

    ratio: Number
    """Geometric mean over the pairs of short trials."""
    low: Number
    high: Number
    """Ends of its 90 % interval: each is a test at 5 %."""
    pairs: int
    threshold: float
    """Smallest difference that matters, as a share."""
    equivalent: bool
    """Whether the whole interval lies within it."""


class Parts(Shown):
    """What ran whole rounds: the lanes of a machine, or the nodes of a fleet."""

    rounds: dict[str, list[int]]
    """By lane, from 0, or by node, the seeds that it ran."""
    variance_shares: dict[str, Number]
    """By metric, of the variance of an option's trials, what lies between parts; where each ran two rounds."""


class Lanes(Parts):
    """The parts of the machine that ran trials at the same time."""

    neighbours: int
    """How many other lanes trained at the same time as a trial, the most of any."""
    beside: dict[str, Interference]
    """By metric, what the check of interference showed; empty: it was not made, or tells nothing."""
    withheld: list[str]
    """Metrics that count for no claim, as neighbours may have moved them."""
    why: str
    """Of which it is so, with the figures; empty: there are none."""


class NodeSpeed(Shown):
    """tokens_per_second of a node over the other nodes', without those that are off."""

    ratio: Number
    """Of the mean over all options."""
    low: Number | None
    high: Number | None
    """Ends of its interval, 95 % for all nodes together; None: too few rounds to tell."""
    off: bool
    """Whether the interval lies beyond the threshold."""
    by_option: dict[str, Number]
    """The same of each option, without an interval."""


class Nodes(Parts):
    """The nodes of a fleet, or those that trials ran over."""

    speeds: dict[str, NodeSpeed]
    """By node of a fleet; empty: one, or no option with all rounds."""
    threshold: float
    """Smallest difference that matters, as a share."""
    elsewhere: list[str]
    """Trials whose speed claims nothing, as their round's baseline ran on another node."""
    span: str
    """Over how many nodes and ranks a trial ran, and how far clocks were off; empty: on one node."""


SCHEMA_VERSION = 3
"""Grows when a key's meaning changes; keys are added without it. With 1, rows were dominated by means too;
with 2, the figures of a row's `gpu.state` were keys of `gpu`, and what is not verified was text."""


class MetricValue(Shown):
    """One metric of one option over its completed seeds."""

    value: Number | None
    """Geometric mean over the completed seeds, as the ratio is; arithmetic where a value is not above 0. Seeds that
    the state of the GPUs spoils are left out where there are others."""
    ratio_to_baseline: Number | None
    """Geometric mean, over the seeds that both completed, of this option's value over the baseline's."""
    ratio_low: Number | None = None
    ratio_high: Number | None = None
    """Ends of the ratio's interval, of the level that `family` says: of the objective, and where a constraint is on
    the ratio, the one that holds together with all other tests; else the interval by itself, which supports no
    claim. None: the baseline itself, or no measure of spread."""
    standard_deviation: Number | None
    """Of one seed to the next (n - 1 in the denominator); None below two seeds."""
    n: int
    """Seeds that `value` is a mean over."""
    left_out: list[int] = []
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
    settling: ExtraSeeds | None = None
    """What would probably decide it, where it is undecided and spread is known."""


class Violation(Shown):
    """An undeclared difference of an option's job, or something else than was asked for."""

    field: str
    """The identity's field, as `record/record.py` explains it; or what else was found: `settings`, a loss below its
    source's, what was counted, a `record` that contradicts itself, a size of the text, a version."""
    baseline: Any
    """What `against` had, with the first of the seeds."""
    option: Any
    """What this option had, with the first of the seeds."""
    against: str
    """The option compared with: the baseline, or the first one that completed where it did not, or another one
    where the baseline differs from all others; or most trials of the run, of what no seed changes."""
    asked: Any = None
    """What the suite asks for and the trial did not do; None: the difference is from `against`."""
    seeds: list[int]


class NotVerified(Shown):
    """Something that a trial could not see."""

    field: str
    """An identity field, or another subject: `identity`, `causality`, `own loop`, `held-out rows`."""
    reason: str | None
    """Why; None: not known."""


IDENTITY = "identity"
"""The field of what is not verified as a completed trial recorded no identity."""


class Certificate(Sparse):
    """Whether an option did the baseline's job."""

    RARE = frozenset({"conventions"})
    comparable: bool | None
    """Whether there is no violation; None: no seed completed with a certificate, so nothing is known."""
    compared_with: list[str]
    """The baseline, or what took its place in seeds that it did not complete; empty: nothing but itself."""
    differs_as_declared: list[str]
    """Identity fields that differ and that a choice in which the options differ may change."""
    violations: list[Violation]
    """By field; any takes the row out of the ranking."""
    not_verified: list[NotVerified]
    """What is never assumed to be equal."""
    conventions: dict[str, str] = {}
    """By field that is verified under a convention: which one. Left out where there is none."""


class MemoryByRank(Shown):
    """Memory of an option's ranks, means over the completed seeds."""

    peak_bytes_by_rank: list[Number | None]
    """In the order of ranks; peak_memory_bytes is the largest of a trial. Empty: seeds differ in ranks."""
    expected_model_state_bytes: Number | None
    """Parameters, gradients and optimizer state of one rank by `plan/memory.py`; None: no formula."""
    measured_model_state_bytes: Number | None
    """The same as found, of the rank that keeps most; None: a part is hidden."""


class Scaling(Shown):
    """How speed grew with the number of ranks."""

    world_size: int
    speedup: Number | None
    """Tokens per second over the baseline's."""
    efficiency: Number | None
    """The speed-up over the ratio of ranks; 1 is ideal."""


class Row(Sparse):
    """One option."""

    RARE = frozenset({"screening", "besides_the_rate"})
    option: str
    rank: int | None
    """1 and the number of eligible rows shown to be better by the objective; it may be lower by as many as it is
    tied with. None: not eligible, or no measure of spread to tell ranks by."""
    tied_with: list[str] = []
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
    dominated_by: list[str] = []
    """Rows that are shown to be better in one of these, and to be worse in none by more than matters."""
    to_loss: ToLoss | None = None
    """Until its held-out loss was the baseline's final one; None: no evaluations to tell it by."""
    status: Literal["completed", "partial", "failed", "not_comparable", "screened_out", "reference"]
    """partial: some seeds failed or are missing; failed: every seed failed; not_comparable: another job;
    screened_out: both its short trials before the contest missed a bound, so that it takes no part in it;
    reference: in tables alone, a model behind an API."""
    n: int
    """Seeds completed."""
    planned: int
    missing_seeds: list[int]
    """Seeds without any record."""
    differs_in: list[str]
    """Dimensions in which it differs from the baseline."""
    besides_the_rate: list[str] = []
    """Settings besides the learning rate in which its optimizer differs from the baseline's of another class, whose
    own stand in brackets; left out where there are none."""
    eligible: bool
    """Whether it may be ranked: it completed a seed, did the same job, fails no constraint and is no control."""
    constraints: list[ConstraintVerdict]
    """One each, in the suite's order; empty where nothing completed or the job was another."""
    constraint_failures: list[str]
    """Why it is not eligible though it completed."""
    identity: Certificate
    notes: list[str]
    """What must not be concluded from it."""
    metrics: dict[str, MetricValue]
    memory: MemoryByRank | None
    """None: not measured by rank."""
    scaling: Scaling | None
    """None where all rows have as many ranks, or its number is not known."""
    failures: list[Failure]
    busy_seeds: list[int] = []
    """Seeds during whose trials something else kept the CPU busy, by the rule of `analysis/metrics.py`."""
    gpu: GpuRow | None = None
    """What was seen of its GPUs; None: no trial of it had GPU meters."""
    cost_unknown: list[Unknown] = []
    """Why a price of the suite can't be applied; empty: each can, or there is none."""
    screening: Screening | None = None
    """Its short trials before the contest, whose figures are not in `metrics`; left out where there were none."""


class ReferenceScore(Shown):
    """Of what a reference answered, with its 95 % interval over the choice of the test sentences, where known."""

    value: Number
    low: Number | None
    high: Number | None


class Reference(Shown):
    """A model behind an API, not trained here: it has no rank, and nothing is claimed with it.

    Fields without a word are `selectbench.record.record.ApiAnswers`'s.
    """

    name: str
    model: str
    base_url: str
    sentences: int
    answered: int
    incomplete: str | None
    refused: str | None
    empty: int
    cut: int
    scores: dict[str, ReferenceScore]
    """None where it has not answered all."""
    bits_per_byte: Number | None
    byte_perplexity: Number | None
    """2 to that power."""
    no_bits: str | None
    input_tokens: int | None
    output_tokens: int | None
    usd: Number | None
    lost_usd: Number
    latency_median_seconds: Number | None
    samples: list[dict[str, str | None]]


class Ranking(Sparse):
    """The answer to a suite's question."""

    RARE = frozenset({"search", "lanes", "nodes", "references"})
    schema_version: int = SCHEMA_VERSION
    suite: str
    baseline: str
    question: str
    answer: str
    """One or more sentences: what to take, how sure that is, and what was not answered."""
    objective: str
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
    verdicts: list[NamedVerdict] = []
    """Which option to take, by what is asked."""
    factors: FactorView | None = None
    """None: the options are no grid."""
    score_differences: list[ScoreDifference] = []
    """Of every option with each score of generated text; empty: none was asked for, or long ago."""
    references: list[Reference] = []
    """Models behind an API that were asked for the same; left out where there are none."""
    search: Search | None = None
    """How each option came to its own best; left out where nothing was searched."""
    lanes: Lanes | None = None
    """Where trials ran side by side; left out where they did not."""
    nodes: Nodes | None = None
    """Where they ran on several nodes; left out where they did not."""
    warnings: list[str]
