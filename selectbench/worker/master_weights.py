"""fp32 master weights with a working copy in less precision, on one device."""

from __future__ import annotations

import copy
from typing import Any

import torch

from selectbench.worker.model import cast_parameters


class WorkingCopy:
    """A copy of a model for forward and backward pass, whose gradients go to the master's in fp32.

    A gradient is added to the master's as soon as autograd has it and then freed, so that micro-batches are
    accumulated in fp32 and no second set of gradients is kept.
    """

    def __init__(self, master: torch.nn.Module, dtype: torch.dtype) -> None:
        """Rounds the master's weights to `dtype` first: both begin from the same values."""
        self.module: Any = copy.deepcopy(master)
        cast_parameters(self.module, dtype)
        self._kept: list[torch.Tensor] = []
        self._working: list[torch.Tensor] = []
        for kept, working in zip(master.parameters(), self.module.parameters(), strict=True):
            kept.data.copy_(working.data)
            if working.requires_grad:
                working.register_post_accumulate_grad_hook(_handing_over_to(kept))
                self._kept.append(kept)
                self._working.append(working)

    @torch.no_grad()
    def refresh(self) -> None:
        """Rounds the updated master weights into the working copy: one kernel on a GPU, not one for each tensor."""
        torch._foreach_copy_(self._working, self._kept)


def _handing_over_to(kept: torch.nn.Parameter) -> Any:
    def hand_over(working: torch.Tensor) -> None:
        gradient, working.grad = working.grad, None
        assert gradient is not None
        if kept.grad is None:
            kept.grad = gradient.float()
        else:
            kept.grad += gradient

    return hand_over
