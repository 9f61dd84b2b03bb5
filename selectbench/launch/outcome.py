"""What a trial's end means: from its last word, its exit status and its logs to an outcome."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from selectbench.launch.server import log_tail
from selectbench.out_of_memory import says_out_of_memory
from selectbench.record.record import Completed, Failed, FailureKind
from selectbench.record.wire import Finished, GaveUp

LOG_NAME = "log.txt"
OUR_MODULES = re.compile(r"^selectbench\.(\w+\.)+")
"""Before our own exceptions' names; of no use to a reader."""
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning)\b")
"""How the last line of a traceback begins."""
STACK_LINES = 40
"""Of a log that ends with the stacks of a trial that was asked where it is."""
KERNEL_KILLED = "the kernel's out-of-memory killer ended"


@dataclass(frozen=True)
class Ending:
    """What is known of a trial that is over."""

    folder: Path
    """The trial's own, with its logs."""
    exit_status: int | None
    """Of the trial's process, negative for a signal; None: its server died first."""
    verdict: Finished | GaveUp | None
    """The last word of the worker."""
    stopped: Failed | None
    """Why the bench itself ended the trial."""
    oom_killed: bool
    """Whether the kernel's out-of-memory killer struck meanwhile."""


def outcome_of(end: Ending) -> Completed | Failed:
    """Every end has one outcome."""
    if isinstance(end.verdict, Finished) and end.exit_status == 0:
        return Completed(measurement=end.verdict.measurement)
    if end.stopped is not None:
        return _timed_out(end, end.stopped) if end.stopped.kind == "timeout" else end.stopped
    if isinstance(end.verdict, GaveUp):
        return _gave_up(end, end.verdict)
    if end.exit_status == -signal.SIGKILL and end.oom_killed:
        return Failed(kind="oom", detail=f"{KERNEL_KILLED} the trial (host memory)")
    return _crashed("", "", end.exit_status, end.folder / LOG_NAME)


def rank_log(folder: Path, rank: int | None) -> Path:
    """Where a rank's output goes; None: the trial has no ranks, or it is their leader's."""
    return folder / (LOG_NAME if rank is None else f"rank{rank}.log")


def _timed_out(end: Ending, stopped: Failed) -> Failed:
    """The limit's sentence, where the worker says it is, and the stacks that it left in its log."""
    said = end.verdict if isinstance(end.verdict, GaveUp) else None
    tail = log_tail(rank_log(end.folder, said.rank if said else None), STACK_LINES)
    head = "; ".join(filter(None, [stopped.detail, said.detail if said else ""]))
    return Failed(kind="timeout", detail=f"{head}\n{tail}".strip())


def _gave_up(end: Ending, verdict: GaveUp) -> Failed:
    prefix = "" if verdict.rank is None else f"rank {verdict.rank}: "
    if verdict.kind != "crashed" or (verdict.rank is None and verdict.detail):
        return Failed(kind=verdict.kind, detail=prefix + verdict.detail)
    if verdict.exit_status == -signal.SIGKILL and end.oom_killed:
        return Failed(kind="oom", detail=f"{prefix}{KERNEL_KILLED} it (host memory)")
    status = end.exit_status if verdict.rank is None else verdict.exit_status
    return _crashed(prefix, verdict.detail, status, rank_log(end.folder, verdict.rank))


def _crashed(prefix: str, known: str, status: int | None, log: Path) -> Failed:
    tail = log_tail(log)
    kind: FailureKind = "oom" if _was_ended_for_memory(status, tail) else "crashed"
    return Failed(kind=kind, detail=prefix + _crash(known, status, tail))


def _was_ended_for_memory(status: int | None, tail: str) -> bool:
    """Whether a library's C++ code ended the process without an exception, its last words that memory was short."""
    raised = any(EXCEPTION.match(line) for line in tail.splitlines())  # which the worker has judged
    return status in (1, -signal.SIGABRT) and not raised and says_out_of_memory(tail)


def _crash(known: str, status: int | None, tail: str) -> str:
    """The exception's own line first, then what else is known, how the process ended, the log's last lines."""
    raised = next((line for line in reversed(tail.splitlines()) if EXCEPTION.match(line)), "")
    # What raised an exception ends with status 1: no news.
    ending = "" if raised and status == 1 else _ending(status)
    heads = dict.fromkeys(filter(None, [OUR_MODULES.sub("", raised), known, ending]))
    return f"{'; '.join(heads)}\n{tail}".strip()


def _ending(status: int | None) -> str:
    if status is None:
        return ""
    if status < 0:
        return f"ended by {_signal_name(-status)}, which nothing here sent"
    return f"ended with exit status {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
