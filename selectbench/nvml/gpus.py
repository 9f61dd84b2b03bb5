"""The GPUs that this process may use, as the driver's management library (NVML) describes them.

NVML creates no CUDA context, so asking it is free and leaves a process fit to fork. What a GPU or an
older driver does not answer is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pynvml

from selectbench.nvml.driver import ask, board_of, started
from selectbench.nvml.visible import bus_id_of, is_slice, visible_handles


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of a GPU."""

    name: str
    """As the driver calls it, `NVIDIA H200`."""
    uuid: str
    """`GPU-...` or `MIG-...`."""
    index: int | None
    """NVML's and nvidia-smi's number of the board."""
    is_mig: bool
    """Whether it is a slice of a board."""
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
    """The GPUs that CUDA would show this process, by `visible_handles`. No driver: no GPU.

    In NVML's order (by PCI bus, as nvidia-smi) unless CUDA_VISIBLE_DEVICES names them in another.
    """
    try:
        with started():
            return [_describe(handle) for handle in visible_handles()]
    except pynvml.NVMLError:
        return []


def _describe(handle: Any) -> Gpu:
    board = board_of(handle)
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    clock_megahertz = ask(pynvml.nvmlDeviceGetMaxClockInfo, board, pynvml.NVML_CLOCK_SM)
    power_milliwatts = ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, board)
    ecc = ask(pynvml.nvmlDeviceGetEccMode, board)
    cuda = ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)  # 12080 is 12.8
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        index=ask(pynvml.nvmlDeviceGetIndex, board),
        is_mig=is_slice(handle),
        pci_bus_id=bus_id_of(handle),
        memory_total_bytes=memory.total if memory else None,
        compute_capability=ask(pynvml.nvmlDeviceGetCudaComputeCapability, board),
        power_limit_watts=None if power_milliwatts is None else power_milliwatts / 1e3,
        ecc_enabled=None if ecc is None else ecc[0] == pynvml.NVML_FEATURE_ENABLED,
        max_sm_clock_hertz=None if clock_megahertz is None else clock_megahertz * 1e6,
        cores=ask(pynvml.nvmlDeviceGetNumGpuCores, board),
        driver_version=ask(pynvml.nvmlSystemGetDriverVersion),
        cuda_driver_version=None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
    )
