"""The catalogue of metrics, which constraints, decisions, tuning, gates and all reports read, and bounds on them.

To add a metric that the worker measures already, add its entry, with `measured_as` naming the measurement's key.
One that has a formula of its own gets that in `selectbench.analysis.metrics`. To add a figure of the GPUs' state,
add its reading to `gpu.devices.StateReading`, its key to `record.record.GpuMeters` and its entry to GPU_STATE.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from pydantic import PlainSerializer, WithJsonSchema, WrapValidator

from selectbench import units
from selectbench.choices.choice import WrongValueError
from selectbench.errors import did_you_mean, one_of_these
from selectbench.suite.command import CommandJob
from selectbench.suite.job import OWN_METRIC_PATTERN, OWN_SCORE, Job, OwnMetric
from selectbench.text import quoted

Better = Literal["more", "less"]
Report = Literal["terminal", "markdown", "page"]
Dimension = Literal["speed", "memory", "energy", "quality"]
Need = Literal[
    "gpu", "price", "evaluation", "evaluations_on_the_way", "same_tokens", "score", "known_entropy", "text"
]
"""What a job must have for a metric to be known."""
SECONDS_TO_LOSS = "seconds_to_baseline_loss"
LESS_IS_BETTER = "↓"


@dataclass(frozen=True)
class Unit:
    """How a figure is displayed, and which units a suite may write behind a number."""

    show: Callable[[float | None], str]
    written: Mapping[str, float] = field(default_factory=dict)
    """By unit, how many of the metric's own units it is; a number without a unit is in the metric's own."""


_BYTES = Unit(units.size, {
    "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
})  # fmt: skip
_SECONDS = Unit(units.seconds, {"s": 1, "ms": 1e-3, "us": 1e-6})
_HOURS = Unit(units.seconds, {**_SECONDS.written, "min": 60, "h": 3600})
_TOKENS_PER_SECOND = Unit(units.count, {"tokens/s": 1})
_BYTES_PER_SECOND = Unit(units.size_per_second, {"B/s": 1})
_NATS = Unit(units.significant, {"nats": 1})
_BITS = Unit(units.significant, {"bits": 1})
_NUMBER = Unit(units.significant)
_JOULES = Unit(units.joules, {"J": 1, "mJ": 1e-3, "uJ": 1e-6})
_WATTS = Unit(units.watts)
_USD = Unit(units.usd, {"USD": 1})
_SHARE = Unit(units.share)
_SCORE_TITLES = {
    "bleu": "BLEU", "chrf": "chrF", "rouge_l": "ROUGE-L", "exact_match": "exact match", "token_f1": "token F1",
    OWN_SCORE: "own score",
}  # fmt: skip
_UNCLEAN = frozenset({"throttled", "shared", "busy"})
_SHARED = frozenset({"shared"})


@dataclass(frozen=True)
class Metric:
    """One figure of an option."""

    name: str
    """Its name in suites, ranking.json, ranking.csv and data frames; it ends in the unit."""
    title: str
    """The heading of its column."""
    better: Better
    unit: Unit
    superlative: str
    """Completes the sentence "OPTION ..." for the best row."""
    threshold: float | None = None
    """Smallest difference that matters where the suite does not say: 0.05 is a factor of 1.05, up or down; None: it
    decides nothing."""
    threshold_on_cpu: float | None = None
    """The threshold on a CPU; None: the same."""
    measured_as: str | None = None
    """The key of the measurement that is this metric; None: a formula computes it."""
    quality: bool = False
    """Whether it says how well the model learnt; such a metric is never claimed by a quick run."""
    scored: bool = False
    """Whether it is a score of generated text, or of own code."""
    metered: bool = False
    """Whether it is known only from the GPUs' meters."""
    needs: tuple[Need, ...] = ()
    """What a job must have for it to be known, or to mean the same for all options."""
    spoiled_by: frozenset[str] = frozenset()
    """States of the GPUs, or of a CPU, in which a trial's value says nothing about the option."""
    may_be_missing: bool = False
    """Whether a good trial may lack it."""
    only_if_reached: bool = False
    """Whether it exists only for trials that learnt enough, which may be an option's lucky ones: as an objective it
    calls an option better only with further proof (`analysis.contest.Contest.p_of_lucky_seeds`)."""
    after_figure: str = ""
    """What follows the figure in a sentence."""
    difference_in: str = ""
    """The unit of the differences that are displayed, as for a logarithm; '': ratios are displayed."""
    columns: Mapping[Report, int] = field(default_factory=dict)
    """Its place among the columns of each table that has it."""
    shows_ratio: bool = False
    """Whether the Markdown table has its ratio to the baseline although it does not decide."""
    dimension: tuple[Dimension, int] | None = None
    """The dimension of the Pareto set that it stands for, and its turn: of several known metrics the first does."""
    comparison: Literal["tested", "shown"] | None = None
    """What a comparison of runs does with it; None: leaves it out."""
    watched: bool = False
    """Whether the control row is tested by it."""
    exported: bool = False
    """Whether benchmark.json has it."""

    def show(self, value: float | None) -> str:
        """The figure with its unit; a dash where it is unknown."""
        return self.unit.show(value)

    def against(
        self, ratio: float | None, low: float | None, high: float | None, base: float | None
    ) -> tuple[str, str]:
        """A ratio to `base` (of this metric) and its interval as text; a difference if `difference_in` says so."""
        if not self.difference_in or ratio is None or base is None or not units.is_measurable(low, high):
            return units.ratio_and_range(ratio, low, high)
        low, high = (None if end is None else (end - 1) * base for end in (low, high))
        return units.difference_and_range((ratio - 1) * base, low, high, self.difference_in)

    @property
    def heading(self) -> str:
        """The heading of its column; a down arrow marks a metric of quality of which less is better."""
        return f"{self.title}{LESS_IS_BETTER}" if self.quality and self.better == "less" else self.title

    def is_better(self, value: float, other: float) -> bool:
        """Whether `value` beats `other`."""
        return value > other if self.better == "more" else value < other

    @property
    def decides(self) -> bool:
        """Whether a suite may decide by it."""
        return self.threshold is not None

    @property
    def per_token(self) -> bool:
        """Whether it can't compare options whose tokenizers, and so whose tokens, differ."""
        return "same_tokens" in self.needs


_SPEED_AND_MEMORY = (
    Metric("tokens_per_second", "tokens/s", "more", _TOKENS_PER_SECOND, "is the fastest", 0.01,
           needs=("same_tokens",), spoiled_by=_UNCLEAN, after_figure=" tokens/s",
           columns={"terminal": 0, "markdown": 0, "page": 0}, shows_ratio=True, dimension=("speed", 0),
           comparison="tested", watched=True, exported=True),
    Metric("bytes_per_second", "text/s", "more", _BYTES_PER_SECOND, "reads the most text", 0.01,
           needs=("evaluation", "text"), spoiled_by=_UNCLEAN, dimension=("speed", 1)),
    Metric("step_time_median_seconds", "median step", "less", _SECONDS, "has the shortest step", 0.01,
           measured_as="step_time_median_seconds", spoiled_by=_UNCLEAN,
           columns={"terminal": 12, "markdown": 1, "page": 17}),
    Metric("step_time_iqr_seconds", "step IQR", "less", _SECONDS, "has the steadiest step",
           measured_as="step_time_iqr_seconds", spoiled_by=_UNCLEAN),
    # On a CPU the peak depends on which pages the process happens to hold, the same way in every seed of an option:
    # Adam's is 4 % below AdamW's, and momentum's above both, though it has half their state (run of `optimizer`).
    Metric("peak_memory_bytes", "memory", "less", _BYTES, "needs the least memory", 0.01, threshold_on_cpu=0.05,
           may_be_missing=True, columns={"terminal": 11, "markdown": 2, "page": 1}, shows_ratio=True,
           dimension=("memory", 1), comparison="tested", watched=True, exported=True),
    Metric("peak_memory_reserved_bytes", "reserved", "less", _BYTES, "reserves the least memory"),
    Metric("peak_device_memory_bytes", "device memory", "less", _BYTES, "needs the least memory of a GPU", 0.01,
           metered=True, needs=("gpu",), spoiled_by=_SHARED, after_figure=" of a GPU", columns={"page": 2},
           dimension=("memory", 0), comparison="tested"),
)  # fmt: skip
_OTHERS = (
    Metric("final_loss", "loss", "less", _NATS, "reaches the lowest held-out loss", 0.002, measured_as="final_loss",
           quality=True, needs=("evaluation", "same_tokens"), after_figure=" nats per token", difference_in="nats",
           columns={"terminal": 13, "markdown": 3, "page": 3}, dimension=("quality", 0), comparison="tested",
           watched=True, exported=True),
    Metric("final_perplexity", "perplexity", "less", _NUMBER, "reaches the lowest perplexity", 0.01, quality=True,
           needs=("evaluation", "same_tokens"), columns={"terminal": 10, "markdown": 4, "page": 4},
           shows_ratio=True, comparison="shown", exported=True),
    Metric("bits_per_byte", "bits/byte", "less", _BITS, "reaches the fewest bits per byte", 0.002, quality=True,
           needs=("evaluation", "text"), after_figure=" bits per byte", difference_in="bits",
           columns={"terminal": 16, "markdown": 5, "page": 5}, dimension=("quality", 1)),
    Metric("excess_loss", "excess loss", "less", _NATS, "comes closest to the source's entropy", 0.05, quality=True,
           needs=("evaluation", "known_entropy"), after_figure=" nats per token above the source",
           columns={"terminal": 7, "markdown": 6, "page": 6}),
    *(
        Metric(name, title, "more", _NUMBER, f"reaches the highest {title}", 0.01,
               quality=True, scored=True, needs=("evaluation", "score"),
               columns={"terminal": 1 + number, "markdown": 7 + number, "page": 7 + number})
        for number, (name, title) in enumerate(_SCORE_TITLES.items())
    ),
    Metric("initial_loss", "loss at start", "less", _NATS, "has the lowest loss before training",
           measured_as="initial_loss", quality=True, columns={"terminal": 9, "markdown": 13, "page": 13}),
    Metric("bytes_per_token", "bytes/token", "more", _NUMBER, "packs most text into a token",
           columns={"terminal": 8, "markdown": 14, "page": 14}),
    Metric("startup_seconds", "start-up", "less", _SECONDS, "starts the soonest", measured_as="startup_seconds",
           spoiled_by=_UNCLEAN, columns={"terminal": 17, "markdown": 17}),
    Metric("compile_seconds", "compile", "less", _SECONDS, "compiles the fastest",
           measured_as="compile_seconds", spoiled_by=_UNCLEAN,
           columns={"terminal": 18, "markdown": 18}),
    Metric("training_seconds", "training", "less", _SECONDS, "trains in the shortest time",
           measured_as="training_seconds", spoiled_by=_UNCLEAN),
    # The time until the held-out loss was the baseline's final one with the same seed: it takes two trials.
    Metric(SECONDS_TO_LOSS, "to baseline's loss", "less", _HOURS, "is the first to reach the baseline's loss", 0.01,
           needs=("evaluation", "evaluations_on_the_way", "same_tokens"), spoiled_by=_UNCLEAN,
           may_be_missing=True, only_if_reached=True, after_figure=" to the baseline's loss"),
    Metric("evaluation_seconds", "evaluation", "less", _SECONDS, "evaluates the fastest",
           measured_as="evaluation_seconds", spoiled_by=_UNCLEAN),
    Metric("skipped_share", "skipped steps", "less", _NUMBER, "skips the fewest steps"),
    Metric("joules_per_token", "energy/token", "less", _JOULES, "takes the least energy per token", 0.01,
           metered=True, needs=("gpu", "same_tokens"), spoiled_by=_UNCLEAN,
           after_figure=" per token", columns={"terminal": 14, "markdown": 15, "page": 15}, dimension=("energy", 0),
           comparison="tested", watched=True, exported=True),
    Metric("mean_power_watts", "power", "less", _WATTS, "draws the least power", metered=True,
           spoiled_by=_UNCLEAN),
    Metric("usd_per_billion_tokens", "cost per 1e9 tokens", "less", _USD, "is the cheapest", 0.01,
           needs=("gpu", "price", "same_tokens"), spoiled_by=_UNCLEAN,
           after_figure=" per billion tokens", columns={"terminal": 15, "markdown": 16, "page": 16},
           comparison="tested"),
    Metric("usd_of_job", "cost of the job", "less", _USD, "makes the job cheapest",
           spoiled_by=_UNCLEAN),
    # Displayed but never decides: a share of one precision's rate can't be compared with a share of another's.
    Metric("mfu", "MFU", "more", _SHARE, "uses most of the GPUs' peak", metered=True,
           spoiled_by=_UNCLEAN),
    Metric("hfu", "HFU", "more", _SHARE, "uses most of the GPUs' peak, recomputation included", metered=True,
           spoiled_by=_UNCLEAN),
    Metric("matmul_rate_share", "of measured matmul rate", "more", _SHARE, "uses most of the measured matmul rate",
           metered=True, spoiled_by=_UNCLEAN),
)  # fmt: skip

_own_metrics: dict[str, Metric] = {}
"""Metrics of own code of every suite that this process has read: it may make reports of several."""
_last_declared: list[str] = []
"""Names of the metrics of own code of the suite that was read last, for hints."""


@dataclass(frozen=True)
class GpuFigure:
    """One figure of the GPUs' state, which is displayed and not compared."""

    name: str
    """Its key in `record.record.GpuMeters` and in ranking.json."""
    reading: str
    """The reading of `gpu.devices.StateReading` that it is made of."""
    of: Literal["mean of timed windows", "highest of whole trial"]
    """Over a trial, and in the same way over an option's GPUs and trials."""
    heading: str
    show: Callable[[float | None], str]


GPU_STATE = (
    GpuFigure("mean_sm_clock_hertz", "sm_clock_hertz", "mean of timed windows", "SM clock", units.megahertz),
    GpuFigure("mean_memory_clock_hertz", "memory_clock_hertz", "mean of timed windows", "memory clock",
              units.megahertz),
    GpuFigure("highest_temperature_celsius", "temperature_celsius", "highest of whole trial", "highest temperature",
              units.celsius),
    GpuFigure("mean_utilization", "utilization", "mean of timed windows", "utilisation", units.share),
)  # fmt: skip
"""In the order of their table's columns."""


class Catalogue(dict[str, Metric]):
    """Every built-in metric by name, in the order of ranking.json; a lookup by name finds those of own code too."""

    def __missing__(self, name: str) -> Metric:
        return _own_metrics[name]


METRICS = Catalogue({
    metric.name: metric
    for metric in (*_SPEED_AND_MEMORY, *_OTHERS)
})  # fmt: skip
DECIDING = tuple(name for name, metric in METRICS.items() if metric.decides)
"""The built-in metrics that a suite may decide by."""
SCREENING = tuple(
    metric.name for metric in _SPEED_AND_MEMORY if metric.decides and "evaluation" not in metric.needs
)
"""Of these, those that a short trial of speed measures."""
QUALITY = tuple(name for name in DECIDING if METRICS[name].quality)
"""Of these, those that say how well a model learnt."""
PER_TOKEN = frozenset(name for name in DECIDING if METRICS[name].per_token)
"""Of these, those that can't compare options whose tokenizers differ."""


def declare(own_metrics: Mapping[str, OwnMetric]) -> None:
    """Makes the own metrics of a suite known by name. Raises WrongValueError for a name that is taken."""
    _last_declared[:] = own_metrics
    for name, specification in own_metrics.items():
        title, better = name.replace("_", " "), specification.better
        metric = Metric(
            name, title, better, _NUMBER, f"reaches the {'lowest' if better == 'less' else 'highest'} {title}",
            0.01, quality=True, scored=True, needs=("evaluation", "score"),
        )  # fmt: skip
        key = f"eval.metrics.{name}"
        if name in METRICS:
            raise WrongValueError(key, f"{name} is a metric of selectbench: take another name", says_key=False)
        if _own_metrics.setdefault(name, metric).better != better:
            other = f"{name} is better: {_own_metrics[name].better} in another suite that was read before"
            raise WrongValueError(key, f"{other}: take another name", says_key=False)


def metrics_of(job: Job | CommandJob) -> list[str]:
    """Every metric that the job's rows have, those of own code last."""
    return [*METRICS, *job.own_metrics]


def deciding() -> list[str]:
    """The metrics that a suite may decide by, own ones of every suite that was read among them."""
    return [*DECIDING, *_own_metrics]


def unknown_metric(metric: object, among: Sequence[str] = ()) -> str | None:
    """Why a metric of that name can't decide, or None. `among`: the metrics that a hint may name, if not all."""
    if metric in deciding():
        return None
    if reason := undecidable_reason(metric):
        return reason
    known = list(among) or [*DECIDING, *_last_declared]
    titled = [n for n in known if n in METRICS and str(metric) in (METRICS[n].title, *METRICS[n].unit.written)]
    hint = did_you_mean(metric, known) or one_of_these(titled[:1]) or f" (known: {', '.join(known)})"
    return f"unknown metric {quoted(metric)}{hint}"


def _checked(metric: object, check: Callable[[object], object]) -> object:
    """The metric, if it may decide; `check` knows the built-in ones only. Raises ValueError."""
    if isinstance(metric, str) and (reason := unknown_metric(metric)):
        raise ValueError(reason)
    return metric if isinstance(metric, str) and metric in _own_metrics else check(metric)


if TYPE_CHECKING:
    Objective = str
    QualityMetric = str
else:  # what a suite may write
    Objective = Annotated[
        Literal[DECIDING], WrapValidator(_checked),
        PlainSerializer(str),
        WithJsonSchema({"anyOf": [{"enum": list(DECIDING)}, {"type": "string", "pattern": OWN_METRIC_PATTERN}]}),
    ]  # fmt: skip
    QualityMetric = Literal[QUALITY]


def columns_of(report: Report) -> list[str]:
    """The metrics that a report's table has if they are known, in the table's order."""
    return sorted(
        (name for name, m in METRICS.items() if report in m.columns), key=lambda n: METRICS[n].columns[report]
    )


def default_threshold(metric: str, device: str) -> float:
    """Smallest difference that matters on the device, as a share; 0 for a metric that decides nothing."""
    entry = METRICS[metric]
    if device == "cpu" and entry.threshold_on_cpu is not None:
        return entry.threshold_on_cpu
    return entry.threshold or 0.0


def undecidable_reason(metric: object) -> str | None:
    """Why a metric that is known may not decide, or None."""
    if not isinstance(metric, str) or metric not in METRICS or METRICS[metric].unit is not _SHARE:
        return None
    return (
        f"{metric} is shown and decides nothing: a share of one precision's rate says nothing of a share of "
        "another's; take tokens_per_second"
    )


Operator = Literal["<=", ">=", "<", ">"]
_COMPARE: Mapping[Operator, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
Yardstick = Literal["baseline", "reference"]
LEAST_BARE_BYTES = 1 << 20
"""A bound in bytes below this that has no unit is taken for one whose unit was forgotten."""
LEAST_BARE_SPEED = 10
"""A bound on a speed below this that has no unit is taken for a factor whose reference was forgotten."""
_GRAMMAR = re.compile(
    r"\s*(\S+?)\s*(<=|>=|<|>)\s*([-+]?[.0-9][.0-9_]*(?:[eE][-+]?[0-9]+)?)\s*(?:(x)\s*(\w+)|([A-Za-z][A-Za-z/]*))?\s*"
)


@dataclass(frozen=True)
class Constraint:
    """A bound on one metric of a row."""

    metric: str
    """The metric, one of those that decide."""
    operator: Operator
    """The comparison of the row's value with the bound that must hold."""
    value: float
    """The bound in the metric's unit, or the factor by which another value is multiplied."""
    against: Yardstick | None
    """Whose value is multiplied by the factor; None: the bound is absolute."""

    @property
    def relative(self) -> bool:
        """Whether the bound is a multiple of another value."""
        return self.against is not None

    def holds(self, value: float, bound: float) -> bool:
        """Whether the constraint's comparison holds between a value and a bound."""
        return _COMPARE[self.operator](value, bound)


def parse_constraint(text: str, against: Yardstick = "baseline", among: Sequence[str] = ()) -> Constraint:
    """Reads `METRIC (<=|>=|<|>) NUMBER[unit]` or `NUMBERx baseline`. Raises ValueError for anything else.

    `against`: the one word that may follow `x`; `among`: the metrics that the hint on an unknown one names.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{quoted(text)} is not METRIC (<= >= < >) NUMBER with or without a unit, or NUMBERx {against}"
        )
    metric, operator, number, times, yardstick, unit = match.groups()
    if reason := unknown_metric(metric, among):
        raise ValueError(reason)
    if metric == SECONDS_TO_LOSS and against == "reference":
        raise ValueError(
            f"{metric} is to a loss of the run's own, so runs do not compare by it: take final_loss and "
            "tokens_per_second"
        )
    if times and yardstick != against:
        raise ValueError(f"{quoted(text)}: expected `{number}x {against}`, found `{number}x {yardstick}`")
    if unit in ("x", *get_args(Yardstick)):
        raise ValueError(f"{quoted(text)}: write `{metric} {operator} {number}x {against}`")
    factors = METRICS[metric].unit.written
    if unit and unit not in factors:
        known = f" (known: {', '.join(factors)})" if factors else "; it has none"
        raise ValueError(f"{quoted(unit)} is no unit of {metric}{did_you_mean(unit, list(factors)) or known}")
    try:
        value = float(number) * (factors[unit] if unit else 1)
    except ValueError:
        raise ValueError(f"{quoted(number)} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{quoted(number)} is too large a number")
    if reason := _bound_problem(metric, match.groups(), value, against):
        raise ValueError(f"{quoted(text)}: {reason}")
    return Constraint(metric, cast("Operator", operator), value, against if times else None)


def _bound_problem(metric: str, parts: tuple[str | None, ...], value: float, against: Yardstick) -> str | None:
    """What is wrong with a bound that can be read, or None."""
    _, operator, number, times, _, unit = parts
    direction = ">" if METRICS[metric].better == "more" else "<"
    if not (operator or "").startswith(direction):
        return f"{METRICS[metric].better} {metric} is better, so a bound is {direction}= (found {operator})"
    if times and value <= 0:
        return f"the factor on the {against}'s value must be above 0"
    if metric.endswith("_per_second") and not times and not unit and 0 < value < LEAST_BARE_SPEED:
        return f"{number} {metric}: write what it is a factor of, as in `{number}x {against}`, or the unit"
    if metric == "final_perplexity" and not times and value < 1.5:
        return f"did you mean `{number}x {against}`? (a true bound so low is written on its logarithm, final_loss)"
    if metric.endswith("_bytes") and not times and not unit and value < LEAST_BARE_BYTES:
        return f"{number} bytes: write the unit, as in `{number} GiB`"
    return None
