"""Intervals of the ratios to the baseline as small pictures in the ranking table, all on one scale."""

from __future__ import annotations

import math
from html import escape

from selectbench.analysis.row import MetricValue, Ranking
from selectbench.report.figures import against_baseline
from selectbench.report.page.svg import Scale

_WIDTH, _HEIGHT, _EDGE = 130.0, 18.0, 4.0
_FARTHEST = 4.0
"""Ratios beyond this, or below its inverse, stand at the edge: one far row would flatten all others."""


def interval_bars(ranking: Ranking) -> dict[str, str]:
    """By option; rows without a ratio have none."""
    known = {row.option: m for row in ranking.rows if (m := row.metrics[ranking.objective]).ratio_to_baseline}
    if not known:
        return {}
    ends = [end for m in known.values() for end in _ends(m)]
    low, high = max(1 / _FARTHEST, min(*ends, 0.98)), min(_FARTHEST, max(*ends, 1.02))
    scale = Scale(low, high, _EDGE, _WIDTH - _EDGE, is_log=True)
    return {option: _bar(scale, metric) for option, metric in known.items()}


def _ends(metric: MetricValue) -> tuple[float, float]:
    """Of the interval: an end that is too large for a number lies at infinity; without an interval the ratio."""
    ratio = metric.ratio_to_baseline or 1.0
    if metric.ratio_low is None:
        return ratio, ratio
    return metric.ratio_low, math.inf if metric.ratio_high is None else metric.ratio_high


def _bar(scale: Scale, metric: MetricValue) -> str:
    low, high = map(scale, _ends(metric))
    at, one, middle = scale(metric.ratio_to_baseline or 1.0), scale(1.0), _HEIGHT / 2
    return (
        f'<svg class="interval" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img">'
        f"<title>{escape(against_baseline(metric))} the baseline</title>"
        f'<line class="one" x1="{one:.1f}" y1="0" x2="{one:.1f}" y2="{_HEIGHT:.0f}"/>'
        f'<line class="span" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>'
        f'<circle class="at" cx="{at:.1f}" cy="{middle}" r="4"/></svg>'
    )
