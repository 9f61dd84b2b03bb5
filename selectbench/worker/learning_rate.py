"""The learning rates that optimizers really have, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

AGREE_WITHIN = 1e-9
"""Difference of shares that is rounding."""


class LearningRates:
    """Reads every parameter group's learning rate as a share of the peak it was built with."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Call before any schedule has touched the optimizers."""
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.peaks = [float(group["lr"]) for group in self._groups]
        self._at_update: dict[int, float] = {}
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._see)
        self.shares: list[float] = []
        """Per step noted, of the first group."""
        self.all_shares: list[tuple[float, ...]] = []
        """Per step noted, those of all groups that differ: one where they agree."""
        self.highest = [0.0] * len(self._groups)
        """Of each group, in any step noted: below the peak where the schedule never comes to it."""

    def _see(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            self._at_update.setdefault(id(group), float(group["lr"]))

    def note(self) -> None:
        """Notes the rates of the step that was just made: at its update, where there was one."""
        rates = [self._at_update.get(id(group), float(group["lr"])) for group in self._groups]
        self._at_update.clear()
        self.highest = list(map(max, self.highest, rates))
        now = [rate / peak for rate, peak in zip(rates, self.peaks, strict=True)]
        self.shares.append(now[0])
        self.all_shares.append((now[0],) if max(now) - min(now) < AGREE_WITHIN else tuple(now))
