"""The pictures of the page, each from the ranking and the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from selectbench import units
from selectbench.analysis.row import Ranking
from selectbench.record.meters import Series
from selectbench.record.record import EvaluationPoint, Record
from selectbench.report.counting import Counting
from selectbench.report.escape import one_line
from selectbench.report.page import series
from selectbench.report.page.chart import Chart
from selectbench.report.page.pareto import pareto
from selectbench.report.page.search import search_charts
from selectbench.report.page.svg import Picture, wants_log, x_scale, y_scale

_NAMES = 150.0
"""Room for options' names beside a picture."""


def charts(ranking: Ranking, done: Counting) -> list[Chart]:
    """Those that the run has figures for."""
    made = [
        pareto(ranking),
        _loss(ranking, done, "Held-out loss against tokens", "training tokens",
              lambda p: float(p.tokens), units.short),
        _loss(ranking, done, "Held-out loss against time", "training seconds, evaluation excluded",
              lambda p: p.training_seconds, lambda v: f"{v:g}"),
        _steps(ranking, done),
        *search_charts(ranking),
        _meter(ranking, done, "Memory in use over a trial", "memory of the GPU", _memory, units.size),
        _meter(ranking, done, "Power over a trial", "power", _power, units.watts),
    ]  # fmt: skip
    return [chart for chart in made if chart is not None]


def _escaped(text: str) -> str:
    return escape(one_line(text))


def _loss(
    ranking: Ranking, done: Counting, heading: str, label: str,
    x: Callable[[EvaluationPoint], float], show_x: Callable[[float], str],
) -> Chart | None:  # fmt: skip
    curves = series.heldout_curves(ranking, done, x)
    if not curves:
        return None
    values = [v for curve in curves for v in (*curve.low, *curve.high)]
    picture = Picture(
        heading, f"{len(curves)} options, mean over seeds with the lowest and the highest seed",
        x_scale([v for curve in curves for v in curve.x]), y_scale(values), label,
        "nats per token", show_x, _loss_tick,
    )  # fmt: skip
    for curve in curves:
        picture.band(
            list(zip(curve.x, curve.low, strict=True)), list(zip(curve.x, curve.high, strict=True)), curve.kind
        )
    for curve in curves:
        picture.line(list(zip(curve.x, curve.mean, strict=True)), curve.kind)
    note = "Line: mean over seeds. Band: from the lowest to the highest seed. Lower is better."
    return Chart(heading, picture.render(), [(c.option, c.kind) for c in curves], note + _undrawn(ranking))


def _loss_tick(value: float) -> str:
    return units.significant(value, 4)


def _steps(ranking: Ranking, done: Counting) -> Chart | None:
    found = series.step_quantiles(ranking, done)
    if not found:
        return None
    values = [q for _, _, quantiles in found for q in quantiles]
    height = 70.0 + 30 * len(found)
    names = [(float(-number), option) for number, (option, _, _) in enumerate(found)]
    picture = Picture(
        "Step times", "quantiles of the timed steps of each option",
        x_scale(values, is_log=wants_log(values), left=_NAMES),
        y_scale([0.6, 0.4 - len(found)], height=height), "seconds per optimizer step", "", units.seconds, str,
        height=height, y_names=names, left=_NAMES,
    )  # fmt: skip
    for (at, _), (option, kind, quantiles) in zip(names, found, strict=True):
        _box(picture, at, option, kind, quantiles)
    note = (
        "Box: the middle half of all timed steps, its bar the median; whiskers: from the 5th to the 95th "
        "percentile. All "
        "seeds together; further left is better."
    )
    return Chart("Step times", picture.render(), [(o, k) for o, k, _ in found], note + _undrawn(ranking))


def _box(picture: Picture, at: float, option: str, kind: int, quantiles: Sequence[float]) -> None:
    low, first, middle, third, high = map(picture.x, quantiles)
    y = picture.y(at)
    told = _escaped(f"{option}: median {units.seconds(quantiles[2])}, 5th to 95th percentile "
                    f"{units.seconds(quantiles[0])} to {units.seconds(quantiles[4])}")  # fmt: skip
    whisker = f'<line class="whisker s{kind}" x1="{low:.1f}" y1="{y:.1f}" x2="{high:.1f}" y2="{y:.1f}"/>'
    width = max(1.5, third - first)
    box = f'<rect class="box s{kind}" x="{first:.1f}" y="{y - 8:.1f}" width="{width:.1f}" height="16"/>'
    median = f'<line class="median" x1="{middle:.1f}" y1="{y - 8:.1f}" x2="{middle:.1f}" y2="{y + 8:.1f}"/>'
    picture.shapes.append(f"<g><title>{told}</title>{whisker}{box}{median}</g>")


def _memory(record: Record) -> Series:
    return record.meters.gpus[0].memory_series if record.meters and record.meters.gpus else []


def _power(record: Record) -> Series:
    return record.meters.gpus[0].power_series if record.meters and record.meters.gpus else []


def _meter(
    ranking: Ranking, done: Counting, heading: str, label: str,
    read: Callable[[Record], Series], show: Callable[[float | None], str],
) -> Chart | None:  # fmt: skip
    found = series.metered(ranking, done, read)
    if not found:
        return None
    picture = Picture(
        heading, f"the first seed of {len(found)} options", x_scale([t for _, _, own in found for t, _ in own]),
        y_scale([v for _, _, own in found for _, v in own], from_zero=True), "seconds since the launch", label,
        lambda v: f"{v:g}", show,
    )  # fmt: skip
    for _, kind, own in found:
        picture.line(own, kind)
    note = "Of the first rank's GPU with the first completed seed, as the bench sampled it; at most 64 points."
    return Chart(heading, picture.render(), [(o, k) for o, k, _ in found], note + _undrawn(ranking))


def _undrawn(ranking: Ranking) -> str:
    left = [row.option for row in ranking.rows if row.n][series.MOST_DRAWN :]
    return f" Not drawn: {one_line(', '.join(left), 300)}." if left else ""
