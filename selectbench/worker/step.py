"""One optimizer step: micro-batches, loss, backward, clipping, update. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from selectbench.worker.batches import Batch, Batches, TokenStream
from selectbench.worker.engine import Engine
from selectbench.worker.model import SummedLoss
from selectbench.worker.runtime import Whereabouts, World


class StepTensors(NamedTuple):
    """What a step leaves behind on this rank, as scalars on the device."""

    loss: torch.Tensor
    """This rank's part of the mean over the step's tokens, before the update; nats per token, float32."""
    gradient_norm: torch.Tensor | None
    """Global, before clipping; the same on every rank. None: an own loop that does not tell."""
    applied: torch.Tensor
    """Whether the weights were updated; the same on every rank."""
    stream: torch.Tensor
    """This rank's part of the step's sum of the token stream's digest, int64."""
    tokens: int
    """Tokens that the model consumed on this rank."""
    micro_batches: int
    """That it consumed them in, on this rank."""


@dataclass
class FirstGradients:
    """What was found of the gradients in the first step, between backward pass and update."""

    bytes: int | None = None
    """That this rank keeps; None: not known."""
    dtypes: set[torch.dtype] | None = None

    @classmethod
    def of(cls, kept: Sequence[torch.Tensor] | None) -> FirstGradients:
        """What these gradients are; None: they are hidden."""
        if kept is None:
            return cls()
        return cls(sum(g.numel() * g.element_size() for g in kept), {g.dtype for g in kept})


@dataclass
class OptimizerStep:
    """Carries out optimizer steps of a fixed cut: a rank has a slice of the step, micro-batches slices of that."""

    engine: Engine
    loss: SummedLoss
    batches: Batches
    stream: TokenStream
    world: World
    whereabouts: Whereabouts
    micro_batch_size: int
    """Sequences per forward pass; divides each rank's part of the global batch."""
    clip_norm: float | None
    tokens_per_sequence: int
    """As the job counts them."""
    compute_dtype: torch.dtype | None = None
    """Of the logits, once a step has run."""
    first_gradients: FirstGradients | None = field(default=None)

    def __post_init__(self) -> None:
        self._forward_loss = self.engine.forward_loss(self.loss)

    def run(self, step: int, share_of_peak: float) -> StepTensors:
        """Trains on this rank's sequences of optimizer step `step` at this share of the peak learning rate."""
        self.engine.begin_step(share_of_peak)
        indices = self.batches.sample_indices(step)
        rows = len(indices) // self.world.size
        start, end = self.world.rank * rows, (self.world.rank + 1) * rows
        counted = max(1, self.batches.counted(indices, step))
        losses, sums = [], []
        for row in range(start, end, self.micro_batch_size):
            self.whereabouts.enter("forward pass", step)
            mine = indices[row : row + self.micro_batch_size]
            batch = self.batches.batch_at(mine, step)
            sums.append(self.stream.mixed(batch.tokens, row))
            losses.append(self._micro_batch(batch, counted, step, row + self.micro_batch_size >= end))
        if self.first_gradients is None:
            self.first_gradients = FirstGradients.of(self.engine.kept_gradients())
        self.whereabouts.enter("update", step)
        norm, applied = self.engine.clip_and_step(self.clip_norm)
        return StepTensors(_sum(losses), norm, applied, _sum(sums), rows * self.tokens_per_sequence, len(losses))

    def _micro_batch(self, batch: Batch, counted: int, step: int, is_last: bool) -> torch.Tensor:
        """Adds the gradient of a micro-batch; its share of the step's loss.

        `counted`: targets of the whole step, of all ranks and micro-batches.
        """
        with self.engine.micro_batch(is_last):
            summed, self.compute_dtype = self._forward_loss(batch)
            loss = summed / counted
            self.whereabouts.enter("backward pass", step)
            self.engine.backward(loss)
        return loss.detach()


def _sum(scalars: list[torch.Tensor]) -> torch.Tensor:
    return scalars[0] if len(scalars) == 1 else torch.stack(scalars).sum()
