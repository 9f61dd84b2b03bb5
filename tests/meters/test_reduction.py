"""From readings to the record: energy by each meter, peaks, shares, gaps; by laws that hold for any readings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectbench.gpu.devices import Gpu, MemoryReading, StateReading, Tenant, Use
from selectbench.gpu.meters import POINTS, gpu_meters
from selectbench.gpu.sampler import GpuSamples
from selectbench.record.record import GpuMeters

GIB = 1 << 30
GPU = Gpu(
    name="NVIDIA H100", uuid="GPU-a", index=0, is_mig=False, pci_bus_id="00000000:3B:00.0",
    memory_total_bytes=80 * GIB, compute_capability=(9, 0), power_limit_watts=700.0, ecc_enabled=True,
    max_sm_clock_hertz=1.98e9, cores=16896, driver_version="550.54.15", cuda_driver_version=(12, 4),
)  # fmt: skip
NOTHING = dict.fromkeys(field.name for field in fields(StateReading))
IDLE = Use(memory_used_bytes=GIB, memory_total_bytes=80 * GIB, utilization=0.0)
LAUNCHED = 1000.0

Power = Callable[[float], float]


def constant(watts: float) -> Power:
    return lambda at: watts


def readings(seconds: float, every: float = 0.1, **told: Callable[[float], float | None]) -> GpuSamples:
    """A trial's, from its launch on; each quantity a function of the time since then."""
    samples = GpuSamples(GPU)
    for number in range(round(seconds / every) + 1):
        at = number * every
        state = {name: tell(at) for name, tell in told.items() if name != "used"}
        samples.state.add(LAUNCHED + at, StateReading(**{**NOTHING, **state}))
        if "used" in told:
            samples.memory.add(LAUNCHED + at, MemoryReading(told["used"](at), 80 * GIB, GIB // 2))
    return samples


def reduced(
    samples: GpuSamples, timed: Sequence[tuple[float, float]] = (), training: tuple[float, float] | None = None,
    seconds: float = 20.0,
) -> GpuMeters:  # fmt: skip
    """Stretches in seconds since the launch."""
    stretches = [(LAUNCHED + begin, LAUNCHED + end) for begin, end in timed]
    first = None if training is None else (LAUNCHED + training[0], LAUNCHED + training[1])
    return gpu_meters(samples, IDLE, {}, (LAUNCHED, LAUNCHED + seconds), stretches, first)


@given(
    watts=st.floats(1, 1500), begin=st.floats(0, 5), length=st.floats(1.5, 6), gap=st.floats(0.2, 2),
    second=st.floats(1.5, 6),
)  # fmt: skip
def test_at_constant_power_every_meter_tells_the_same_energy(
    watts: float, begin: float, length: float, gap: float, second: float
) -> None:
    samples = readings(
        20, energy_joules=lambda at: 5e6 + watts * at, instant_power_watts=constant(watts),
        average_power_watts=constant(watts),
    )  # fmt: skip
    start = begin + length + gap
    found = reduced(samples, [(begin, begin + length), (start, start + second)])
    expected = watts * (length + second)
    assert found.metered_seconds == pytest.approx(length + second)
    assert found.counter_joules == pytest.approx(expected, rel=1e-6)
    assert found.instant_power_joules == pytest.approx(expected)
    assert found.average_power_joules == pytest.approx(expected)


def test_energy_is_that_of_the_timed_stretches_alone() -> None:
    def power(at: float) -> float:
        return 400.0 if 5 <= at < 15 else 60.0

    def counted(at: float) -> float:
        return 60 * at + 340 * (min(max(at, 5), 15) - 5)

    samples = readings(20, energy_joules=counted, instant_power_watts=power, average_power_watts=power)
    found = reduced(samples, [(6, 14)])
    assert found.counter_joules == pytest.approx(3200)
    assert found.instant_power_joules == pytest.approx(3200)


def test_the_averaged_power_of_a_stretchs_first_second_is_still_that_of_before() -> None:
    samples = readings(20, average_power_watts=lambda at: 60.0 if at < 6 else 400.0)  # the load began at 5
    assert reduced(samples, [(5, 15)]).average_power_joules == pytest.approx(4000, rel=0.01)
    assert reduced(samples, [(5, 5.9)]).average_power_joules is None


def test_what_the_board_does_not_tell_is_unknown_and_not_zero() -> None:
    found = reduced(readings(20), [(5, 15)])
    for name in (
        "counter_joules", "instant_power_joules", "average_power_joules", "mean_utilization", "mean_sm_clock_hertz",
        "mean_memory_clock_hertz", "highest_temperature_celsius", "clock_limit_shares", "peak_device_memory_bytes",
        "driver_reserved_bytes",
    ):  # fmt: skip
        assert getattr(found, name) is None, name
    assert found.power_series == found.memory_series == []


@pytest.mark.parametrize("hole", [(4.0, 7.5), (9.0, 11.0), (14.0, 20.0)], ids=["before", "inside", "at the end"])
def test_energy_with_a_hole_in_the_readings_is_unknown(hole: tuple[float, float]) -> None:
    def seen(at: float) -> float | None:
        return None if hole[0] < at < hole[1] or at == 20 else 300.0

    def counted(at: float) -> float | None:
        return None if seen(at) is None else 300 * at

    samples = readings(20, energy_joules=counted, instant_power_watts=seen, average_power_watts=seen)
    found = reduced(samples, [(6, 15.5)])
    assert found.counter_joules is None
    assert found.instant_power_joules is None
    assert found.average_power_joules is None


def test_a_counter_that_was_set_back_is_not_believed() -> None:
    samples = readings(20, energy_joules=lambda at: 300 * at if at < 10 else 300 * (at - 10))
    assert reduced(samples, [(6, 14)]).counter_joules is None


def test_a_failed_trial_has_no_energy_but_a_peak_and_a_state_over_its_whole_life() -> None:
    samples = readings(
        20, used=lambda at: 79 * GIB if 18 < at < 19 else GIB, instant_power_watts=constant(300),
        clock_limits=lambda at: 0x40 if at >= 15 else 0,
    )  # fmt: skip
    found = reduced(samples)
    assert found.metered_seconds == 0
    assert found.instant_power_joules is None
    assert found.peak_device_memory_bytes == 79 * GIB
    assert found.clock_limit_shares == {"hw_thermal_slowdown": pytest.approx(51 / 201)}
    assert found.readings == 201


def test_memory_counts_in_the_training_up_to_the_first_evaluation() -> None:
    samples = readings(20, used=lambda at: (30 if 8 <= at <= 9 else 50 if at > 12 else 2) * GIB)
    found = reduced(samples, [(3, 11), (15, 18)], training=(2, 11))
    assert found.peak_device_memory_bytes == 30 * GIB
    assert found.memory_readings == 91
    assert found.idle_memory_bytes == GIB
    assert found.driver_reserved_bytes == GIB // 2


def test_shares_of_what_held_the_clocks_down_are_of_the_timed_readings() -> None:
    def limits(at: float) -> float:
        return 0x4 | (0x20 | 0x8 if 6 <= at < 6.95 else 0) | (0x40 if at < 5 else 0)

    found = reduced(readings(20, clock_limits=limits), [(5, 14.95)])
    assert found.readings == 100
    assert found.clock_limit_shares == {
        "sw_power_cap": 1.0, "hw_slowdown": pytest.approx(0.1), "sw_thermal_slowdown": pytest.approx(0.1),
    }  # fmt: skip


def test_clocks_that_nothing_held_down_are_not_the_same_as_unknown_ones() -> None:
    assert reduced(readings(20, clock_limits=constant(0)), [(5, 15)]).clock_limit_shares == {}


@given(st.lists(st.integers(0, 80 * GIB), min_size=1, max_size=500))
def test_the_decimated_memory_keeps_its_highest_value_and_its_order(used: list[int]) -> None:
    samples = GpuSamples(GPU)
    for number, value in enumerate(used):
        samples.memory.add(LAUNCHED + 0.05 * number, MemoryReading(value, 80 * GIB, None))
    series = reduced(samples, seconds=0.05 * len(used)).memory_series
    assert len(series) <= POINTS
    assert max(value for _, value in series) == max(used)
    times = [at for at, _ in series]
    assert times == sorted(times)
    assert all(math.isfinite(at) and 0 <= at <= 0.05 * len(used) for at in times)


def test_a_power_that_is_only_told_as_an_average_is_the_series() -> None:
    series = reduced(readings(20, average_power_watts=constant(250))).power_series
    assert {value for _, value in series} == {250.0}


def processes(*pids: int) -> list[Tenant]:
    return [Tenant(pid, pid << 20) for pid in pids]


OURS = {100, 101, 102}


@pytest.mark.parametrize(
    ("before", "listed", "others"),
    [
        ([], [[101], [101]], []),
        ([], [[101], [101, 7]], [7]),
        ([7], [[7, 101]], [7]),
        ([7], [[101]], []),
        ([], [[], []], None),
        ([], [None], None),
        # The driver numbers processes as the host does: one is the trial's rank.
        ([], [[9001]], []),
        ([], [[9001, 7]], [7]),
        ([9000], [[9000, 9001]], [9000]),
        ([9000], [[9000]], [9000]),
    ],
)
def test_who_else_was_on_the_gpu(
    before: list[int], listed: list[list[int] | None], others: list[int] | None
) -> None:
    samples = readings(20)
    samples.tenancy.began_with([Tenant(pid, None, None) for pid in before])
    for each in listed:
        samples.tenancy.note(None if each is None else processes(*each), OURS)
    found = reduced(samples).other_processes
    assert (None if found is None else [process.pid for process in found]) == others


def test_another_process_is_told_with_the_most_that_it_held() -> None:
    samples = readings(20)
    for held in (3, 9, 5):
        samples.tenancy.note([*processes(101), Tenant(1, held * GIB)], OURS)
    found = reduced(samples).other_processes
    assert found is not None
    assert [(p.pid, p.memory_bytes) for p in found] == [(1, 9 * GIB)]
    assert found[0].name  # process 1 is there on every machine
