"""Stands in for the training inside a real trial process: does what the order's option name says."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

import selectbench.worker.trial as real
from selectbench.record.wire import GaveUp

RANK_LOG = """\
Traceback (most recent call last):
  File "model.py", line 3, in forward
ValueError: planted in rank 1
"""


def run_trial(order, emit):
    what = order.trial.option
    print(f"planted: {what}", flush=True)
    if what == "raises":
        raise RuntimeError("planted failure")
    if what == "exits":
        os._exit(7)
    if what == "aborts":
        os.abort()
    if what == "kills_server":
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    if what.startswith("stops_server"):
        os.kill(os.getppid(), signal.SIGSTOP)
        print("the server is stopped", flush=True)
        if what == "stops_server_and_gives_up":
            emit(GaveUp(kind="oom", detail="tried to allocate 1 EiB"))
        signal.pause()
    if what == "garbles":
        os.write(_event_pipe(), b"this is no event\n")
        return
    if what == "leaves_a_daemon":
        sleeper = [sys.executable, "-c", "import time; time.sleep(1000)"]
        child = subprocess.Popen(sleeper, start_new_session=True)
        print(f"daemon {child.pid}", flush=True)
        os._exit(0)
    if what == "hangs":
        signal.pause()
    if what == "hangs_with_stack":
        faulthandler.register(signal.SIGTERM, chain=True)
        hang_in_the_planted_place()
    if what == "ignores_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()
    if what.startswith("rank"):
        have_a_rank_fail(what, order, emit)
        return
    real_run_trial(order, emit)
    if what == "never_ends":
        signal.pause()


def hang_in_the_planted_place():
    while True:
        signal.pause()


def have_a_rank_fail(what, order, emit):
    """A leader's word on rank 1, whose log holds what it printed."""
    (Path(order.trial_folder) / "rank1.log").write_text("" if what == "rank_is_killed" else RANK_LOG)
    if what == "rank_raises":
        emit(GaveUp(kind="crashed", detail="", rank=1, exit_status=1))
    if what == "rank_is_killed":
        emit(GaveUp(kind="crashed", detail="", rank=1, exit_status=-9))
    if what == "rank_runs_out_of_memory_and_the_leader_hangs":
        emit(GaveUp(kind="oom", detail="tried to allocate 1 EiB", rank=1))
        signal.pause()
    if what.startswith("rank_is_behind"):

        def answer(*_):
            emit(GaveUp(kind="timeout", detail="rank 1 is behind the others: forward pass of step 7", rank=1))

        signal.signal(signal.SIGTERM, answer)
        signal.pause()
        if what == "rank_is_behind_and_the_leader_hangs":
            signal.pause()


def _event_pipe() -> int:
    links = [(int(link.name), link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return max(fd for fd, link in links if str(link.readlink()).startswith("pipe:"))


real_run_trial = real.run_trial
real.run_trial = run_trial
