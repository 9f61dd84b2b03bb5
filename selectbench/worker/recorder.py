"""Watches a training, whoever drives it: windows of steps, evaluations, then steps for timing alone.

The driver, our own loop or a foreign one, asks `wants_step` and tells `step_done`; everything that is
measured, read or evaluated happens in between, the same for every driver.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from selectbench.record.inside import Inside
from selectbench.record.record import EvaluationPoint
from selectbench.record.wire import Finished, GaveUp, Phase, Progress, Started
from selectbench.suite.evaluate import Eval
from selectbench.suite.job import Job
from selectbench.worker.evaluation import HeldOut, Logits, heldout_loss
from selectbench.worker.examination import Examination, Scores
from selectbench.worker.inside import Look
from selectbench.worker.learning_rate import LearningRates
from selectbench.worker.memory import TrainingMemory
from selectbench.worker.out_of_memory import is_out_of_memory
from selectbench.worker.series import Diverged, Series
from selectbench.worker.step import StepTensors
from selectbench.worker.whereabouts import Whereabouts
from selectbench.worker.windows import ClosedWindow, Timing, Window, marks_of
from selectbench.worker.world import World

Emit = Callable[[Started | Phase | Progress | Finished | GaveUp], None]

SECONDS_BETWEEN_EDGES = {"cpu": 0.25, "cuda": 1.0}
"""How long a window should stay open: waiting for a CPU costs nothing, for a GPU it empties its queue."""
LEAST_TIMED_STEPS = 5
"""So that a median and its quartiles mean something."""


@dataclass
class Recorder:
    """Collects what a job's steps and evaluations yield; every rank has one, and they agree on its windows."""

    job: Job
    world: World
    evaluation: Callable[[], AbstractContextManager[Logits]]
    held_out: HeldOut | None
    examination: Examination | None
    """Of what the model generates after the last step; None: no score is asked for."""
    look: Look | None
    """At what was learnt, after the last step."""
    sequences_per_batch: int
    """In evaluations; no more than in training, so that one doesn't run out of memory first."""
    min_timed_seconds: float
    emit: Emit
    memory: TrainingMemory
    learning_rates: LearningRates
    whereabouts: Whereabouts
    count_compilations: Callable[[], int]
    """Graphs compiled so far in this process."""
    series: Series = field(default_factory=Series)
    timing: Timing = field(default_factory=Timing)
    evaluation_curve: list[EvaluationPoint] = field(default_factory=list)
    evaluation_seconds: float = 0.0
    scores: Scores = field(default_factory=Scores)
    inside: Inside | None = None
    steps_done: int = 0

    def __post_init__(self) -> None:
        self._marks = marks_of(self.world.device_type)
        self._compilations_before = self._compilations = self.count_compilations()
        self.first_step_at: float | None = None
        """When the first window was opened, by `time.perf_counter`."""
        self.training_window: tuple[float, float] | None = None
        """Training up to the first evaluation, by `time.perf_counter`."""
        self._pending: list[StepTensors] = []
        self._window: Window | None = None
        self._wanted = 0
        self._pace_seconds: float | None = None
        self._evaluation_steps = evaluation_steps(self.job)

    @property
    def compilations(self) -> int:
        """Graphs compiled since the training began."""
        return self._compilations - self._compilations_before

    def write_series(self, path: Path) -> None:
        """Everything known of every step, as JSON."""
        self.series.write(path, shares=self.learning_rates.shares, peak_learning_rates=self.learning_rates.peaks)

    def wants_step(self) -> bool:
        """Whether another step is wanted; opens the next window where none is open."""
        if self._window is None:
            if (
                self.steps_done == 0
                and self.held_out
                and isinstance(self.job.eval, Eval)
                and self.job.eval.at_start
            ):
                self._evaluate(self.held_out)
            if self.steps_done == 0 or self.steps_done in self._evaluation_steps:
                self._begin_stretch()
            self._wanted = self.world.from_first(self._next_window())
            self._window = Window(self._marks) if self._wanted else None
            if self.first_step_at is None and self._window is not None:
                self.first_step_at = self._window.opened
        return self._window is not None

    def step_done(self, step: StepTensors) -> None:
        """A step was made since `wants_step`. Raises Diverged."""
        assert self._window is not None, "ask wants_step before a step"
        of_the_job = self.steps_done < self.job.max_steps
        if of_the_job:
            self.learning_rates.note()
        self._pending.append(step)
        self.steps_done += 1
        compilations = self.count_compilations()
        self._window.step_done(compiled=compilations > self._compilations)
        self._compilations = compilations
        if len(self._window) == self._wanted:
            self._close(self._window, of_the_job)

    def _begin_stretch(self) -> None:
        extra = self.steps_done >= self.job.max_steps
        if not extra:
            self.memory.start()
        if not extra or not self._timed_enough():
            self.emit(Phase(phase="extra" if extra else "train"))

    def _next_window(self) -> int:
        """Steps of the next window, 0 for the end; the first rank's answer counts, as clocks differ."""
        by_pace = max(1, int(SECONDS_BETWEEN_EDGES[self.world.device_type] / (self._pace_seconds or math.inf)))
        edges = [*self._evaluation_steps, self.job.timing.warmup_steps]
        left = [edge - self.steps_done for edge in edges if edge > self.steps_done]
        if self.steps_done < self.job.max_steps:
            return min(by_pace, *left)
        return 0 if self._timed_enough() else min(by_pace, self._steps_to_time())

    def _steps_to_time(self) -> int:
        missing_steps = self._least_timed() - len(self.timing.timed_steps)
        missing_seconds = self.min_timed_seconds - self.timing.timed_seconds
        return max(1, missing_steps, math.ceil(missing_seconds / (self._pace_seconds or math.inf)))

    def _least_timed(self) -> int:
        return max(LEAST_TIMED_STEPS, self.job.max_steps - self.job.timing.warmup_steps)

    def _timed_enough(self) -> bool:
        """Whether the timed windows suffice: long enough, and voided ones made up for."""
        enough = len(self.timing.timed_steps) >= self._least_timed()
        return enough and self.timing.timed_seconds >= self.min_timed_seconds

    def _close(self, window: Window, of_the_job: bool) -> None:
        """Read and report what the window's steps left; evaluate where a stretch of training ends here."""
        self._window = None
        self.whereabouts.enter("reading of results", self.steps_done)
        closed = window.close()
        first = self.steps_done - len(closed.step_seconds)
        self._pace_seconds = closed.seconds / len(closed.step_seconds)
        self.timing.add(closed, timed=first >= self.job.timing.warmup_steps, of_the_job=of_the_job)
        self._read(closed, of_the_job)
        self._report(closed)
        if self.steps_done in self._evaluation_steps:
            self.memory.stop()
            if self.training_window is None and self.first_step_at is not None:
                self.training_window = (self.first_step_at, time.perf_counter())
            if self.held_out:
                self._evaluate(self.held_out)

    def _read(self, closed: ClosedWindow, of_the_job: bool) -> None:
        pending, self._pending = self._pending, []
        if of_the_job:
            self.series.step_seconds += closed.step_seconds
            self.series.read(pending, self.world)
        else:
            self.series.extra_step_seconds += closed.step_seconds

    def _report(self, closed: ClosedWindow) -> None:
        tokens = self.job.tokens_per_step * len(closed.step_seconds)
        self.emit(
            Progress(
                step=min(self.steps_done, self.job.max_steps),
                of=self.job.max_steps,
                loss=self.series.losses[-1],
                tokens_per_second=tokens / closed.seconds if closed.seconds > 0 else None,
            )
        )

    def _evaluate(self, held_out: HeldOut) -> None:
        self.emit(Phase(phase="evaluate"))
        self.whereabouts.enter("evaluation", self.steps_done)
        before = time.perf_counter()
        try:
            with self.evaluation() as logits:
                loss = heldout_loss(
                    logits, held_out, sequences_per_batch=self.sequences_per_batch, world=self.world
                )
                if self.examination and self.steps_done >= self.job.max_steps:
                    self.scores = self.examination.run(logits, self.world)
                if self.look and self.steps_done >= self.job.max_steps:
                    self.inside = self.look.inside(logits, self.world)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(f"in the evaluation, the training itself went well: {error}") from error
        self.evaluation_seconds += time.perf_counter() - before
        if not math.isfinite(loss):
            raise Diverged(f"the held-out loss after step {self.steps_done} is {loss}")
        self.evaluation_curve.append(
            EvaluationPoint(
                step=self.steps_done,
                tokens=self.steps_done * self.job.tokens_per_step,
                training_seconds=self.timing.training_seconds,
                loss=loss,
            )
        )


def evaluation_steps(job: Job) -> list[int]:
    """Numbers of optimizer steps after which the job evaluates, the last one always; the same for all options."""
    every = job.eval.every_steps if isinstance(job.eval, Eval) else None
    points = set(range(every, job.max_steps, every)) if every else set()
    return sorted(points | {job.max_steps})
