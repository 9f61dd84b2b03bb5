"""Whether torch's devices are the GPUs that NVML named."""

from __future__ import annotations

from collections.abc import Sequence

import pynvml

from selectbench.nvml.driver import board_of, started
from selectbench.nvml.gpus import Gpu
from selectbench.nvml.torch_devices import TorchDevice, same_bus_id, same_uuid


def first_difference(shown: Sequence[TorchDevice], gpus: Sequence[Gpu]) -> str | None:
    """The first place where torch shows another device than NVML's GPU, naming both; None: there is none.

    A device that torch tells neither UUID nor bus id of is only counted.
    """
    for number in range(max(len(shown), len(gpus))):
        device = shown[number] if number < len(shown) else None
        gpu = gpus[number] if number < len(gpus) else None
        if device is None or gpu is None or not _same(device, gpu):
            ours = "no GPU was taken" if gpu is None else f"{gpu.name}, {gpu.uuid} at {gpu.pci_bus_id}, was taken"
            return f"its cuda:{number} is {'not there' if device is None else device}, and {ours}"
    return None


def _same(device: TorchDevice, gpu: Gpu) -> bool:
    if device.uuid is None and (device.pci_bus_id is None or gpu.pci_bus_id is None):
        return True
    return same_uuid(device, [gpu.uuid, *_board_uuid(gpu)]) or same_bus_id(device, gpu.pci_bus_id)


def _board_uuid(gpu: Gpu) -> list[str]:
    """Of the board that a slice is on, where NVML still knows it."""
    try:
        with started():
            return [pynvml.nvmlDeviceGetUUID(board_of(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)))]
    except pynvml.NVMLError:
        return []
