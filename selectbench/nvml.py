"""The GPUs that this process may use, as the driver's management library (NVML) describes them.

NVML creates no CUDA context, so asking it is free and leaves a process fit to fork. What a GPU or an
older driver does not answer is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

TOPOLOGY_LEVELS = {
    pynvml.NVML_TOPOLOGY_INTERNAL: "PIX",
    pynvml.NVML_TOPOLOGY_SINGLE: "PIX",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "PXB",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB",
    pynvml.NVML_TOPOLOGY_NODE: "NODE",
    pynvml.NVML_TOPOLOGY_SYSTEM: "SYS",
}
"""How two GPUs reach each other over PCIe, in the words of `nvidia-smi topo -m`."""


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
        with _started():
            return [_describe(handle) for handle in _visible()]
    except pynvml.NVMLError:
        return []


def problem() -> str | None:
    """Why NVML cannot be asked, in the driver's words, or None where it can."""
    try:
        with _started():
            return None
    except pynvml.NVMLError as error:
        return str(error)


def topology(these: list[Gpu]) -> list[list[str | None]]:
    """How each GPU reaches each other: `NVL`, `PIX`, `PXB`, `PHB`, `NODE`, `SYS`, `X` for itself, None unknown.

    Shape (GPUs, GPUs). The words are those of `nvidia-smi topo -m`, from near to far.
    """
    if not these:
        return []
    try:
        with _started():
            handles = [_board(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)) for gpu in these]
            return [
                ["X" if row == column else _path(a, b) for column, b in enumerate(handles)]
                for row, a in enumerate(handles)
            ]
    except pynvml.NVMLError:
        return [["X" if row == column else None for column in range(len(these))] for row in range(len(these))]


@contextmanager
def _started() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


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
        return _ask(pynvml.nvmlDeviceGetHandleByUUID, entry)
    matching = [handle for handle in handles if entry and pynvml.nvmlDeviceGetUUID(handle).startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def _describe(handle: Any) -> Gpu:
    board = _board(handle)
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    pci = _ask(pynvml.nvmlDeviceGetPciInfo, board)
    bus_id = pci.busId if pci else None
    clock_megahertz = _ask(pynvml.nvmlDeviceGetMaxClockInfo, board, pynvml.NVML_CLOCK_SM)
    power_milliwatts = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, board)
    ecc = _ask(pynvml.nvmlDeviceGetEccMode, board)
    cuda = _ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)  # 12080 is 12.8
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        pci_bus_id=bus_id.decode() if isinstance(bus_id, bytes) else bus_id,
        memory_total_bytes=memory.total if memory else None,
        compute_capability=_ask(pynvml.nvmlDeviceGetCudaComputeCapability, board),
        power_limit_watts=None if power_milliwatts is None else power_milliwatts / 1e3,
        ecc_enabled=None if ecc is None else ecc[0] == pynvml.NVML_FEATURE_ENABLED,
        max_sm_clock_hertz=None if clock_megahertz is None else clock_megahertz * 1e6,
        cores=_ask(pynvml.nvmlDeviceGetNumGpuCores, board),
        driver_version=_ask(pynvml.nvmlSystemGetDriverVersion),
        cuda_driver_version=None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
    )


def _board(handle: Any) -> Any:
    """The whole GPU behind a MIG slice; the handle itself where it is no slice."""
    parent = _ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle)
    return handle if parent is None else parent


def _path(a: Any, b: Any) -> str | None:
    if _ask(pynvml.nvmlDeviceGetP2PStatus, a, b, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == pynvml.NVML_P2P_STATUS_OK:
        return "NVL"
    level = _ask(pynvml.nvmlDeviceGetTopologyCommonAncestor, a, b)
    return None if level is None else TOPOLOGY_LEVELS.get(level)


def _ask(call: Callable[..., Any], *arguments: Any) -> Any | None:
    """The answer, or None where this GPU or this driver has none."""
    try:
        answer = call(*arguments)
    except pynvml.NVMLError:
        return None
    return tuple(answer) if isinstance(answer, list) else answer
