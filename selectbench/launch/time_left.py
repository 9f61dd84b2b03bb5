"""How long the rest of a run takes, from the trials that ended and the running one's own pace. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean


@dataclass
class Pace:
    """How fast the running trial does its steps, from its reports; moments in seconds of one clock."""

    steps: int = 0
    """Optimizer steps of the job; 0: there was no report yet."""
    finished: float | None = None
    """When all of them were done."""
    _reports: list[tuple[int, float]] = field(default_factory=list)
    """Steps done and the moment: of the first report, the one before the last, and the last."""

    def note(self, done: int, of: int, now: float) -> None:
        """A report; one that tells of no further step says nothing of the pace."""
        self.steps = of
        if self._reports and done <= self._reports[-1][0]:
            return
        self._reports = [*self._reports[:1], *self._reports[1:][-1:], (done, now)]
        if done >= of and self.finished is None:
            self.finished = now

    @property
    def share(self) -> float:
        """Of the steps that are done."""
        return self._reports[-1][0] / self.steps if self._reports and self.steps else 0.0

    def steps_left_seconds(self, now: float) -> float | None:
        """Until all steps are done, at the pace since the first report; None: there were not two yet.

        What came before the first report, compiling and the first allocations, is no part of it. A report that is
        overdue slows the pace down: it will tell of as many steps as the one before it, and did not come yet.
        """
        if len(self._reports) < 2:
            return None
        (first, began), (before, _), (last, at) = self._reports[0], self._reports[-2], self._reports[-1]
        due = min(self.steps, last + (last - before))
        pace = max((at - began) / (last - first), (now - began) / (due - first))
        return max((self.steps - last) * pace - (now - at), (self.steps - due) * pace)


@dataclass(frozen=True)
class RunningTrial:
    """The trial that runs."""

    option: str
    elapsed: float
    """Seconds since its worker began with it."""
    pace: Pace
    now: float
    """By the clock of the pace."""


@dataclass
class TimeLeft:
    """Walls of ended trials by option, without the start of a trial server, which serves all; all in seconds.

    A trial to come takes as long as its option's took on average, the running one as it seems among them, else as
    long as the other options'.
    """

    remaining: dict[str, int]
    """Trials to come by option, the running one among them."""
    walls: dict[str, list[float]] = field(default_factory=dict)
    tails: dict[str, list[float]] = field(default_factory=dict)
    """What completed trials took after their last step: evaluating, and steps for timing alone."""
    _failed: set[str] = field(default_factory=set)

    def ended(
        self, option: str, wall_seconds: float, *, completed: bool, tail_seconds: float | None = None
    ) -> None:
        """A trial of the option is over. Of an option that never completed one nothing follows for the others."""
        self.remaining[option] = max(0, self.remaining.get(option, 0) - 1)
        self.walls.setdefault(option, []).append(wall_seconds)
        if tail_seconds is not None:
            self.tails.setdefault(option, []).append(tail_seconds)
        if completed:
            self._failed.discard(option)
        elif len(self.walls[option]) == 1:
            self._failed.add(option)

    def left(self, running: RunningTrial | None) -> float | None:
        """Seconds until the run ends; None: not known yet."""
        if running is None:
            return self._to_come(self.remaining, self.walls)
        own = self._of(running)
        if own is None:
            return None
        seen = {**self.walls, running.option: [*self.walls.get(running.option, []), running.elapsed + own]}
        others = {name: count - (name == running.option) for name, count in self.remaining.items()}
        rest = self._to_come(others, seen)
        return None if rest is None else own + rest

    def _of(self, running: RunningTrial) -> float | None:
        """What the running trial still takes."""
        tail = _expected(self.tails, running.option) or 0.0
        if running.pace.finished is not None:
            return _rest(tail, running.now - running.pace.finished)
        steps = running.pace.steps_left_seconds(running.now)
        if steps is not None:
            return steps + tail
        expected = _expected(self.walls, running.option, self._failed)
        if expected is not None:
            return _rest(expected, running.elapsed)
        share = running.pace.share
        return running.elapsed / share - running.elapsed if share else None

    def _to_come(self, trials: Mapping[str, int], walls: Mapping[str, Sequence[float]]) -> float | None:
        total = 0.0
        for name, count in trials.items():
            wall = _expected(walls, name, self._failed)
            if count > 0 and wall is None:
                return None
            total += max(0, count) * (wall or 0.0)
        return total


def _rest(expected: float, spent: float) -> float:
    """Of something whose progress is not seen: what is over its time is taken to need as much again."""
    return abs(expected - spent)


def _expected(known: Mapping[str, Sequence[float]], option: str, silent: Collection[str] = ()) -> float | None:
    """The option's mean, else the mean of the others'; `silent`: those that say nothing of another."""
    if option in known:
        return fmean(known[option])
    means = [fmean(values) for name, values in known.items() if name not in silent]
    return fmean(means) if means else None
