"""What `processes` starts hears signals wherever the tests run, and ends with its test."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import processes
import pytest

IGNORED = """
import signal, sys
print(*(n for n in (1, 2, 15) if signal.getsignal(n) == signal.SIG_IGN), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def in_the_background() -> Iterator[None]:
    """These tests ignore SIGINT, as what a shell starts in the background does."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN


def started(*ignores: signal.Signals) -> processes.Process:
    pipe = subprocess.PIPE
    return processes.start([sys.executable, "-c", IGNORED], ignores=ignores, stdin=pipe, stdout=pipe)


@pytest.mark.usefixtures("in_the_background")
@pytest.mark.parametrize("ignores", [[], [signal.SIGINT], [signal.SIGHUP, signal.SIGTERM]])
def test_a_process_ignores_what_it_is_told_to_and_no_more(ignores: list[signal.Signals]) -> None:
    out, _ = started(*ignores).communicate("")
    assert [int(number) for number in out.split()] == sorted(ignores)


def test_what_runs_at_the_end_of_a_test_is_killed() -> None:
    waits, has_ended = started(), started()
    assert waits.stdout is not None
    assert waits.stdin is not None
    waits.stdout.readline()
    waits.stdin.write("never read")
    has_ended.communicate("")
    processes.end_all()
    assert (waits.returncode, has_ended.returncode) == (-signal.SIGKILL, 0)
    assert waits.stdin.closed
    assert waits.stdout.closed
