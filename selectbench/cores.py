"""Processes by Linux's kernel: children and threads, time on cores, death signals, and redirected output."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any


def children_of(pid: int) -> list[int]:
    """The process's children, zombies among them."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return children


def descendants(pid: int) -> list[int]:
    """Children, their children and so on; those that end meanwhile may be missing."""
    pids: list[int] = []
    with suppress(OSError):
        for child in children_of(pid):
            pids += [child, *descendants(child)]
    return pids


def process_mark(pid: int) -> str | None:
    """An id of a running process that no other on this machine has had since it booted; None: it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else f"{pid} {rest[18]}"  # the time of its start, proc_pid_stat(5)
    return None


def machine_mark() -> str:
    """An id that is equal for processes that see each other: since one boot of a machine, in one container."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


ThreadTimes = dict[str, tuple[int, int]]
"""Nanoseconds that threads, by their ids, ran on a core, and waited for one."""


def thread_times(pid: int | str, proc: Path = Path("/proc")) -> ThreadTimes:
    """The times of a process's threads, by schedstat (the kernel's scheduler docs); empty: it reports none."""
    times = {}
    for path in proc.glob(f"{pid}/task/*/schedstat"):
        with suppress(OSError, ValueError):  # the thread has ended meanwhile
            worked, waited, *_ = path.read_text().split()
            times[path.parent.name] = (int(worked), int(waited))
    return times


def seconds_between(before: ThreadTimes, after: ThreadTimes) -> list[float]:
    """Seconds that threads worked and waited between two readings, summed; some may have begun in between."""
    spans = [(now, before.get(task, (0, 0))) for task, now in after.items()]
    return [sum(now[place] - was[place] for now, was in spans) / 1e9 for place in (0, 1)]


def busy_seconds(cores: Collection[int], proc: Path = Path("/proc")) -> float:
    """Seconds of work of these cores, for any process; NaN: the kernel does not report it.

    All but idle and iowait of proc_stat(5), time that a hypervisor took among it.
    """
    names = {f"cpu{number}" for number in cores}
    try:
        lines = [line.split() for line in (proc / "stat").read_text().splitlines()]
    except OSError:
        return math.nan
    ticks = [int(v) for line in lines if line[0] in names for v in (*line[1:4], *line[6:9])]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else math.nan


class Cores:
    """How long threads of a process and its descendants worked and waited for a core, and what its cores did.

    Between the first and the last look.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._cores = pid, os.sched_getaffinity(0)
        self._readings: list[tuple[ThreadTimes, float]] = []
        """The first and the last."""
        self._due = 0.0

    def look(self) -> None:
        """A reading, where the last one was more than a second ago."""
        if time.monotonic() < self._due:
            return
        self._due, times = time.monotonic() + 1.0, ThreadTimes()
        for pid in [self._pid, *descendants(self._pid)]:
            times |= thread_times(pid)
        self._readings = [*self._readings[:1], (times, busy_seconds(self._cores))]

    def found(self) -> dict[str, Any]:
        """As a measurement's keys; {}: nothing was read twice."""
        if len(self._readings) < 2:
            return {}
        (before, busy_before), (after, busy_after) = self._readings
        worked, waited = seconds_between(before, after) if after else (None, None)
        busy = busy_after - busy_before
        return {
            "cpu_seconds": worked, "run_queue_wait_seconds": waited,
            "cores_seconds": None if math.isnan(busy) else busy,
        }  # fmt: skip


# Death signals of processes, whether they may fork, and where their output goes.


PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def set_process_control(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies; exits if `parent` has died already."""
    set_process_control(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def is_fork_safe() -> bool:
    """Whether this process has one thread and no open CUDA device."""
    descriptors = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    threads = list(Path("/proc/self/task").iterdir())
    return len(threads) == 1 and not any(target.startswith("/dev/nvidia") for target in descriptors)


def kill_descendants() -> None:
    """Kill and reap every process below this one, which as subreaper inherits those of a killed parent."""
    while children := children_of(os.getpid()):
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for child in children:
            try:
                os.waitpid(child, 0)
            except ChildProcessError:
                continue


def redirect(log: str) -> None:
    """Standard input from nowhere, output and errors to the end of the log."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)
