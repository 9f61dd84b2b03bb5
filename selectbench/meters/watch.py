"""The meters of a run's GPUs: before, during and after each trial."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pynvml

from selectbench.meters.reduction import Moments, gpu_meters
from selectbench.meters.sampler import Sampler
from selectbench.meters.samples import GpuSamples, write_samples
from selectbench.meters.settle import Pause, Ready, settle
from selectbench.nvml import Gpu
from selectbench.nvml.driver import started
from selectbench.nvml.idle import Use
from selectbench.nvml.same_device import first_difference
from selectbench.nvml.torch_devices import TorchDevice
from selectbench.record.calibration import stored_rates
from selectbench.record.meters import Meters
from selectbench.record.wire import Finished
from selectbench.suite.suite import MeterSettings

FIRST_LOOK_SECONDS = 5.0
"""Longest wait for GPUs to be idle before the first trial; one that is then at work is so for somebody else."""
ON_THE_CPU = "trained on the CPU"


class GpuWatch:
    """Holds the driver's library from the first trial to the last: starting it can take a second."""

    def __init__(
        self, gpus: Sequence[Gpu], settings: MeterSettings, pause: Pause, gave_up: Callable[[], bool]
    ) -> None:
        """`gpus`: those of the run, in the order of ranks; none on a CPU.

        `pause` waits for so many seconds; `gave_up`: whether the run is to end, and nothing is to be waited for.
        """
        self._gpus = list(gpus)
        self._pause, self._gave_up = pause, gave_up
        self._settings = settings
        self._baseline: list[Use] = []
        self._problem = None if gpus else ON_THE_CPU
        self._held = ExitStack()

    def __enter__(self) -> GpuWatch:
        """Notes what the GPUs hold before the first trial."""
        if self._gpus:
            try:
                self._held.enter_context(started())
                self._baseline = self._first_look()
            except pynvml.NVMLError as error:
                self._problem = f"the driver can't be asked: {error}"
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _first_look(self) -> list[Use]:
        """The driver still tells of the second before, in which torch was asked for its devices."""
        idle = [Use(utilization=0.0) for _ in self._gpus]
        most_seconds = min(FIRST_LOOK_SECONDS, self._settings.settle_seconds)
        return settle(self._gpus, idle, most_seconds, self._pause, self._gave_up).uses

    def settle(self, world_size: int) -> Ready | None:
        """Wait for the GPUs of the next trial to be as before the first one; None: there is nothing to see."""
        if self._problem is not None:
            return None
        gpus, baseline = self._gpus[:world_size], self._baseline[:world_size]
        return settle(gpus, baseline, self._settings.settle_seconds, self._pause, self._gave_up)

    @contextmanager
    def during(self, ready: Ready | None, folder: Path) -> Iterator[Watching]:
        """A trial runs inside; all readings go into its folder."""
        if ready is None:
            yield Watching([], [], self._problem, None)
            return
        sampler = Sampler(self._gpus[: len(ready.uses)], self._settings)
        sampler.start(ready.uses)
        watching = Watching(sampler.samples, ready.uses, None, ready.settled)
        try:
            yield watching
        finally:
            sampler.stop()
            watching.ended = time.perf_counter()
            _keep(sampler.samples, folder, watching.launched)


@dataclass
class Watching:
    """A trial's GPUs while it runs and after."""

    samples: Sequence[GpuSamples]
    before: Sequence[Use]
    """Right before the trial."""
    problem: str | None
    settled: bool | None
    launched: float = field(default_factory=time.perf_counter)
    ended: float = math.inf

    def meters(self, done: Finished | None) -> Meters:
        """What the record says, once the trial has ended; `done`: what a completed one has told."""
        problem = self.problem or (_wrong_devices(done, self.samples) if done else None)
        if problem is not None:
            return Meters(problem=problem)
        moments = Moments(
            self.launched, self.ended, done.timed_windows if done else [], done.training_window if done else None
        )
        return Meters(
            gpus=[
                gpu_meters(samples, use, moments, stored_rates(samples.gpu.uuid))
                for samples, use in zip(self.samples, self.before, strict=True)
            ],
            settled=self.settled,
            timed_windows=[(begin - self.launched, end - self.launched) for begin, end in moments.timed],
        )


def _keep(samples: Sequence[GpuSamples], folder: Path, launched: float) -> None:
    """A full disk is told among the meters: the trial's own result may still find room."""
    try:
        write_samples(folder, samples, launched)
    except OSError as error:
        for each in samples:
            each.problem = each.problem or f"the readings can't be kept: {error.strerror or error}"


def _wrong_devices(done: Finished, samples: Sequence[GpuSamples]) -> str | None:
    """Why the readings are of other GPUs than torch's; None: they are not, or nothing ran on one."""
    devices = [TorchDevice(device.uuid, device.pci_bus_id) for device in done.devices]
    difference = first_difference(devices, [each.gpu for each in samples]) if devices else None
    return difference and f"torch trained on other GPUs than those that were metered: {difference}"
