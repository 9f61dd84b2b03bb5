"""The GPUs that this process may use, as the driver's management library (NVML) describes them.

NVML creates no CUDA context, so asking it is free and leaves a process fit to fork. What a GPU or an
older driver does not answer is None.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pynvml

from selectbench.nvml.driver import ask, board_of, started


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of a GPU."""

    name: str
    """As the driver calls it, `NVIDIA H200`."""
    uuid: str
    """`GPU-...` or `MIG-...`."""
    pci_bus_id: str | None
    """`00000000:3B:00.0`."""
    memory_total_bytes: int | None
    """Of the slice, where it is one."""
    compute_capability: tuple[int, int] | None
    """(9, 0) for Hopper."""
    power_limit_watts: float | None
    """What the board may draw as it is set now."""
    ecc_enabled: bool | None
    """Whether memory errors are corrected, which costs bandwidth on some boards."""
    max_sm_clock_hertz: float | None
    """The highest clock of the streaming multiprocessors."""
    cores: int | None
    """CUDA cores of the whole GPU."""
    driver_version: str | None
    """`570.124.06`."""
    cuda_driver_version: tuple[int, int] | None
    """The newest CUDA that the driver runs, (12, 8)."""


def gpus() -> list[Gpu]:
    """The GPUs that CUDA would show this process, in NVML's order (by PCI bus) unless named otherwise.

    CUDA_VISIBLE_DEVICES is honoured as a list of indices, of UUIDs or of beginnings of UUIDs; as CUDA
    does, everything from the first unknown entry on is hidden. Where GPUs of several kinds are in one
    machine, CUDA's indices equal NVML's only under CUDA_DEVICE_ORDER=PCI_BUS_ID. No driver: no GPU.
    """
    try:
        with started():
            return [_describe(handle) for handle in _visible()]
    except pynvml.NVMLError:
        return []


def _visible() -> list[Any]:
    """Handles, after CUDA_VISIBLE_DEVICES."""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return handles
    chosen = []
    for entry in filter(None, named.split(",")):
        handle = _find(entry.strip(), handles)
        if handle is None:
            break
        chosen.append(handle)
    return chosen


def _find(entry: str, handles: list[Any]) -> Any | None:
    if entry.isdecimal():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if entry.startswith("MIG-"):
        return ask(pynvml.nvmlDeviceGetHandleByUUID, entry)
    matching = [handle for handle in handles if entry and pynvml.nvmlDeviceGetUUID(handle).startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def _describe(handle: Any) -> Gpu:
    board = board_of(handle)
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    pci = ask(pynvml.nvmlDeviceGetPciInfo, board)
    bus_id = pci.busId if pci else None
    clock_megahertz = ask(pynvml.nvmlDeviceGetMaxClockInfo, board, pynvml.NVML_CLOCK_SM)
    power_milliwatts = ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, board)
    ecc = ask(pynvml.nvmlDeviceGetEccMode, board)
    cuda = ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)  # 12080 is 12.8
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        pci_bus_id=bus_id.decode() if isinstance(bus_id, bytes) else bus_id,
        memory_total_bytes=memory.total if memory else None,
        compute_capability=ask(pynvml.nvmlDeviceGetCudaComputeCapability, board),
        power_limit_watts=None if power_milliwatts is None else power_milliwatts / 1e3,
        ecc_enabled=None if ecc is None else ecc[0] == pynvml.NVML_FEATURE_ENABLED,
        max_sm_clock_hertz=None if clock_megahertz is None else clock_megahertz * 1e6,
        cores=ask(pynvml.nvmlDeviceGetNumGpuCores, board),
        driver_version=ask(pynvml.nvmlSystemGetDriverVersion),
        cuda_driver_version=None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
    )
