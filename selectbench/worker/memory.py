"""Memory as seen from inside the worker: the CUDA allocator's peaks, and the process's share on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch

OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
)


def pss_bytes(smaps_rollup: Path = Path("/proc/self/smaps_rollup")) -> int:
    """Proportional set size of this process: its own pages, and its share of those it shares."""
    lines = smaps_rollup.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had; torch's CPU allocator raises a RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_MESSAGES)


class TrainingMemory:
    """Peaks of the CUDA allocator over the stretches of training; all None on a CPU.

    Reserved memory is that of the stretch before the first evaluation: what an evaluation has reserved
    stays in the allocator's cache and would count as the training's.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self.allocated_bytes: int | None = None
        self.reserved_bytes: int | None = None
        self.alloc_retries: int | None = None
        self._retries_before = 0

    def start(self) -> None:
        """A stretch of training begins: peaks count from here."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._retries_before = torch.cuda.memory_stats().get("num_alloc_retries", 0)

    def stop(self) -> None:
        """The stretch ends: its peaks are kept."""
        if self._cuda:
            self.allocated_bytes = max(self.allocated_bytes or 0, torch.cuda.max_memory_allocated())
            self.reserved_bytes = self.reserved_bytes or torch.cuda.max_memory_reserved()
            retries = torch.cuda.memory_stats().get("num_alloc_retries", 0) - self._retries_before
            self.alloc_retries = (self.alloc_retries or 0) + retries
