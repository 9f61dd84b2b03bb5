"""What a GPU says of itself at one moment, and whether anything else uses it.

Whatever the board or the driver does not answer is None. A slice of a board (MIG) has memory and processes of its
own; power, energy, temperature and clocks are the board's, and utilisation nobody's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from selectbench.gpu.devices import Gpu, ask, board_of, started

CLOCK_LIMITS = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clocks_setting": 0x100,
}
"""Bits of the clock event reasons (nvml.h, nvmlClocksEventReasons), by nvidia-smi's names."""
AVERAGE_POWER, INSTANT_POWER = 185, 186
"""Field ids of nvml.h, which older bindings do not name; milliwatts."""


@dataclass(frozen=True)
class MemoryReading:
    """A device's memory."""

    used_bytes: int
    """By whomever; what the driver keeps for itself is in it only where `reserved_bytes` is None."""
    total_bytes: int
    reserved_bytes: int | None
    """Kept by the driver itself; None: it does not tell the two apart."""


@dataclass(frozen=True)
class StateReading:
    """What a device is doing."""

    utilization: float | None
    """Share of the driver's last sampling period, at most a second, in which something ran, 0 to 1."""
    instant_power_watts: float | None
    average_power_watts: float | None
    """Over about a second; at the moment on boards before Ampere, and on A100."""
    energy_joules: float | None
    """By the board's counter, since the driver was loaded."""
    temperature_celsius: float | None
    sm_clock_hertz: float | None
    memory_clock_hertz: float | None
    clock_limits: int | None
    """What holds the clocks down: bits of CLOCK_LIMITS."""


@dataclass(frozen=True)
class Tenant:
    """A process that computes on a GPU."""

    pid: int
    """As the driver numbers it, in a container not as the container does."""
    memory_bytes: int | None
    """What it holds; None: the driver does not say."""
    name: str | None = None
    """Of its command; None: it was not asked for, or can't be seen from here."""


def read_memory(handle: Any) -> MemoryReading | None:
    """The device's or the slice's memory; the call that tells the driver's own part apart goes first."""
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if memory is not None:
        return MemoryReading(memory.used, memory.total, memory.reserved)
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return None if memory is None else MemoryReading(memory.used, memory.total, None)


def read_state(handle: Any) -> StateReading:
    """The device's, or of the board that a slice is on."""
    board = board_of(handle)
    rates = ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    instant, average = _fields(board, INSTANT_POWER, AVERAGE_POWER)
    average = ask(pynvml.nvmlDeviceGetPowerUsage, board) if average is None else average
    limits = ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, board)
    if limits is None:  # the call's name before driver 535
        limits = ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, board)
    return StateReading(
        utilization=None if rates is None else rates.gpu / 100,
        instant_power_watts=_scaled(instant, 1e-3),
        average_power_watts=_scaled(average, 1e-3),
        energy_joules=_scaled(ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, board), 1e-3),
        temperature_celsius=_scaled(ask(pynvml.nvmlDeviceGetTemperature, board, pynvml.NVML_TEMPERATURE_GPU), 1.0),
        sm_clock_hertz=_scaled(ask(pynvml.nvmlDeviceGetClockInfo, board, pynvml.NVML_CLOCK_SM), 1e6),
        memory_clock_hertz=_scaled(ask(pynvml.nvmlDeviceGetClockInfo, board, pynvml.NVML_CLOCK_MEM), 1e6),
        clock_limits=limits,
    )


def read_processes(handle: Any) -> list[Tenant] | None:
    """Whatever computes on it, MPS clients among them; None: the driver does not say.

    In most containers the list is empty, whoever is there.
    """
    listed = ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    clients = ask(pynvml.nvmlDeviceGetMPSComputeRunningProcesses, handle) or ()
    if listed is None:
        return None
    tenants = {process.pid: Tenant(process.pid, process.usedGpuMemory) for process in (*listed, *clients)}
    return list(tenants.values())


def problem_of(handle: Any) -> str | None:
    """Why the device answers nothing at all, in the driver's words; None: it is there."""
    try:
        pynvml.nvmlDeviceGetName(handle)  # every board that is there has one
    except pynvml.NVMLError as error:
        return str(error)
    return None


def _fields(board: Any, *numbers: int) -> list[int | None]:
    """Unsigned values by field id."""
    # Without a scope of its own, zero: the GPU's, not the module's.
    answers = ask(pynvml.nvmlDeviceGetFieldValues, board, list(numbers))
    if answers is None:
        return [None] * len(numbers)
    return [a.value.uiVal if a.nvmlReturn == pynvml.NVML_SUCCESS else None for a in answers]


def _scaled(value: int | None, unit: float) -> float | None:
    return None if value is None else value * unit


# Whether anything else uses a GPU right now.


IDLE_UTILIZATION = 0.05
"""Highest share of time that something may have run; a desktop that redraws its clock stays below it."""
IDLE_MEMORY_BYTES = 1 << 30
"""Most memory in use, or the next figure where that is more: what a desktop takes."""
IDLE_MEMORY_SHARE = 0.02
"""Of the device's memory: contexts and reserves grow with the board."""


@dataclass(frozen=True)
class Use:
    """What goes on on a GPU; None where the board or the driver does not say."""

    memory_used_bytes: int | None = None
    """By whomever, without what the driver keeps for itself where it tells the two apart."""
    memory_total_bytes: int | None = None
    """Of the slice, where it is one."""
    utilization: float | None = None
    """Share of the last second or less in which something ran, 0 to 1; a slice has none."""
    tenants: tuple[Tenant, ...] = ()
    """Processes that compute on it; empty in most containers, whoever is there."""
    problem: str | None = None
    """Why the GPU does not answer at all."""

    @property
    def is_idle(self) -> bool:
        """Whether nobody is on it, as far as it says."""
        return not (self.problem or self.tenants or self.computes or self.holds_memory)

    @property
    def computes(self) -> bool:
        """Whether something ran on it for more than `IDLE_UTILIZATION` of the time."""
        return self.utilization is not None and self.utilization > IDLE_UTILIZATION

    @property
    def holds_memory(self) -> bool:
        """Whether more than `IDLE_MEMORY_BYTES`, and than that share of all, is in use."""
        most = max(IDLE_MEMORY_BYTES, IDLE_MEMORY_SHARE * (self.memory_total_bytes or 0))
        return self.memory_used_bytes is not None and self.memory_used_bytes > most


def use_of(gpu: Gpu) -> Use:
    """What goes on on it now."""
    try:
        with started():
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            if lost := problem_of(handle):
                return Use(problem=lost)
            memory, rates = read_memory(handle), ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
            tenants = [replace(one, name=command_name(one.pid)) for one in read_processes(handle) or ()]
    except pynvml.NVMLError as error:
        return Use(problem=str(error))
    return Use(
        memory_used_bytes=memory.used_bytes if memory else None,
        memory_total_bytes=memory.total_bytes if memory else None,
        utilization=rates.gpu / 100 if rates else None,
        tenants=tuple(tenants),
    )


def command_name(pid: int) -> str | None:
    """The process's command as the kernel names it; None: it is gone, or not to be seen from here."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() or None
    except OSError:
        return None
