"""One figure of a row as a cell of any table."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench import units
from selectbench.analysis.row import MetricValue, Ranking, Row
from selectbench.suite.metrics import METRICS

UNCLEAN_MARK = "†"
UNCLEAN_NOTE = (
    f"{UNCLEAN_MARK}: every trial that the figure comes from was throttled or shared; it is shown, and compared "
    "with nothing"
)
DOMINATION_NOTE = (
    "Dominated: another option is shown to be better in speed, memory, energy or quality, and is worse in none of "
    "them by more than matters"
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
    """The rank, or all that it may be: `2-6`, as what is not told apart may stand in either order."""
    if row.rank is None:
        return units.DASH
    return f"{row.rank}-{row.rank + len(row.tied_with)}" if row.tied_with else str(row.rank)


def ties_note(ranking: Ranking) -> list[str]:
    """What a range of ranks means, by the first row that has one."""
    tied = next((row for row in ranking.rows if row.rank is not None and row.tied_with), None)
    if tied is None or tied.rank is None:
        return []
    better, others = tied.rank - 1, len(tied.tied_with)
    shown = f"{better or 'no'} {'row is' if better == 1 else 'rows are'} shown to be better"
    open_ones = f"{others} {'is' if others == 1 else 'are'} shown to be neither better nor worse"
    return [f"{place(tied)}: {shown} and {open_ones}, so its rank may be any of these"]


def against_baseline(metric: MetricValue) -> str:
    """`1.25x (1.20x to 1.31x)`, or the ratio alone where no interval is known."""
    return units.ratio_with_range(metric.ratio_to_baseline, metric.ratio_low, metric.ratio_high)
