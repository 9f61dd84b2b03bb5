"""One trial from launch to its end: the server that starts it, signals, events, limits, and what its end means."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

import msgspec

import selectbench
from selectbench.data.prepared import cache_root
from selectbench.errors import says_out_of_memory
from selectbench.gpu.devices import Gpu
from selectbench.machine import CGROUP_MEMBERSHIP, CGROUP_ROOT, cgroup_folders, interpreter_environment, short_wait
from selectbench.record.record import Completed, Failed
from selectbench.record.run_folder import writing
from selectbench.record.wire import (
    EVENTS,
    LOG_NAME,
    ORDERS,
    CommandOrder,
    Evaluating,
    Finished,
    GaveUp,
    Listening,
    Order,
    Phase,
    Progress,
    Started,
)
from selectbench.suite.suite import Limits

# The bench's side of the trial servers: it starts one, hands it a trial, and learns from it how the trial ended.


PACKET_BYTES = 1 << 16
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A server that forks must have one thread; each trial sets its own number after the fork."""
END_SECONDS = 10.0
"""A server that takes longer to end, or to report the end of a trial that was killed, is killed itself."""


class ServerDiedError(Exception):
    """The server process has ended, and with it the trial that it ran."""


@dataclass(eq=False)
class TrialServer:
    """One server process; started at the first trial, and again where it died."""

    modules: Sequence[str]
    """Modules that the server imports once, before it forks trials."""
    log: Path
    """File of the server's output."""
    python: str | None = None
    """The interpreter that it runs in; None: the bench's."""
    environment: Callable[[str | None], dict[str, str]] = field(default_factory=lambda: server_environment)
    """Returns the environment of a server, and so of its trials, that runs in this interpreter."""
    control: socket.socket | None = field(default=None, init=False)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _code_folder: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)

    def close(self) -> None:
        """End the server and everything below it; one that is stopped, or hangs, is killed."""
        if self.control is not None:
            self.control.close()
            self.control = None
        if self.process is not None:
            self._exit_status()
            self.process = None
        if self._code_folder is not None:
            self._code_folder.cleanup()
            self._code_folder = None

    @property
    def is_running(self) -> bool:
        """Whether the next trial finds it started."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process unless it is running. Returns at once: the imports go on in the server."""
        if self.is_running:
            return
        self.close()
        self.control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [self.python or sys.executable, "-P", "-m", "selectbench.worker", "server"]
        arguments = [*command, str(server_end.fileno()), *self.modules]
        environment = self.environment(self.python)
        if self.python is not None:
            self._code_folder = linked_code()
            environment["PYTHONPATH"] = self._code_folder.name
        with writing(self.log):
            log = self.log.open("ab")
        with log as output, server_end:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                pass_fds=[server_end.fileno()], env=environment,
            )  # fmt: skip

    def kill(self) -> None:
        """End the server at once; its trial dies with it."""
        if self.process is not None:
            self.process.kill()
        self.close()

    def submit(self, order: Path, log: Path, events: int) -> None:
        """Have a trial started; `events` is the writing end of its event pipe. Raises ServerDiedError."""
        self.start()
        assert self.control is not None
        request = json.dumps({"order": str(order), "log": str(log)}).encode()
        try:
            socket.send_fds(self.control, [request], [events])
        except OSError:
            raise ServerDiedError(self._obituary()) from None

    def receive(self) -> dict[str, Any]:
        """The next reply; call when the control socket is readable. Raises ServerDiedError."""
        assert self.control is not None
        try:
            packet = self.control.recv(PACKET_BYTES)
        except OSError:
            packet = b""
        if not packet:
            raise ServerDiedError(self._obituary())
        reply: dict[str, Any] = json.loads(packet)
        return reply

    def wait_for_reply(self, seconds: float) -> dict[str, Any]:
        """The next reply; {}: none came in time. Raises ServerDiedError."""
        assert self.control is not None
        return self.receive() if select.select([self.control], [], [], seconds)[0] else {}

    def _obituary(self) -> str:
        """Why the server ended, with the last lines of its log."""
        return f"the trial server ended with status {self._exit_status()}\n{log_tail(self.log)}"

    def _exit_status(self) -> int | None:
        """Of its process, which is killed where it takes too long; None: a driver keeps it alive even then."""
        assert self.process is not None
        for _ in range(2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(END_SECONDS)
            self.process.kill()
        return None


@dataclass(eq=False)
class TrialServers:
    """A server for each interpreter that trials run in, started when it is first needed."""

    preload: Callable[[str | None], Sequence[str]]
    """Returns the modules that an interpreter's server imports."""
    folder: Path
    """Folder of the servers' logs."""
    environment: Callable[[str | None], dict[str, str]]
    """Returns the environment of an interpreter's server."""
    mark: str = ""
    """What ends the names of their logs, such as `-lane2`."""
    _servers: dict[str | None, TrialServer] = field(default_factory=dict, init=False)

    def __enter__(self) -> TrialServers:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.close()

    def of(self, python: str | None) -> TrialServer:
        """The interpreter's server; None: the bench's own interpreter."""
        if python not in self._servers:
            number = 1 + len(self._servers.keys() - {None})
            log = self.folder / f"server{'' if python is None else f'-python{number}'}{self.mark}.log"
            self._servers[python] = TrialServer(self.preload(python), log, python, self.environment)
        return self._servers[python]


def linked_code() -> tempfile.TemporaryDirectory[str]:
    """A folder in which another interpreter finds this code, and nothing else that is installed with it."""
    folder = tempfile.TemporaryDirectory(prefix="selectbench-")
    (Path(folder.name) / "selectbench").symlink_to(Path(selectbench.__file__).parent.resolve())
    return folder


def server_environment(
    python: str | None = None, device: str = "cpu", gpus: Sequence[Gpu] = (), *, keeps_environment: bool = False
) -> dict[str, str]:
    """The environment of a server and, from there, of the trials.

    `python`: another interpreter; `device`: cpu or cuda, which DeepSpeed would choose for itself; `gpus`: rank i
    is on the i-th, empty: all that are visible; `keeps_environment`: only the visible GPUs are set.
    """
    if keeps_environment:
        return {**os.environ, **_visible(gpus)}
    outer = dict(os.environ) if python is None else interpreter_environment(python)
    environment = {
        **outer, **SINGLE_THREADED, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": device, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
        **short_wait(outer, device), **_visible(gpus),
    }  # fmt: skip
    if python is not None:  # torch builds C++ extensions into one folder for all torches of a Python version
        root = os.environ.get("TORCH_EXTENSIONS_DIR") or str(cache_root() / "torch_extensions")
        environment["TORCH_EXTENSIONS_DIR"] = str(Path(root) / sha256(python.encode()).hexdigest()[:12])
    return environment


def _visible(gpus: Sequence[Gpu]) -> dict[str, str]:
    if not gpus:
        return {}
    # By UUID, which means one GPU under every CUDA_DEVICE_ORDER and of a MIG slice too. Otherwise Inductor reads
    # the UUIDs as numbers and crashes; so a rank measures on its own GPU.
    uuids = ",".join(gpu.uuid for gpu in gpus)
    return {"CUDA_VISIBLE_DEVICES": uuids, "TORCHINDUCTOR_AUTOTUNE_MULTI_DEVICE": "0"}


def log_tail(path: Path, lines: int = 15, most: int = 1000) -> str:
    """The last lines of a log, each cut to `most` characters, without the home folder's path; '': there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - (1 << 18)))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    last = text.replace(str(Path.home()), "~").splitlines()[-lines:]
    return "\n".join(line if len(line) <= most else f"{line[:most]}..." for line in last)


# Ctrl-C, SIGTERM and SIGHUP end the trials that run; their records are still written.


class Stop:
    """A request that the running trials end, which anybody may make by `ask`; true once it was made.

    `descriptor` is readable from then on, so that every loop that waits on files wakes up.
    """

    def __init__(self) -> None:
        self.why: str | None = None
        """The reason, as the failure of the trials states it."""
        self.descriptor, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def __bool__(self) -> bool:
        return self.why is not None

    def ask(self, why: str) -> None:
        """Have the trials end; only the first reason counts."""
        if self.why is None:
            self.why = why
            with contextlib.suppress(BlockingIOError):
                os.write(self._writing, b"\0")

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the request is made."""
        select.select([self.descriptor], [], [], 0.0 if self else seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        os.close(self._writing)


class StopRequest(Stop):
    """A stop that the process's first signal requests; the second signal ends the process at once.

    Nothing is lost at the second one: records are flushed one by one, and the trial server kills its
    trial when this process is gone.

    What the process was started to ignore stays ignored, as SIGINT is in a script's background and SIGHUP under
    nohup: a Ctrl-C, or a terminal that closes, is then not meant for it. SIGTERM always stops it.
    """

    _was_signalled = False

    def __enter__(self) -> Self:
        stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handled = [n for n in stopping if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
        self._handlers_before = {number: signal.signal(number, self._handle) for number in handled}
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        super().__exit__()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._was_signalled:
            os._exit(130)
        self._was_signalled = True
        self.ask(f"{signal.Signals(number).name} to selectbench")


# What a trial's end means: from its last word, its exit status and its logs to an outcome.


OUR_MODULES = re.compile(r"^selectbench\.(\w+\.)+")
"""The module before the name of one of our own exceptions; of no use to a reader."""
EXCEPTION = re.compile(r"(\[rank\d+\]: *)?[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning)\b")
"""How the last line of a traceback begins."""
LAUNCHER_REPORT = "(first observed failure)"
"""Stands in the report with which a launcher ends the log; what its ranks printed is before that."""
COMMAND_LINES = 400
"""Last lines of a command's log that may say that memory was short."""
STACK_LINES = 40
"""Last lines of the log of a trial that was asked where it is: they hold its stacks."""
KERNEL_KILLED = "the kernel's out-of-memory killer ended"


def oom_kills(membership: Path = CGROUP_MEMBERSHIP, root: Path = CGROUP_ROOT) -> int | None:
    """How often the kernel's out-of-memory killer struck in this process's memory cgroup; None: unknown.

    Source: the kernel's admin-guide, cgroup-v2 (`memory.events`) and cgroup-v1/memory (`memory.oom_control`).
    """
    files = [folder / "memory.events" for folder in cgroup_folders("", root, membership)]
    files += [folder / "memory.oom_control" for folder in cgroup_folders("memory", root, membership)]
    for file in files:
        try:
            counts = dict(line.split() for line in file.read_text().splitlines() if len(line.split()) == 2)
            return int(counts["oom_kill"])
        except (OSError, KeyError, ValueError):
            continue
    return None


@dataclass(frozen=True)
class Ending:
    """What is known of a trial that is over."""

    folder: Path
    """The trial's folder, with its logs."""
    exit_status: int | None
    """The exit status of the trial's process, negative for a signal; None: its server died first."""
    last_word: Finished | GaveUp | None
    """The last event of the worker; None: it ended without one."""
    stopped: Failed | None
    """Why the bench ended the trial; None: it did not."""
    oom_killed: bool
    """Whether the kernel's out-of-memory killer struck meanwhile."""
    node: int | None = None
    """The node that it ran on; None: a trial of one node."""


def outcome_of(end: Ending) -> Completed | Failed:
    """The outcome of a trial that ended like this."""
    if isinstance(end.last_word, Finished) and end.exit_status == 0:
        return Completed(measurement=end.last_word.measurement)
    if end.stopped is not None and end.stopped.kind != "timeout":
        return end.stopped
    gave_up = end.last_word if isinstance(end.last_word, GaveUp) else None
    rank, reason = (gave_up.rank, gave_up.detail) if gave_up else (None, "")
    log = end.folder / (LOG_NAME if rank is None else f"rank{rank}.log")
    if end.stopped is not None:  # the limit, where the worker says it is, and the stacks that it left in its log
        head = "; ".join(filter(None, [end.stopped.detail, reason]))
        return msgspec.structs.replace(end.stopped, detail=f"{head}\n{log_tail(log, STACK_LINES)}".strip())
    names = [f"rank {rank}"] * (rank is not None) + [f"node {end.node}"] * (end.node is not None)
    prefix = f"{' on '.join(names)}: " if names else ""
    if gave_up and (gave_up.kind != "crashed" or (rank is None and reason and gave_up.exit_status is None)):
        return Failed(kind=gave_up.kind, detail=prefix + reason)
    has_status = gave_up is not None and (rank is not None or gave_up.exit_status is not None)
    status = gave_up.exit_status if gave_up and has_status else end.exit_status
    if status == -signal.SIGKILL and end.oom_killed:
        victim = "the trial" if rank is None else "it"
        return Failed(kind="oom", detail=f"{prefix}{KERNEL_KILLED} {victim} (host memory)")
    return _crash(prefix, reason, status, log)


def _crash(prefix: str, reason: str, status: int | None, log: Path) -> Failed:
    """The failure: the exception's line first, then the worker's reason, the exit status, the log's last lines."""
    tail = log_tail(log)
    lines = (log_tail(log, COMMAND_LINES) if LAUNCHER_REPORT in tail else tail).splitlines()
    exceptions = [line for line in lines if EXCEPTION.match(line) and "ChildFailedError" not in line]
    raised = exceptions[-1] if exceptions else ""
    # A library's C++ code may end the process with the last words that memory is short. Where an exception was
    # raised, the worker has judged it, and that the process ended with status 1 is no news.
    lacks_memory = status in (1, -signal.SIGABRT) and not raised and says_out_of_memory(tail)
    is_command = reason.startswith("the command ")
    if is_command:  # its launcher may write much after the rank that says it
        lacks_memory = says_out_of_memory(log_tail(log, COMMAND_LINES))
    words = [line.strip() for line in tail.splitlines() if re.search("[A-Za-z]", line)]
    last = words[-1] if is_command and words and not raised else ""
    status_words = "" if is_command or (raised and status == 1) else _status_words(status)
    heads = dict.fromkeys(filter(None, [OUR_MODULES.sub("", raised) or last, reason, status_words]))
    detail = prefix + f"{'; '.join(heads)}\n{tail}".strip()
    return Failed(kind="oom" if lacks_memory else "crashed", detail=detail)


def _status_words(status: int | None) -> str:
    if status is None:
        return ""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-status}"
    return f"ended by {name}, which selectbench did not send"


# One trial from launch to its end: its events and its limits.


ORDER_NAME = "order.json"
TERM_GRACE_SECONDS = 3.0
"""Time for a trial over its limit to say where it is, before it is killed."""
Listener = Callable[[Phase | Progress | Evaluating | None], None]
"""Is called with each event of a trial, and with None at least once a second."""


class PeerNodes:
    """The other nodes of a trial, as the runner of this node's ranks sees them; this class: there are none.

    The runner calls these methods while its trial runs. `launch.nodes` extends the class: by `Team` for the bench,
    whose peers are the agents, and by `Agent` for a node whose peer is the bench.
    """

    node: int | None = None
    """The number of this node; None: there are no others."""

    def sources(self) -> Sequence[Any]:
        """The connections to select on."""
        return ()

    def hear(self, source: Any) -> None:
        """Take what has come over a connection, which is readable."""

    def invite_ranks(self, port: int) -> None:
        """Have the ranks of the other nodes begin, as the first rank listens at this port now."""

    def ask_whereabouts(self) -> None:
        """Have the ranks of the other nodes say where they are, as those of this node were asked: time is up."""

    def requested_end(self) -> Literal["ask", "kill"] | None:
        """What the other nodes need done to the ranks here: `ask` where they are, then kill, or `kill` at once."""
        return None

    def wait_for_end(
        self, outcome: Completed | Failed, last_word: GaveUp | None, *, killed: bool
    ) -> Completed | Failed:
        """The trial's outcome, once all nodes have ended; the other arguments tell how it ended on this one."""
        del last_word, killed
        return outcome


NO_PEERS = PeerNodes()


@dataclass
class TrialEnd:
    """What the record of a trial is made from."""

    outcome: Completed | Failed
    wall_seconds: float
    finished: Finished | None
    """The worker's result; None where the trial failed."""
    software: dict[str, str | None]
    """Versions that the worker ran with; empty where it never started."""
    server_start_seconds: float = 0.0
    """The part of `wall_seconds` in which the server was started."""


class TrialRunner:
    """Launches one trial through a server, takes its events and enforces its limits."""

    def __init__(
        self, server: TrialServer, limits: Limits, stop: Stop, listener: Listener, peers: PeerNodes = NO_PEERS
    ) -> None:
        self.server = server
        self.limits = limits
        self.stop = stop
        self.listener = listener
        self.peers = peers
        self._pid: int | None = None
        self._exit_status: int | None = None
        self._last_word: Finished | GaveUp | None = None
        self._stopped: Failed | None = None
        """Why the bench ended the trial; None: it did not."""
        self._grace_ends: float | None = None
        """When a trial that was asked where it is will be killed; None: it was not asked."""
        self._kill_ends: float | None = None
        """When the server must have reported the end of the trial that was killed; None: it was not killed."""
        self._software: dict[str, str | None] = {}
        self._server_start_seconds = 0.0
        self._unread = b""
        """The beginning of an event whose end has not come yet."""

    def run(self, order: Order | CommandOrder) -> TrialEnd:
        """Launch the trial and wait for its end; whatever it does, there is an outcome."""
        folder = Path(order.trial_folder)
        with writing(folder):
            folder.mkdir(exist_ok=True)
            (folder / ORDER_NAME).write_bytes(msgspec.json.format(ORDERS.write(order), indent=1))
        self._oom_kills_before = oom_kills()
        self._started = self._last_sign = time.monotonic()
        starts_server = not self.server.is_running
        events, writing_end = os.pipe()
        try:
            with os.fdopen(writing_end, "wb"):  # closed once the server has it, so that the trial's is the last
                self.server.submit(folder / ORDER_NAME, folder / LOG_NAME, writing_end)
            self._watch(events, starts_server=starts_server)
        except ServerDiedError as error:
            self._stopped = self._server_died(str(error), folder / LOG_NAME)
        finally:
            os.close(events)
        ending = Ending(
            folder, self._exit_status, self._last_word, self._stopped, self._was_oom_killed(), self.peers.node
        )  # fmt: skip
        killed = self._stopped is not None and self._stopped.kind == "interrupted"
        outcome = self.peers.wait_for_end(outcome_of(ending), self.gave_up, killed=killed)
        finished = self._last_word if isinstance(self._last_word, Finished) else None
        return TrialEnd(
            outcome=outcome, wall_seconds=time.monotonic() - self._started,
            finished=finished if isinstance(outcome, Completed) else None,
            software=self._software, server_start_seconds=self._server_start_seconds,
        )  # fmt: skip

    @property
    def gave_up(self) -> GaveUp | None:
        """The trial's last event, where that says why it failed."""
        return self._last_word if isinstance(self._last_word, GaveUp) else None

    @property
    def did_its_part(self) -> bool:
        """Whether the ranks of another node than the first ended well: they have no results to tell."""
        return self._exit_status == 0 and self._last_word is None and self._stopped is None

    def _watch(self, events: int, *, starts_server: bool) -> None:
        """Take events and enforce limits until the server reports the trial's end. Raises ServerDiedError."""
        control = self.server.control
        assert control is not None
        with selectors.DefaultSelector() as selector:
            for source in (control, events, self.stop.descriptor, *self.peers.sources()):
                selector.register(source, selectors.EVENT_READ)
            while self._exit_status is None:
                until = self._grace_ends or self._deadline()[0]
                patience = 1.0 if self._kill_ends else max(0.0, min(1.0, until - time.monotonic()))
                ready = {key.fd for key, _ in selector.select(patience)}
                if self.stop.descriptor in ready:  # it stays readable, as others wait for it too
                    selector.unregister(self.stop.descriptor)
                if events in ready and not self._read_events(events):
                    selector.unregister(events)
                for source in [source for source in self.peers.sources() if source.fileno() in ready]:
                    self.peers.hear(source)
                if control.fileno() in ready:
                    reply = self.server.receive()
                    if self._pid is None and "pid" in reply and starts_server:
                        self._server_start_seconds = time.monotonic() - self._started
                    self._pid = reply.get("pid", self._pid)
                    self._exit_status = reply.get("exit")
                    if "ready" in reply:
                        self._last_sign = time.monotonic()
                self._enforce()
                self.listener(None)
        # Every process that held the writing end is dead by now, so this ends.
        while self._read_events(events):
            pass

    def _read_events(self, events: int) -> bool:
        """Take the events that have come; False where nobody holds the writing end any more."""
        chunk = os.read(events, 1 << 16)
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            try:
                event = EVENTS.read(line)
            except ValueError as error:
                detail = f"the worker sent an event that does not fit: {error}"
                self._last_word = GaveUp(kind="crashed", detail=detail)
                continue
            self._last_sign = time.monotonic()
            if isinstance(event, Finished | GaveUp):
                self._last_word = event
            elif isinstance(event, Started):
                self._software = event.software
            elif isinstance(event, Listening):
                self.peers.invite_ranks(event.port)
            else:
                self.listener(event)
        return bool(chunk)

    def _deadline(self) -> tuple[float, str]:
        """When the trial's time is up, by the monotonic clock, and by which limit."""
        stall = self.limits.stall_seconds
        deadlines = [(self._last_sign + stall, f"no sign of life for {stall:g} s (limits.stall_seconds)")]
        if (whole := self.limits.trial_seconds) is not None:
            deadlines.append((self._started + whole, f"not done after {whole:g} s (limits.trial_seconds)"))
        return min(deadlines)

    def _enforce(self) -> None:
        """End a trial whose time is up or whose run was asked to stop; the server reports its exit.

        Raises ServerDiedError for a server that does not report it: the server is stopped, or hangs in the kernel.
        """
        if self._exit_status is not None:
            return
        now = time.monotonic()
        if self._kill_ends is not None and now >= self._kill_ends:
            raise ServerDiedError(f"the trial server did not report its trial's end for {END_SECONDS:g} s")
        (deadline, why), requested_end = self._deadline(), self.peers.requested_end()
        if self.stop:
            self._stopped = self._stopped or Failed(kind="interrupted", detail=str(self.stop.why))
            self._kill()
        elif requested_end == "kill":
            self._stopped = self._stopped or Failed(kind="interrupted", detail="it has failed on another node")
            self._kill()
        elif requested_end == "ask" and self._grace_ends is None:
            self._stopped = Failed(kind="timeout", detail="")
            self._ask_whereabouts()
        elif self._grace_ends is not None:
            if now >= self._grace_ends:
                self._kill()
        elif now >= deadline:  # also where the trial has said its last word and does not end
            if not isinstance(self._last_word, GaveUp):  # whose reason counts then
                self._stopped = Failed(kind="timeout", detail=why)
            self._ask_whereabouts()
            self.peers.ask_whereabouts()

    def _ask_whereabouts(self) -> None:
        """Have the trial say where it is: the first process does in an event, ranks by stacks in their logs."""
        if self._pid is None:
            self._kill()
            return
        self._grace_ends = time.monotonic() + TERM_GRACE_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)

    def _kill(self) -> None:
        if self._pid is None:  # still importing: the server itself is ended, and with it whatever it starts
            self.server.kill()
            raise ServerDiedError("ended while it was starting")
        self._kill_ends = self._kill_ends or time.monotonic() + END_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def _server_died(self, why: str, log: Path) -> Failed | None:
        """Why the trial ended with its server; None: the trial's last word says it."""
        self.server.kill()
        if self._pid is not None:  # what the trial started lives on in its process group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
        if self._stopped is not None or self._kill_ends is not None:
            return self._stopped
        if self._was_oom_killed():
            return Failed(kind="oom", detail=f"{KERNEL_KILLED} the trial server; {why}")
        return Failed(kind="crashed", detail=f"{why}\n{log_tail(log)}".strip())

    def _was_oom_killed(self) -> bool:
        now = oom_kills()
        return now is not None and self._oom_kills_before is not None and now > self._oom_kills_before
