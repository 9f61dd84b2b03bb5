"""A bound on a metric: `final_perplexity <= 1.01x baseline`, `peak_memory_bytes <= 80 GiB`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from selectbench.errors import did_you_mean
from selectbench.suite.metrics import DECIDING, METRICS, SECONDS_TO_LOSS, undecidable_reason

Operator = Literal["<=", ">=", "<", ">"]
Yardstick = Literal["baseline", "reference"]
LEAST_BARE_BYTES = 1 << 20
"""A bound in bytes without a unit below this is a unit forgotten."""
LEAST_BARE_SPEED = 10
"""A bound on a speed without a unit below this is a factor whose yardstick was forgotten."""
_GRAMMAR = re.compile(
    r"\s*(\S+?)\s*(<=|>=|<|>)\s*([-+]?[.0-9][.0-9_]*(?:[eE][-+]?[0-9]+)?)\s*(?:(x)\s*(\w+)|([A-Za-z][A-Za-z/]*))?\s*"
)


@dataclass(frozen=True)
class Constraint:
    """A bound on one metric of a row."""

    metric: str
    """One of those that decide."""
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
    if metric not in DECIDING:
        hint = did_you_mean(metric, DECIDING) or f" (known: {', '.join(DECIDING)})"
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
    wanted = ">" if METRICS[metric].better == "more" else "<"
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
    known = METRICS[metric].unit.written
    if unit in known:
        return known[unit]
    hint = did_you_mean(unit, list(known)) or (f" (known: {', '.join(known)})" if known else "; it has none")
    raise ValueError(f"{unit!r} is no unit of {metric}{hint}")


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
