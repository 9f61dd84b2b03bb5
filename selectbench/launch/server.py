"""The bench's end of the trial server: starting it, handing it a trial, hearing how the trial ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKET_BYTES = 1 << 16

SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A server that forks must have one thread; each trial sets its own number after the fork."""


class ServerDiedError(Exception):
    """The server itself ended, and with it the trial."""


class TrialServer:
    """One server process; started at the first trial, and again where it died."""

    def __init__(self, modules: Sequence[str], log: Path) -> None:
        """`modules`: imported once, before forking; `log`: the server's own output."""
        self.modules = list(modules)
        self.log = log
        self.control: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TrialServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and everything below it."""
        if self.control is not None:
            self.control.close()
            self.control = None
        if self.process is not None:
            self.process.wait()
            self.process = None

    def start(self) -> None:
        """Start it where it isn't running. Returns at once: the imports go on in the server."""
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [
            sys.executable,
            "-P",
            "-m",
            "selectbench.worker",
            "server",
            str(theirs.fileno()),
            *self.modules,
        ]
        with self.log.open("ab") as output, theirs:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                pass_fds=[theirs.fileno()], env=server_environment(),
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
            raise ServerDiedError(self.obituary()) from None

    def receive(self) -> dict[str, Any]:
        """The next reply; call when the control socket is readable. Raises ServerDiedError."""
        assert self.control is not None
        try:
            packet = self.control.recv(PACKET_BYTES)
        except OSError:
            packet = b""
        if not packet:
            raise ServerDiedError(self.obituary())
        reply: dict[str, Any] = json.loads(packet)
        return reply

    def obituary(self) -> str:
        """Why the server ended, with the last lines of its log."""
        assert self.process is not None
        status = self.process.wait()
        return f"the trial server ended with status {status}\n{log_tail(self.log)}"


def server_environment() -> dict[str, str]:
    """The environment of the server and, from there, of the trials."""
    own = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TOKENIZERS_PARALLELISM": "false"}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **SINGLE_THREADED, **own, **offline}


def log_tail(path: Path, lines: int = 15, most_bytes: int = 8192) -> str:
    """The last lines of a log, the home folder's path left out; '' where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - most_bytes))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.replace(str(Path.home()), "~").splitlines()[-lines:])
