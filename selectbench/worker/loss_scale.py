"""The loss scale of fp16, for engines that skip a step by themselves."""

from __future__ import annotations


def first_scale(world_size: int) -> float:
    """torch.amp.GradScaler's first scale over the number of ranks.

    Libraries that average over ranks are given a loss as many times larger: what overflows is then the same at
    every number of ranks.
    """
    return 2.0**16 / world_size


class LossScale:
    """Doubled after 2,000 applied steps in a row, halved where one was skipped: torch.amp.GradScaler's rule."""

    def __init__(self, value: float = 65536.0, growth_interval: int = 2000) -> None:
        self.value = value
        """What the loss is multiplied with."""
        self._growth_interval = growth_interval
        self._applied_in_a_row = 0

    def update(self, applied: bool) -> None:
        """After every step; `applied`: its gradients were finite on all ranks."""
        if not applied:
            self.value /= 2
            self._applied_in_a_row = 0
            return
        self._applied_in_a_row += 1
        if self._applied_in_a_row == self._growth_interval:
            self.value *= 2
            self._applied_in_a_row = 0
