"""A bound on a metric: `final_perplexity <= 1.01x baseline`, `peak_memory_bytes <= 80 GiB`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from selectbench.errors import did_you_mean
from selectbench.suite.evaluate import OWN_SCORE, SCORES

Operator = Literal["<=", ">=", "<", ">"]
Yardstick = Literal["baseline", "reference"]
SECONDS_TO_LOSS = "seconds_to_baseline_loss"
"""Training seconds until the held-out loss was the baseline's final one with the same seed."""
METRICS = (
    "tokens_per_second", "bytes_per_second", "step_time_median_seconds", SECONDS_TO_LOSS, "peak_memory_bytes",
    "final_loss", "final_perplexity",
    "bits_per_byte", "excess_loss", *SCORES, OWN_SCORE, "peak_device_memory_bytes", "joules_per_token",
    "usd_per_billion_tokens",
)  # fmt: skip
QUALITY_METRICS = frozenset({
    "final_loss", "final_perplexity", "bits_per_byte", "excess_loss", *SCORES, OWN_SCORE,
})  # fmt: skip
"""Those that say how well a model learnt."""
NEED_EVALUATION = QUALITY_METRICS | {"bytes_per_second", SECONDS_TO_LOSS}
"""Those that need an evaluation."""
GPU_METRICS = frozenset({"peak_device_memory_bytes", "joules_per_token", "usd_per_billion_tokens"})
"""Those that only a run on GPUs has."""
MORE_IS_BETTER = frozenset({"tokens_per_second", "bytes_per_second", *SCORES, OWN_SCORE})
"""Of the metrics, those of which more is better."""
LEAST_BARE_BYTES = 1 << 20
"""A bound in bytes without a unit below this is a unit forgotten."""
LEAST_BARE_SPEED = 10
"""A bound on a speed without a unit below this is a factor whose yardstick was forgotten."""
PER_TOKEN = frozenset({
    "tokens_per_second", "final_loss", "final_perplexity", "joules_per_token", "usd_per_billion_tokens",
    SECONDS_TO_LOSS,
})  # fmt: skip
"""Those that say nothing where options have different tokenizers, and so mean different things by a token."""
UTILIZATION_METRICS = ("mfu", "hfu", "matmul_rate_share")
"""Those that are shown and decide nothing."""
THRESHOLDS = {
    "tokens_per_second": 0.01, "bytes_per_second": 0.01, "step_time_median_seconds": 0.01, SECONDS_TO_LOSS: 0.01,
    "peak_memory_bytes": 0.01,
    "peak_device_memory_bytes": 0.01, "joules_per_token": 0.01, "usd_per_billion_tokens": 0.01,
    "final_loss": 0.002, "final_perplexity": 0.01, "bits_per_byte": 0.002, "excess_loss": 0.05,
    **dict.fromkeys((*SCORES, OWN_SCORE), 0.01),
}  # fmt: skip
"""Smallest difference that matters, as a share of the value, where the suite does not say."""
_ON_A_CPU = {"peak_memory_bytes": 0.05}
"""Which pages the process happens to hold moves its peak, for one option in every seed alike: Adam's is 4 % below
AdamW's, and momentum's above both, though it keeps half their state (kept run of `optimizer`, 1 M parameters)."""
_BYTES = {
    "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
}  # fmt: skip
_SECONDS = {"s": 1, "ms": 1e-3, "us": 1e-6}
_JOULES = {"J": 1, "mJ": 1e-3, "uJ": 1e-6}
UNITS: dict[str, dict[str, float]] = {
    "peak_memory_bytes": _BYTES, "peak_device_memory_bytes": _BYTES, "step_time_median_seconds": _SECONDS,
    SECONDS_TO_LOSS: {**_SECONDS, "min": 60, "h": 3600},
    "joules_per_token": _JOULES, "usd_per_billion_tokens": {"USD": 1}, "tokens_per_second": {"tokens/s": 1},
    "bytes_per_second": {"B/s": 1},
    "final_loss": {"nats": 1}, "excess_loss": {"nats": 1}, "bits_per_byte": {"bits": 1},
}  # fmt: skip
"""What may follow a number, by metric; without it the number is in the metric's own unit."""
_GRAMMAR = re.compile(
    r"\s*(\S+?)\s*(<=|>=|<|>)\s*([-+]?[.0-9][.0-9_]*(?:[eE][-+]?[0-9]+)?)\s*(?:(x)\s*(\w+)|([A-Za-z][A-Za-z/]*))?\s*"
)


@dataclass(frozen=True)
class Constraint:
    """A bound on one metric of a row."""

    metric: str
    """One of METRICS."""
    operator: Operator
    """How the row's value must stand to the bound."""
    value: float
    """The bound in the metric's unit, or the factor on what it is measured against."""
    against: Yardstick | None
    """Whose value the factor is of; None: the bound is absolute."""

    @property
    def relative(self) -> bool:
        """Whether the bound is a multiple of another value."""
        return self.against is not None


def parse_constraint(text: str, against: Yardstick = "baseline") -> Constraint:
    """Reads `METRIC (<=|>=|<|>) NUMBER[unit]` or `NUMBERx baseline`. Raises ValueError where it isn't that.

    `against`: the one word that may follow `x`.
    """
    matched = _GRAMMAR.fullmatch(text)
    if matched is None:
        raise ValueError(f"{text!r} is not METRIC (<= >= < >) NUMBER with or without a unit, or NUMBERx {against}")
    metric, operator, number, times, yardstick, unit = matched.groups()
    if reason := undecidable_reason(metric):
        raise ValueError(reason)
    if metric not in METRICS:
        hint = did_you_mean(metric, METRICS) or f" (known: {', '.join(METRICS)})"
        raise ValueError(f"unknown metric {metric!r}{hint}")
    if metric == SECONDS_TO_LOSS and against == "reference":
        raise ValueError(
            f"{metric} is to a loss of the run's own, so runs do not compare by it: take final_loss and "
            "tokens_per_second"
        )
    if times and yardstick != against:
        raise ValueError(f"{text!r}: expected `{number}x {against}`, found `{number}x {yardstick}`")
    value = _finite(number) * (_factor(metric, unit) if unit else 1)
    if reason := _senseless(metric, matched.groups(), value, against):
        raise ValueError(f"{text!r}: {reason}")
    return Constraint(metric, _operator(operator), value, against if times else None)


def _senseless(metric: str, parts: tuple[str | None, ...], value: float, against: Yardstick) -> str | None:
    """What is wrong with a bound that can be read, or None."""
    _, operator, number, times, _, unit = parts
    wanted = ">" if metric in MORE_IS_BETTER else "<"
    if not (operator or "").startswith(wanted):
        better = "more" if wanted == ">" else "less"
        return f"{better} {metric} is better, so a bound is {wanted}= (found {operator})"
    if times and value <= 0:
        return f"the factor on the {against}'s value must be above 0"
    if metric.endswith("_per_second") and not times and not unit and 0 < value < LEAST_BARE_SPEED:
        return f"{number} {metric}: write what it is a factor of, as in `{number}x {against}`, or the unit"
    if metric.endswith("_bytes") and not times and not unit and value < LEAST_BARE_BYTES:
        return f"{number} bytes: write the unit, as in `{number} GiB`"
    return None


def _factor(metric: str, unit: str) -> float:
    known = UNITS.get(metric, {})
    if unit in known:
        return known[unit]
    hint = did_you_mean(unit, list(known)) or (f" (known: {', '.join(known)})" if known else "; it has none")
    raise ValueError(f"{unit!r} is no unit of {metric}{hint}")


def default_threshold(metric: str, device: str) -> float:
    """Smallest difference that matters on the device, as a share; 0 for a metric that decides nothing."""
    return (THRESHOLDS | _ON_A_CPU if device == "cpu" else THRESHOLDS).get(metric, 0.0)


def undecidable_reason(metric: object) -> str | None:
    """Why a metric that is known may not decide, or None."""
    if metric not in UTILIZATION_METRICS:
        return None
    return (
        f"{metric} is shown and decides nothing: a share of one precision's rate says nothing of a share of "
        "another's; take tokens_per_second"
    )


def _operator(text: str) -> Operator:
    return next(known for known in get_args(Operator) if known == text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is too large a number")
    return value
