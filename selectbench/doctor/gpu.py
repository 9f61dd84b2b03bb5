"""The GPUs, what their driver tells of them while they work, and how fast they were found to be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pynvml

from selectbench import units
from selectbench.doctor.finding import Finding
from selectbench.errors import UserError
from selectbench.nvml import Gpu, gpus, problem
from selectbench.nvml.driver import started
from selectbench.nvml.reading import MemoryReading, StateReading, read_memory, read_processes, read_state
from selectbench.record.calibration import stored

CALIBRATE = "selectbench doctor --calibrate"
NEWER = "a newer driver may tell more; some boards and virtual GPUs never do"
COSTS = {
    "memory": "device memory is not known",
    "reserved memory": "what the driver keeps for itself counts as used",
    "utilization": "work of others before a trial goes unseen",
    "instant power": "the energy counter is checked against nothing",
    "average power": "",
    "energy counter": "energy comes from power readings",
    "temperature": "",
    "SM clock": "",
    "clock event reasons": "throttling goes unseen, every trial's state is unknown",
    "process list": "others on the GPU go unseen, every trial's state is unknown",
}
"""What is lost with each quantity that a driver does not tell, in the order in which they are named."""


def check_gpu() -> Finding:
    """The GPUs that NVML shows."""
    visible = gpus()
    if visible:
        driver = visible[0].driver_version or "unknown"
        return Finding("GPU", "ok", f"{', '.join(gpu.name for gpu in visible)}; driver {driver}")
    said = problem()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None and hidden is not None:
        return Finding("GPU", "limited", f"hidden by CUDA_VISIBLE_DEVICES={hidden}", "unset CUDA_VISIBLE_DEVICES")
    fix = "only where there is one: install its driver; in a container, start it with --gpus all"
    return Finding("GPU", "limited", f"none, jobs run on the CPU ({said or 'NVML shows no device'})", fix)


def check_meters() -> Iterator[Finding]:
    """For each GPU, what its driver tells and what is lost where it does not."""
    for number, gpu in enumerate(gpus()):
        subject = f"meters of GPU {number}"
        try:
            with started():
                told = _told(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
        except pynvml.NVMLError as error:
            yield Finding(subject, "limited", f"it does not answer: {error}", "look at nvidia-smi")
            continue
        lost = [name + (f" ({COSTS[name]})" if COSTS[name] else "") for name, there in told.items() if not there]
        there = ", ".join(name for name, known in told.items() if known) or "nothing"
        if lost:
            yield Finding(subject, "limited", f"{there}; not told: {', '.join(lost)}", NEWER)
        else:
            yield Finding(subject, "ok", there)


def _told(handle: Any) -> dict[str, bool]:
    memory: MemoryReading | None = read_memory(handle)
    state: StateReading = read_state(handle)
    known = (
        memory, memory and memory.reserved_bytes, state.utilization, state.instant_power_watts,
        state.average_power_watts, state.energy_joules, state.temperature_celsius, state.sm_clock_hertz,
        state.clock_limits, read_processes(handle),
    )  # fmt: skip
    return {name: value is not None for name, value in zip(COSTS, known, strict=True)}


def check_calibration() -> Iterator[Finding]:
    """For each GPU, the rates of matrix products that were measured on it."""
    for number, gpu in enumerate(gpus()):
        yield _calibration_of(f"calibration of GPU {number}", gpu)


def _calibration_of(subject: str, gpu: Gpu) -> Finding:
    try:
        found = stored(gpu.uuid)
    except UserError as error:
        return Finding(subject, "limited", str(error), CALIBRATE)
    if found is None:
        lost = "none: the share of a measured matrix product's rate is not known"
        return Finding(subject, "limited", lost, CALIBRATE)
    rates = ", ".join(f"{dtype} {units.flops_per_second(r.flops_per_second)}" for dtype, r in found.rates.items())
    return Finding(subject, "ok", f"{rates}; by torch {found.torch_version} on {found.measured_at[:10]}")
