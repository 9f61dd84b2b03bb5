"""From the readings of a trial's GPUs to what its record says of them; pure.

A figure over the timed stretches is None unless readings cover each of them without a gap. Energy by the counter
is its difference between a stretch's edges, linear between readings; by power it is the trapezoidal integral.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selectbench.gpu.reading import CLOCK_LIMITS, Use
from selectbench.gpu.sampler import Columns, Floats, GpuSamples
from selectbench.record.record import GpuMeters, Series

LONGEST_GAP_SECONDS = 1.0
"""Between two readings that a figure may rest on, and from a stretch's edge to the nearest one."""
LAG_SECONDS = 1.0
"""Over which the driver averages its average power: so long it still tells of the time before a stretch."""
POINTS = 64
"""Of a series in the record, at most; all readings are in the trial's folder."""

Stretch = tuple[float, float]


@dataclass(frozen=True)
class Moments:
    """When what happened, by `time.perf_counter`."""

    launched: float
    ended: float
    timed: list[Stretch]
    """The timed windows, those that follow each other as one; none where the trial failed."""
    training: Stretch | None
    """Training up to the first evaluation; None where the trial failed."""


def gpu_meters(samples: GpuSamples, before: Use, moments: Moments, rates: dict[str, float]) -> GpuMeters:
    """One GPU's part of the record.

    `before`: right before the trial; `rates`: of large matrix products on it, FLOP/s by dtype.
    """
    memory, state, whole = samples.memory, samples.state, (moments.launched, moments.ended)
    timed = moments.timed or [whole]  # the state of a failed trial's GPU is that of its whole life
    return GpuMeters(
        name=samples.gpu.name, pci_bus_id=samples.gpu.pci_bus_id, is_mig=samples.gpu.is_mig,
        memory_total_bytes=_whole(_last(memory, "total_bytes")) or samples.gpu.memory_total_bytes,
        idle_memory_bytes=before.memory_used_bytes, idle_utilization=before.utilization,
        peak_device_memory_bytes=_whole(_highest(memory, "used_bytes", moments.training or whole)),
        driver_reserved_bytes=_whole(_last(memory, "reserved_bytes")),
        memory_readings=_count(memory, "used_bytes", [moments.training or whole]),
        readings=_count(state, None, timed),
        metered_seconds=sum(end - begin for begin, end in moments.timed),
        **_energies(state, moments.timed),
        mean_utilization=_mean(state, "utilization", timed),
        mean_sm_clock_hertz=_mean(state, "sm_clock_hertz", timed),
        mean_memory_clock_hertz=_mean(state, "memory_clock_hertz", timed),
        highest_temperature_celsius=_highest(state, "temperature_celsius", whole),
        clock_limit_shares=_clock_limit_shares(state, timed),
        other_processes=samples.tenancy.others(), problem=samples.problem, matmul_flops_per_second=rates,
        **_all_series(samples, whole),
    )  # fmt: skip


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _inside(times: Floats, stretches: Sequence[Stretch]) -> NDArray[np.bool_]:
    """Mask of shape (times,)."""
    inside = np.zeros(len(times), dtype=np.bool_)
    for begin, end in stretches:
        inside |= (times >= begin) & (times <= end)
    return inside


def _values(columns: Columns, name: str, stretches: Sequence[Stretch]) -> Floats:
    times, values = columns.known(name)
    inside: Floats = values[_inside(times, stretches)]
    return inside


def _count(columns: Columns, name: str | None, stretches: Sequence[Stretch]) -> int:
    times = columns.times() if name is None else columns.known(name)[0]
    return int(_inside(times, stretches).sum())


def _mean(columns: Columns, name: str, stretches: Sequence[Stretch]) -> float | None:
    values = _values(columns, name, stretches)
    return float(values.mean()) if len(values) else None


def _highest(columns: Columns, name: str, stretch: Stretch) -> float | None:
    values = _values(columns, name, [stretch])
    return float(values.max()) if len(values) else None


def _last(columns: Columns, name: str) -> float | None:
    values = columns.known(name)[1]
    return float(values[-1]) if len(values) else None


def _clock_limit_shares(state: Columns, stretches: Sequence[Stretch]) -> dict[str, float] | None:
    """Reasons that were never there are left out; {}: nothing held the clocks down."""
    bits = _values(state, "clock_limits", stretches).astype(np.int64)
    if not len(bits):
        return None
    shares = {name: float(((bits & bit) != 0).mean()) for name, bit in CLOCK_LIMITS.items()}
    return {name: share for name, share in shares.items() if share}


def _energies(state: Columns, timed: Sequence[Stretch]) -> dict[str, Any]:
    """Sums over the stretches; None where one of them is not covered."""
    return {
        "counter_joules": _sum([_counted(*state.known("energy_joules"), each) for each in timed]),
        "instant_power_joules": _sum([_integral(*state.known("instant_power_watts"), each) for each in timed]),
        "average_power_joules": _by_average(*state.known("average_power_watts"), timed),
    }


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None


def _is_covered(times: Floats, stretch: Stretch) -> bool:
    """Whether readings span the stretch with no gap longer than LONGEST_GAP_SECONDS."""
    around = np.concatenate(([stretch[0]], times[_inside(times, [stretch])], [stretch[1]]))
    before, after = times[times <= stretch[0]], times[times >= stretch[1]]
    if not len(before) or not len(after):
        return False
    around[0], around[-1] = before[-1], after[0]
    return bool(np.diff(around).max() <= LONGEST_GAP_SECONDS)


def _counted(times: Floats, joules: Floats, stretch: Stretch) -> float | None:
    """The counter's growth; None: it is not covered, or was set back meanwhile."""
    if not _is_covered(times, stretch) or (np.diff(joules) < 0).any():
        return None
    begin, end = np.interp(stretch, times, joules)
    return float(end - begin)


def _integral(times: Floats, watts: Floats, stretch: Stretch) -> float | None:
    if not _is_covered(times, stretch):
        return None
    inside = times[_inside(times, [stretch])]
    points = np.concatenate(([stretch[0]], inside, [stretch[1]]))
    heights = np.interp(points, times, watts)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(points)).sum())


def _by_average(times: Floats, watts: Floats, timed: Sequence[Stretch]) -> float | None:
    """Mean over the stretches without their first LAG_SECONDS, times their whole length."""
    late = [(begin + LAG_SECONDS, end) for begin, end in timed if end - begin > LAG_SECONDS]
    if not late or not all(_is_covered(times, stretch) for stretch in late):
        return None
    inside = watts[_inside(times, late)]
    return float(inside.mean()) * sum(end - begin for begin, end in timed) if len(inside) else None


def _all_series(samples: GpuSamples, whole: Stretch) -> dict[str, Any]:
    memory, state = samples.memory, samples.state
    return {
        "memory_series": _decimated(*memory.known("used_bytes"), whole, highest=True),
        "power_series": _decimated(*_power(state), whole),
        "utilization_series": _decimated(*state.known("utilization"), whole),
        "temperature_series": _decimated(*state.known("temperature_celsius"), whole),
        "sm_clock_series": _decimated(*state.known("sm_clock_hertz"), whole),
    }


def _power(state: Columns) -> tuple[Floats, Floats]:
    instant = state.known("instant_power_watts")
    return instant if len(instant[0]) else state.known("average_power_watts")


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
