"""Stands in for the training inside a real trial process: does what the order's option name says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import selectbench.worker.trial as real


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
    real_run_trial(order, emit)
    if what == "never_ends":
        signal.pause()


def _event_pipe() -> int:
    links = [(int(link.name), link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return max(fd for fd, link in links if str(link.readlink()).startswith("pipe:"))


real_run_trial = real.run_trial
real.run_trial = run_trial
