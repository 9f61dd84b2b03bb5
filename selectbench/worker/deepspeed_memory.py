"""What DeepSpeed is told of a GPU's free memory."""

from __future__ import annotations

import torch
from deepspeed.accelerator import get_accelerator


def take_free_memory_from_cuda() -> None:
    """Makes DeepSpeed's accelerator say what CUDA itself says is free on a device.

    Its own way asks NVML for the device whose number stands in CUDA_VISIBLE_DEVICES. A run names its GPUs there by
    UUID, which is no number (ValueError, DeepSpeed PR 8510), and CUDA's numbers need not be NVML's; stages 1 and 2
    ask before they flatten the weights. A MIG slice has no number in NVML at all.
    """
    accelerator = get_accelerator()
    if accelerator.device_name() == "cuda":
        accelerator.available_memory = _free_bytes


def _free_bytes(device_index: int | None = None) -> int:
    return torch.cuda.mem_get_info(device_index)[0]
