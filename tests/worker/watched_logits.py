"""Whether the memory of logits is free when the backward pass begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from torch.multiprocessing.reductions import StorageWeakRef

from selectbench.worker import model as forward_loss


class Logits:
    """Watches the memory of every step's logits."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._kept: list[StorageWeakRef] = []
        self.alive_in_backward: list[int] = []
        cross_entropy, logits_of, backward = F.cross_entropy, forward_loss.logits_of, torch.Tensor.backward

        def noting(logits: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            self._note(logits)
            return cross_entropy(logits, *arguments, **named)

        def noting_forward(output: Any) -> torch.Tensor:
            return self._note(logits_of(output))

        def counting(tensor: torch.Tensor, *arguments: Any, **named: Any) -> None:
            assert self._kept, "there were no logits before this backward pass"
            self.alive_in_backward.append(sum(not kept.expired() for kept in self._kept))
            self._kept.clear()
            backward(tensor, *arguments, **named)

        patch.setattr(F, "cross_entropy", noting)
        patch.setattr(forward_loss, "logits_of", noting_forward)
        patch.setattr(torch.Tensor, "backward", counting)

    def _note(self, logits: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self._kept.append(StorageWeakRef(logits.untyped_storage()))
        return logits

    def must_be_gone(self) -> None:
        """From now on a backward pass that finds them alive, or before which there were none, raises."""
        self.alive_in_backward = _AllGone()


class _AllGone(list[int]):
    def append(self, alive: int) -> None:
        assert alive == 0, f"{alive} tensors of logits are alive in the backward pass"
