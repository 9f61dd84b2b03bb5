"""How long the rest of a run takes, from the trials that ended and the one that runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class TimeLeft:
    """Walls of ended trials by option, without the start of a trial server, which serves all; all in seconds.

    A trial to come takes as long as its option's took on average, else as long as the other options'
    took, else as long as the running one seems to.
    """

    remaining: dict[str, int]
    """Trials to come by option, the running one among them."""
    walls: dict[str, list[float]] = field(default_factory=dict)
    _unsupported: set[str] = field(default_factory=set)

    def ended(self, option: str, wall_seconds: float, unsupported: bool) -> None:
        """A trial of the option is over. One that never ran says nothing of the other options."""
        self.remaining[option] = max(0, self.remaining.get(option, 0) - 1)
        self.walls.setdefault(option, []).append(wall_seconds)
        if unsupported:
            self._unsupported.add(option)

    def expected(self, option: str) -> float | None:
        """One trial's wall as far as ended trials tell, or None."""
        if option in self.walls:
            return sum(self.walls[option]) / len(self.walls[option])
        means = [sum(w) / len(w) for name, w in self.walls.items() if name not in self._unsupported]
        return sum(means) / len(means) if means else None

    def left(self, running: str | None, elapsed: float, share: float | None, starting: float = 0.0) -> float | None:
        """Seconds until the run ends; `share` of the running trial's steps are done after `elapsed` seconds.

        `starting`: of those, what went by before its worker began.
        """
        projected = (elapsed - starting) / share if share else None
        known = {name: self.expected(name) for name in self.remaining}
        walls = {name: projected if wall is None else wall for name, wall in known.items()}
        total = _weighted(self.remaining, walls)
        if total is None or running is None:
            return total
        own = walls.get(running) or 0.0
        return total - min(own, elapsed - starting)


def _weighted(remaining: Mapping[str, int], walls: Mapping[str, float | None]) -> float | None:
    total = 0.0
    for name, trials in remaining.items():
        wall = walls[name]
        if trials and wall is None:
            return None
        total += trials * (wall or 0.0)
    return total
