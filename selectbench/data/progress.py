"""Lines on how far a long preparation is and how long it will take, a few seconds apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from selectbench import units

SECONDS_BETWEEN = 5.0


@dataclass
class Progress:
    """Of one stage; `done` may be told as often as one likes."""

    stage: str
    notify: Callable[[str], None]
    total: int | None = None
    """Bytes in all; None: not known beforehand."""
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._last = self.began

    def done(self, count: int) -> None:
        """So many bytes so far."""
        now = time.monotonic()
        self._tell(now, lambda: f"{units.size(count)}{self._left(count, now)}")

    def still(self) -> None:
        """It goes on, how far is not known."""
        now = time.monotonic()
        self._tell(now, lambda: f"{units.duration(now - self.began)} so far")

    def _tell(self, now: float, words: Callable[[], str]) -> None:
        if now - self._last >= SECONDS_BETWEEN:
            self._last = now
            self.notify(f"{self.stage}: {words()}")

    def _left(self, count: int, now: float) -> str:
        if not self.total or not count:
            return ""
        left = (now - self.began) * (self.total - count) / count
        return f" of {units.size(self.total)}, about {units.duration(max(0.0, left))} left"
