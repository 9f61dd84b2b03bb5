"""What ranking.json says of a race. Every key is documented here."""

from __future__ import annotations

from selectbench.analysis.shown import Shown


class RacedOption(Shown):
    """How far one option ran."""

    option: str
    rounds: int
    """Rounds with an outcome."""
    stopped_after: int | None
    """Rounds after which nothing more was asked of it; None: it did not stop."""
    reason: str
    """Why it stopped, or what is still open."""


class Raced(Shown):
    """How a suite with `repeat` went."""

    min: int
    """Rounds before the first look."""
    max: int
    """Rounds after which it ends, whatever is still open."""
    looks: int
    """Times at which the records may be judged, after each round from `min` to `max`; they share alpha."""
    rounds: int
    """After which the last look was taken; 0: none yet."""
    ended: bool
    """Whether no trial is asked for any more."""
    open: list[str]
    """Options about which something is open after the last look."""
    trials_run: int
    """Trials with an outcome."""
    trials_planned: int
    """Of the full grid: every option in `max` rounds."""
    trials_saved: int
    """Of those, the ones that nobody asks for, as their option has stopped."""
    options: list[RacedOption]
    """In the suite's order."""
