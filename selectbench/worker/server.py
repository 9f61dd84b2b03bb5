"""The process that starts every trial, once all slow imports are done, and outlives none of them.

A forked trial starts in a fraction of a second where importing anew takes five to ten. Forking is safe
only from a process without threads and without a CUDA context: where the imports have left either, the
server starts itself again without them and gives each trial a plain new process.

The server is a subreaper (prctl(2)): whatever a trial leaves behind becomes its child and is killed
before the trial's end is reported. It ends, with everything below it, when the bench closes the socket
or dies; while it still imports, the kernel kills it then.

Requests and replies are one JSON object per packet: {"order", "log"} with the event pipe's descriptor in,
{"ready"}, {"pid"} and {"exit"} out.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

from selectbench import cores

PACKET_BYTES = 1 << 16
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FORK_UNSAFE = "SELECTBENCH_FORK_UNSAFE"
"""Set in the environment of a server that found forking unsafe and started itself again."""


class Server:
    """Starts one trial at a time and reports how it ended."""

    def __init__(self, descriptor: int, modules: list[str]) -> None:
        """`descriptor`: the control socket; `modules`: what to import before forking."""
        self.control = socket.socket(fileno=descriptor)
        self.modules = modules
        self.trial_pid = 0
        self.trial_process: subprocess.Popen[bytes] | None = None
        self.can_fork = FORK_UNSAFE not in os.environ

    def serve(self) -> None:
        """Serve requests until the bench closes the socket or dies."""
        cores.set_process_control(cores.PR_SET_CHILD_SUBREAPER, 1)
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)  # the bench decides when a trial ends
        if select.select([self.control], [], [], 0)[0] and not self.control.recv(1, socket.MSG_PEEK):
            return  # the bench died before the kernel was asked to tell of it
        if self.can_fork:
            self._import_modules()
        self._reply({"ready": True, "forks": self.can_fork})
        cores.set_process_control(cores.PR_SET_PDEATHSIG, 0)  # it now sees the socket's end, and ends what it began
        self._loop()
        cores.kill_descendants()

    def _import_modules(self) -> None:
        for position, module in enumerate(self.modules):
            # The first is the worker itself; the rest are tried in a child, since one that starts a thread
            # or opens the GPU would spoil forking for every trial.
            if position == 0 or imports_cleanly(module):
                importlib.import_module(module)
        if not cores.is_fork_safe():
            os.environ[FORK_UNSAFE] = "1"
            os.set_inheritable(self.control.fileno(), True)
            arguments = [sys.executable, "-P", "-m", "selectbench.worker", "server", str(self.control.fileno())]
            os.execv(sys.executable, [*arguments, *self.modules])
        gc.collect()
        gc.freeze()  # pages of long-lived objects then stay shared with the children

    def _loop(self) -> None:
        """Start trials as requested and report how they ended, until the bench closes the socket."""
        wakeup_reader, wakeup_writer = os.pipe()
        os.set_blocking(wakeup_writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ)
            selector.register(wakeup_reader, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if wakeup_reader in ready:
                    os.read(wakeup_reader, 4096)
                    self._report_ended_trial()
                if self.control.fileno() in ready and not self._take_request():
                    return

    def _take_request(self) -> bool:
        """Start the trial that is requested; False: the bench has closed the socket."""
        packet, descriptors, _, _ = socket.recv_fds(self.control, PACKET_BYTES, 1)
        if not packet:
            return False
        request = json.loads(packet)
        start = self._fork if self.can_fork else self._spawn
        self.trial_pid = start(request["order"], request["log"], descriptors[0])
        os.close(descriptors[0])
        self._reply({"pid": self.trial_pid})
        return True

    def _fork(self, order: str, log: str, events: int) -> int:
        """Run the trial in a child, whose pid is returned; in the child this does not return."""
        server = os.getpid()
        if pid := os.fork():
            return pid
        status = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            cores.redirect(log)
            run_order(order, events, server)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # neither the server's exit handlers nor its buffers are the trial's

    def _spawn(self, order: str, log: str, events: int) -> int:
        """Run the trial in a new process, whose pid is returned."""
        role = ["trial", str(os.getpid()), str(events), order]
        arguments = [sys.executable, "-P", "-m", "selectbench.worker", *role]
        with Path(log).open("ab") as output:
            self.trial_process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                pass_fds=[events],
            )  # fmt: skip
        return self.trial_process.pid

    def _report_ended_trial(self) -> None:
        """Reap children that have ended; where the trial is among them, kill what it left and report its status."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.trial_pid:
                self.trial_pid = 0
                cores.kill_descendants()
                self._reply({"exit": os.waitstatus_to_exitcode(status)})

    def _reply(self, message: dict[str, object]) -> None:
        # Where the bench is gone the loop sees the closed socket next.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.control.send(json.dumps(message).encode())


def imports_cleanly(module: str) -> bool:
    """Whether importing it in a child succeeds and leaves that child safe to fork."""
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        is_clean = False
        try:
            cores.die_with_parent(server)
            importlib.import_module(module)
            is_clean = cores.is_fork_safe()
        finally:
            os._exit(0 if is_clean else 1)
    _, status = os.waitpid(pid, 0)
    return status == 0


def run_order(order: str, events: int, server: int) -> None:
    """Run the trial of an order file in this process; events go to the pipe, one JSON object a line.

    The process dies with the server, whose pid that is.
    """
    cores.die_with_parent(server)
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)  # forked or new, the process has inherited that they are ignored
    from selectbench.record.wire import EVENTS, ORDERS, Event, Order

    parsed = ORDERS.read(Path(order).read_bytes())
    with os.fdopen(events, "w", buffering=1, encoding="utf-8") as stream:

        def emit(event: Event) -> None:
            print(EVENTS.write(event).decode(), file=stream, flush=True)

        if isinstance(parsed, Order):
            from selectbench.worker.trial import run_trial

            os.environ["OMP_NUM_THREADS"] = str(parsed.threads)  # of processes that the trial starts itself
            run_trial(parsed, emit)
        else:
            from selectbench.worker.command import run_command

            run_command(parsed, emit)
