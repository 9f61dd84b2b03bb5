"""What a person sees while trials run, on stderr: a live table, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from selectbench import units
from selectbench.launch.display_state import Clock, State, outcome_text
from selectbench.launch.picture import picture
from selectbench.record.record import Completed, Failed
from selectbench.report.escape import one_line
from selectbench.suite.suite import Suite

PLAIN_INTERVAL_SECONDS = 10.0
"""Between two plain lines of progress."""
LIVE_INTERVAL_SECONDS = 1 / 8
"""Between two drawings of the live table."""


class Display(Protocol):
    """What the run tells of itself, in order."""

    def run_started(
        self, suite: Suite, trials_planned: int, trials_done: int, done_by_option: Mapping[str, int] | None = None
    ) -> None:
        """`trials_done` of `trials_planned` have an outcome from before; how many of each option."""

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """Trial `number`, from 1, of `of` is launched."""

    def phase_changed(self, phase: str) -> None:
        """The running trial goes over to another kind of work: setup, train, evaluate, extra."""

    def progress(self, step: int, of: int, loss: float | None, tokens_per_second: float | None) -> None:
        """The running trial did `step` of `of` steps; loss in nats per token."""

    def tick(self) -> None:
        """Time has passed; at least once a second while a trial runs."""

    def trial_ended(
        self, option: str, seed: int, outcome: Completed | Failed, wall_seconds: float,
        server_start_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """The trial has its outcome; one that was never launched too.

        `server_start_seconds`: of the wall, what it waited for a trial server that others find ready.
        """

    def note(self, text: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """The last call; harmless when repeated."""


class PlainDisplay:
    """A line at the start and the end of each trial, and one of progress at most every ten seconds."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._state = State(clock)
        self._last = clock()

    def run_started(
        self, suite: Suite, trials_planned: int, trials_done: int, done_by_option: Mapping[str, int] | None = None
    ) -> None:
        """One line with the size of the run."""
        self._state.run_started(suite, trials_planned, trials_done, done_by_option)
        before = f", {trials_done} of them done before" if trials_done else ""
        self.note(f"{one_line(suite.name)}: {trials_planned} trials{before}")

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """One line."""
        self._state.trial_started(option, seed, number, of)
        self._last = self._clock()
        self._say(["started", self._state.left()])

    def phase_changed(self, phase: str) -> None:
        """Said with the next line."""
        self._state.phase_changed(phase)

    def progress(self, step: int, of: int, loss: float | None, tokens_per_second: float | None) -> None:
        """Said with the next line."""
        self._state.progress(step, of, loss, tokens_per_second)

    def tick(self) -> None:
        """A line, unless the last one is too recent."""
        running = self._state.running
        if running and self._clock() - self._last >= PLAIN_INTERVAL_SECONDS:
            self._last = self._clock()
            self._say([running.figures(), self._state.left()])

    def trial_ended(
        self, option: str, seed: int, outcome: Completed | Failed, wall_seconds: float,
        server_start_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """One line with the outcome."""
        self._state.trial_ended(option, outcome, wall_seconds, server_start_seconds)
        counts = f"{self._state.done} of {self._state.planned} done"
        parts = [f"{one_line(option)}, seed {seed}: {outcome_text(outcome)} in {units.duration(wall_seconds)}",
                 counts, self._state.left()]  # fmt: skip
        self.note("; ".join(filter(None, parts)))

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(Text(one_line(text)), soft_wrap=True)

    def close(self) -> None:
        """Nothing is held."""

    def _say(self, parts: list[str]) -> None:
        assert self._state.running is not None
        self.note("; ".join(filter(None, [f"{self._state.running.name()}: {parts[0]}", *parts[1:]])))


class LiveDisplay:
    """A table that is drawn over: a row per option, the running trial, the bar of the whole run."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._state = State(clock)
        self._live: Live | None = None
        self._drawn = float("-inf")

    def run_started(
        self, suite: Suite, trials_planned: int, trials_done: int, done_by_option: Mapping[str, int] | None = None
    ) -> None:
        """Starts drawing; of a further stage, over again."""
        if self._live is not None:
            self._live.stop()
        self._state.run_started(suite, trials_planned, trials_done, done_by_option)
        # Drawn only when something happens, without a thread; stdout stays free for the results.
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()
        self._draw()

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """Shown at once."""
        self._state.trial_started(option, seed, number, of)
        self._draw()

    def phase_changed(self, phase: str) -> None:
        """Shown with the next drawing."""
        self._state.phase_changed(phase)

    def progress(self, step: int, of: int, loss: float | None, tokens_per_second: float | None) -> None:
        """Shown with the next drawing."""
        self._state.progress(step, of, loss, tokens_per_second)

    def tick(self) -> None:
        """Draws, unless the last drawing is too recent."""
        if self._clock() - self._drawn >= LIVE_INTERVAL_SECONDS:
            self._draw()

    def trial_ended(
        self, option: str, seed: int, outcome: Completed | Failed, wall_seconds: float,
        server_start_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """Counted; a failure leaves a line above the table."""
        self._state.trial_ended(option, outcome, wall_seconds, server_start_seconds)
        if isinstance(outcome, Failed):
            self.note(f"{option}, seed {seed}: {outcome_text(outcome)}")
        self._draw()

    def note(self, text: str) -> None:
        """A line above the table."""
        self._console.print(Text(one_line(text)))

    def close(self) -> None:
        """The table goes; one line of counts stays."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        failed = sum(tally.failed for tally in self._state.tallies.values())
        self.note(
            f"{self._state.done} of {self._state.planned} trials have an outcome"
            + (f", {failed} failed" if failed else "")
        )

    def _draw(self) -> None:
        if self._live is None:
            return
        self._drawn = self._clock()
        self._live.update(picture(self._state, self._console.width, self._console.height), refresh=True)


def make_display(console: Console, clock: Clock = time.monotonic) -> Display:
    """A live table on a terminal that can draw over itself, else plain lines; `console` writes to stderr."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveDisplay(console, clock) if live else PlainDisplay(console, clock)
