"""What a row must hold to be ranked: `final_perplexity <= 1.01x baseline`, `tokens_per_second >= 5000`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from selectbench.errors import did_you_mean

Operator = Literal["<=", ">=", "<", ">"]
METRICS = (
    "tokens_per_second", "step_time_median_seconds", "peak_memory_bytes", "final_loss", "final_perplexity",
    "bits_per_byte", "peak_device_memory_bytes", "joules_per_token", "usd_per_billion_tokens",
)  # fmt: skip
QUALITY_METRICS = frozenset({"final_loss", "final_perplexity", "bits_per_byte"})
"""Those that need an evaluation."""
GPU_METRICS = frozenset({"peak_device_memory_bytes", "joules_per_token", "usd_per_billion_tokens"})
"""Those that only a run on GPUs has."""
UTILIZATION_METRICS = ("mfu", "hfu", "matmul_rate_share")
"""Those that are shown and decide nothing."""
_GRAMMAR = re.compile(r"\s*(\S+?)\s*(<=|>=|<|>)\s*([-+.0-9eE_]+)\s*(x\s*baseline)?\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound on one metric of a row."""

    metric: str
    """One of METRICS."""
    operator: Operator
    """How the row's value must stand to the bound."""
    value: float
    """The bound in the metric's unit, or the factor on the baseline's value."""
    relative: bool
    """Whether the bound is a multiple of the baseline's value."""


def parse_constraint(text: str) -> Constraint:
    """Reads `METRIC (<=|>=|<|>) NUMBER[x baseline]`. Raises ValueError where it isn't that."""
    matched = _GRAMMAR.fullmatch(text)
    if matched is None:
        raise ValueError(f"{text!r} is not METRIC (<= >= < >) NUMBER, or NUMBERx baseline")
    metric, operator, number, relative = matched.groups()
    if reason := undecidable_reason(metric):
        raise ValueError(reason)
    if metric not in METRICS:
        hint = did_you_mean(metric, METRICS) or f" (known: {', '.join(METRICS)})"
        raise ValueError(f"unknown metric {metric!r}{hint}")
    return Constraint(metric, _operator(operator), _finite(number), relative is not None)


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
