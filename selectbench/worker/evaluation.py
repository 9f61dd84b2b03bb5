"""Held-out loss, the same for every option: fp32 weights and products, sdpa attention, no dropout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812

from selectbench.data import prepared
from selectbench.worker.precision import without_tf32


@dataclass(frozen=True)
class HeldOut:
    """The sequences that every evaluation of a job scores."""

    sequences: npt.NDArray[np.int64]
    """Token ids, shape (sequences, seq_len + 1): inputs and their next tokens."""
    tokens: int
    """Tokens scored: seq_len per sequence."""
    bytes: int
    """UTF-8 bytes of the tokens scored."""

    @classmethod
    def first(
        cls, stream: npt.NDArray[np.integer], token_bytes: npt.NDArray[np.int32], *, tokens: int, seq_len: int
    ) -> HeldOut:
        """The first `tokens` tokens, rounded up to whole sequences; all that there are where there are fewer.

        Raises ValueError where the held-out split doesn't fill one sequence.
        """
        count = min(-(-tokens // seq_len), prepared.sequences(len(stream), seq_len))
        if count < 1:
            raise ValueError(f"the held-out split has {len(stream)} tokens, one sequence needs {seq_len + 1}")
        starts = np.arange(count) * seq_len
        sequences = np.asarray(stream[: count * seq_len + 1], dtype=np.int64)[
            starts[:, None] + np.arange(seq_len + 1)
        ]
        return cls(sequences, count * seq_len, int(token_bytes[sequences[:, 1:]].sum(dtype=np.int64)))

    def sha256(self) -> str:
        """Digest of the token ids and their shape."""
        shape = str(self.sequences.shape).encode()
        return hashlib.sha256(shape + self.sequences.astype("<i8").tobytes()).hexdigest()


def heldout_loss(module: Any, held_out: HeldOut, *, sequences_per_batch: int, device: str) -> float:
    """Mean loss in nats per token; NaN or infinity where the model has diverged.

    The module is left as it was: weights in less than fp32 are copied for the time of the evaluation.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(module), torch.inference_mode(), without_tf32():
        weights = fp32_copies(module)
        for start in range(0, len(held_out.sequences), sequences_per_batch):
            batch = torch.from_numpy(held_out.sequences[start : start + sequences_per_batch]).to(device)
            total += _nats(module, weights, batch)
    return float(total) / held_out.tokens


def _nats(module: Any, weights: dict[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """Summed loss of a batch of sequences, float64."""
    arguments = {"input_ids": batch[:, :-1], "use_cache": False}
    output = torch.func.functional_call(module, weights, (), arguments) if weights else module(**arguments)
    losses = F.cross_entropy(output.logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    return losses.double().sum()


def fp32_copies(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those parameters that are not kept in fp32, converted; empty where all are."""
    return {n: p.detach().float() for n, p in module.named_parameters() if p.dtype != torch.float32}


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Evaluation mode with the sdpa kernel inside, the module's own mode and kernel after it."""
    training, attention = module.training, module.config._attn_implementation
    module.eval()
    if attention != "sdpa":
        module.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if attention != "sdpa":
            module.set_attn_implementation(attention)
        module.train(training)
