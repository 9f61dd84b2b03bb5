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
from selectbench.record.record import Completed, Failed, has_ended
from selectbench.record.run_folder import RECORDS_FILE
from selectbench.record.wire import Evaluating, Phase, Progress
from selectbench.report.document import labels
from selectbench.text import first_line, one_line

# How long the rest of a run takes, from the trials that ended and the running one's own pace. Pure.


_NAME_MOST = 40
"""Characters of the running option's name."""
_BESIDE_STEPS = ("evaluate", "save")
"""Phases that make no run longer than it was said to be when they began."""


@dataclass
class Running:
    """The trial that runs; moments by the display's clock, in seconds."""

    option: str
    seed: int
    number: int
    of: int
    label: str = ""
    """The option's name where there is little room."""
    place: str = ""
    """`lane 2: `, where there are several."""
    began: float | None = None
    """When its worker began with it; None: its server is still starting."""
    phase: str = "setup"
    step: int = 0
    steps: int = 0
    """Optimizer steps of the job; 0: there was no report yet."""
    first: tuple[int, float] | None = None
    """Steps done and the moment of the first report: what came before, such as compiling, is not of the pace."""
    last: tuple[int, float] | None = None
    """Those of the last report of a further step."""
    evaluating: Evaluating | None = None
    """How far the evaluation is that goes on."""
    loss: float | None = None
    tokens_per_second: float | None = None

    def name(self) -> str:
        """`trial 3 of 20: bf16, seed 1`."""
        name = self.label or one_line(self.option, _NAME_MOST)
        return f"{self.place}trial {self.number} of {self.of}: {name}, seed {self.seed}"

    def figures(self) -> str:
        """`train 30/60, loss 5.43, 11,234 tokens/s`, what is known of it."""
        told = self.evaluating
        parts = [f"{self.phase} {self.step}/{self.steps}" if self.steps else self.phase]
        parts = [f"{self.phase} {told.done:,}/{told.of:,} {told.what}"] if told else parts
        parts += [f"loss {units.significant(self.loss)}"] if self.loss is not None else []
        parts += [f"{units.count(self.tokens_per_second)} tokens/s"] if self.tokens_per_second is not None else []
        return ", ".join(parts)

    def elapsed(self, now: float) -> float:
        """Seconds since its worker began with it."""
        return 0.0 if self.began is None else now - self.began

    def steps_left_seconds(self, now: float) -> float | None:
        """Until all steps are done, at the pace since the first report; None: there were not two yet.

        Evaluations on the way are part of the pace. Where a report is overdue the figure stands still.
        """
        if self.first is None or self.last is None or self.first == self.last:
            return None
        (before, began), (done, at) = self.first, self.last
        pace = (at - began) / (done - before)
        return pace * (self.steps - done) - min(now - at, pace) if done < self.steps else 0.0


@dataclass
class TimeLeft:
    """Walls of ended trials by option, without the start of a trial server, which serves all; all in seconds.

    A trial takes as long as its option's took on average, else as long as the running one of its option seems to
    take, else as long as the other options' trials.
    """

    remaining: dict[str, int]
    """Trials to come by option, the running one among them."""
    walls: dict[str, list[float]] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    """Options that have completed a trial: of one that has not nothing follows for the others."""

    def ended(self, option: str, wall_seconds: float, *, completed: bool) -> None:
        """A trial of the option is over."""
        self.remaining[option] = max(0, self.remaining.get(option, 0) - 1)
        self.walls.setdefault(option, []).append(wall_seconds)
        self.completed |= {option} if completed else set()

    def left(self, runs: Sequence[Running] = (), now: float = 0.0, lanes: int = 1) -> float | None:
        """Seconds until the run ends; None: not known yet. `runs`: the trials at hand, `now`: by their clock."""
        means = {option: fmean(walls) for option, walls in self.walls.items()}
        of_others = [means[option] for option in self.completed]
        rests: list[float] = []
        for one in runs:
            elapsed, steps = one.elapsed(now), one.steps_left_seconds(now)
            if one.option not in self.walls and steps is not None:
                means[one.option] = elapsed + steps
                of_others.append(elapsed + steps)
            expected = means.get(one.option, fmean(of_others) if of_others else None)
            if expected is None:
                return None
            rests.append(expected - elapsed if elapsed < expected else steps or 0.0)
        to_come = Counter(self.remaining) - Counter(one.option for one in runs)
        if not of_others and not means.keys() >= to_come.keys():
            return None
        seconds = sum(count * means.get(name, fmean(of_others or [0.0])) for name, count in to_come.items())
        return max([*rests, (sum(rests) + seconds) / lanes])


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

    def count(self, outcome: Outcome) -> None:
        """One more trial that has ended."""
        self.done += 1
        self.failed += isinstance(outcome, Failed)
        speed = _speed(outcome)
        self.speeds += [speed] if speed is not None else []


class Display:
    """What a run tells of itself, in order, and what follows from it; shows nothing itself."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.tallies: dict[str, Tally] = {}
        self.planned, self.done = 0, 0
        self.lanes = 1
        """Trials that can run at the same time."""
        self.runs: dict[int, Running] = {}
        """Those that run, by lane."""
        self._lane, self._turn = 0, RLock()
        self.time_left = TimeLeft({})
        self._least_left: float | None = None
        """Seconds, the least that was shown since the running trial evaluates or is saved."""

    @contextmanager
    def of(self, lane: int) -> Iterator[Display]:
        """What is reported inside is of this lane; one lane reports at a time."""
        with self._turn:
            self._lane = lane
            yield self

    @property
    def running(self) -> Running | None:
        """The trial of the lane that tells."""
        return self.runs.get(self._lane)

    def run_started(self, suite: str, planned: Mapping[str, int], done: Mapping[str, Sequence[Outcome]]) -> None:
        """A run or a further stage of it begins; by option its trials, and the outcomes that it has from before."""
        self.tallies = {option: Tally(planned=number) for option, number in planned.items()}
        for option, outcome in ((option, each) for option, outcomes in done.items() for each in outcomes):
            self.tallies[option].count(outcome)
        self.planned, self.done = sum(planned.values()), sum(map(len, done.values()))
        self.time_left = TimeLeft({name: max(0, t.planned - t.done) for name, t in self.tallies.items()})

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """Trial `number`, from 1, of `of` is launched."""
        name = labels(list(self.tallies), _NAME_MOST)[0].get(one_line(option), one_line(option, _NAME_MOST))
        place = f"lane {self._lane + 1}: " if self.lanes > 1 else ""
        self.runs[self._lane] = Running(option, seed, number, of, name, place)

    def hear(self, event: Phase | Progress | Evaluating | None) -> None:
        """An event of the running trial; None: time has passed."""
        if isinstance(event, Progress):
            self.progress(event.step, event.of, event.loss, event.tokens_per_second)
        elif isinstance(event, Evaluating):
            self.evaluating(event)
        elif isinstance(event, Phase):
            self.phase_changed(event.phase)
        self.tick()

    def phase_changed(self, phase: str) -> None:
        """The running trial goes over to another kind of work: setup, train, evaluate, extra."""
        running, now = self.running, self.clock()
        if running is None:
            return
        running.began = now if running.began is None else running.began
        running.phase, running.evaluating = phase, None
        if phase not in _BESIDE_STEPS:
            self._least_left = None

    def evaluating(self, event: Evaluating) -> None:
        """How far the evaluation of the running trial is."""
        if self.running is not None:
            self.running.evaluating = event

    def progress(self, step: int, of: int, loss: float | None, tokens_per_second: float | None) -> None:
        """The running trial did `step` of `of` steps; loss in nats per token. What is not known stays as it was."""
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
        """Time has passed; at least once a second while a trial runs."""

    def trial_ended(
        self, option: str, seed: int, outcome: Outcome, wall_seconds: float, server_start_seconds: float = 0.0
    ) -> None:
        """The trial has its outcome; one that was never launched too.

        `server_start_seconds`: of the wall, what it waited for a trial server that others find ready.
        """
        self.runs.pop(self._lane, None)
        tally = self.tallies.setdefault(option, Tally())
        if has_ended(outcome):
            self.done += 1
            tally.count(outcome)
            seconds = wall_seconds - server_start_seconds
            self.time_left.ended(option, seconds, completed=isinstance(outcome, Completed))
        if not isinstance(outcome, Failed) or outcome.kind != "unsupported":
            self.tell_end(f"{one_line(option)}, seed {seed}: {outcome_text(outcome)}", outcome, wall_seconds)
        elif tally.done <= 1:  # the plan knew it: of its other trials nothing else is to be told
            why = f"unsupported: {first_line(outcome.detail, 400)}"
            self.note(f"{one_line(option)}: {why}; none of its {tally.planned} trials is run")

    def tell_end(self, text: str, outcome: Outcome, wall_seconds: float) -> None:
        """Says that a trial has ended; of those that never began only of an option's first."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """The last call; harmless when repeated."""

    def counts(self) -> str:
        """`5 of 6 trials have an outcome, 1 failed`."""
        failed = sum(tally.failed for tally in self.tallies.values())
        return f"{self.done} of {self.planned} trials have an outcome" + (f", {failed} failed" if failed else "")

    def seconds_left(self) -> float | None:
        """Until the run ends; None: not known yet. While a trial evaluates or is saved it does not rise."""
        seconds = self.time_left.left([*self.runs.values()], self.clock(), self.lanes)
        if seconds is not None and self.lanes == 1 and self.running and self.running.phase in _BESIDE_STEPS:
            self._least_left = seconds = min(seconds, seconds if self._least_left is None else self._least_left)
        return seconds

    def left(self) -> str:
        """`3 min 20 s left`, or '' while nothing is known."""
        seconds = self.seconds_left()
        return "" if seconds is None else f"{'about ' * (self.lanes > 1)}{units.duration(seconds)} left"


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


_LINES_BESIDE_OPTIONS = 7
"""Heading, "more options", the running trial (2), the bar, and two lines that stay free."""
_NARROW = 48
"""Columns below which the table shows counts only."""


def picture(run: Display, width: int, height: int) -> RenderableType:
    """The live table for a terminal of so many columns and lines; at most `height` - 1 lines of it.

    A terminal too low for the table gets the running trial and the bar only.
    """
    runs = [run.runs[lane] for lane in sorted(run.runs)]
    each = [(f"{r.name()}: {r.figures()}",) if run.lanes > 1 else (r.name(), r.figures()) for r in runs]
    lines = [*(_cut(line, width) for one in each for line in one), _bar(run, width)]
    room = height - _LINES_BESIDE_OPTIONS - max(0, len(runs) - 2)
    if room < 1:
        return Group(*lines)
    # All options, or those around the running one in the suite's order.
    names = list(run.tallies)
    at = min([names.index(one.option) for one in runs if one.option in names], default=0)
    first = max(0, min(at - room // 2, len(names) - room))
    names = names[first : first + room]
    hidden = len(run.tallies) - len(names)
    more = [_cut(f"  ... {hidden} more options", width, "dim")] if hidden else []
    return Group(_options(run, names, width), *more, *lines)


def _options(run: Display, names: list[str], width: int) -> Table:
    heads = ["done", "failed", "tokens/s"] if width >= _NARROW else ["done"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(
        "option", no_wrap=True, overflow="ellipsis", max_width=max(4, width - (30 if len(heads) > 1 else 8))
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    short = labels(list(run.tallies), max(4, width - (32 if len(heads) > 1 else 10)))[0]
    for name in names:
        tally = run.tallies[name]
        current = any(one.option == name for one in run.runs.values())
        speed = sum(tally.speeds) / len(tally.speeds) if tally.speeds else None
        cells = [f"{tally.done}/{tally.planned}", str(tally.failed or ""), units.count(speed)]
        mark = Text("> " if current else "  ") + Text(short[one_line(name)])
        table.add_row(mark, *map(Text, cells[: len(heads)]), style="bold" if current else "")
    return table


def _bar(run: Display, width: int) -> RenderableType:
    left = run.left()
    words = _cut(f"{run.done}/{run.planned} trials" + (f", {left}" if left else ""), width)
    share = sum(one.step / one.steps for one in run.runs.values() if one.steps)
    bar_width = min(40, width // 3)
    if cell_len(words.plain) + bar_width >= width:
        return words
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=max(1, run.planned), completed=run.done + share, width=bar_width), words)
    return grid


def _cut(text: str, width: int, style: str = "") -> Text:
    line = Text(text, style=style)
    line.truncate(width, overflow="ellipsis")
    return line


# What a person sees while trials run, on stderr: a live table, or plain lines where there is no terminal.


PLAIN_INTERVAL_SECONDS = 10.0
"""Between two plain lines of progress."""
LIVE_INTERVAL_SECONDS = 1 / 8
"""Between two drawings of the live table."""
NOTEBOOK_INTERVAL_SECONDS = 0.5
"""The same in a notebook, to which each drawing is sent, over a network maybe."""
NOTEBOOK_WIDTH, NOTEBOOK_HEIGHT = 90, 40
"""Columns and lines of the table in a notebook."""


class PlainDisplay(Display):
    """A line at the start and the end of each trial, and one of progress at most every ten seconds."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._last: dict[int, float] = {}
        """By lane, when it last told of its trial."""

    def run_started(self, suite: str, planned: Mapping[str, int], done: Mapping[str, Sequence[Outcome]]) -> None:
        """One line with the size of the run."""
        super().run_started(suite, planned, done)
        before = f", {self.done} of them done before" if self.done else ""
        self.note(f"{one_line(suite)}: {self.planned} trial{'' if self.planned == 1 else 's'}{before}")

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """One line."""
        super().trial_started(option, seed, number, of)
        self._say("started")

    def tick(self) -> None:
        """A line, unless the last one is too recent."""
        if self.running and self.clock() - self._last.get(self._lane, 0.0) >= PLAIN_INTERVAL_SECONDS:
            self._say(self.running.figures())

    def tell_end(self, text: str, outcome: Outcome, wall_seconds: float) -> None:
        """One line with the outcome."""
        ended = f"{text} in {units.duration(wall_seconds)}"
        self.note("; ".join(filter(None, [ended, f"{self.done} of {self.planned} done", self.left()])))

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(Text(one_line(text)), soft_wrap=True)

    def _say(self, what: str) -> None:
        assert self.running is not None
        self._last[self._lane] = self.clock()
        self.note("; ".join(filter(None, [f"{self.running.name()}: {what}", self.left()])))


class DrawnDisplay(Display):
    """Draws the whole again whenever something has happened."""

    interval_seconds: ClassVar[float]
    """Between drawings for which nothing but time has passed."""
    _drawn = float("-inf")

    def tick(self) -> None:
        """Draws, unless the last drawing is too recent."""
        if self.clock() - self._drawn >= self.interval_seconds:
            self._draw()

    def tell_end(self, text: str, outcome: Outcome, wall_seconds: float) -> None:
        """A failure leaves a line above the table."""
        if isinstance(outcome, Failed):
            self.note(text)
        self._draw()

    def _draw(self) -> None:
        raise NotImplementedError


class LiveDisplay(DrawnDisplay):
    """A table that is drawn over: a row per option, the running trial, the bar of the whole run."""

    interval_seconds = LIVE_INTERVAL_SECONDS

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._live: Live | None = None

    def run_started(self, suite: str, planned: Mapping[str, int], done: Mapping[str, Sequence[Outcome]]) -> None:
        """Starts drawing; of a further stage, over again."""
        if self._live is not None:
            self._live.stop()
        super().run_started(suite, planned, done)
        # Drawn only when something happens, without a thread; stdout stays free for the results.
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()
        self._draw()

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """Shown at once."""
        super().trial_started(option, seed, number, of)
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
        self.note(self.counts())

    def _draw(self) -> None:
        if self._live is None:
            return
        self._drawn = self.clock()
        self._live.update(picture(self, self._console.width, self._console.height), refresh=True)


def make_display(console: Console, clock: Clock = time.monotonic) -> Display:
    """A live table on a terminal that can draw over itself, else plain lines; `console` writes to stderr."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveDisplay(console, clock) if live else PlainDisplay(console, clock)


class NotebookDisplay(DrawnDisplay):
    """The lines of a run and its live table as one output of a notebook's cell, which is drawn over; no widgets."""

    interval_seconds = NOTEBOOK_INTERVAL_SECONDS

    def __init__(self, show: Callable[[str, str], None], clock: Clock = time.monotonic) -> None:
        """`show`: shows HTML, and the same as text where there is none, in place of what it showed before."""
        super().__init__(clock)
        self._show = show
        self._lines: list[str] = []
        self._is_running = False

    def run_started(self, suite: str, planned: Mapping[str, int], done: Mapping[str, Sequence[Outcome]]) -> None:
        """The table is shown from now on."""
        super().run_started(suite, planned, done)
        self._is_running = True
        self._draw()

    def note(self, text: str) -> None:
        """A line above the table."""
        self._lines.append(one_line(text))
        self._draw()

    def close(self) -> None:
        """The table goes; one line of counts stays."""
        if self._is_running:
            self._is_running = False
            self.note(self.counts())

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


# What a person is asked before a run of the same suite that is complete is made once more.


Again = Literal["show", "anew"] | int
"""Show the run that there is, run the suite anew, or add so many seeds to the run."""
MOST_SECONDS_TO_ANSWER = 300
"""GPUs are held meanwhile."""


def what_again(console: Console, complete: Path, *, reuse: bool) -> Again:
    """What to do with a complete run; asked on a terminal alone. Raises UserError where nobody answers in time."""
    if reuse:
        return "show"
    if not (sys.stdin.isatty() and console.is_terminal):
        return "anew"
    ago = units.duration(max(0.0, time.time() - (complete / RECORDS_FILE).stat().st_mtime))
    console.print(f"{complete} is complete, {ago} ago", markup=False, highlight=False, soft_wrap=True)
    answer = ""
    while answer not in ("s", "e", "a", "show", "extend", "anew"):
        answer = _answer(console, "(s)how it, (e)xtend it by more seeds, run (a)new, or (q)uit? [s] ") or "s"
        if answer in ("q", "quit", "n", "no"):
            raise UserError("nothing was run")
    if answer[0] != "e":
        return "show" if answer[0] == "s" else "anew"
    while not answer.isdecimal() or not 0 < int(answer) <= 100:
        answer = _answer(console, "How many more seeds? [3] ") or "3"
    return int(answer)


def _answer(console: Console, question: str) -> str:
    console.print(question, end="", markup=False, highlight=False, soft_wrap=True)
    waiting = select.select([sys.stdin], [], [], MOST_SECONDS_TO_ANSWER)[0]
    line = os.read(sys.stdin.fileno(), 1000) if waiting else b""  # a terminal hands over one line
    if not line:
        raise UserError("nobody answered: --reuse shows the run that there is, --fresh runs anew")
    return line.decode(errors="replace").strip().lower()
