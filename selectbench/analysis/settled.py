"""The suite as its contest runs it: every option with what the trials before found best for it."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench.analysis.search import chosen_sizes, chosen_values, speed_attempts, tuning_attempts
from selectbench.record.record import Record
from selectbench.suite.stage import settled
from selectbench.suite.suite import Suite


def settled_sizes(suite: Suite, records: Sequence[Record]) -> Suite:
    """With the fastest micro-batch sizes; the very suite where nothing was searched."""
    chosen = chosen_sizes(speed_attempts(suite, records)) if suite.best_of else {}
    return settled(suite, chosen) if chosen else suite


def settled_by_records(suite: Suite, records: Sequence[Record]) -> Suite:
    """With all that was found; an option for which nothing worked keeps what the suite gives it."""
    sized = settled_sizes(suite, records)
    chosen = chosen_values(sized, tuning_attempts(sized, records))
    return settled(sized, chosen) if chosen else sized
