"""One figure of a row as a cell of any table."""

from __future__ import annotations

from selectbench.analysis.metrics import METRICS
from selectbench.analysis.row import MetricValue, Ranking

UNCLEAN_MARK = "†"
UNCLEAN_NOTE = (
    f"{UNCLEAN_MARK}: every trial that the figure comes from was throttled or shared; it is shown, and compared "
    "with nothing"
)


def figure(name: str, metric: MetricValue) -> str:
    """The value with its unit, and a mark where every trial behind it was throttled or shared."""
    return METRICS[name].show(metric.value) + (f" {UNCLEAN_MARK}" if metric.unclean else "")


def unclean_note(ranking: Ranking, names: list[str]) -> list[str]:
    """What the mark means, where one of these figures has it."""
    marked = any(row.metrics[name].unclean for row in ranking.rows for name in names)
    return [UNCLEAN_NOTE] if marked else []
