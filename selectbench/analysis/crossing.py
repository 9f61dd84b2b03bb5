"""Where a trial's held-out loss first was low enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from selectbench.record.record import EvaluationPoint


class Crossing(NamedTuple):
    """A place in a trial's training."""

    seconds: float
    """Of training alone."""
    tokens: float


def crossing(curve: Sequence[EvaluationPoint], target: float) -> Crossing | None:
    """Where the loss first is at most `target`; None where it never is.

    Linear between evaluations; the first evaluation where the loss is there already.
    """
    points = sorted(curve, key=lambda point: point.step)
    for number, point in enumerate(points):
        if point.loss > target:
            continue
        if number == 0:
            return Crossing(point.training_seconds, float(point.tokens))
        before = points[number - 1]
        share = (before.loss - target) / (before.loss - point.loss)
        seconds = before.training_seconds + share * (point.training_seconds - before.training_seconds)
        return Crossing(seconds, before.tokens + share * (point.tokens - before.tokens))
    return None
