"""The bench's end of the trial servers: starting one, handing it a trial, hearing how the trial ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import selectbench
from selectbench.data.prepared import cache_root
from selectbench.gpu.devices import Gpu
from selectbench.machine import foreign_environment, short_wait

PACKET_BYTES = 1 << 16

SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A server that forks must have one thread; each trial sets its own number after the fork."""


class ServerDiedError(Exception):
    """The server itself ended, and with it the trial."""


class TrialServer:
    """One server process; started at the first trial, and again where it died."""

    def __init__(
        self, modules: Sequence[str], log: Path, python: str | None = None, device: str = "cpu",
        gpus: Sequence[Gpu] = (),
    ) -> None:  # fmt: skip
        """`modules`: imported once, before forking; `log`: the server's output; `python`: None for the bench's.

        `device`: cpu or cuda, what its trials run on; `gpus`: in the order of ranks, none for all that are visible.
        """
        self.device = device
        self.gpus = list(gpus)
        self.modules = list(modules)
        self.log = log
        self.python = python
        self.control: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._code: tempfile.TemporaryDirectory[str] | None = None

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
        if self._code is not None:
            self._code.cleanup()
            self._code = None

    @property
    def is_running(self) -> bool:
        """Whether the next trial finds it started."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it where it isn't running. Returns at once: the imports go on in the server."""
        if self.is_running:
            return
        self.close()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        interpreter = self.python or sys.executable
        arguments = [interpreter, "-P", "-m", "selectbench.worker", "server", str(theirs.fileno()), *self.modules]
        with self.log.open("ab") as output, theirs:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                pass_fds=[theirs.fileno()], env=self._environment(),
            )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        if self.python is None:
            return server_environment(device=self.device, gpus=self.gpus)
        # Another interpreter finds this very code, and nothing else of what is installed beside it.
        self._code = tempfile.TemporaryDirectory(prefix="selectbench-")
        (Path(self._code.name) / "selectbench").symlink_to(Path(selectbench.__file__).parent.resolve())
        return {**server_environment(self.python, self.device, self.gpus), "PYTHONPATH": self._code.name}

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


class TrialServers:
    """A server for each interpreter that trials run in, started when it is first needed."""

    def __init__(
        self, preload: Callable[[str | None], Sequence[str]], folder: Path, device: str, gpus: Sequence[Gpu] = ()
    ) -> None:
        """`preload`: the modules to import in an interpreter; `folder`: where the servers' logs go.

        `gpus`: those of the run, in the order of ranks; none for all that are visible.
        """
        self._device = device
        self._gpus = list(gpus)
        self._preload = preload
        self._folder = folder
        self._servers: dict[str | None, TrialServer] = {}

    def __enter__(self) -> TrialServers:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.close()

    def of(self, python: str | None) -> TrialServer:
        """The interpreter's server; None: the bench's own interpreter."""
        if python not in self._servers:
            number = 1 + len(self._servers.keys() - {None})
            log = self._folder / ("server.log" if python is None else f"server-python{number}.log")
            self._servers[python] = TrialServer(self._preload(python), log, python, self._device, self._gpus)
        return self._servers[python]


def server_environment(python: str | None = None, device: str = "cpu", gpus: Sequence[Gpu] = ()) -> dict[str, str]:
    """The environment of a server and, from there, of the trials.

    `python`: another interpreter; `device`: cpu or cuda, which DeepSpeed would choose for itself; `gpus`: rank i
    is on the i-th, none for all that are visible.
    """
    outer = dict(os.environ) if python is None else foreign_environment(python)
    own = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": device}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    waiting = short_wait(outer, device)
    return {**outer, **SINGLE_THREADED, **own, **offline, **_shown(gpus), **waiting, **_extensions(python)}


def _shown(gpus: Sequence[Gpu]) -> dict[str, str]:
    """By UUID, which means one GPU under every CUDA_DEVICE_ORDER and of a MIG slice too."""
    if not gpus:
        return {}
    # Where this is set, Inductor reads the UUIDs as numbers and crashes; without it a rank measures on its own GPU.
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in gpus), "TORCHINDUCTOR_AUTOTUNE_MULTI_DEVICE": "0"}


def _extensions(python: str | None) -> dict[str, str]:
    """Torch builds C++ extensions into one folder for all torches of a Python version: each needs its own."""
    if python is None:
        return {}
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or str(cache_root() / "torch_extensions")
    return {"TORCH_EXTENSIONS_DIR": str(Path(root) / sha256(python.encode()).hexdigest()[:12])}


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
