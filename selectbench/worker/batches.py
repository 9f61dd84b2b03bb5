"""The order in which a job reads its training tokens, and the tensors that the model gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from selectbench.data.prepared import sequences
from selectbench.worker.seeds import derived_seed

NOT_COUNTED = -100
"""A target that no loss counts, as torch's cross-entropy has it by default."""


@dataclass(frozen=True)
class Batch:
    """Some sequences of a task: what the model is called with, and what it should say."""

    tokens: torch.Tensor
    """Every token id that the sequences hold, int64, (sequences, width): what the certificate's digest is of."""
    arguments: tuple[torch.Tensor, ...]
    """Of the model's forward, by place."""
    named: dict[str, torch.Tensor]
    """By name."""
    targets: torch.Tensor
    """Token ids, int64, a row for each row of logits; NOT_COUNTED where the loss leaves them out."""

    def to(self, device: str) -> Batch:
        """On a device, of tensors on the CPU."""
        return Batch(
            moved(self.tokens, device), tuple(moved(tensor, device) for tensor in self.arguments),
            {name: moved(tensor, device) for name, tensor in self.named.items()}, moved(self.targets, device),
        )  # fmt: skip


class Batches(Protocol):
    """The training data of a task, in the order of a seed."""

    width: int
    """Token ids of a sequence in `Batch.tokens`."""

    def sample_indices(self, step: int) -> npt.NDArray[np.int64]:
        """Sequence numbers of one optimizer step, shape (global_batch_size,)."""

    def counted(self, indices: npt.NDArray[np.int64], step: int) -> int:
        """Targets of these sequences that the loss counts."""

    def batch_at(self, indices: npt.NDArray[np.int64], step: int) -> Batch:
        """These sequences on the device."""


class SampleOrder:
    """Sequence numbers, shuffled anew in every epoch, cut into optimizer steps; the seed alone decides."""

    def __init__(self, sequences: int, global_batch_size: int, seed: int) -> None:
        self.sequences, self.global_batch_size = sequences, global_batch_size
        self._seed = seed
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def sample_indices(self, step: int) -> npt.NDArray[np.int64]:
        """Sequence numbers of one optimizer step, shape (global_batch_size,)."""
        first = step * self.global_batch_size
        epochs, places = np.divmod(np.arange(first, first + self.global_batch_size), self.sequences)
        return np.concatenate([self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            # A step reaches back at most into epochs that begin in it: older orders are not needed again.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            generator = np.random.Generator(np.random.PCG64(derived_seed(self._seed, "order", epoch)))
            self._orders[epoch] = generator.permutation(self.sequences)
        return self._orders[epoch]


class CausalBatches(SampleOrder):
    """Sequences of a token stream to predict the next token in.

    A sequence is `seq_len + 1` tokens long, cut with stride `seq_len`: inputs and their next tokens. A micro-batch
    is a slice of a step's sequences.
    """

    def __init__(
        self, tokens: npt.NDArray[np.integer], *, seq_len: int, global_batch_size: int, seed: int, device: str,
        trained: npt.NDArray[np.uint8] | None = None,
    ) -> None:  # fmt: skip
        """`tokens`: 1-D, at least seq_len + 1 of them (ValueError where there are fewer).

        `trained`: 1 for each token that is to be predicted; None: all are.
        """
        found = sequences(len(tokens), seq_len)
        if found < 1:
            raise ValueError(f"the training split has {len(tokens)} tokens, one sequence needs {seq_len + 1}")
        super().__init__(found, global_batch_size, seed)
        self.width = seq_len + 1
        self._tokens, self._trained = tokens, trained
        self._offsets = np.arange(seq_len + 1)
        self.device = device

    def counted(self, indices: npt.NDArray[np.int64], step: int) -> int:
        """Targets of these sequences that the loss counts."""
        if self._trained is None:
            return len(indices) * (len(self._offsets) - 1)
        return int(self._of(self._trained, indices)[:, 1:].sum(dtype=np.int64))

    def batch_at(self, indices: npt.NDArray[np.int64], step: int) -> Batch:
        """These sequences on the device."""
        if self._trained is None:
            found = self.sequences_at(indices)
            return Batch(found, (found[:, :-1].contiguous(),), {}, found[:, 1:].contiguous())
        ids = self.token_ids(indices)
        targets = np.where(self._of(self._trained, indices)[:, 1:] != 0, ids[:, 1:], NOT_COUNTED)
        known = torch.from_numpy(ids)
        return Batch(known, (known[:, :-1].contiguous(),), {}, torch.from_numpy(targets)).to(self.device)

    def sequences_at(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Token ids as int64 on the device, shape (len(indices), seq_len + 1)."""
        return moved(torch.from_numpy(self.token_ids(indices)), self.device)

    def token_ids(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same in host memory."""
        return self._of(self._tokens, indices).astype(np.int64)

    def _of(self, values: npt.NDArray[Any], indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        starts = indices * (len(self._offsets) - 1)
        return values[starts[:, None] + self._offsets[None, :]]


def causal(batches: Batches) -> CausalBatches:
    """The batches of a causal job, for loops that train on nothing else; `plan` keeps them from other tasks."""
    assert isinstance(batches, CausalBatches)
    return batches


def moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A CPU's tensor on the device; the copy to a GPU is from pinned memory and does not hold up the host."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)
