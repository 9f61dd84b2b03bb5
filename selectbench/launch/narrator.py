"""A trial's events, told on the display."""

from __future__ import annotations

import contextlib

from selectbench.launch.display import Display
from selectbench.record.wire import Phase, Progress


class Narrator:
    """Passes a trial's events on to the display; a terminal that is gone does not end the trial."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def __call__(self, event: Phase | Progress | None) -> None:
        """None: time has passed."""
        with contextlib.suppress(OSError):
            if isinstance(event, Progress):
                self._display.progress(event.step, event.of, event.loss, event.tokens_per_second)
            elif isinstance(event, Phase):
                self._display.phase_changed(event.phase)
            self._display.tick()
