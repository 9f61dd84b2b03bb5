"""What the pictures draw: curves over seeds, step times and meters of the trials that count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from selectbench.analysis.row import Ranking
from selectbench.record.meters import Series
from selectbench.record.record import Completed, EvaluationPoint, Record
from selectbench.report.counting import Counting

MOST_DRAWN = 8
"""Options in one picture; more can't be told apart."""
QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Curve:
    """Mean over seeds with the lowest and the highest seed, in order of x."""

    option: str
    kind: int
    """Which colour and dash."""
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def drawn(ranking: Ranking) -> dict[str, int]:
    """Options that the pictures show, with their number: ranked ones first, those without a figure left out."""
    return {row.option: number for number, row in enumerate([r for r in ranking.rows if r.n][:MOST_DRAWN])}


def heldout_curves(ranking: Ranking, done: Counting, x: Callable[[EvaluationPoint], float]) -> list[Curve]:
    """Held-out loss by step, over the steps that all seeds of an option evaluated."""
    curves = []
    for option, kind in drawn(ranking).items():
        seeds = [{point.step: point for point in r.evaluation_curve} for r in done[option] if r.evaluation_curve]
        steps = sorted(set.intersection(*(set(own) for own in seeds))) if seeds else []
        if steps:
            curves.append(_curve(option, kind, [[own[step] for own in seeds] for step in steps], x))
    return curves


def _curve(
    option: str, kind: int, points: Sequence[Sequence[EvaluationPoint]], x: Callable[[EvaluationPoint], float]
) -> Curve:
    losses = [[point.loss for point in own] for own in points]
    return Curve(
        option=option, kind=kind, x=[sum(map(x, own)) / len(own) for own in points],
        mean=[sum(own) / len(own) for own in losses], low=[min(own) for own in losses],
        high=[max(own) for own in losses], seeds=len(points[0]),
    )  # fmt: skip


def step_quantiles(ranking: Ranking, done: Counting) -> list[tuple[str, int, list[float]]]:
    """Option, number and quantiles of its timed steps' seconds, all seeds together."""
    found = []
    for option, kind in drawn(ranking).items():
        steps = [
            s for r in done[option] if isinstance(r.outcome, Completed) for s in r.outcome.measurement.step_seconds
        ]
        if steps:
            found.append((option, kind, [float(q) for q in np.percentile(steps, QUANTILES)]))
    return found


def metered(ranking: Ranking, done: Counting, read: Callable[[Record], Series]) -> list[tuple[str, int, Series]]:
    """Option, number and series of its first completed seed that has one."""
    found = []
    for option, kind in drawn(ranking).items():
        series = next((own for r in done[option] if len(own := read(r)) > 1), None)
        if series:
            found.append((option, kind, series))
    return found


def without_meters(records: Sequence[Record]) -> str:
    """Why there are no meters, as the records say it."""
    problems = dict.fromkeys(r.meters.problem for r in records if r.meters and r.meters.problem)
    return "; ".join(p for p in problems if p) or "the records have none"
