"""Reads the GPUs while a trial runs, in a thread of the bench: the worker pays nothing, and may die meanwhile."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from selectbench.meters.samples import GpuSamples
from selectbench.meters.tenancy import descends_from
from selectbench.nvml import Gpu
from selectbench.nvml.driver import started
from selectbench.nvml.idle import Use
from selectbench.nvml.reading import problem_of, read_memory, read_processes, read_state
from selectbench.suite.suite import MeterSettings

PROCESSES_SECONDS = 1.0
"""Between two lists of processes, which the driver takes milliseconds to make."""
STOPPED = "the GPU stopped answering"
PATIENCE_SECONDS = 10.0
"""For the driver's last answer when a trial has ended; one that hangs is given up."""


class Sampler:
    """Reads from `start` to `stop`; one trial's."""

    def __init__(self, gpus: Sequence[Gpu], settings: MeterSettings) -> None:
        self.samples = [GpuSamples(gpu) for gpu in gpus]
        self._settings = settings
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="selectbench-sampler", daemon=True)

    def start(self, before: Sequence[Use]) -> None:
        """Begin; `before`: what went on on each GPU right before the trial."""
        for samples, use in zip(self.samples, before, strict=True):
            samples.tenancy.began_with(use.tenants)
        self._thread.start()

    def stop(self) -> list[GpuSamples]:
        """Read once more and end. A driver that does not answer any more is left behind."""
        self._ending.set()
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._spoil(f"the driver did not answer for {PATIENCE_SECONDS:g} s")
        return self.samples

    def _run(self) -> None:
        try:
            with started():
                self._read_until_told([_handle(samples) for samples in self.samples])
        except Exception as error:  # told in the record: a trial's outcome does not hang on its meters
            self._spoil(f"reading the GPU failed: {error}")

    def _spoil(self, problem: str) -> None:
        for samples in self.samples:
            samples.problem = samples.problem or problem

    def _read_until_told(self, handles: list[Any]) -> None:
        settings = self._settings
        rounds: list[tuple[Callable[[list[Any]], None], float]] = [
            (self._read_memory, settings.memory_interval_seconds),
            (self._read_state, settings.interval_seconds),
            (self._read_processes, max(PROCESSES_SECONDS, settings.interval_seconds)),
        ]
        began = time.perf_counter()
        due = [began for _ in rounds]
        while not self._ending.wait(max(0.0, min(due) - time.perf_counter())):
            for number, (read, interval) in enumerate(rounds):
                if (now := time.perf_counter()) >= due[number]:
                    read(handles)
                    # On the beat; beats that were missed are left out.
                    due[number] = began + interval * (math.floor((now - began) / interval) + 1)
        for read, _ in rounds[:2]:
            read(handles)

    def _read_memory(self, handles: list[Any]) -> None:
        for samples, handle in self._there(handles):
            at, reading = time.perf_counter(), read_memory(handle)
            if reading is not None:
                samples.memory.add(at, reading)
            elif (lost := problem_of(handle)) is not None:
                samples.problem = f"{STOPPED}: {lost}"

    def _read_state(self, handles: list[Any]) -> None:
        for samples, handle in self._there(handles):
            at = time.perf_counter()
            samples.state.add(at, read_state(handle))

    def _read_processes(self, handles: list[Any]) -> None:
        for samples, handle in self._there(handles):
            listed = read_processes(handle)
            own = [process.pid for process in listed or () if descends_from(process.pid, os.getpid())]
            samples.tenancy.note(listed, own)

    def _there(self, handles: list[Any]) -> list[tuple[GpuSamples, Any]]:
        pairs = zip(self.samples, handles, strict=True)
        return [(samples, handle) for samples, handle in pairs if samples.problem is None]


def _handle(samples: GpuSamples) -> Any | None:
    """None, and the reason among the samples, where the GPU is not there any more."""
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(samples.gpu.uuid)
    except pynvml.NVMLError as error:
        samples.problem = f"{STOPPED}: {error}"
        return None
