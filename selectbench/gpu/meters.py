"""The meters of a run's GPUs: waiting until they are idle, watching them before, during and after each trial."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pynvml

from selectbench import units
from selectbench.gpu.devices import Gpu, TorchDevice, first_difference, started
from selectbench.gpu.reading import Tenant, Use, use_of
from selectbench.gpu.reduction import Moments, gpu_meters
from selectbench.gpu.sampler import GpuSamples, Sampler, write_samples
from selectbench.record.environment import stored_rates
from selectbench.record.record import Meters
from selectbench.record.wire import Finished
from selectbench.suite.suite import MeterSettings


def tenant_text(tenant: Tenant) -> str:
    """`pid 4711 (python) holds 3.2 GiB`, as far as it is known."""
    name = f" ({tenant.name})" if tenant.name else ""
    holds = f" holds {units.size(tenant.memory_bytes)}" if tenant.memory_bytes else ""
    return f"pid {tenant.pid}{name}{holds}"


def tenants_text(use: Use) -> str:
    """Everyone on it, or that nobody can be seen."""
    return ", ".join(map(tenant_text, use.tenants)) or "held by what can't be seen from here"


# Waiting until the GPUs are as they were before the first trial, so that no trial pays for the one before.


TOLERANCE_BYTES = 64 << 20
"""By which a GPU's memory may differ and still be the same: drivers keep a little more or less."""
LOOK_SECONDS = 0.2
"""Between two looks; the driver's utilisation is of up to the last second."""

Clock = Callable[[], float]
Pause = Callable[[float], object]


@dataclass(frozen=True)
class Ready:
    """The GPUs right before a trial."""

    uses: list[Use]
    settled: bool | None
    """Whether their memory was back; None: not known."""
    held: list[str]
    """What holds the memory that is not back, a sentence for each GPU."""


def settle(
    gpus: Sequence[Gpu],
    baseline: Sequence[Use],
    most_seconds: float,
    pause: Pause,
    gave_up: Callable[[], bool],
    clock: Clock = time.monotonic,
) -> Ready:
    """Wait until each GPU's memory is back at its baseline and nothing computes on it that did not before.

    At most `most_seconds`, or until `gave_up`; `pause` waits for so many seconds.
    """
    until = clock() + most_seconds
    while True:
        uses = [use_of(gpu) for gpu in gpus]
        pairs = list(zip(uses, baseline, strict=True))
        waiting = any(_holds_more(*pair) or _computes_now(*pair) for pair in pairs)
        if not waiting or gave_up() or clock() >= until:
            return Ready(uses, _settled(pairs), _held(gpus, pairs))
        pause(LOOK_SECONDS)


def _holds_more(use: Use, baseline: Use) -> bool:
    now, before = use.memory_used_bytes, baseline.memory_used_bytes
    return now is not None and before is not None and now > before + TOLERANCE_BYTES


def _computes_now(use: Use, baseline: Use) -> bool:
    return use.computes and not baseline.computes


def _settled(pairs: Sequence[tuple[Use, Use]]) -> bool | None:
    if any(use.memory_used_bytes is None or before.memory_used_bytes is None for use, before in pairs):
        return None
    return not any(_holds_more(*pair) for pair in pairs)


def _held(gpus: Sequence[Gpu], pairs: Sequence[tuple[Use, Use]]) -> list[str]:
    return [
        f"GPU {gpu.index if gpu.index is not None else gpu.uuid} ({gpu.name}): {units.size(use.memory_used_bytes)} "
        f"of its memory in use, {units.size(before.memory_used_bytes)} before the first trial: {tenants_text(use)}"
        for gpu, (use, before) in zip(gpus, pairs, strict=True)
        if _holds_more(use, before)
    ]


# The meters of a run's GPUs: before, during and after each trial.


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
