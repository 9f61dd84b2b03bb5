"""Timing of optimizer steps in windows whose edges wait for the device, and no step inside does."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch

ADJACENT_SECONDS = 0.1
"""Between two windows that meters of power and energy may take for one: no finer do they tell."""


class CpuMarks:
    """Moments between steps: a CPU's work is done when the call returns."""

    def mark(self) -> float:
        """The moment of the call, in seconds."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is under way."""

    def seconds_between(self, marks: list[float]) -> list[float]:
        """Durations between consecutive marks."""
        return [b - a for a, b in pairwise(marks)]


class CudaMarks:
    """Moments between steps as the device sees them: events in its queue, read after a window's end."""

    def mark(self) -> Any:
        """An event in the queue."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def synchronize(self) -> None:
        """Waits for all queued work."""
        torch.cuda.synchronize()

    def seconds_between(self, marks: list[Any]) -> list[float]:
        """Durations between consecutive marks; the queue must have been waited for."""
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]


def marks_of(device: str) -> CpuMarks | CudaMarks:
    """The clock of a device."""
    return CudaMarks() if device == "cuda" else CpuMarks()


class Window:
    """A stretch of steps between two synchronised edges."""

    def __init__(self, marks: CpuMarks | CudaMarks) -> None:
        """Opens the window: waits for the device and marks its first edge."""
        self._marks = marks
        marks.synchronize()
        self.opened = time.perf_counter()
        self._points = [marks.mark()]
        self._compiled: list[bool] = []

    def step_done(self, compiled: bool) -> None:
        """Marks the end of a step; `compiled`: something was compiled in it."""
        self._points.append(self._marks.mark())
        self._compiled.append(compiled)

    def __len__(self) -> int:
        """Steps done in it."""
        return len(self._compiled)

    def close(self) -> ClosedWindow:
        """Waits for the device and reads the durations."""
        self._marks.synchronize()
        seconds = time.perf_counter() - self.opened
        return ClosedWindow(self.opened, seconds, self._marks.seconds_between(self._points), self._compiled)


@dataclass(frozen=True)
class ClosedWindow:
    """What a window has seen."""

    opened: float
    """By `time.perf_counter`."""
    seconds: float
    """Between its synchronised edges."""
    step_seconds: list[float]
    """Duration of each step."""
    compiled: list[bool]
    """Whether each step compiled something."""


@dataclass
class Timing:
    """All windows of a trial, sorted into warm-up, timed and voided ones."""

    timed_seconds: float = 0.0
    recompilations: int = 0
    training_seconds: float = 0.0
    timed_steps: list[float] = field(default_factory=list)
    warmup_steps: list[float] = field(default_factory=list)
    compiling_steps: list[float] = field(default_factory=list)
    stretches: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of the timed windows by `time.perf_counter`, those less than ADJACENT_SECONDS apart as one."""

    def add(self, window: ClosedWindow, *, timed: bool, of_the_job: bool) -> None:
        """`timed`: the warm-up is over; `of_the_job`: the steps are not those added for timing alone."""
        if of_the_job:
            self.training_seconds += window.seconds
        pairs = list(zip(window.step_seconds, window.compiled, strict=True))
        self.compiling_steps += [seconds for seconds, compiled in pairs if compiled]
        if not timed:
            self.warmup_steps += [seconds for seconds, compiled in pairs if not compiled]
        elif any(window.compiled):
            self.recompilations += sum(window.compiled)
        else:
            self.timed_seconds += window.seconds
            self.timed_steps += window.step_seconds
            self._extend_stretches(window)

    def _extend_stretches(self, window: ClosedWindow) -> None:
        begin, end = window.opened, window.opened + window.seconds
        if self.stretches and begin - self.stretches[-1][1] < ADJACENT_SECONDS:
            begin = self.stretches.pop()[0]
        self.stretches.append((begin, end))

    def median_seconds(self) -> float | None:
        """Median duration of the timed steps."""
        return median(self.timed_steps) if self.timed_steps else None

    def iqr_seconds(self) -> float | None:
        """Distance between the quartiles of the timed steps' durations."""
        if not self.timed_steps:
            return None
        low, high = np.quantile(self.timed_steps, (0.25, 0.75))
        return float(high - low)

    def compile_seconds(self) -> float | None:
        """Time that the steps which compiled took beyond a median step; None where none did."""
        usual = self.median_seconds()
        if not self.compiling_steps or usual is None:
            return None
        return max(0.0, sum(self.compiling_steps) - usual * len(self.compiling_steps))

    def warmup_seconds(self) -> float:
        """Time of the warm-up steps; those that compiled count as a median step."""
        inside = self.median_seconds() or 0.0
        return sum(self.warmup_steps) + inside * (len(self.compiling_steps) - self.recompilations)
