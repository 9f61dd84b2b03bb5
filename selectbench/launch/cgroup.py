"""Whether the kernel's out-of-memory killer struck in this process's memory cgroup."""

from __future__ import annotations

from pathlib import Path


def oom_kills(cgroups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How often it has, so far: `memory.events` (cgroup v2) or `memory.oom_control` (v1); None: unknown.

    Source: the kernel's admin-guide, cgroup-v2 and cgroup-v1/memory.
    """
    for path in _candidates(cgroups, root):
        try:
            counts = dict(line.split() for line in path.read_text().splitlines() if len(line.split()) == 2)
            return int(counts["oom_kill"])
        except (OSError, KeyError, ValueError):
            continue
    return None


def _candidates(cgroups: Path, root: Path) -> list[Path]:
    try:
        lines = cgroups.read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += [root / path.lstrip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            v1 = root / "memory"
            found += [v1 / path.lstrip("/") / "memory.oom_control", v1 / "memory.oom_control"]
    return found
