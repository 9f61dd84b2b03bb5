"""The meters on a real driver and a real GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from launch.harness import Workplace

from selectbench.gpu.devices import devices_of_torch, first_difference, gpus, use_of
from selectbench.gpu.meters import TOLERANCE_BYTES, gpu_meters, settle
from selectbench.gpu.sampler import Sampler
from selectbench.record.record import GpuMeters
from selectbench.suite.suite import MeterSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device that torch can use"),
]
GIB = 1 << 30
BUSY_SECONDS = 6.0


def keep_busy(seconds: float) -> tuple[float, float]:
    """Large products on the first GPU; begin and end."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        for _ in range(10):
            a @ a
        torch.cuda.synchronize()
    return begin, time.perf_counter()


@pytest.fixture(scope="module")
def busy() -> GpuMeters:
    """The first GPU over some seconds of work, of which 4 GiB more were held."""
    first = gpus()[:1]
    before = [use_of(gpu) for gpu in first]
    sampler = Sampler(first, MeterSettings())
    sampler.start(before)
    launched = time.perf_counter()
    held = torch.zeros(4 * GIB, dtype=torch.uint8, device="cuda")
    timed = keep_busy(BUSY_SECONDS)
    del held
    torch.cuda.empty_cache()
    (samples,) = sampler.stop()
    return gpu_meters(samples, before[0], {}, (launched, time.perf_counter()), [timed], timed)


def test_torch_and_nvml_agree_on_the_devices() -> None:
    shown = devices_of_torch()
    assert shown
    assert first_difference(shown, gpus()) is None


def test_the_energy_meters_agree(busy: GpuMeters) -> None:
    assert busy.metered_seconds >= BUSY_SECONDS
    figures = [busy.counter_joules, busy.instant_power_joules, busy.average_power_joules]
    known = [figure for figure in figures if figure is not None]
    assert known, "the driver reports neither energy nor power"
    assert max(known) <= 1.1 * min(known)
    limit = gpus()[0].power_limit_watts
    assert limit is None or max(known) / busy.metered_seconds <= 1.1 * limit


def test_device_memory_holds_what_was_allocated(busy: GpuMeters) -> None:
    assert busy.peak_device_memory_bytes is not None
    assert busy.idle_memory_bytes is not None
    grown = busy.peak_device_memory_bytes - busy.idle_memory_bytes
    assert 4 * GIB <= grown <= 6 * GIB
    assert busy.memory_readings >= 0.8 * BUSY_SECONDS / MeterSettings().memory_interval_seconds


def test_the_state_of_a_busy_gpu_is_read(busy: GpuMeters) -> None:
    assert busy.problem is None
    assert busy.mean_utilization is None or busy.mean_utilization > 0.9
    assert busy.mean_sm_clock_hertz is not None
    assert busy.mean_sm_clock_hertz > 3e8
    assert busy.highest_temperature_celsius is not None
    assert 20 < busy.highest_temperature_celsius < 110
    assert busy.clock_limit_shares is not None
    # None in a container that lists nobody; this very process is none of the others.
    assert os.getpid() not in [other.pid for other in busy.other_processes or []]


def test_memory_comes_back_after_a_process() -> None:
    first = gpus()[:1]
    torch.cuda.empty_cache()
    baseline = [use_of(gpu) for gpu in first]
    code = "import torch; torch.zeros(2 << 30, dtype=torch.uint8, device='cuda'); print('held')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    ready = settle(first, baseline, 30, time.sleep, lambda: False)
    assert ready.settled
    now, before = ready.uses[0].memory_used_bytes, baseline[0].memory_used_bytes
    assert now is not None
    assert before is not None
    assert now <= before + TOLERANCE_BYTES


CUDA_SUITE_SETTINGS = ("--set", "job.timing={min_timed_seconds: 6}", "--seeds", "0", "--json")


def test_a_run_meters_its_gpu(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    place.write()
    torch.cuda.empty_cache()
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    # Named, as this test's own process is on it; so its trials are shared.
    done = place.call("run", "tiny.yaml", "--gpus", "0" if index.isdecimal() else index, *CUDA_SUITE_SETTINGS)
    assert done.returncode == 0, done.stderr
    ranking: dict[str, Any] = json.loads(done.stdout)
    assert ranking["device"] == "cuda"
    for record in place.records():
        (gpu,) = record["meters"]["gpus"]
        assert record["meters"]["problem"] is None
        measured = record["outcome"]["measurement"]
        grown = gpu["peak_device_memory_bytes"] - gpu["idle_memory_bytes"]
        assert grown >= measured["peak_memory_reserved_bytes"]
        assert gpu["metered_seconds"] >= 6
        known = [gpu[key] for key in ("counter_joules", "instant_power_joules", "average_power_joules")]
        assert any(value for value in known)
