"""What a person sees while trials run: a live table or plain lines, with the progress and the time left."""

from __future__ import annotations

import os
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from pathlib import Path
from statistics import fmean
from threading import RLock
from typing import ClassVar, Literal

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from selectbench import units
from selectbench.analysis.metrics import finite, tokens_per_second
from selectbench.errors import UserError
from selectbench.record.record import Completed, Failed, Record, has_ended
from selectbench.record.run_folder import RECORDS_FILE
from selectbench.record.wire import Evaluating, Phase, Progress
from selectbench.report.document import labels
from selectbench.text import first_line, one_line

# How long the rest of a run takes, from the trials that ended and the running one's own pace. Pure.


_LONGEST_NAME = 40
"""Most characters that are displayed of the running option's name."""
_PHASES_BESIDE_STEPS = ("evaluate", "save")
"""Phases during which the displayed time left does not rise."""


@dataclass
class RunningTrial:
    """A trial that is running; moments are seconds of the display's clock."""

    option: str
    seed: int
    number: int
    of: int
    label: str = ""
    """The option's name, shortened for display."""
    place: str = ""
    """`lane 2: ` where there are several lanes, else ''."""
    began: float | None = None
    """When the worker began the trial; None: its server is still starting."""
    phase: str = "setup"
    step: int = 0
    steps: int = 0
    """Optimizer steps of the job; 0: there has been no report yet."""
    first: tuple[int, float] | None = None
    """Steps done and the moment at the first report; the pace leaves out what came before, such as compiling."""
    last: tuple[int, float] | None = None
    """Steps done and the moment at the last report of a further step."""
    evaluating: Evaluating | None = None
    """Progress of the evaluation that is running; None: there is none."""
    loss: float | None = None
    tokens_per_second: float | None = None

    def name(self) -> str:
        """`trial 3 of 20: bf16, seed 1`."""
        name = self.label or one_line(self.option, _LONGEST_NAME)
        return f"{self.place}trial {self.number} of {self.of}: {name}, seed {self.seed}"

    def figures(self) -> str:
        """`train 30/60, loss 5.43, 11,234 tokens/s`, as far as the figures are known."""
        evaluation = self.evaluating
        parts = [f"{self.phase} {self.step}/{self.steps}" if self.steps else self.phase]
        parts = [f"{self.phase} {evaluation.done:,}/{evaluation.of:,} {evaluation.what}"] if evaluation else parts
        parts += [f"loss {units.significant(self.loss)}"] if self.loss is not None else []
        parts += [f"{units.count(self.tokens_per_second)} tokens/s"] if self.tokens_per_second is not None else []
        return ", ".join(parts)

    def elapsed(self, now: float) -> float:
        """Seconds since the worker began the trial."""
        return 0.0 if self.began is None else now - self.began

    def steps_left_seconds(self, now: float) -> float | None:
        """Seconds until all steps are done, at the pace since the first report; None: fewer than two reports.

        Evaluations between steps are part of the pace. While a report is overdue the figure stays as it is.
        """
        if self.first is None or self.last is None or self.first == self.last:
            return None
        (first_step, first_at), (step, at) = self.first, self.last
        pace = (at - first_at) / (step - first_step)
        return pace * (self.steps - step) - min(now - at, pace) if step < self.steps else 0.0


@dataclass
class TimeLeft:
    """Walls of ended trials by option in seconds, without the start of a trial server, which serves all trials.

    A trial is taken to last as long as its option's trials on average, else as long as the running trial of its
    option is expected to, else as long as the other options' trials.
    """

    remaining: dict[str, int]
    """Trials by option that have not ended, the running one among them."""
    walls: dict[str, list[float]] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    """Options that have completed a trial: failed trials say nothing about other options' walls."""

    def ended(self, option: str, wall_seconds: float, *, completed: bool) -> None:
        """A trial of the option is over."""
        self.remaining[option] = max(0, self.remaining.get(option, 0) - 1)
        self.walls.setdefault(option, []).append(wall_seconds)
        self.completed |= {option} if completed else set()

    def seconds(self, runs: Sequence[RunningTrial] = (), now: float = 0.0, lanes: int = 1) -> float | None:
        """Seconds until the run ends; None: not known, or no lane runs now. `now`: by the clock of `runs`."""
        if not lanes:
            return None
        means = {option: fmean(walls) for option, walls in self.walls.items()}
        of_others = [means[option] for option in self.completed]
        running_seconds: list[float] = []
        for trial in runs:
            elapsed, steps = trial.elapsed(now), trial.steps_left_seconds(now)
            if trial.option not in self.completed and steps is not None:
                means[trial.option] = elapsed + steps
                of_others.append(elapsed + steps)
            expected = means.get(trial.option, fmean(of_others) if of_others else None)
            if expected is None:
                return None
            running_seconds.append(expected - elapsed if elapsed < expected else steps or 0.0)
        to_come = Counter(self.remaining) - Counter(trial.option for trial in runs)
        if not of_others and not means.keys() >= to_come.keys():
            return None
        seconds_to_come = sum(count * means.get(name, fmean(of_others or [0.0])) for name, count in to_come.items())
        return max([*running_seconds, (sum(running_seconds) + seconds_to_come) / lanes])


# What the displays know of a run: counts by option, the running trial, the time left.


Clock = Callable[[], float]
Outcome = Completed | Failed


@dataclass
class Tally:
    """One option's trials so far."""

    done: int = 0
    planned: int = 0
    failed: int = 0
    speeds: list[float] = field(default_factory=list)
    """Tokens per second of the completed trials."""


class Display:
    """Keeps the state of a run from its reports, which come in order; subclasses display it."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.tallies: dict[str, Tally] = {}
        self.planned, self.done = 0, 0
        self.lanes = 1
        """Trials that can run at the same time."""
        self.runs: dict[int, RunningTrial] = {}
        """Running trials by lane."""
        self._lane, self._turn = 0, RLock()
        self.time_left = TimeLeft({})
        self._until = ""
        """What the time left ends with, ` before the contest` in the stages before it."""
        self._unsupported: set[str] = set()
        """Options of whose trials none is run."""
        self._least_left: float | None = None
        """Least time left in seconds that was displayed since the running trial began to evaluate or save."""

    @contextmanager
    def on_lane(self, lane: int) -> Iterator[Display]:
        """Reports inside the context belong to this lane; one lane reports at a time."""
        with self._turn:
            self._lane = lane
            yield self

    @property
    def running(self) -> RunningTrial | None:
        """The running trial of the lane that reports; None: there is none."""
        return self.runs.get(self._lane)

    def run_started(
        self, suite: str, planned: Mapping[str, int], done: Sequence[Record], *, before_contest: bool = False
    ) -> None:
        """A run or a stage begins. `planned`: trials by option; `done`: a record of each that ended before.

        `before_contest`: it is a stage before the contest, whose trials are not among those planned.
        """
        self.tallies = {option: Tally(planned=number) for option, number in planned.items()}
        self.planned, self.done, self.time_left = sum(planned.values()), 0, TimeLeft(dict(planned))
        self._until = " before the contest" if before_contest else ""
        for record in done:
            if _was_launched(record.outcome, record.wall_seconds):
                self._count(record.trial.option, record.outcome, record.wall_seconds)
            else:
                self._leave_out(record.trial.option)

    def _leave_out(self, option: str) -> None:
        """Count no trial of an option that can't run here."""
        if (tally := self.tallies.pop(option, None)) is not None:
            self.planned -= tally.planned
            self.time_left.remaining.pop(option, None)

    def _count(self, option: str, outcome: Outcome, seconds: float) -> None:
        """Add a trial that has ended after so many seconds."""
        tally, speed = self.tallies.setdefault(option, Tally()), _speed(outcome)
        self.done += 1
        tally.done += 1
        tally.failed += isinstance(outcome, Failed)
        tally.speeds += [speed] if speed is not None else []
        self.time_left.ended(option, seconds, completed=isinstance(outcome, Completed))

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """Trial `number`, from 1, of `of` is launched."""
        name = labels(list(self.tallies), _LONGEST_NAME)[0].get(one_line(option), one_line(option, _LONGEST_NAME))
        place = f"lane {self._lane + 1}: " if self.lanes > 1 else ""
        self.runs[self._lane] = RunningTrial(option, seed, number, of, name, place)

    def handle(self, event: Phase | Progress | Evaluating | None) -> None:
        """Handle an event of the running trial; None: only time has passed."""
        if isinstance(event, Progress):
            self.progress(event.step, event.of, event.loss, event.tokens_per_second)
        elif isinstance(event, Evaluating):
            self.evaluating(event)
        elif isinstance(event, Phase):
            self.phase_changed(event.phase)
        self.tick()

    def phase_changed(self, phase: str) -> None:
        """The running trial goes over to another kind of work: setup, train, evaluate, save, extra."""
        running, now = self.running, self.clock()
        if running is None:
            return
        running.began = now if running.began is None else running.began
        running.phase, running.evaluating = phase, None
        if phase not in _PHASES_BESIDE_STEPS:
            self._least_left = None

    def evaluating(self, event: Evaluating) -> None:
        """The evaluation of the running trial has got this far."""
        if self.running is not None:
            self.running.evaluating = event

    def progress(self, step: int, of: int, loss: float | None, tokens_per_second: float | None) -> None:
        """The running trial did `step` of `of` steps; loss in nats per token. None leaves a figure as it was."""
        running = self.running
        if running is None:
            return
        running.step, running.steps = step, of
        if running.last is None or step > running.last[0]:
            running.last = step, self.clock()
            running.first = running.first or running.last
        running.loss = running.loss if loss is None else loss
        if tokens_per_second is not None:
            running.tokens_per_second = tokens_per_second

    def tick(self) -> None:
        """Time has passed; called at least once a second while a trial runs."""

    def trial_ended(
        self, option: str, seed: int, outcome: Outcome, wall_seconds: float, server_start_seconds: float = 0.0
    ) -> None:
        """The trial has its outcome, whether or not it was ever launched.

        `server_start_seconds`: the part of the wall spent waiting for a trial server, which later trials reuse.
        """
        self.runs.pop(self._lane, None)
        if _was_launched(outcome, wall_seconds):
            if has_ended(outcome):
                self._count(option, outcome, wall_seconds - server_start_seconds)
            self.report_end(f"{one_line(option)}, seed {seed}: {outcome_text(outcome)}", outcome, wall_seconds)
        elif option not in self._unsupported:  # the plan knew it: its other trials would repeat it
            self._unsupported.add(option)
            self._leave_out(option)
            assert isinstance(outcome, Failed)
            why = f"unsupported: {first_line(outcome.detail, 400)}"
            self.note(f"{one_line(option)}: {why}; none of its trials is run")

    def report_end(self, text: str, outcome: Outcome, wall_seconds: float) -> None:
        """Display the outcome of a trial; not called for trials that the plan found to be unsupported."""

    def note(self, text: str) -> None:
        """Display a line of text."""

    def close(self) -> None:
        """End the display; further calls do nothing."""

    def counts(self) -> str:
        """`5 of 6 trials have an outcome, 1 failed`."""
        failed = sum(tally.failed for tally in self.tallies.values())
        return f"{self.done} of {self.planned} trials have an outcome" + (f", {failed} failed" if failed else "")

    def seconds_left(self) -> float | None:
        """Seconds until the run ends; None: not known yet. They do not rise while a trial evaluates or is saved."""
        seconds = self.time_left.seconds([*self.runs.values()], self.clock(), self.lanes)
        if seconds is not None and self.lanes == 1 and self.running and self.running.phase in _PHASES_BESIDE_STEPS:
            self._least_left = seconds = min(seconds, seconds if self._least_left is None else self._least_left)
        return seconds

    def time_left_text(self) -> str:
        """`3 min 20 s left`, `20 s left before the contest`, or '' while the time left is not known."""
        seconds = self.seconds_left()
        if seconds is None:
            return ""
        return f"{'about ' * (self.lanes > 1)}{units.duration(seconds)} left{self._until}"


def _was_launched(outcome: Outcome, wall_seconds: float) -> bool:
    """Whether a trial ran; one that the plan found to be unsupported has an outcome without it."""
    return not isinstance(outcome, Failed) or outcome.kind != "unsupported" or wall_seconds > 0


def _speed(outcome: Outcome) -> float | None:
    if isinstance(outcome, Failed):
        return None
    return finite(lambda: tokens_per_second(outcome.measurement))


def outcome_text(outcome: Outcome) -> str:
    """`completed, 11,420 tokens/s, loss 5.43`, or `failed: oom: ...`, on one line."""
    if isinstance(outcome, Failed):
        return f"failed: {outcome.kind}: {first_line(outcome.detail, 400)}"
    speed, loss = _speed(outcome), outcome.measurement.final_loss
    parts = ["completed", f"{units.count(speed)} tokens/s"]
    return ", ".join(parts + ([f"loss {units.significant(loss)}"] if loss is not None else []))


# The live table as rich draws it: never wider or taller than the terminal.


_OTHER_LINES = 7
"""Heading, "more options", the running trial (2), the bar, and two lines that stay free."""
_NARROW = 48
"""Width in columns below which the table has counts only."""


def picture(run: Display, width: int, height: int) -> RenderableType:
    """The live table for a terminal of `width` columns and `height` lines; it takes at most `height` - 1 lines.

    A terminal too low for the table gets the running trial and the bar only.
    """
    runs = [run.runs[lane] for lane in sorted(run.runs)]
    texts = [(f"{r.name()}: {r.figures()}",) if run.lanes > 1 else (r.name(), r.figures()) for r in runs]
    lines = [*(_truncated(line, width) for parts in texts for line in parts), _bar(run, width)]
    room = height - _OTHER_LINES - max(0, len(runs) - 2)
    if room < 1:
        return Group(*lines)
    # All options, or those around the running one in the suite's order.
    names = list(run.tallies)
    at = min([names.index(trial.option) for trial in runs if trial.option in names], default=0)
    first = max(0, min(at - room // 2, len(names) - room))
    names = names[first : first + room]
    hidden = len(run.tallies) - len(names)
    more = [_truncated(f"  ... {hidden} more options", width, "dim")] if hidden else []
    return Group(_options(run, names, width), *more, *lines)


def _options(run: Display, names: list[str], width: int) -> Table:
    headings = ["done", "failed", "tokens/s"] if width >= _NARROW else ["done"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(
        "option", no_wrap=True, overflow="ellipsis", max_width=max(4, width - (30 if len(headings) > 1 else 8))
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    short = labels(list(run.tallies), max(4, width - (32 if len(headings) > 1 else 10)))[0]
    for name in names:
        tally = run.tallies[name]
        current = any(trial.option == name for trial in run.runs.values())
        speed = sum(tally.speeds) / len(tally.speeds) if tally.speeds else None
        cells = [f"{tally.done}/{tally.planned}", str(tally.failed or ""), units.count(speed)]
        mark = Text("> " if current else "  ") + Text(short[one_line(name)])
        table.add_row(mark, *map(Text, cells[: len(headings)]), style="bold" if current else "")
    return table


def _bar(run: Display, width: int) -> RenderableType:
    left = run.time_left_text()
    text = _truncated(f"{run.done}/{run.planned} trials" + (f", {left}" if left else ""), width)
    share = sum(trial.step / trial.steps for trial in run.runs.values() if trial.steps)
    bar_width = min(40, width // 3)
    if cell_len(text.plain) + bar_width >= width:
        return text
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=max(1, run.planned), completed=run.done + share, width=bar_width), text)
    return grid


def _truncated(text: str, width: int, style: str = "") -> Text:
    line = Text(text, style=style)
    line.truncate(width, overflow="ellipsis")
    return line


# What a person sees while trials run, on stderr: a live table, or plain lines where there is no terminal.


PLAIN_INTERVAL_SECONDS = 10.0
"""Least time between two plain lines of progress."""
LIVE_INTERVAL_SECONDS = 1 / 8
"""Least time between two drawings of the live table."""
NOTEBOOK_INTERVAL_SECONDS = 0.5
"""Least time between two drawings in a notebook, which may receive them over a network."""
NOTEBOOK_WIDTH, NOTEBOOK_HEIGHT = 90, 40
"""Columns and lines of the table in a notebook."""


class PlainDisplay(Display):
    """A line at the start and the end of each trial, and one of progress at most every ten seconds."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._last: dict[int, float] = {}
        """Time of each lane's last line."""

    def run_started(
        self, suite: str, planned: Mapping[str, int], done: Sequence[Record], *, before_contest: bool = False
    ) -> None:
        """Print a line with the size of the run."""
        super().run_started(suite, planned, done, before_contest=before_contest)
        before = f", {self.done} of them done before" if self.done else ""
        self.note(f"{one_line(suite)}: {self.planned} trial{'' if self.planned == 1 else 's'}{before}")

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """Print a line."""
        super().trial_started(option, seed, number, of)
        self._print_progress("started")

    def tick(self) -> None:
        """Print a line of progress, unless the last one is too recent."""
        if self.running and self.clock() - self._last.get(self._lane, 0.0) >= PLAIN_INTERVAL_SECONDS:
            self._print_progress(self.running.figures())

    def report_end(self, text: str, outcome: Outcome, wall_seconds: float) -> None:
        """Print a line with the outcome, the counts and the time left."""
        ended = f"{text} in {units.duration(wall_seconds)}"
        self.note("; ".join(filter(None, [ended, f"{self.done} of {self.planned} done", self.time_left_text()])))

    def note(self, text: str) -> None:
        """Print the text on one line."""
        self._console.print(Text(one_line(text)), soft_wrap=True)

    def _print_progress(self, text: str) -> None:
        assert self.running is not None
        self._last[self._lane] = self.clock()
        self.note("; ".join(filter(None, [f"{self.running.name()}: {text}", self.time_left_text()])))


class DrawnDisplay(Display):
    """Draws everything again whenever something has happened."""

    interval_seconds: ClassVar[float]
    """Least time between two drawings where only time has passed."""
    _drawn = float("-inf")
    _is_running = False
    """Whether the table is drawn, and not the lines alone."""

    def run_started(
        self, suite: str, planned: Mapping[str, int], done: Sequence[Record], *, before_contest: bool = False
    ) -> None:
        """Draw the table from now on."""
        super().run_started(suite, planned, done, before_contest=before_contest)
        self._is_running = True
        self._draw()

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """Draw the new trial at once."""
        super().trial_started(option, seed, number, of)
        self._draw()

    def tick(self) -> None:
        """Draw, unless the last drawing is too recent."""
        if self.clock() - self._drawn >= self.interval_seconds:
            self._draw()

    def report_end(self, text: str, outcome: Outcome, wall_seconds: float) -> None:
        """Draw again; a failure also leaves a line above the table."""
        if isinstance(outcome, Failed):
            self.note(text)
        self._draw()

    def close(self) -> None:
        """Remove the table and leave a line of counts."""
        if self._is_running:
            self._is_running = False
            self._draw()
            self.note(self.counts())

    def _draw(self) -> None:
        raise NotImplementedError


class LiveDisplay(DrawnDisplay):
    """A table that is redrawn in place: a row per option, the running trial, the bar of the whole run."""

    interval_seconds = LIVE_INTERVAL_SECONDS

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        # Drawn only when something happens, without a thread; stdout stays free for the results.
        self._live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )

    def note(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(Text(one_line(text)))

    def _draw(self) -> None:
        if self._is_running:
            self._drawn = self.clock()
            self._live.start()
            self._live.update(picture(self, self._console.width, self._console.height), refresh=True)
        else:
            self._live.stop()


def make_display(console: Console, clock: Clock = time.monotonic) -> Display:
    """A live table on a terminal that can draw over itself, else plain lines; `console` writes to stderr."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveDisplay(console, clock) if live else PlainDisplay(console, clock)


class NotebookDisplay(DrawnDisplay):
    """The lines of a run and its live table as one output of a notebook's cell, redrawn without widgets."""

    interval_seconds = NOTEBOOK_INTERVAL_SECONDS

    def __init__(self, show: Callable[[str, str], None], clock: Clock = time.monotonic) -> None:
        """`show` gets HTML and, for where HTML can't be displayed, text; they replace what it displayed before."""
        super().__init__(clock)
        self._show = show
        self._lines: list[str] = []

    def note(self, text: str) -> None:
        """Print a line above the table."""
        self._lines.append(one_line(text))
        self._draw()

    def _draw(self) -> None:
        self._drawn = self.clock()
        console = Console(
            record=True, file=StringIO(), width=NOTEBOOK_WIDTH, height=NOTEBOOK_HEIGHT, force_jupyter=False
        )
        if self._is_running:
            console.print(picture(self, NOTEBOOK_WIDTH, NOTEBOOK_HEIGHT))
        drawn = console.export_html(inline_styles=True, code_format="{code}", clear=False)
        lines = "".join(f"<div>{escape(line)}</div>" for line in self._lines)
        style = "white-space:pre;overflow-x:auto;line-height:1.35;background:none;color:inherit;margin:.5em 0"
        page = f'{lines}<pre style="{style}">{drawn}</pre>' if self._is_running else lines
        self._show(page, "\n".join([*self._lines, console.export_text().rstrip()]))


# The question before a suite whose run is complete is run once more.


Rerun = Literal["show", "anew"] | int
"""Show the complete run, run the suite anew, or add this number of seeds to the run."""
MOST_SECONDS_TO_ANSWER = 300
"""The question waits no longer, as GPUs are held meanwhile."""


def ask_rerun(console: Console, complete: Path, *, reuse: bool) -> Rerun:
    """Ask on a terminal what to do with a complete run; elsewhere "anew". Raises UserError on no answer in time."""
    if reuse:
        return "show"
    if not (sys.stdin.isatty() and console.is_terminal):
        return "anew"
    ago = units.duration(max(0.0, time.time() - (complete / RECORDS_FILE).stat().st_mtime))
    console.print(f"{complete} is complete, {ago} ago", markup=False, highlight=False, soft_wrap=True)
    answer = ""
    while answer not in ("s", "e", "a", "show", "extend", "anew"):
        answer = _ask(console, "(s)how it, (e)xtend it by more seeds, run (a)new, or (q)uit? [s] ") or "s"
        if answer in ("q", "quit", "n", "no"):
            raise UserError("nothing was run")
    if answer[0] != "e":
        return "show" if answer[0] == "s" else "anew"
    while not answer.isdecimal() or not 0 < int(answer) <= 100:
        answer = _ask(console, "How many more seeds? [3] ") or "3"
    return int(answer)


def _ask(console: Console, question: str) -> str:
    console.print(question, end="", markup=False, highlight=False, soft_wrap=True)
    waiting = select.select([sys.stdin], [], [], MOST_SECONDS_TO_ANSWER)[0]
    line = os.read(sys.stdin.fileno(), 1000) if waiting else b""  # a terminal hands over one line
    if not line:
        raise UserError("nobody answered: --reuse shows the run that there is, --fresh runs anew")
    return line.decode(errors="replace").strip().lower()
