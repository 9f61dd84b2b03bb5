"""Processes that tests start: each hears signals wherever the tests themselves run, and none outlives its test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

Process = subprocess.Popen[str]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_started: list[Process] = []


def start(arguments: Sequence[str], *, ignores: Collection[signal.Signals] = (), **settings: Any) -> Process:
    """Start it; `conftest.py` ends it with the test. `ignores`: signals that it finds ignored, as under nohup."""
    with _inherited(ignores):
        process = subprocess.Popen(arguments, text=True, **settings)
    _started.append(process)
    return process


@contextlib.contextmanager
def kept(arguments: Sequence[str], **settings: Any) -> Iterator[Process]:
    """One that several tests use: it ends with the block in place of the test."""
    process = start(arguments, **settings)
    _started.remove(process)
    try:
        yield process
    finally:
        _started.append(process)
        end_all()


def on_each_core() -> list[Process]:
    """One on each core that takes all of it that it is given; left alone, two may share a core for seconds."""
    found = []
    for core in os.sched_getaffinity(0):
        found.append(start([sys.executable, "-c", "while True: pass"]))
        os.sched_setaffinity(found[-1].pid, {core})
    return found


def end_all() -> None:
    """Kill what still runs, and close the pipes to it."""
    while _started:
        # What was written to a process that is gone is lost.
        with contextlib.suppress(BrokenPipeError), _started.pop() as process:
            process.kill()


@contextlib.contextmanager
def _inherited(ignores: Collection[signal.Signals]) -> Iterator[None]:
    """What a process started inside inherits: a shell has those that it starts in the background ignore SIGINT.

    Signals that this process catches have their default action in the new one (execve(2)).
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in ignores else signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
