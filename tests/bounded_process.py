"""A process that is ended after a while with its whole group, its output shown and kept line by line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread


class Summary:
    """Lines for the terminal and for the file that is kept."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def say(self, *lines: str) -> None:
        """Said at once, and kept."""
        with self.path.open("a", encoding="utf-8") as kept:
            for line in lines:
                print(line, flush=True)
                kept.write(line + "\n")


def run_bounded(
    command: Sequence[str], bound_seconds: float, summary: Summary, *, folder: Path, environment: Mapping[str, str]
) -> int | None:
    """The command's exit status; None where it was ended, all within the bound.

    The last tenth of the bound, at most 30 s, is for what the command does upon Ctrl-C. Whatever its group still
    runs at its end is killed, also where this process is interrupted meanwhile.
    """
    grace_seconds = min(30.0, bound_seconds / 10)
    summary.say(f"$ {' '.join(command)}")
    # What is started in the background inherits that Ctrl-C is ignored: the command is to hear it all the same.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    # Read beside the wait: what has left the group may hold the pipe for longer than the command runs.
    reader = Thread(target=_pass_on, args=(process, summary), daemon=True)
    reader.start()
    try:
        return process.wait(bound_seconds - grace_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end_group(process, grace_seconds)
        reader.join(10.0)


def _pass_on(process: subprocess.Popen[str], summary: Summary) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            summary.say(line.rstrip("\n"))


def _end_group(process: subprocess.Popen[str], grace_seconds: float) -> None:
    """Ctrl-C, upon which a run closes its records and pytest says what failed; then the end of what still is."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
