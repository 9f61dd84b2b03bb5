"""The learning rates that optimizers really have, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class LearningRates:
    """Reads every parameter group's learning rate as a share of the peak it was built with."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Call before any schedule has touched the optimizers."""
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.peaks = [float(group["lr"]) for group in self._groups]
        self.shares: list[float] = []
        """Per step noted, of the first group."""
        self.agree = True
        """Whether all groups had the same share in every step noted."""

    def note(self) -> None:
        """Notes the rates of the step that was just made."""
        now = [float(group["lr"]) / peak for group, peak in zip(self._groups, self.peaks, strict=True)]
        self.shares.append(now[0])
        self.agree = self.agree and max(now) - min(now) < 1e-9
