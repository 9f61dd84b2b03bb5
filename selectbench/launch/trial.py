"""One trial from launch to its end: its events and its limits."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from selectbench.launch.cgroup import oom_kills
from selectbench.launch.outcome import KERNEL_KILLED, LOG_NAME, Ending, outcome_of
from selectbench.launch.server import ServerDiedError, TrialServer, log_tail
from selectbench.launch.signals import StopRequest
from selectbench.record.record import Completed, Failed
from selectbench.record.wire import EVENTS, ORDERS, Finished, GaveUp, Order, Phase, Progress, Started
from selectbench.suite.suite import Limits

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
