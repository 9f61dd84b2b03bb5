"""What this machine offers, found without importing torch.

Cores count as what this process may use: its affinity, cut by the cgroup's quota; memory likewise.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What choices may ask about before anything is launched."""

    device: str
    """`cpu` or `cuda`: what the job will run on."""
    compute_capability: tuple[int, int] | None = None
    """Of the first visible GPU; None on a CPU."""
    device_count: int = 1
    """GPUs that torch may use; 1 on a CPU."""
    compiler: str | None = None
    """The C++ compiler's path."""
    packages: dict[str, str] | None = field(default=None, hash=False)
    """Versions by distribution name; None: those of this interpreter."""

    def package_version(self, name: str) -> str | None:
        """The installed version of a distribution, or None."""
        return self.packages.get(name) if self.packages is not None else installed_version(name)


@cache
def installed_version(name: str) -> str | None:
    """The version of a distribution in this interpreter, or None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def find_compiler() -> str | None:
    """The C++ compiler that generated CPU code would use: $CXX, else g++ or clang++."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++")


def usable_cores() -> float:
    """Cores that this process may use at once: its affinity, cut by the cgroup's CPU quota."""
    affinity = float(len(os.sched_getaffinity(0)))
    quota = cgroup_cpu_quota()
    return affinity if quota is None else min(affinity, quota)


def cgroup_cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The cgroup's limit in cores (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), or None where there is none."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
            return None if quota == "max" else int(quota) / int(period)
        quota_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else quota_us / int((root / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
