"""Ctrl-C, SIGTERM and SIGHUP end the trial at hand, not the record of it."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType


class StopRequest:
    """Set by the first signal; the second ends the process at once.

    `descriptor` becomes readable when a signal arrives, so that a loop that waits on files wakes up.
    Nothing is lost at the second one: records are flushed one by one, and the trial server kills its
    trial when this process is gone.

    What the process was started to ignore stays ignored, as SIGINT is in a script's background and SIGHUP under
    nohup: a Ctrl-C, or a terminal that closes, is then not meant for it. SIGTERM always stops it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.descriptor, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def __bool__(self) -> bool:
        return self.signal is not None

    def wait(self, seconds: float) -> None:
        """Returns after so long, or as soon as a signal arrives; a later wait on `descriptor` still sees it."""
        select.select([self.descriptor], [], [], 0.0 if self else seconds)

    def __enter__(self) -> StopRequest:
        stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [n for n in stopping if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in heard}
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._writing)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(130)
        self.signal = signal.Signals(number)
