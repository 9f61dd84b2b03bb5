"""Processes forked where what takes long to import has been imported: the same program, some seconds earlier.

This file is both: `run` is called by tests; as a program it imports the modules that its command line names and
forks a process for each line of JSON on its standard input, whose exit status is its answer.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import processes

SCRIPTS = ("torch._dynamo", "transformers.models.gpt2.modeling_gpt2")
"""What a training script imports; the first optimizer asks for torch._dynamo."""
BENCH = ("selectbench.cli", "selectbench.launch.publish", "selectbench.launch.preparation", "scipy.stats")
"""What `python -m selectbench` imports for most of its commands."""


def run(
    imported: tuple[str, ...], command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """As `python COMMAND`, where `command` begins with `-m MODULE` or with a script; `imported` are there already.

    Only for what a process does once it has started: of variables that count before that, LD_LIBRARY_PATH alone.
    """
    process = _forker(imported, environment.get("LD_LIBRARY_PATH"))
    assert process.stdin is not None
    assert process.stdout is not None
    with TemporaryDirectory() as outputs:
        paths = [Path(outputs) / name for name in ("stdout", "stderr")]
        request = {"command": command, "folder": str(folder), "environment": dict(environment),
                   "outputs": [str(path) for path in paths]}  # fmt: skip
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        answer = process.stdout.readline() if ready else ""
        if not answer:  # it ends with what it runs still
            os.killpg(process.pid, signal.SIGKILL)
            _forker.cache_clear()
        written = [path.read_text(encoding="utf-8") if path.exists() else "" for path in paths]
    assert answer, written
    return subprocess.CompletedProcess(command, int(answer), *written)


@functools.cache
def _forker(imported: tuple[str, ...], library_path: str | None) -> processes.Process:
    """The process to fork from: the same for all tests of this process, with which it ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if library_path is not None:
        environment["LD_LIBRARY_PATH"] = library_path
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program = [sys.executable, __file__, *imported]
    return stack.enter_context(processes.kept(program, **pipes, env=environment, start_new_session=True))


def _next_command() -> dict[str, Any]:
    """In a forked process what that is to run; this one ends with its standard input."""
    for line in sys.stdin:
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        else:
            request: dict[str, Any] = json.loads(line)
            return request
    sys.exit()


def _become(command: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    """What a Python that is started so is when its program begins, but for what it has imported."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in outputs]
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
        os.dup2(file, number)
        os.close(file)
    is_module = command[0] == "-m"
    sys.argv[:] = command[1:] if is_module else command
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [folder if is_module else str(Path(command[0]).parent), *filter(None, paths)]
    if "SELECTBENCH_OBSERVE" in environment:  # as `sitecustomize` does it behind the import of torch
        import selectbench_observer

        selectbench_observer.install()


def _end(program: Callable[[], object]) -> NoReturn:
    """Run it and end as Python does, but that torch is not freed, which takes longer than most programs."""
    status: Any = 0
    try:
        program()
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status if isinstance(status, int) else status is not None)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        import_module(name)
    gc.freeze()
    request = _next_command()
    _become(**request)
    is_module = request["command"][0] == "-m"
    program = partial(runpy.run_module, alter_sys=True) if is_module else runpy.run_path
    if "torch" in sys.modules:
        _end(partial(program, sys.argv[0], run_name="__main__"))
    program(sys.argv[0], run_name="__main__")
