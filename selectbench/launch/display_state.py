"""What the displays know of a run: counts by option, the running trial, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from selectbench import units
from selectbench.analysis.formulas import finite, tokens_per_second
from selectbench.launch.time_left import Pace, RunningTrial, TimeLeft
from selectbench.record.record import Completed, Failed
from selectbench.report.escape import first_line, one_line
from selectbench.suite.suite import Suite

Clock = Callable[[], float]


@dataclass
class Running:
    """The trial that runs."""

    option: str
    seed: int
    number: int
    of: int
    since: float
    """The clock at its start."""
    began: float | None = None
    """The clock when its worker began with it; None: its server is still starting."""
    phase: str = "setup"
    step: int = 0
    steps: int = 0
    pace: Pace = field(default_factory=Pace)
    """Of its steps."""
    loss: float | None = None
    tokens_per_second: float | None = None

    def name(self) -> str:
        """`trial 3 of 20: bf16, seed 1`."""
        return f"trial {self.number} of {self.of}: {one_line(self.option, 40)}, seed {self.seed}"

    def figures(self) -> str:
        """`train 30/60, loss 5.43, 11,234 tokens/s`, what is known of it, after how long."""
        parts = [f"{self.phase} {self.step}/{self.steps}" if self.steps else self.phase]
        parts += [f"loss {units.significant(self.loss)}"] if self.loss is not None else []
        parts += [f"{units.count(self.tokens_per_second)} tokens/s"] if self.tokens_per_second is not None else []
        return ", ".join(parts)


@dataclass
class Tally:
    """One option's trials so far."""

    done: int = 0
    failed: int = 0
    speeds: list[float] = field(default_factory=list)
    """Tokens per second of the completed trials."""

    def mean_speed(self) -> float | None:
        """Mean tokens per second so far, or None."""
        return sum(self.speeds) / len(self.speeds) if self.speeds else None


class State:
    """What both displays know: counts by option, the running trial, the time left."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.tallies: dict[str, Tally] = {}
        self.planned, self.done, self.per_option = 0, 0, 0
        self.running: Running | None = None
        self.time_left = TimeLeft({})

    def run_started(
        self, suite: Suite, trials_planned: int, trials_done: int, done_by_option: Mapping[str, int] | None
    ) -> None:
        """Sets the counts from which the trials count on."""
        before = done_by_option or _spread_evenly(trials_done, [option.name for option in suite.options])
        self.planned, self.done, self.per_option = trials_planned, trials_done, len(suite.seeds)
        self.tallies = {option.name: Tally(before.get(option.name, 0)) for option in suite.options}
        self.time_left = TimeLeft({name: max(0, self.per_option - t.done) for name, t in self.tallies.items()})

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        """The clock of the trial starts."""
        self.running = Running(option, seed, number, of, self.clock())

    def phase_changed(self, phase: str) -> None:
        """The running trial goes over to another kind of work."""
        if self.running is not None:
            self.running.phase = phase
            self.running.began = self.clock() if self.running.began is None else self.running.began

    def progress(self, step: int, of: int, loss: float | None, speed: float | None) -> None:
        """The latest known figures of the running trial; an unknown one keeps the last."""
        running = self.running
        if running is None:
            return
        running.step, running.steps = step, of
        running.pace.note(step, of, self.clock())
        running.loss = running.loss if loss is None else loss
        running.tokens_per_second = running.tokens_per_second if speed is None else speed

    def trial_ended(
        self, option: str, outcome: Completed | Failed, wall_seconds: float, server_start_seconds: float
    ) -> None:
        """Counts the trial."""
        running, self.running = self.running, None
        if isinstance(outcome, Failed) and outcome.kind == "interrupted":
            return  # it runs again when the run is resumed
        self.done += 1
        tally = self.tallies.setdefault(option, Tally())
        tally.done += 1
        tally.failed += isinstance(outcome, Failed)
        speed = _speed(outcome)
        tally.speeds += [speed] if speed is not None else []
        done = running.pace.finished if running else None
        self.time_left.ended(
            option, wall_seconds - server_start_seconds, completed=isinstance(outcome, Completed),
            tail_seconds=None if done is None or isinstance(outcome, Failed) else self.clock() - done,
        )  # fmt: skip

    def left(self) -> str:
        """`3 min 20 s left`, or '' while nothing is known."""
        running, now = self.running, self.clock()
        if running is None:
            seconds = self.time_left.left(None)
        else:
            elapsed = 0.0 if running.began is None else now - running.began
            seconds = self.time_left.left(RunningTrial(running.option, elapsed, running.pace, now))
        return "" if seconds is None else f"{units.duration(seconds)} left"


def _spread_evenly(trials: int, names: list[str]) -> dict[str, int]:
    """Rounds interleave the options, so that trials done before are spread over them."""
    return {name: trials // len(names) + (at < trials % len(names)) for at, name in enumerate(names)}


def _speed(outcome: Completed | Failed) -> float | None:
    if isinstance(outcome, Failed):
        return None
    return finite(lambda: tokens_per_second(outcome.measurement))


def outcome_text(outcome: Completed | Failed) -> str:
    """`completed, 11,420 tokens/s, loss 5.43`, or `failed: oom: ...`, on one line."""
    if isinstance(outcome, Failed):
        return f"failed: {outcome.kind}: {first_line(outcome.detail, 200)}"
    speed, loss = _speed(outcome), outcome.measurement.final_loss
    parts = ["completed", f"{units.count(speed)} tokens/s"]
    return ", ".join(parts + ([f"loss {units.significant(loss)}"] if loss is not None else []))
