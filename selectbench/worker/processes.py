"""What processes ask of the kernel: their death signals, their children, and where their output goes."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from selectbench.cores import children_of

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def set_process_control(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies; where that is not `parent`, it has died already."""
    set_process_control(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def is_fork_safe() -> bool:
    """Whether this process has one thread and no open CUDA device."""
    descriptors = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    threads = list(Path("/proc/self/task").iterdir())
    return len(threads) == 1 and not any(target.startswith("/dev/nvidia") for target in descriptors)


def kill_descendants() -> None:
    """Kill and reap every process below this one; those of a killed parent come to it as subreaper."""
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
