"""Pictures of the search before the contest: the figure over the setting, a line for each option."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from selectbench import units
from selectbench.analysis.own_best import OwnBest
from selectbench.analysis.row import Ranking
from selectbench.report.escape import one_line
from selectbench.report.own_best import told
from selectbench.report.page.chart import Chart
from selectbench.report.page.series import drawn
from selectbench.report.page.svg import Picture, wants_log, x_scale, y_scale
from selectbench.suite.metrics import METRICS

_NOTE = "Ringed: what the contest took. Values that failed are left out."


def search_charts(ranking: Ranking) -> list[Chart]:
    """Speed over the micro-batch size, and the tuning's metric over the one setting that was tuned."""
    found = ranking.search
    if found is None:
        return []
    tuning = [own for own in found.tuning if all(len(tried.values) == 1 for tried in own.tried)]
    charts = [
        _chart(ranking, found.sizes, "Speed over the micro-batch size"),
        _chart(ranking, tuning, _heading(tuning)),
    ]
    return [chart for chart in charts if chart is not None]


def _heading(tuning: Sequence[OwnBest]) -> str:
    path = next((path for own in tuning for tried in own.tried for path in tried.values), "")
    metric = METRICS[tuning[0].metric].title if tuning else ""
    return f"{metric[:1].upper()}{metric[1:]} over {path}"


def _chart(ranking: Ranking, searched: Sequence[OwnBest], heading: str) -> Chart | None:
    kinds = drawn(ranking)
    lines = [(own, _points(own), kinds[own.option]) for own in searched if own.option in kinds]
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    x, y = ([point[axis] for _, points, _ in lines for point in points] for axis in (0, 1))
    metric = METRICS[searched[0].metric]
    path = next(iter(searched[0].tried[0].values))
    picture = Picture(
        heading, f"{len(lines)} options", x_scale(x, is_log=min(x) > 0), y_scale(y, is_log=wants_log(y)),
        path.rpartition(".")[2], metric.title, lambda v: f"{v:g}",
        units.short if metric.better == "more" else units.significant,
    )  # fmt: skip
    for own, points, kind in lines:
        picture.line(points, kind)
        _ring(picture, own, kind)
    return Chart(heading, picture.render(), [(own.option, kind) for own, _, kind in lines], _NOTE)


def _points(own: OwnBest) -> list[tuple[float, float]]:
    return [(float(*tried.values.values()), tried.value) for tried in own.tried if tried.value is not None]


def _ring(picture: Picture, own: OwnBest, kind: int) -> None:
    for tried in own.tried:
        if tried.chosen and tried.value is not None:
            at = float(*tried.values.values())
            words = escape(one_line(f"{own.option}: {at:g}, {told(own, tried)}"))
            picture.shapes.append(
                f'<circle class="ring s{kind}" cx="{picture.x(at):.1f}" cy="{picture.y(tried.value):.1f}" r="6">'
                f"<title>{words}</title></circle>"
            )
