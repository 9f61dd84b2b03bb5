"""What a trial took of its GPUs' memory, by the devices' own account and apart from the allocator's."""

from __future__ import annotations

from selectbench.analysis.observed import Observed
from selectbench.record.meters import GpuMeters


def peak_device_memory_bytes(o: Observed) -> float | None:
    """The most in use while training less what was in use right before the trial, of the GPU that needed most.

    The CUDA context, libraries' workspaces and fragments are in it, which no allocator counts, and so is managed
    memory: every update brings it onto the GPU, where it stays until the GPU is full. None where any GPU does not
    tell, or its memory was not idle before: more was freed by others than the trial took.
    """
    found = [_over_idle(gpu) for gpu in o.gpus]
    known = [value for value in found if value is not None and value >= 0]
    return max(known) if known and len(known) == len(found) else None


def _over_idle(gpu: GpuMeters) -> int | None:
    peak, idle = gpu.peak_device_memory_bytes, gpu.idle_memory_bytes
    return None if peak is None or idle is None else peak - idle
