"""One trial from launch to its end: signals, events, limits, and what its end means."""

from __future__ import annotations

import contextlib
import os
import re
import select
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import msgspec

from selectbench.errors import says_out_of_memory
from selectbench.launch.server import ServerDiedError, TrialServer, log_tail
from selectbench.record.record import Completed, Failed, FailureKind
from selectbench.record.wire import EVENTS, ORDERS, Finished, GaveUp, Order, Phase, Progress, Started
from selectbench.suite.suite import Limits

# Ctrl-C, SIGTERM and SIGHUP end the trial at hand, not the record of it.


class StopRequest:
    """Set by the first signal; the second ends the process at once.

    `descriptor` becomes readable when a signal arrives, so that a loop that waits on files wakes up.
    Nothing is lost at the second one: records are flushed one by one, and the trial server kills its
    trial when this process is gone.

    What the process was started to ignore stays ignored, as SIGINT is in a script's background and SIGHUP under
    nohup: a Ctrl-C, or a terminal that closes, is then not meant for it. SIGTERM always stops it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.descriptor, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def __bool__(self) -> bool:
        return self.signal is not None

    def wait(self, seconds: float) -> None:
        """Returns after so long, or as soon as a signal arrives; a later wait on `descriptor` still sees it."""
        select.select([self.descriptor], [], [], 0.0 if self else seconds)

    def __enter__(self) -> StopRequest:
        stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [n for n in stopping if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in heard}
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._writing)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(130)
        self.signal = signal.Signals(number)


# Whether the kernel's out-of-memory killer struck in this process's memory cgroup.


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


# What a trial's end means: from its last word, its exit status and its logs to an outcome.


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


# One trial from launch to its end: its events and its limits.


ORDER_NAME = "order.json"
TERM_GRACE_SECONDS = 3.0
"""What a trial over its time is given to say where it is, before it is killed."""

Listener = Callable[[Phase | Progress | None], None]
"""Hears a trial's events, and None at least once a second."""


@dataclass
class TrialEnd:
    """What the record of a trial is made from."""

    outcome: Completed | Failed
    wall_seconds: float
    finished: Finished | None
    software: dict[str, str | None]
    """Versions that the worker ran with; empty where it never started."""
    server_start_seconds: float = 0.0
    """Of the wall, the wait for a server that had to be started first."""

    @property
    def completed(self) -> Finished | None:
        """The worker's result, where it counts."""
        return self.finished if isinstance(self.outcome, Completed) else None


@dataclass
class Watch:
    """What is known of a running trial."""

    started: float
    last_sign: float
    starts_server: bool = False
    pid: int | None = None
    server_start_seconds: float = 0.0
    exit_status: int | None = None
    verdict: Finished | GaveUp | None = None
    stopped: Failed | None = None
    """Why the bench itself ended the trial."""
    grace_ends: float | None = None
    """When a trial that was asked where it is will be killed; None: it was not asked."""
    killed: bool = False
    software: dict[str, str | None] = field(default_factory=dict)
    buffer: bytes = b""
    oom_kills_before: int | None = field(default_factory=oom_kills)


class TrialRunner:
    """Runs trials one after the other through a server."""

    def __init__(self, server: TrialServer, limits: Limits, stop: StopRequest, listener: Listener) -> None:
        self.server = server
        self.limits = limits
        self.stop = stop
        self.listener = listener

    def run(self, order: Order) -> TrialEnd:
        """Launch the trial and wait for its end; whatever it does, there is an outcome."""
        folder = Path(order.trial_folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ORDER_NAME).write_bytes(msgspec.json.format(ORDERS.write(order), indent=1))
        log = folder / LOG_NAME
        now = time.monotonic()
        watch = Watch(started=now, last_sign=now)
        events, their_end = os.pipe()
        try:
            self._run(watch, order, log, events, their_end)
        except ServerDiedError as error:
            watch.stopped = self._server_died(watch, str(error), log)
        finally:
            os.close(events)
        ending = Ending(folder, watch.exit_status, watch.verdict, watch.stopped, self._oom_killed(watch))
        return TrialEnd(
            outcome=outcome_of(ending),
            wall_seconds=time.monotonic() - watch.started,
            finished=watch.verdict if isinstance(watch.verdict, Finished) else None,
            software=watch.software,
            server_start_seconds=watch.server_start_seconds,
        )

    def _run(self, watch: Watch, order: Order, log: Path, events: int, their_end: int) -> None:
        watch.starts_server = not self.server.is_running
        try:
            self.server.submit(Path(order.trial_folder) / ORDER_NAME, log, their_end)
        finally:
            os.close(their_end)
        assert self.server.control is not None
        with selectors.DefaultSelector() as selector:
            for source in (self.server.control, events, self.stop.descriptor):
                selector.register(source, selectors.EVENT_READ)
            while watch.exit_status is None:
                ready = {key.fd for key, _ in selector.select(self._patience(watch))}
                self._handle(ready, watch, events, selector)
                self._enforce(watch)
                self.listener(None)
            self._drain(watch, events)

    def _handle(self, ready: set[int], watch: Watch, events: int, selector: selectors.BaseSelector) -> None:
        assert self.server.control is not None
        if self.stop.descriptor in ready:
            os.read(self.stop.descriptor, 4096)
        if events in ready and not self._read_events(watch, events):
            selector.unregister(events)
        if self.server.control.fileno() in ready:
            reply = self.server.receive()
            if watch.pid is None and "pid" in reply and watch.starts_server:
                watch.server_start_seconds = time.monotonic() - watch.started
            watch.pid = reply.get("pid", watch.pid)
            watch.exit_status = reply.get("exit")
            if "ready" in reply:
                watch.last_sign = time.monotonic()

    def _read_events(self, watch: Watch, events: int) -> bool:
        chunk = os.read(events, 1 << 16)
        *lines, watch.buffer = (watch.buffer + chunk).split(b"\n")
        for line in lines:
            self._take_event(watch, line)
        return bool(chunk)

    def _drain(self, watch: Watch, events: int) -> None:
        # Every process that held the writing end is dead by now, so this ends.
        while self._read_events(watch, events):
            pass

    def _take_event(self, watch: Watch, line: bytes) -> None:
        try:
            event = EVENTS.read(line)
        except ValueError as error:
            detail = f"the worker sent an event that does not fit: {error}"
            watch.verdict = GaveUp(kind="crashed", detail=detail)
            return
        watch.last_sign = time.monotonic()
        if isinstance(event, Finished | GaveUp):
            watch.verdict = event
        elif isinstance(event, Started):
            watch.software = event.software
        else:
            self.listener(event)

    def _patience(self, watch: Watch) -> float:
        if watch.killed:
            return 1.0
        until = self._deadline(watch)[0] if watch.grace_ends is None else watch.grace_ends
        return max(0.0, min(1.0, until - time.monotonic()))

    def _deadline(self, watch: Watch) -> tuple[float, str]:
        stall = self.limits.stall_seconds
        deadlines = [(watch.last_sign + stall, f"no sign of life for {stall:g} s (limits.stall_seconds)")]
        if (whole := self.limits.trial_seconds) is not None:
            deadlines.append((watch.started + whole, f"not done after {whole:g} s (limits.trial_seconds)"))
        return min(deadlines)

    def _enforce(self, watch: Watch) -> None:
        """End a trial whose time is up or whose run was asked to stop; the server reports its exit."""
        if watch.exit_status is not None:
            return
        now = time.monotonic()
        deadline, why = self._deadline(watch)
        if self.stop:
            assert self.stop.signal is not None
            interrupted = Failed(kind="interrupted", detail=f"{self.stop.signal.name} to selectbench")
            watch.stopped = watch.stopped or interrupted
            self._kill(watch)
        elif watch.grace_ends is not None:
            if now >= watch.grace_ends:
                self._kill(watch)
        elif now >= deadline:  # also one that has said its last word and does not end
            if not isinstance(watch.verdict, GaveUp):  # that is the reason then
                watch.stopped = Failed(kind="timeout", detail=why)
            self._ask(watch)

    def _ask(self, watch: Watch) -> None:
        """Have the trial say where it is: a leader answers with an event, others with stacks in their log."""
        if watch.pid is None:
            self._kill(watch)
            return
        watch.grace_ends = time.monotonic() + TERM_GRACE_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.kill(watch.pid, signal.SIGTERM)

    def _kill(self, watch: Watch) -> None:
        if watch.pid is None:  # still importing: the server itself is ended, and with it whatever it starts
            self.server.kill()
            raise ServerDiedError("ended while it was starting")
        watch.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(watch.pid, signal.SIGKILL)

    def _server_died(self, watch: Watch, why: str, log: Path) -> Failed:
        self.server.kill()
        if watch.pid is not None:  # what the trial started lives on in its process group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(watch.pid, signal.SIGKILL)
        if watch.stopped is not None:
            return watch.stopped
        if self._oom_killed(watch):
            return Failed(kind="oom", detail=f"{KERNEL_KILLED} the trial server; {why}")
        return Failed(kind="crashed", detail=f"{why}\n{log_tail(log)}".strip())

    @staticmethod
    def _oom_killed(watch: Watch) -> bool:
        now = oom_kills()
        return now is not None and watch.oom_kills_before is not None and now > watch.oom_kills_before
