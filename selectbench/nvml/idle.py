"""Whether anything else uses a GPU right now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from selectbench.nvml.driver import ask, started
from selectbench.nvml.gpus import Gpu
from selectbench.nvml.reading import problem_of, read_memory, read_processes

IDLE_UTILIZATION = 0.05
"""Highest share of time that something may have run; a desktop that redraws its clock stays below it."""
IDLE_MEMORY_BYTES = 1 << 30
"""Most memory in use, or the next figure where that is more: what a desktop takes."""
IDLE_MEMORY_SHARE = 0.02
"""Of the device's memory: contexts and reserves grow with the board."""


@dataclass(frozen=True)
class Tenant:
    """A process that computes on a GPU."""

    pid: int
    """As the driver numbers it, in a container not as the container does."""
    memory_bytes: int | None
    """What it holds; None: the driver does not say."""
    name: str | None
    """Of its command; None: it can't be seen from here."""


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
            return Use(problem=lost) if (lost := problem_of(handle)) else _use(handle)
    except pynvml.NVMLError as error:
        return Use(problem=str(error))


def _use(handle: Any) -> Use:
    memory, rates = read_memory(handle), ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    return Use(
        memory_used_bytes=memory.used_bytes if memory else None,
        memory_total_bytes=memory.total_bytes if memory else None,
        utilization=rates.gpu / 100 if rates else None,
        tenants=tuple(
            Tenant(process.pid, process.memory_bytes, command_name(process.pid))
            for process in read_processes(handle) or ()
        ),
    )


def command_name(pid: int) -> str | None:
    """The process's command as the kernel names it; None: it is gone, or not to be seen from here."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() or None
    except OSError:
        return None
