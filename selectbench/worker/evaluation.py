"""Held-out loss, the same for every option: fp32 weights and products, sdpa attention, no dropout."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812

from selectbench.data import prepared
from selectbench.worker.identity import attention
from selectbench.worker.model import logits_of
from selectbench.worker.precision import without_tf32
from selectbench.worker.world import World

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Token ids of shape (sequences, seq_len) to logits of shape (sequences, seq_len, vocabulary)."""


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


def heldout_loss(logits: Logits, held_out: HeldOut, *, sequences_per_batch: int, world: World) -> float:
    """Mean loss in nats per token, the same on every rank; NaN or infinity where the model has diverged.

    Ranks score slices; `logits` is called equally often on each, as the calls of a sharded model wait for
    one another: where sequences run out a rank scores one again, and doesn't count it.
    """
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    at_once = sequences_per_batch * world.size
    for start in range(0, len(held_out.sequences), at_once):
        mine = held_out.sequences[start + world.rank * sequences_per_batch :][:sequences_per_batch]
        batch = torch.from_numpy(mine if len(mine) else held_out.sequences[:1]).to(world.device)
        nats = _nats(logits, batch)
        if len(mine):
            total += nats
    return float(world.total(total)) / held_out.tokens


def _nats(logits: Logits, batch: torch.Tensor) -> torch.Tensor:
    """Summed loss of a batch of sequences, float64."""
    losses = F.cross_entropy(logits(batch[:, :-1]).float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    return losses.double().sum()


@contextmanager
def evaluation_forward(module: Any, weights: dict[str, torch.Tensor] | None = None) -> Iterator[Logits]:
    """Token ids to logits with fp32 weights, sdpa attention and no dropout; the module is left as it was.

    `weights`: all of them in fp32 by name, where the module's own can't serve. Otherwise its parameters in
    less than fp32 are copied for the time of the evaluation.
    """
    with evaluating(module), torch.no_grad(), without_tf32():
        used = fp32_copies(module) if weights is None else weights
        if used:
            yield lambda ids: logits_of(torch.func.functional_call(module, used, (ids,)))
        else:
            yield lambda ids: logits_of(module(ids))


def fp32_copies(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those parameters that are not kept in fp32, converted; empty where all are."""
    return {n: p.detach().float() for n, p in module.named_parameters() if p.dtype != torch.float32}


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Evaluation mode with the sdpa kernel inside, the module's own mode and kernel after it."""
    training, kernel = module.training, attention(module)
    other = kernel not in (None, "sdpa")
    module.eval()
    if other:
        module.set_attn_implementation("sdpa")
    try:
        with _uncompiled():
            yield
    finally:
        if other:
            module.set_attn_implementation(kernel)
        module.train(training)


def _uncompiled() -> AbstractContextManager[object]:
    """Blocks that are compiled in place run as they are: an evaluation must compile nothing of its own."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
