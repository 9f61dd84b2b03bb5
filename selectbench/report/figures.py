"""One figure of a row as a cell of any table."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench import units
from selectbench.analysis.metrics import METRICS
from selectbench.analysis.row import MetricValue, Ranking, Row

UNCLEAN_MARK = "†"
UNCLEAN_NOTE = (
    f"{UNCLEAN_MARK}: every trial that the figure comes from was throttled or shared; it is shown, and compared "
    "with nothing"
)


def known_columns(ranking: Ranking, names: Sequence[str]) -> list[str]:
    """Those that some row knows; of what is the same for all rows by nature, only where it is not."""
    values = {name: {row.metrics[name].value for row in ranking.rows} - {None} for name in names}
    per_bytes = {row.metrics["bytes_per_token"].value for row in ranking.rows} - {None}
    apart = len({round(value, 6) for value in per_bytes if value is not None}) > 1
    hidden = set() if apart else {"bytes_per_token"}
    return [name for name in names if values[name] and name not in hidden]


def figure(name: str, metric: MetricValue) -> str:
    """The value with its unit, and a mark where every trial behind it was throttled or shared."""
    return METRICS[name].show(metric.value) + (f" {UNCLEAN_MARK}" if metric.unclean else "")


def unclean_note(ranking: Ranking, names: list[str]) -> list[str]:
    """What the mark means, where one of these figures has it."""
    marked = any(row.metrics[name].unclean for row in ranking.rows for name in names)
    return [UNCLEAN_NOTE] if marked else []


def place(row: Row) -> str:
    """The rank, `1=` where it is shared."""
    return units.DASH if row.rank is None else f"{row.rank}=" if row.tied_with else str(row.rank)


def against_baseline(metric: MetricValue) -> str:
    """`1.25x (1.20x to 1.31x)`, or the ratio alone where no interval is known."""
    return units.ratio_with_range(metric.ratio_to_baseline, metric.ratio_low, metric.ratio_high)
