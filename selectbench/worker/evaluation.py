"""Held-out loss, the same for every option: fp32 weights and products, sdpa attention, no dropout."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812

from selectbench.data import prepared
from selectbench.data.prepared import Prepared
from selectbench.worker.batches import NOT_COUNTED, Batch
from selectbench.worker.identity import attention
from selectbench.worker.model import logits_of
from selectbench.worker.precision import without_tf32
from selectbench.worker.world import World


@dataclass(frozen=True)
class Forward:
    """A model as evaluations call it: batches to logits, (sequences, targets, vocabulary)."""

    module: Any
    weights: dict[str, torch.Tensor]
    """Those that stand in for the module's own."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits."""
        return logits_of(self._output(batch, batch.named))

    @property
    def is_transformers(self) -> bool:
        """Whether the model is one of transformers, that takes sequences of any length."""
        return attention(self.module) is not None

    def attention(self, batch: Batch) -> torch.Tensor | None:
        """What a transformers model attends to, by the eager kernel, as `inside.attention_of` finds it."""
        from selectbench.worker.inside import attention_of

        if not self.is_transformers:
            return None
        self.module.set_attn_implementation("eager")
        try:
            return attention_of(self._output(batch, {**batch.named, "output_attentions": True}))
        finally:
            self.module.set_attn_implementation("sdpa")

    def _output(self, batch: Batch, named: dict[str, Any]) -> Any:
        if self.weights:
            return torch.func.functional_call(self.module, self.weights, batch.arguments, named)
        return self.module(*batch.arguments, **named)


Logits = Forward
"""How engines name it."""


class HeldOut(Protocol):
    """The sequences that every evaluation of a job scores."""

    @property
    def tokens(self) -> int:
        """Targets scored."""

    @property
    def bytes(self) -> int | None:
        """UTF-8 bytes of the tokens scored; None: they stand for no text."""

    def __len__(self) -> int:
        """Sequences."""

    def batch(self, start: int, end: int) -> Batch:
        """These sequences, on the CPU."""

    def sha256(self) -> str:
        """Digest of what is scored."""

    def source_loss(self) -> tuple[float | None, float | None]:
        """Mean of the true source's own nats over the targets scored, and its standard error; None: not known."""


@dataclass(frozen=True)
class CausalHeldOut:
    """Sequences to predict the next token in."""

    sequences: npt.NDArray[np.int64]
    """Token ids, shape (sequences, seq_len + 1): inputs and their next tokens."""
    counted: npt.NDArray[np.bool_] | None
    """Which targets are scored, shape (sequences, seq_len); None: all are."""
    tokens: int
    """Tokens scored."""
    bytes: int | None
    """UTF-8 bytes of the tokens scored; None: they stand for no text."""
    source_nats: npt.NDArray[np.float64] | None = None
    """Of each token scored under the source that emitted it; None: not known."""

    @classmethod
    def first(cls, data: Prepared, *, tokens: int, seq_len: int) -> CausalHeldOut:
        """The first `tokens` held-out tokens, rounded up to whole sequences; all there are where there are fewer.

        Of chats only what is to be predicted is scored. Raises ValueError where the split fills no sequence.
        """
        stream = data.heldout()
        count = min(-(-tokens // seq_len), prepared.sequences(len(stream), seq_len))
        if count < 1:
            raise ValueError(f"the held-out split has {len(stream)} tokens, one sequence needs {seq_len + 1}")

        def cut(values: Any) -> Any:
            starts = np.arange(count) * seq_len
            return None if values is None else np.asarray(values)[starts[:, None] + np.arange(seq_len + 1)]

        mask, sizes, truth = cut(data.heldout_mask()), cut(data.bytes_of_heldout()), cut(data.truth_of_heldout())
        counted = None if mask is None else mask[:, 1:].astype(bool)
        scored = np.ones((count, seq_len), bool) if counted is None else counted
        if not scored.any():
            raise ValueError(f"the first {count * seq_len} held-out tokens hold no answer: raise eval.tokens")
        return cls(
            cut(stream).astype(np.int64),
            counted,
            int(scored.sum()),
            None if sizes is None else int(sizes[:, 1:][scored].sum(dtype=np.int64)),
            None if truth is None else truth[:, 1:][scored],
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def sha256(self) -> str:
        """Digest of the token ids, their shape, and which of them are scored."""
        shape = str(self.sequences.shape).encode()
        digest = hashlib.sha256(shape + self.sequences.astype("<i8").tobytes())
        if self.counted is not None:
            digest.update(np.packbits(self.counted).tobytes())
        return digest.hexdigest()

    def source_loss(self) -> tuple[float | None, float | None]:
        """Mean of the source's own nats over the tokens scored, and its standard error."""
        if self.source_nats is None:
            return None, None
        error = self.source_nats.std(ddof=1) / np.sqrt(len(self.source_nats)) if len(self.source_nats) > 1 else None
        return float(self.source_nats.mean()), None if error is None else float(error)

    def batch(self, start: int, end: int) -> Batch:
        """These sequences, on the CPU."""
        rows = torch.from_numpy(self.sequences[start:end])
        targets = rows[:, 1:].clone()
        if self.counted is not None:
            targets[~torch.from_numpy(self.counted[start:end])] = NOT_COUNTED
        return Batch(rows, (rows[:, :-1],), {}, targets)


def heldout_loss(logits: Logits, held_out: HeldOut, *, sequences_per_batch: int, world: World) -> float:
    """Mean loss in nats per token, the same on every rank; NaN or infinity where the model has diverged.

    Ranks score slices; `logits` is called equally often on each, as the calls of a sharded model wait for
    one another: where sequences run out a rank scores one again, and doesn't count it.
    """
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    at_once = sequences_per_batch * world.size
    for start in range(0, len(held_out), at_once):
        first = start + world.rank * sequences_per_batch
        last = min(first + sequences_per_batch, len(held_out))
        batch = held_out.batch(first, last) if first < last else held_out.batch(0, 1)
        nats = _nats(logits, batch.to(world.device))
        if first < last:
            total += nats
    return float(world.total(total)) / held_out.tokens


def _nats(logits: Logits, batch: Batch) -> torch.Tensor:
    """Summed loss of a batch of sequences, float64."""
    losses = F.cross_entropy(
        logits(batch).float().flatten(0, 1), batch.targets.flatten(), reduction="none", ignore_index=NOT_COUNTED
    )
    return losses.double().sum()


@contextmanager
def evaluation_forward(module: Any, weights: dict[str, torch.Tensor] | None = None) -> Iterator[Logits]:
    """Batches to logits with fp32 weights, sdpa attention and no dropout; the module is left as it was.

    `weights`: all of them in fp32 by name, and the buffers, where the module's own can't serve. Otherwise its
    parameters in less than fp32 are copied for the time of the evaluation.
    """
    with evaluating(module), torch.no_grad(), without_tf32():
        yield Forward(module, fp32_copies(module) if weights is None else weights)


def fp32_copies(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those parameters that are not kept in fp32, converted; empty where all are."""
    return {
        n: p.detach().float()
        for n, p in module.named_parameters()
        if p.is_floating_point() and p.dtype != torch.float32
    }


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
