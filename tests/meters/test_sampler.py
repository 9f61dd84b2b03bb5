"""Readings through the real binding, while a GPU is used, shared, lost or never there."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launch.harness import until
from processes import start
from stand_in import StandIn

from selectbench.gpu import sampler as sampler_module
from selectbench.gpu.devices import Use, gpus
from selectbench.gpu.sampler import FILE_NAME, GpuSamples, Sampler, descends_from, write_samples
from selectbench.suite.suite import MeterSettings

QUICK = MeterSettings(memory_interval_seconds=0.01, interval_seconds=0.01)
GIB = 1 << 30


@contextmanager
def sampling(settings: MeterSettings = QUICK) -> Iterator[list[GpuSamples]]:
    """All GPUs there are."""
    found = gpus()
    sampler = Sampler(found, settings)
    sampler.start([Use() for _ in found])
    try:
        yield sampler.samples
    finally:
        sampler.stop()


def after(readings: int, samples: GpuSamples) -> Callable[[], bool]:
    """So many more of memory and of state."""
    goal = len(samples.memory) + readings, len(samples.state) + readings
    return lambda: len(samples.memory) >= goal[0] and len(samples.state) >= goal[1]


def values(samples: GpuSamples, name: str) -> list[float]:
    columns = samples.memory if name.endswith("_bytes") else samples.state
    return [float(value) for value in columns.known(name)[1]]


def test_every_quantity_is_read_in_its_unit(stand_in: StandIn) -> None:
    stand_in.set(
        "gpu0.memory_used", 3 * GIB, "gpu0.utilization", 96, "gpu0.instant_power", 412.5, "gpu0.average_power", 390,
        "gpu0.reasons", 0x44, "gpu0.counter", 1234.5,
    )  # fmt: skip
    with sampling() as (first, second):
        until(after(3, first))
    expected = {
        "used_bytes": 3 * GIB, "reserved_bytes": 600 << 20, "total_bytes": 80 * GIB, "utilization": 0.96,
        "instant_power_watts": 412.5, "average_power_watts": 390.0, "energy_joules": 1234.5,
        "temperature_celsius": 35.0, "sm_clock_hertz": 1.755e9, "memory_clock_hertz": 2.619e9, "clock_limits": 0x44,
    }  # fmt: skip
    assert {name: values(first, name)[-1] for name in expected} == pytest.approx(expected)
    assert all(values(second, name) == [] for name in expected)  # the old board tells nothing, not zeros
    assert first.problem is None


def test_a_driver_without_the_newer_calls_is_read_by_the_older_ones(stand_in: StandIn) -> None:
    stand_in.set("gpu0.memory_v2", "missing", "gpu0.instant_power", "unsupported", "gpu0.memory_used", GIB)
    with sampling() as (first, _):
        until(after(2, first))
    assert values(first, "used_bytes")[-1] == GIB + (600 << 20)  # the driver's own part is in it
    assert values(first, "reserved_bytes") == []
    assert values(first, "instant_power_watts") == []
    assert values(first, "average_power_watts")[-1] == 100.0


def test_a_driver_too_old_to_list_processes_tells_none(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "PROCESSES_SECONDS", 0.0)
    stand_in.set("gpu0.processes", "missing")
    with sampling() as (first, _):
        until(after(5, first))
    assert first.problem is None
    assert first.tenancy.others() is None


def test_a_slice_has_its_own_memory_and_the_boards_power(stand_in: StandIn) -> None:
    stand_in.set(
        "count", 1, "gpu0.mig", 1, "gpu0.mig0.uuid", "MIG-1", "gpu0.mig0.name", "NVIDIA H100 MIG 1g.10gb",
        "gpu0.mig0.memory_total", 10 * GIB, "gpu0.mig0.memory_used", 2 * GIB, "gpu0.mig0.processes", "",
    )  # fmt: skip
    with sampling() as (slice_,):
        until(after(2, slice_))
    assert slice_.gpu.is_mig
    assert values(slice_, "used_bytes")[-1] == 2 * GIB
    assert values(slice_, "instant_power_watts")[-1] == 100.0
    assert values(slice_, "utilization") == []


def test_a_gpu_that_vanishes_keeps_what_was_read_and_spoils_no_other(stand_in: StandIn) -> None:
    stand_in.set("gpu1.memory_total", 16 * GIB, "gpu1.memory_used", GIB)
    with sampling() as (first, second):
        until(after(3, first))
        stand_in.set("gpu0.lost", 1)
        until(lambda: first.problem is not None)
        read = len(first.memory)
        until(after(3, second))
    assert first.problem is not None
    assert "stopped answering" in first.problem
    assert len(first.memory) == read >= 3
    assert second.problem is None


def test_a_gpu_that_is_gone_before_the_trial_is_told(stand_in: StandIn) -> None:
    found = gpus()
    stand_in.set("gpu0.lost", 1, "gpu1.memory_total", GIB)
    sampler = Sampler(found, QUICK)
    sampler.start([Use(), Use()])
    until(after(2, sampler.samples[1]))
    first, second = sampler.stop()
    assert first.problem is not None
    assert second.problem is None


def test_a_driver_that_is_gone_is_told_for_all_gpus(stand_in: StandIn) -> None:
    found = gpus()
    stand_in.script.unlink()
    sampler = Sampler(found, QUICK)
    sampler.start([Use(), Use()])
    for samples in sampler.stop():
        assert samples.problem is not None
        assert "Driver Not Loaded" in samples.problem


def test_the_shortest_trial_is_read_at_least_once(stand_in: StandIn) -> None:
    with sampling(MeterSettings(memory_interval_seconds=10, interval_seconds=10)) as (first, _):
        pass
    assert len(first.memory) >= 1
    assert len(first.state) >= 1


def test_own_processes_are_told_from_others(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "PROCESSES_SECONDS", 0.0)
    child = start(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        stand_in.set("gpu0.processes", f"{child.pid}:{GIB},{os.getppid()}:{2 * GIB}")
        with sampling() as (first, second):
            until(lambda: first.tenancy.others())
        others = first.tenancy.others()
        assert others is not None
        assert [(other.pid, other.memory_bytes) for other in others] == [(os.getppid(), 2 * GIB)]
        assert second.tenancy.others() is None  # the old board does not list processes
    finally:
        child.communicate()


def test_a_process_descends_from_all_above_it_and_no_other() -> None:
    shell = start(["sh", "-c", "sh -c 'cat; :'; :"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children")
        until(lambda: children.read_text().split())
        (below,) = map(int, children.read_text().split())
        for pid in (shell.pid, below):
            assert descends_from(pid, pid)
            assert descends_from(pid, os.getpid())
            assert not descends_from(os.getpid(), pid)
        assert not descends_from(shell.pid, below)
    finally:
        shell.communicate()
    assert not descends_from(shell.pid, os.getpid())  # it has ended


def test_all_readings_are_kept_in_a_file(stand_in: StandIn, tmp_path: Path) -> None:
    with sampling() as (first, second):
        until(after(3, first))
    launched = float(first.memory.times()[0])
    write_samples(tmp_path / "trial", [first, second], launched)
    with gzip.open(tmp_path / "trial" / FILE_NAME, "rt") as stream:
        kept = json.load(stream)
    assert [gpu["uuid"] for gpu in kept] == [first.gpu.uuid, second.gpu.uuid]
    assert kept[0]["memory"]["used_bytes"] == [4 << 20] * len(first.memory)
    assert kept[0]["memory"]["seconds"][0] == 0
    assert len(kept[0]["state"]["instant_power_watts"]) == len(first.state)
    assert "instant_power_watts" not in kept[1]["state"]  # never known
