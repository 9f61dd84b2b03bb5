"""Memory while training, as seen from inside the worker: the CUDA allocator's peaks, or the process's own.

Both count the stretch of training before the first evaluation where one is spoiled by what an evaluation
leaves behind: the CUDA allocator and the C library keep freed memory, which would pass for the training's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch


class TrainingMemory(Protocol):
    """Told by the loop when stretches of training begin and end."""

    def start(self) -> None:
        """A stretch of training begins: peaks count from here."""

    def stop(self) -> None:
        """The stretch ends: its peaks are kept."""

    def peaks(self) -> dict[str, int | None]:
        """The measurement's keys of memory and their values, in bytes; keys that are left out are unknown."""


class CudaMemory:
    """Peaks of the CUDA allocator."""

    def __init__(self) -> None:
        self.allocated_bytes: int | None = None
        self.reserved_bytes: int | None = None
        self.alloc_retries: int | None = None
        self._retries_before = 0

    def start(self) -> None:
        """A stretch of training begins: peaks count from here."""
        if self.allocated_bytes is None:
            torch.cuda.empty_cache()  # what casting and sharding have left behind is not the training's
        torch.cuda.reset_peak_memory_stats()
        self._retries_before = torch.cuda.memory_stats().get("num_alloc_retries", 0)

    def stop(self) -> None:
        """The stretch ends: its peaks are kept; of reserved memory the first stretch's only."""
        self.allocated_bytes = max(self.allocated_bytes or 0, torch.cuda.max_memory_allocated())
        self.reserved_bytes = self.reserved_bytes or torch.cuda.max_memory_reserved()
        retries = torch.cuda.memory_stats().get("num_alloc_retries", 0) - self._retries_before
        self.alloc_retries = (self.alloc_retries or 0) + retries

    def peaks(self) -> dict[str, int | None]:
        """Allocated, reserved, and how often the allocator had to free its cache."""
        return {
            "peak_memory_allocated_bytes": self.allocated_bytes,
            "peak_memory_reserved_bytes": self.reserved_bytes,
            "num_alloc_retries": self.alloc_retries,
        }


class CpuMemory:
    """Peak proportional set size (PSS) of this process in the first stretch, over its value at the start.

    PSS counts a page shared by n processes as 1/n, so what a forked trial shares with its server is not
    charged to it. The kernel keeps no peak of PSS but an exact one of the resident set (VmHWM, reset by
    writing 5 to clear_refs: proc(5)); what lies between that peak and the present resident set was the
    process's own and is added to the present PSS. Nothing is sampled, so nothing is missed between samples.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._base = self._pss_bytes()
        self._counting = False
        self.growth_bytes: int | None = None

    def start(self) -> None:
        """The first stretch begins: the kernel forgets the peak of what came before."""
        if self.growth_bytes is not None:
            return
        try:
            (self._proc / "clear_refs").write_text("5")
            self._counting = True
        except OSError:
            self._counting = False  # a peak that includes the set-up would mislead: it stays unknown

    def stop(self) -> None:
        """The first stretch ends: its peak is kept."""
        if self._counting and self.growth_bytes is None:
            resident, highest = self._status_bytes("VmRSS"), self._status_bytes("VmHWM")
            self.growth_bytes = max(0, self._pss_bytes() + max(0, highest - resident) - self._base)

    def peaks(self) -> dict[str, int | None]:
        """Growth of the proportional set size."""
        return {"peak_pss_growth_bytes": self.growth_bytes}

    def _pss_bytes(self) -> int:
        return _kibibytes(self._proc / "smaps_rollup", "Pss") * 1024

    def _status_bytes(self, key: str) -> int:
        return _kibibytes(self._proc / "status", key) * 1024


def _kibibytes(path: Path, key: str) -> int:
    with path.open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def training_memory(device: str) -> TrainingMemory:
    """The device's; make it first of all, since CPU memory counts from its making."""
    return CudaMemory() if device == "cuda" else CpuMemory()
