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
    """The value to 12 significant digits: later ones are rounding, and differ between processors."""
    return float(f"{value:.12g}")


Number = Annotated[float, AfterValidator(rounded)]


class JsonObject(BaseModel):
    """An object of JSON files such as ranking.json, without NaN and infinity: what is unknown is None."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Sparse(JsonObject):
    """An object that leaves out the keys of RARE where they hold nothing."""

    RARE: ClassVar[frozenset[str]]

    @model_serializer(mode="wrap")
    def _without_rare(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value or key not in self.RARE}


class ExtraSeeds(JsonObject):
    """The seeds that would probably settle an open question."""

    seeds: int
    """How many more seeds every option should run."""
    seconds: Number | None
    """Expected wall time of these rounds; None: no trial has completed."""


class Comparison(JsonObject):
    """One option's metric against another's, over the seeds that both completed."""

    against: str
    ratio: Number | None
    """Geometric mean, over those seeds, of this option's value over the other's with the same seed; None: a float
    can't hold it."""
    low: Number | None
    high: Number | None
    """Ends of the ratio's interval at the level 1 - `family.alpha` for all tests together; None: no measure of
    spread."""
    p: Number | None
    """Two-sided probability of such a difference by chance, not adjusted; None: no measure of spread."""
    p_adjusted: Number | None
    """p adjusted for all tests of its family (Holm 1979); None where p is."""
    decision: Decision
    """`better` or `worse`: p_adjusted is at most alpha, and the measured difference is above the metric's
    threshold; `no_difference`: the whole interval lies within the threshold; else `undecided`."""
    spread: Spread
    """Whose variance it rests on: `pooled` over all options, `own` of this pair, or `moderated`, a mixture of both;
    `none`: all seeds show the very same difference, so that the threshold alone decides; `unknown`: one seed."""
    degrees_of_freedom: Number | None
    """Degrees of freedom of that variance; None where there is none."""
    seeds: int
    """Number of seeds that both completed; of nodes or lanes where these are counted."""
    settling: ExtraSeeds | None = None
    """More seeds that would probably decide what is undecided; None: it is decided, or no number is proposed."""
    exceeds: bool = False
    """Whether the true difference is shown to exceed the threshold too: the whole interval lies beyond it."""


class ScoreDifference(JsonObject):
    """An option's score of generated text against the baseline's, over draws of the test sentences; no claim."""

    score: str
    """`bleu`, `chrf`, `rouge_l`, `exact_match` or `token_f1`."""
    option: str
    against: str
    """The baseline."""
    seeds: int
    """Number of seeds that both completed; the figures are of the mean over them."""
    sentences: int | None = None
    """Number of test sentences that were drawn from; None, as the four figures below: not compared."""
    difference: Number | None = None
    """This option's score less the baseline's, of scores from 0 to 100."""
    low: Number | None = None
    high: Number | None = None
    """Ends of the difference's 95 % interval, which holds by itself alone."""
    p: Number | None = None
    """Two-sided p of the difference, not adjusted."""
    not_compared: str | None = None
    """Why the two are not compared; None: they are."""


class Family(JsonObject):
    """The tests whose joint error is held."""

    alpha: float
    """Largest probability that any claim of the family is false."""
    looks: list[int] = []
    """Number of seeds at each judgement of an extended run, this one the last; empty: this is the first one."""
    objective: str
    """The metric by which every option is tested against the baseline."""
    constraints: list[str]
    """The constraints that every option is tested on, as the suite writes them."""
    tests: int
    """Number of these tests; options without figures, and values without any spread, take no part."""
    thresholds: dict[str, float]
    """By metric, the smallest difference that matters: 0.05 is a factor of 1.05, up or down."""


class ToLoss(JsonObject):
    """What an option took until its held-out loss was the baseline's final one; means over `seeds`."""

    seconds: Number | None
    """Training time with warm-up and compilation, without evaluation; None: not known of each seed."""
    tokens: Number | None
    """Tokens trained on; None as for seconds."""
    joules: Number | None
    """Energy of the GPUs; None: not known of each seed."""
    usd: Number | None
    """Rent and electricity at the suite's prices; None: not known of each seed."""
    reached: list[int]
    """Seeds that reached the loss on clean GPUs."""
    not_reached: list[int]
    """Seeds that did not reach it, or diverged; any makes the four figures None: the others would flatter it."""


class NamedVerdict(JsonObject):
    """One answer to one way of asking which option is best."""

    name: VerdictName
    title: str
    """The question, such as `Fastest at equal quality`."""
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


class Effect(JsonObject):
    """How much a factor's level changes the objective."""

    factor: str
    """A dimension or a setting, `optimizer.lr`; aliases of one another are joined by ` = `."""
    level: str
    against: str
    """The baseline's level."""
    ratio: Number
    """The objective with this level over that with the baseline's, averaged over the other factors' levels
    (geometric)."""
    low: Number | None
    high: Number | None
    """Ends of the ratio's 95 % interval over seeds, which holds by itself alone; None below two seeds."""


class Interaction(JsonObject):
    """The effect of two levels together, beyond that of each alone."""

    factors: list[str]
    levels: list[str]
    ratio: Number
    """The objective with both levels over what the main effects alone would give."""
    low: Number | None
    high: Number | None
    """Ends of the ratio's 95 % interval over seeds, which holds by itself alone; None below two seeds."""


class Share(JsonObject):
    """One factor's part in the gain of the best row over the baseline."""

    factor: str
    settings: list[str]
    """The factor's settings, which always change together and so share one effect."""
    level: str
    ratio: Number
    """The level's main effect on the objective."""


class FactorView(JsonObject):
    """A grid taken apart: main effects and the strongest interactions, shown without a claim."""

    effects: list[Effect]
    """By factor, strongest first."""
    interactions: list[Interaction]
    best: str | None
    """The first row, whose gain is taken apart; None, as best_ratio and `together`: it has no rank or no ratio."""
    best_ratio: Number | None
    """The first row's ratio to the baseline by the objective."""
    shares: list[Share]
    """Each factor's part; the product of these and of `together` is best_ratio."""
    together: Number | None
    """The ratio by which the factors do more, or less, than the product of their main effects."""


class TrialState(JsonObject):
    """The verdict on the GPUs of one trial, by the rule of `analysis/metrics.py`."""

    seed: int
    verdict: Verdict
    detail: str
    """What speaks against the GPUs; '' where they were clean."""


class Unknown(JsonObject):
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


class DeviceMemory(JsonObject):
    """Memory as the driver counts it, in bytes, of the GPU with the most; None: not known.

    Means over the seeds whose GPUs were not shared, or over all where each was.
    """

    peak_bytes: Number | None
    """The most in use while training, what was in use before among it: what must fit."""
    peak_over_idle_bytes: Number | None
    """The most in use less what was in use right before the trial."""
    idle_bytes: Number | None
    """What was in use right before the trial."""
    total_bytes: Number | None
    """The memory that the smallest of the GPUs has."""
    driver_reserved_bytes: Number | None
    """What the driver keeps for itself, which is in no other figure."""


class Arithmetic(JsonObject):
    """What an option's matrix products take and its GPUs could do; the shares themselves are metrics."""

    dtype: MatmulDtype
    """The dtype of the matrix products."""
    model_flops_per_token: Number | None
    """Operations of the forward and backward pass; None: the model's work does not follow from its shape."""
    hardware_flops_per_token: Number | None
    """The same with what activation checkpointing computes again."""
    peak_flops_per_second: Number | None
    """Dense peak in this dtype by the data sheets, of a trial's GPUs together; None: not known of each GPU."""
    matmul_flops_per_second: Number | None
    """The rate that `doctor --calibrate` measured, of a trial's GPUs together; None: not known of each GPU."""
    unknown: dict[UtilizationName, list[Unknown]]
    """By metric, why a seed's share is not known; metrics that are known of every seed are left out."""


class GpuRow(JsonObject):
    """An option's GPUs: means over them and over its clean completed seeds, or over all where none is clean.

    A figure is None where no GPU tells it.
    """

    names: list[str]
    """The GPUs' names as the driver has them, each once."""
    states: dict[Verdict, int]
    """By verdict, the number of trials, failed ones among them."""
    by_seed: list[TrialState]
    energy_method: Method | None
    """The least direct way in which a seed's energy was found; None: no seed's is known."""
    energy_unknown: list[Unknown]
    memory: DeviceMemory
    arithmetic: Arithmetic
    state: dict[str, Number | None]
    """By name, the figures of `suite.metrics.GPU_STATE`: means over GPUs and seeds, or the highest of any."""
    clock_limit_shares: dict[str, Number] | None
    """By reason that held the clocks down, the share of readings in which it did; None: not known of each GPU."""


class TriedSetting(JsonObject):
    """One setting that was tried, and its outcome."""

    values: dict[str, int | float]
    """By the settings' paths, such as `optimizer.lr`, the values tried."""
    value: Number | None
    """Value of the metric that is searched by; None: the trial failed, or the value is not known."""
    peak_memory_bytes: Number | None
    """Peak memory of the trial; None: not known."""
    outcome: Literal["completed"] | FailureKind
    chosen: bool
    """Whether the contest takes it."""


class OptionSearch(JsonObject):
    """What was tried for one option before the contest, and what was chosen."""

    option: str
    metric: str
    """The metric that the settings are compared by."""
    tried: list[TriedSetting]
    """The settings tried, in the order of their values."""
    chosen: dict[str, int | float] | None
    """By path, the values that the contest takes; None: nothing worked, it takes what the suite says."""
    extensions: int = 0
    """Number of values that were tried beyond, or between, those that were planned first."""
    edges: dict[str, Literal["low", "high"]]
    """By path, the end of what was tried that the best lies on even so, where the setting goes on beyond it."""
    together: bool = False
    """Whether several settings were looked for together, whose ranges are not extended."""
    flat_low: Number | None = None
    flat_high: Number | None = None
    """Ends of the range of values that are within 1 % of the best, in straight lines between those tried; None:
    several settings were looked for together, fewer than two were tried, or nothing worked."""
    flat_is_open: bool = False
    """Whether this range reaches an end of what was tried, so that it may be wider."""
    source: str | None = None
    """Where the range that was searched comes from; None: the suite."""
    trials: int
    tokens: int
    """Tokens that all the trials were to train on."""
    wall_seconds: Number
    """Wall time of all the trials."""


class Search(JsonObject):
    """The searches before the contest, and their cost."""

    sizes: list[OptionSearch]
    """For each option, the search for its fastest micro-batch size; empty: not searched."""
    tuning: list[OptionSearch]
    """For each option, the search for its best settings; empty: not tuned."""
    seed: int | None
    """The seed of tuning, which the contest does not use; None: not tuned."""
    wall_seconds: Number
    """Wall time of all trials before the contest."""
    contest_wall_seconds: Number
    """Wall time of all trials of the contest."""


class ScreenTrial(JsonObject):
    """One short trial of speed."""

    outcome: Literal["completed"] | FailureKind
    figures: dict[str, Number | None]
    """Figures of speed and memory, by metric; None: not known, or spoiled by the state of the GPUs."""
    wall_seconds: Number
    """Wall time of the trial."""


class ScreenBound(JsonObject):
    """One bound on an option's short trials."""

    bound: str
    """The bound as the suite writes it."""
    metric: str
    values: list[Number | None]
    """The metric's value in each trial; None: not known, which misses no bound."""
    missed: list[bool]
    """Whether the trial missed the bound, for each trial."""
    against: Number | None
    """The worse value of the baseline's two trials, which the bound is a factor of; None: it is no factor."""


class Screening(JsonObject):
    """The short trials of one option before the contest: one, and another where the first misses a bound."""

    screened_out: bool
    """Whether both miss the same bound: it takes no part in the contest."""
    trials: list[ScreenTrial]
    bounds: list[ScreenBound]
    """The bounds that could be judged; empty for the baseline."""


class Interference(JsonObject):
    """An equivalence test of the baseline beside neighbours against the baseline alone, by one metric."""

    ratio: Number
    """Geometric mean, over the pairs of short trials, of the value beside neighbours over the value alone."""
    low: Number
    high: Number
    """Ends of the ratio's 90 % interval: each is a test at 5 %."""
    pairs: int
    """Number of pairs of short trials."""
    threshold: float
    """Smallest difference that matters, as a share."""
    equivalent: bool
    """Whether the whole interval lies within the threshold."""


class Parts(JsonObject):
    """What ran whole rounds: the lanes of a machine, or the nodes of a fleet."""

    rounds: dict[str, list[int]]
    """By lane (numbered from 0) or by node, the seeds that it ran."""
    variance_shares: dict[str, Number]
    """By metric, the share of the variance of an option's trials that lies between parts; empty: some part ran one
    round alone, or nothing is known."""


class Lanes(Parts):
    """The parts of the machine that ran trials at the same time."""

    neighbours: int
    """The largest number of other lanes that trained at the same time as a trial."""
    beside: dict[str, Interference]
    """By metric, what the check of interference showed; empty: it was not made, or tells nothing."""
    withheld: list[str]
    """Metrics that count for no claim, as neighbours may have moved them."""
    why: str
    """Why these metrics count for no claim, with the figures; empty: there are none."""


class NodeSpeed(JsonObject):
    """tokens_per_second of a node over the other nodes', without those that are off."""

    ratio: Number
    """The node's speed over the others', of the mean over all options."""
    low: Number | None
    high: Number | None
    """Ends of the ratio's interval, at 95 % for all nodes together; None: too few rounds to tell."""
    off: bool
    """Whether the interval lies beyond the threshold."""
    by_option: dict[str, Number]
    """By option, the node's speed over the others', without an interval."""


class Nodes(Parts):
    """The nodes of a fleet, or those that trials ran over."""

    speeds: dict[str, NodeSpeed]
    """By node of a fleet, its speed; empty: there is one node, or no option has all rounds."""
    threshold: float
    """Smallest difference that matters, as a share."""
    elsewhere: list[str]
    """Trials whose speed claims nothing, as their round's baseline ran on another node."""
    span: str
    """Over how many nodes and ranks a trial ran, and how far clocks were off; empty: on one node."""


SCHEMA_VERSION = 3
"""Grows when a key's meaning changes; keys are added without it. With 1, rows were dominated by means too;
with 2, the figures of a row's `gpu.state` were keys of `gpu`, and what is not verified and what failed was text."""


class MetricValue(JsonObject):
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
    """Sample standard deviation over the seeds (n - 1 in the denominator); None below two seeds."""
    n: int
    """Number of seeds that `value` is a mean over."""
    left_out: list[int] = []
    """Seeds whose value the state of the GPUs spoils."""
    unclean: bool = False
    """Whether every seed is spoiled: `value` is then the mean of those, is shown, and is compared with nothing."""


class Failure(JsonObject):
    """A trial that yielded no measurement."""

    seed: int
    kind: FailureKind
    detail: str
    note: str | None = None
    """Why it is no finding about the option: the state of the GPUs may have caused it."""


class ConstraintFailure(JsonObject):
    """Something that a row does not hold, so that it is not ranked."""

    constraint: str
    """A constraint of the suite, or that every seed has a figure of the objective."""
    detail: str
    """What was measured instead."""


class ConstraintVerdict(JsonObject):
    """What the measurements say of one constraint: a test of non-inferiority in the suite's family."""

    constraint: str
    """The constraint as the suite writes it."""
    verdict: Literal["holds", "fails", "undecided", "not_judged"]
    """`holds` and `fails` are claims; `undecided`: the figures allow neither; `not_judged`: there are none."""
    detail: str
    """The figure it was judged by with its simultaneous interval, or why it could not be."""
    p_adjusted: Number | None = None
    """Probability of such a distance from the bound by chance, adjusted for the family; None: no test was made."""
    settling: ExtraSeeds | None = None
    """More seeds that would probably decide what is undecided; None: it is decided, or no number is proposed."""


class Violation(JsonObject):
    """An undeclared difference of an option's job, or a trial that did something else than was asked for."""

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


class NotVerified(JsonObject):
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


class MemoryByRank(JsonObject):
    """Memory of an option's ranks, means over the completed seeds."""

    peak_bytes_by_rank: list[Number | None]
    """Peak memory of each rank, in their order; peak_memory_bytes is the largest of a trial. None: not known of
    each seed. Empty: seeds differ in ranks."""
    expected_model_state_bytes: Number | None
    """Parameters, gradients and optimizer state of one rank by `planning/memory.py`; None: no formula."""
    measured_model_state_bytes: Number | None
    """The same as measured, of the rank that keeps most; None: a part could not be seen."""


class Scaling(JsonObject):
    """How speed grew with the number of ranks."""

    world_size: int
    speedup: Number | None
    """Tokens per second over the baseline's; None: not known."""
    efficiency: Number | None
    """The speed-up over the ratio of ranks, of which 1 is ideal; None: not known, or ranks share a CPU."""


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
    """Comparison with the baseline by the objective; None: the baseline itself, or no seed that both completed."""
    against_best: Comparison | None = None
    """Comparison of a ranked row with the first one by the objective, adjusted for the order of all rows; None: the
    first row itself, a row without a rank, or no common seed."""
    pareto: bool | None = None
    """Whether no other row dominates it over speed, memory, energy and quality, as far as they are known; None: not
    comparable or not completed."""
    dominated_by: list[str] = []
    """Rows that are shown to be better in one of these, and shown to be worse by less than matters, if at all, in
    the others."""
    to_loss: ToLoss | None = None
    """What it took until its held-out loss was the baseline's final one; None: no evaluations to tell it by."""
    status: Literal["completed", "partial", "failed", "not_comparable", "screened_out", "reference"]
    """partial: some seeds failed or are missing; failed: every seed failed; not_comparable: another job;
    screened_out: both its short trials before the contest missed a bound, so that it takes no part in it;
    reference: in tables alone, a model behind an API."""
    n: int
    """Number of seeds completed."""
    planned: int
    """Number of seeds planned."""
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
    """A verdict on each constraint, in the suite's order; empty where nothing completed or the job was another."""
    constraint_failures: list[ConstraintFailure]
    """Why it is not eligible though it completed: constraints that fail, or what the objective lacks."""
    identity: Certificate
    notes: list[str]
    """What must not be concluded from it."""
    metrics: dict[str, MetricValue]
    memory: MemoryByRank | None
    """Memory of its ranks; None: not measured by rank."""
    scaling: Scaling | None
    """How speed grew with its ranks; None: all rows have as many ranks, or its number is not known."""
    failures: list[Failure]
    busy_seeds: list[int] = []
    """Seeds during whose trials something else kept the CPU busy, by the rule of `analysis/metrics.py`."""
    gpu: GpuRow | None = None
    """What was seen of its GPUs; None: no trial of it had GPU meters."""
    cost_unknown: list[Unknown] = []
    """Why a price of the suite can't be applied; empty: each can, or there is none."""
    screening: Screening | None = None
    """Its short trials before the contest, whose figures are not in `metrics`; left out where there were none."""


class ReferenceScore(JsonObject):
    """A score of what a reference answered, from 0 to 100."""

    value: Number
    low: Number | None
    high: Number | None
    """Ends of the score's 95 % interval over the choice of the test sentences; None: not known."""


class Reference(JsonObject):
    """A model behind an API, not trained here: it has no rank, and nothing is claimed with it.

    Fields without a docstring are copied from `selectbench.record.record.ApiAnswers`, which describes them.
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
    """By score of generated text; empty where it has not answered all."""
    bits_per_byte: Number | None
    byte_perplexity: Number | None
    """2 to the power of bits_per_byte; None where that is not known, or is above 1,000."""
    no_bits: str | None
    input_tokens: int | None
    output_tokens: int | None
    usd: Number | None
    lost_usd: Number
    latency_median_seconds: Number | None
    samples: list[dict[str, str | None]]


class Ranking(Sparse):
    """The answer to a suite's question."""

    RARE = frozenset({"settled", "search", "lanes", "nodes", "references"})
    schema_version: int = SCHEMA_VERSION
    suite: str
    baseline: str
    question: str
    answer: str
    """One or more sentences: what to take, how sure that is, and what was not answered."""
    settled: bool = False
    """Whether the run is complete and shows one option to be better than all others that are ranked, and nothing
    that the answer says (a busy machine, a model that learnt nothing) questions that; left out where it is not."""
    objective: str
    device: Literal["cpu", "cuda"]
    quick: bool
    """Whether the run measured speed and memory only."""
    seeds: list[int]
    memory_kind: MemoryKind | None
    """Which memory peak_memory_bytes is; None: no trial measured it, or trials measured different kinds."""
    rows: list[Row]
    """Ranked rows by rank, then those that fail a constraint, did another job, are missing, failed."""
    family: Family | None = None
    """The declared tests; None in files of an older selectbench."""
    verdicts: list[NamedVerdict] = []
    """For each question that a reader may ask, which option to take."""
    factors: FactorView | None = None
    """The options as a grid of factors; None: they are no grid."""
    score_differences: list[ScoreDifference] = []
    """For every option and score of generated text, the difference from the baseline; empty: no such scores, or a
    file of an older selectbench."""
    references: list[Reference] = []
    """Models behind an API that were asked for the same; left out where there are none."""
    search: Search | None = None
    """The searches for each option's own best settings; left out where nothing was searched."""
    lanes: Lanes | None = None
    """The lanes on which trials ran side by side; left out where they did not."""
    nodes: Nodes | None = None
    """The nodes that trials ran on; left out where they ran on one machine."""
    warnings: list[str]
