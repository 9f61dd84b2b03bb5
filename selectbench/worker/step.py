"""One optimizer step: micro-batches, loss, backward, clipping, update. Nothing in it waits for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from selectbench.choices.precision import PrecisionChoice
from selectbench.worker.batches import Batches
from selectbench.worker.engine import SingleEngine
from selectbench.worker.precision import autocast
from selectbench.worker.token_stream import TokenStream


class StepTensors(NamedTuple):
    """What a step leaves behind, as scalars on the device."""

    loss: torch.Tensor
    """Mean over the step's tokens, before the update; nats per token, float32."""
    gradient_norm: torch.Tensor
    """Global, before clipping."""
    applied: torch.Tensor
    """Whether the weights were updated."""
    stream: torch.Tensor
    """The step's sum of the token stream's digest, int64."""


@dataclass
class OptimizerStep:
    """Carries out optimizer steps of a fixed cut."""

    forward: Any
    """The model, compiled or not."""
    engine: SingleEngine
    batches: Batches
    stream: TokenStream
    precision: PrecisionChoice
    device: str
    micro_batch_size: int
    """Sequences per forward pass; divides the global batch size."""
    tokens_per_step: int
    clip_norm: float | None
    compute_dtype: torch.dtype | None = None
    """Of the logits, once a step has run."""

    def run(self, step: int, share_of_peak: float) -> StepTensors:
        """Trains on the sequences of optimizer step `step` at this share of the peak learning rate."""
        self.engine.begin_step(share_of_peak)
        indices = self.batches.sample_indices(step)
        losses, sums = [], []
        for row in range(0, len(indices), self.micro_batch_size):
            sequences = self.batches.sequences_at(indices[row : row + self.micro_batch_size])
            sums.append(self.stream.mixed(sequences, row))
            losses.append(self._micro_batch(sequences, row + self.micro_batch_size >= len(indices)))
        norm, applied = self.engine.clip_and_step(self.clip_norm)
        return StepTensors(_sum(losses), norm, applied, _sum(sums))

    def _micro_batch(self, sequences: torch.Tensor, is_last: bool) -> torch.Tensor:
        """Adds the gradient of (sequences, seq_len + 1) token ids; their share of the step's loss."""
        inputs, targets = sequences[:, :-1].contiguous(), sequences[:, 1:]
        with self.engine.micro_batch(is_last):
            with autocast(self.precision, self.device):
                logits = self.forward(input_ids=inputs, use_cache=False).logits
            self.compute_dtype = logits.dtype
            total = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
            loss = total / self.tokens_per_step
            self.engine.backward(loss)
        return loss.detach()


def _sum(scalars: list[torch.Tensor]) -> torch.Tensor:
    return scalars[0] if len(scalars) == 1 else torch.stack(scalars).sum()
