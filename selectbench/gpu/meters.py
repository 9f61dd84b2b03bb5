"""The meters of a run's GPUs: waiting until they are idle, reading them over a trial, and the record's figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
from numpy.typing import NDArray

from selectbench import units
from selectbench.gpu.devices import CLOCK_LIMITS, Gpu, Tenant, Use, first_difference, started, use_of
from selectbench.gpu.sampler import Columns, Floats, GpuSamples, Sampler, write_samples
from selectbench.record.environment import stored_rates
from selectbench.record.record import GpuMeters, Meters, Series
from selectbench.record.wire import MeteredWindows
from selectbench.suite.metrics import GPU_STATE, GpuFigure
from selectbench.suite.suite import MeterSettings


def tenant_text(tenant: Tenant) -> str:
    """`pid 4711 (python) holds 3.2 GiB`, without parts that are not known."""
    name = f" ({tenant.name})" if tenant.name else ""
    holds = f" holds {units.size(tenant.memory_bytes)}" if tenant.memory_bytes else ""
    return f"pid {tenant.pid}{name}{holds}"


# Waiting until GPUs are as they were before the first trial, so that no trial is slowed by the one before.


TOLERANCE_BYTES = 64 << 20
"""Difference of a GPU's memory that counts as none: drivers keep a little more or less."""
SETTLE_INTERVAL_SECONDS = 0.2
"""Time between two readings; the driver's utilisation covers up to the last second."""

Clock = Callable[[], float]
Pause = Callable[[float], object]


@dataclass(frozen=True)
class Ready:
    """The GPUs right before a trial."""

    uses: list[Use]
    settled: bool | None
    """Whether their memory was freed; None: not known."""
    held: list[str]
    """What holds memory that was not freed, a sentence for each GPU."""


def settle(
    gpus: Sequence[Gpu],
    baseline: Sequence[Use],
    most_seconds: float,
    pause: Pause,
    gave_up: Callable[[], bool],
    clock: Clock = time.monotonic,
) -> Ready:
    """Wait until each GPU's memory is back at its baseline, and none computes that did not before.

    At most `most_seconds`, or until `gave_up`; `pause` waits for so many seconds.
    """
    deadline = clock() + most_seconds
    while True:
        uses = [use_of(gpu) for gpu in gpus]
        pairs = list(zip(uses, baseline, strict=True))
        holding = [_holds_more(use, before) for use, before in pairs]
        computing = any(use.computes and not before.computes for use, before in pairs)
        if not (any(holding) or computing) or gave_up() or clock() >= deadline:
            break
        pause(SETTLE_INTERVAL_SECONDS)
    sentences = [
        f"GPU {gpu.index if gpu.index is not None else gpu.uuid} ({gpu.name}): {units.size(use.memory_used_bytes)} "
        f"of its memory in use, {units.size(before.memory_used_bytes)} before the first trial: "
        + (", ".join(map(tenant_text, use.tenants)) or "held by processes that are not visible from here")
        for gpu, (use, before), holds_more in zip(gpus, pairs, holding, strict=True)
        if holds_more
    ]
    is_known = all(use.memory_used_bytes is not None for pair in pairs for use in pair)
    return Ready(uses, not sentences if is_known else None, sentences)


def _holds_more(use: Use, baseline: Use) -> bool:
    now, before = use.memory_used_bytes, baseline.memory_used_bytes
    return now is not None and before is not None and now > before + TOLERANCE_BYTES


# The meters of a run's GPUs: before, during and after each trial.


FIRST_SETTLE_SECONDS = 5.0
"""Longest wait for idle GPUs before the first trial; one that still computes does so for somebody else."""
ON_THE_CPU = "trained on the CPU"


class GpuWatch:
    """Meters a run's GPUs. It keeps NVML loaded from the first trial to the last: loading can take a second."""

    def __init__(
        self, gpus: Sequence[Gpu], settings: MeterSettings, pause: Pause, gave_up: Callable[[], bool]
    ) -> None:
        """`gpus`: the run's GPUs, in the order of ranks; empty on a CPU.

        `pause` waits for so many seconds; `gave_up`: whether the run is ending, so that waiting is pointless.
        """
        self._gpus = list(gpus)
        self._pause, self._gave_up = pause, gave_up
        self._settings = settings
        self._baseline: list[Use] = []
        self._problem = None if gpus else ON_THE_CPU
        self._library = ExitStack()

    def __enter__(self) -> GpuWatch:
        """Reads the GPUs' memory before the first trial."""
        if self._gpus:
            try:
                self._library.enter_context(started())
                # The driver's utilisation still covers the second before, in which a process ran torch.
                idle = [Use(utilization=0.0) for _ in self._gpus]
                most_seconds = min(FIRST_SETTLE_SECONDS, self._settings.settle_seconds)
                self._baseline = settle(self._gpus, idle, most_seconds, self._pause, self._gave_up).uses
            except pynvml.NVMLError as error:
                self._problem = f"the driver can't be asked: {error}"
        return self

    def __exit__(self, *_: object) -> None:
        self._library.close()

    def settle(self, world_size: int) -> Ready | None:
        """Wait for the next trial's GPUs to be as before the first trial; None: GPUs are not metered."""
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
            try:
                write_samples(folder, sampler.samples, watching.launched)
            except OSError as error:  # reported in the meters: the trial's record may still fit on the disk
                sampler.spoil(f"the readings can't be kept: {error.strerror or error}")


@dataclass
class Watching:
    """The readings of a trial's GPUs, while it runs and after."""

    samples: Sequence[GpuSamples]
    before: Sequence[Use]
    """How the GPUs were used right before the trial."""
    problem: str | None
    settled: bool | None
    launched: float = field(default_factory=time.perf_counter)
    ended: float = math.inf

    def meters(self, done: MeteredWindows | None) -> Meters:
        """The record's meters, once the trial has ended; `done`: windows and devices of a completed trial."""
        if self.problem is not None:
            return Meters(problem=self.problem)
        done, gpus = done or MeteredWindows(), [samples.gpu for samples in self.samples]
        if done.devices and (difference := first_difference(done.devices, gpus)):
            return Meters(problem=f"torch trained on other GPUs than those that were metered: {difference}")
        whole, windows = (self.launched, self.ended), done.timed_windows
        return Meters(
            gpus=[
                gpu_meters(samples, use, stored_rates(samples.gpu.uuid), whole, windows, done.training_window)
                for samples, use in zip(self.samples, self.before, strict=True)
            ],
            settled=self.settled,
            timed_windows=[(begin - self.launched, end - self.launched) for begin, end in windows],
        )


# From the readings of a trial's GPUs to its record's figures; pure.
#
# A figure over the timed stretches is None unless readings cover each of them without a gap. Energy by the counter
# is its difference between a stretch's edges, linear between readings; by power it is the trapezoidal integral.


LONGEST_GAP_SECONDS = 1.0
"""Longest time between two readings of a figure, and from a stretch's edge to the nearest reading."""
LAG_SECONDS = 1.0
"""Time over which the driver averages power: for so long its average covers time before a stretch."""
POINTS = 64
"""Most points of a series in the record; all readings are in the trial's folder."""

Stretch = tuple[float, float]


def gpu_meters(
    samples: GpuSamples, before: Use, rates: dict[str, float], whole: Stretch, windows: Sequence[Stretch],
    training: Stretch | None,
) -> GpuMeters:  # fmt: skip
    """One GPU's part of the record.

    `before`: its use right before the trial; `rates`: of large matrix products on it, FLOP/s by dtype. Times are by
    `time.perf_counter`. `whole`: from launch to end; `windows`: the timed windows, adjacent ones joined, and
    `training`: up to the first evaluation; [] and None where the trial failed.
    """
    memory, state = samples.memory, samples.state
    power, used = state.known("instant_power_watts"), _values(memory, "used_bytes", [training or whole])
    totals, reserved = (memory.known(name)[1] for name in ("total_bytes", "reserved_bytes"))
    timed = windows or [whole]  # the state of a failed trial's GPU is that of its whole life
    figures: dict[str, Any] = {figure.name: _reduced(state, figure, timed, whole) for figure in GPU_STATE}
    return GpuMeters(
        name=samples.gpu.name, pci_bus_id=samples.gpu.pci_bus_id, is_mig=samples.gpu.is_mig,
        memory_total_bytes=(int(totals[-1]) if len(totals) else 0) or samples.gpu.memory_total_bytes,
        idle_memory_bytes=before.memory_used_bytes, idle_utilization=before.utilization,
        peak_device_memory_bytes=int(used.max()) if len(used) else None,
        driver_reserved_bytes=int(reserved[-1]) if len(reserved) else None,
        memory_readings=len(used),
        readings=int(_inside(state.times(), timed).sum()),
        metered_seconds=sum(end - begin for begin, end in windows),
        counter_joules=_sum([_counted(*state.known("energy_joules"), window) for window in windows]),
        instant_power_joules=_sum([_integral(*power, window) for window in windows]),
        average_power_joules=_by_average(*state.known("average_power_watts"), windows),
        **figures,
        clock_limit_shares=_clock_limit_shares(state, timed),
        other_processes=samples.tenancy.others(), problem=samples.problem, matmul_flops_per_second=rates,
        memory_series=_decimated(*memory.known("used_bytes"), whole, highest=True),
        power_series=_decimated(*(power if len(power[0]) else state.known("average_power_watts")), whole),
        utilization_series=_decimated(*state.known("utilization"), whole),
        temperature_series=_decimated(*state.known("temperature_celsius"), whole),
        sm_clock_series=_decimated(*state.known("sm_clock_hertz"), whole),
    )  # fmt: skip


def _inside(times: Floats, stretches: Sequence[Stretch]) -> NDArray[np.bool_]:
    """Mask of the times inside a stretch, shape (times,)."""
    inside = np.zeros(len(times), dtype=np.bool_)
    for begin, end in stretches:
        inside |= (times >= begin) & (times <= end)
    return inside


def _values(columns: Columns, name: str, stretches: Sequence[Stretch]) -> Floats:
    times, values = columns.known(name)
    inside: Floats = values[_inside(times, stretches)]
    return inside


def _reduced(state: Columns, figure: GpuFigure, timed: Sequence[Stretch], whole: Stretch) -> float | None:
    """The figure over a trial; None: there are no readings for it."""
    is_mean = figure.of == "mean of timed windows"
    values = _values(state, figure.reading, timed if is_mean else [whole])
    return float(values.mean() if is_mean else values.max()) if len(values) else None


def _clock_limit_shares(state: Columns, stretches: Sequence[Stretch]) -> dict[str, float] | None:
    """Share of readings by reason; {}: nothing held the clocks down, None: there are no readings."""
    bits = _values(state, "clock_limits", stretches).astype(np.int64)
    if not len(bits):
        return None
    shares = {name: float(((bits & bit) != 0).mean()) for name, bit in CLOCK_LIMITS.items()}
    return {name: share for name, share in shares.items() if share}


def _sum(parts: Sequence[float | None]) -> float | None:
    """The sum over stretches; None where there are none, or one of them is not covered."""
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None


def _is_covered(times: Floats, stretch: Stretch) -> bool:
    """Whether readings span the stretch with no gap longer than LONGEST_GAP_SECONDS."""
    first, last = np.searchsorted(times, stretch[0], "right") - 1, np.searchsorted(times, stretch[1])
    spans = first >= 0 and last < len(times)
    return bool(spans and (np.diff(times[first : last + 1]) <= LONGEST_GAP_SECONDS).all())


def _counted(times: Floats, joules: Floats, stretch: Stretch) -> float | None:
    """The counter's growth over a stretch; None: it is not covered, or the counter was reset."""
    if not _is_covered(times, stretch) or (np.diff(joules) < 0).any():
        return None
    begin, end = np.interp(stretch, times, joules)
    return float(end - begin)


def _integral(times: Floats, watts: Floats, stretch: Stretch) -> float | None:
    """The trapezoidal integral over a stretch in joules; None: it is not covered."""
    if not _is_covered(times, stretch):
        return None
    inside = times[_inside(times, [stretch])]
    points = np.concatenate(([stretch[0]], inside, [stretch[1]]))
    heights = np.interp(points, times, watts)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(points)).sum())


def _by_average(times: Floats, watts: Floats, timed: Sequence[Stretch]) -> float | None:
    """Joules: mean over the stretches without their first LAG_SECONDS, times their whole length."""
    late = [(begin + LAG_SECONDS, end) for begin, end in timed if end - begin > LAG_SECONDS]
    if not late or not all(_is_covered(times, stretch) for stretch in late):
        return None
    inside = watts[_inside(times, late)]
    return float(inside.mean()) * sum(end - begin for begin, end in timed) if len(inside) else None


def _decimated(times: Floats, values: Floats, whole: Stretch, *, highest: bool = False) -> Series:
    """At most POINTS pieces of equal length: mean time, and mean or highest value; times from the launch."""
    if not len(times):
        return []
    length = max(whole[1], times[-1]) - whole[0]
    piece = np.clip((times - whole[0]) / length * POINTS, 0, POINTS - 1).astype(int)
    starts = np.flatnonzero(np.diff(piece, prepend=-1))
    counts = np.diff(np.append(starts, len(times)))
    when = np.add.reduceat(times - whole[0], starts) / counts
    what = np.maximum.reduceat(values, starts) if highest else np.add.reduceat(values, starts) / counts
    return [(round(float(t), 3), round(float(v), 3)) for t, v in zip(when, what, strict=True)]
