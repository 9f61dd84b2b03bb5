"""The trials that a report draws and quotes, by option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selectbench.analysis.row import Ranking
from selectbench.record.record import Completed, Record

Counting = Mapping[str, list[Record]]
"""Completed trials that count, by option in the ranking's order, in the order of seeds."""


def counting(ranking: Ranking, records: Sequence[Record]) -> Counting:
    """Of every row; empty for one without any. `records`: those that count."""
    found: dict[str, list[Record]] = {row.option: [] for row in ranking.rows}
    for record in records:
        if isinstance(record.outcome, Completed) and record.trial.option in found:
            found[record.trial.option].append(record)
    return {option: sorted(own, key=lambda r: r.trial.seed) for option, own in found.items()}
