"""The training of one trial: stretches of steps between evaluations, then steps added for timing alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from selectbench.record.record import EvaluationPoint
from selectbench.record.wire import Finished, GaveUp, Phase, Progress, Started
from selectbench.suite.job import Eval, Job
from selectbench.worker.evaluation import HeldOut, heldout_loss
from selectbench.worker.memory import TrainingMemory
from selectbench.worker.series import Diverged, Series
from selectbench.worker.step import OptimizerStep, StepTensors
from selectbench.worker.windows import ClosedWindow, Timing, Window, marks_of

Emit = Callable[[Started | Phase | Progress | Finished | GaveUp], None]

SECONDS_BETWEEN_EDGES = {"cpu": 0.25, "cuda": 1.0}
"""How long a window stays open at most: waiting for a CPU costs nothing, for a GPU it empties its queue."""
LEAST_TIMED_STEPS = 5
"""So that a median and its quartiles mean something."""


@dataclass
class TrainingLoop:
    """Runs a job's steps and evaluations, and collects what they yield."""

    job: Job
    module: Any
    """The model, uncompiled, for evaluation."""
    optimizer_step: OptimizerStep
    shares: list[float]
    """Of the peak learning rate, per step of the job."""
    held_out: HeldOut | None
    device: str
    min_timed_seconds: float
    emit: Emit
    memory: TrainingMemory
    count_compilations: Callable[[], int]
    """Graphs compiled so far in this process."""
    series: Series = field(default_factory=Series)
    timing: Timing = field(default_factory=Timing)
    evaluation_curve: list[EvaluationPoint] = field(default_factory=list)
    evaluation_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.steps_done = 0
        self._marks = marks_of(self.device)
        self._compilations = self.count_compilations()
        self._pending: list[StepTensors] = []

    def run(self) -> None:
        """The whole job, then the steps that timing still needs. Raises Diverged."""
        for end in evaluation_steps(self.job):
            self.emit(Phase(phase="train"))
            self.memory.start()
            while self.steps_done < end:
                self._window(end)
            self.memory.stop()
            if self.held_out:
                self._evaluate(self.held_out)
        if not self._timed_enough():
            self.emit(Phase(phase="extra"))
        while not self._timed_enough():
            self._window(None)

    def _window(self, end: int | None) -> None:
        """Steps between two synchronised edges, at least one; reading and reporting come after the second.

        `end`: the number of steps done at which it ends at the latest; None: when enough is timed.
        """
        first, of_the_job = self.steps_done, self.steps_done < self.job.max_steps
        window = Window(self._marks)
        while True:
            self._step(window)
            if self._is_due(window) or self._is_last(window, end):
                break
        closed = window.close()
        self.timing.add(closed, timed=first >= self.job.timing.warmup_steps, of_the_job=of_the_job)
        self._read(closed, of_the_job)
        self._report(closed)

    def _is_last(self, window: Window, end: int | None) -> bool:
        return self._timed_enough(len(window), window.open_seconds()) if end is None else self.steps_done == end

    def _is_due(self, window: Window) -> bool:
        at_end_of_warmup = self.steps_done == self.job.timing.warmup_steps
        return at_end_of_warmup or window.open_seconds() >= SECONDS_BETWEEN_EDGES[self.device]

    def _step(self, window: Window) -> None:
        # A step added for timing trains on at the last learning rate; what it yields is dropped.
        share = self.shares[min(self.steps_done, self.job.max_steps - 1)]
        self._pending.append(self.optimizer_step.run(self.steps_done, share))
        self.steps_done += 1
        compilations = self.count_compilations()
        window.step_done(compiled=compilations > self._compilations)
        self._compilations = compilations

    def _read(self, closed: ClosedWindow, of_the_job: bool) -> None:
        pending, self._pending = self._pending, []
        if of_the_job:
            self.series.step_seconds += closed.step_seconds
            self.series.read(pending)
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
        before = time.perf_counter()
        # No more sequences at once than in training: an evaluation must not run out of memory first.
        size = self.optimizer_step.micro_batch_size
        loss = heldout_loss(self.module, held_out, sequences_per_batch=size, device=self.device)
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

    def _timed_enough(self, more_steps: int = 0, more_seconds: float = 0.0) -> bool:
        """Whether the timed windows, and so much more, suffice: long enough, and voided ones made up for."""
        wanted = max(LEAST_TIMED_STEPS, self.job.max_steps - self.job.timing.warmup_steps)
        seconds = self.timing.timed_seconds + more_seconds
        return len(self.timing.timed_steps) + more_steps >= wanted and seconds >= self.min_timed_seconds


def evaluation_steps(job: Job) -> list[int]:
    """Numbers of optimizer steps after which the job evaluates, the last one always; the same for all options."""
    every = job.eval.every_steps if isinstance(job.eval, Eval) else None
    points = set(range(every, job.max_steps, every)) if every else set()
    return sorted(points | {job.max_steps})
