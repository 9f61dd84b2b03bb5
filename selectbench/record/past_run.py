"""What a look at a run's folder tells."""

from __future__ import annotations

from selectbench.record.stored import Stored


class PastRun(Stored):
    """One run; unknown is None."""

    folder: str
    suite: str
    started_at: str | None
    """UTC, to the minute."""
    device: str | None
    hardware: str | None
    """GPUs' names, or the CPU's."""
    trials_done: int | None
    """Of those planned, with a whole record, failed ones among them."""
    trials_planned: int | None
    answer: str | None
    """Of its ranking.json; None: there is none yet."""
    note: str | None
    """What is wrong with the folder."""
