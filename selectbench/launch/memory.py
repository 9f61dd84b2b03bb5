"""Memory of a trial on a CPU, read from outside: proportional set size of all its processes.

PSS (proc_pid_smaps_rollup(5)) counts a page shared by n processes as 1/n, so the imports that a forked
trial shares with its server are not charged to it again. Reading it walks the page tables: the interval
grows with the reading's own cost so that it stays below one percent of one core.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

SHORTEST_INTERVAL_SECONDS = 0.1
MOST_SHARE = 0.01


def session_processes(session: int, proc: Path = Path("/proc")) -> list[int]:
    """The processes of a session (setsid(2)), whatever their parents."""
    found = []
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def pss_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Proportional set size of one process; 0 where it is gone."""
    try:
        with (proc / str(pid) / "smaps_rollup").open() as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    except (OSError, ValueError):
        return 0


class PssPeak:
    """The largest sum over a trial's processes, sampled while it trains."""

    def __init__(self) -> None:
        self.session: int | None = None
        """The trial's process id, which is its session's."""
        self.base_bytes: int | None = None
        self.peak_bytes: int | None = None
        self.counting = False
        self._next = 0.0

    def seconds_until_due(self, now: float) -> float:
        """Time until the next sample."""
        return max(0.0, self._next - now)

    def sample(self, now: float) -> None:
        """Take a sample where one is due and the trial trains."""
        if self.session is None or not self.counting or now < self._next:
            return
        total = sum(pss_bytes(pid) for pid in session_processes(self.session))
        self.peak_bytes = max(self.peak_bytes or 0, total)
        cost = time.monotonic() - now
        self._next = now + max(SHORTEST_INTERVAL_SECONDS, cost / MOST_SHARE)

    def growth_bytes(self) -> int | None:
        """Peak over the value at the trial's start; None without a sample."""
        if self.peak_bytes is None or self.base_bytes is None:
            return None
        return max(0, self.peak_bytes - self.base_bytes)
