"""The order in which a job reads its training tokens, and the tensors that the model gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selectbench.data.prepared import sequences
from selectbench.worker.seeds import derived_seed

NOT_COUNTED = -100
"""A target that no loss counts, as torch's cross-entropy has it by default."""


class Batches:
    """Sequences of a token stream, shuffled anew in every epoch, cut into optimizer steps and micro-batches.

    Which sequences an optimizer step holds follows from the seed alone; a micro-batch is a slice of them.
    A sequence is `seq_len + 1` tokens long, cut with stride `seq_len`: inputs and their next tokens.
    """

    def __init__(
        self, tokens: npt.NDArray[np.integer], *, seq_len: int, global_batch_size: int, seed: int, device: str,
        trained: npt.NDArray[np.uint8] | None = None,
    ) -> None:  # fmt: skip
        """`tokens`: 1-D, at least seq_len + 1 of them (ValueError where there are fewer).

        `trained`: 1 for each token that is to be predicted; None: all are.
        """
        self.sequences = sequences(len(tokens), seq_len)
        if self.sequences < 1:
            raise ValueError(f"the training split has {len(tokens)} tokens, one sequence needs {seq_len + 1}")
        self.global_batch_size = global_batch_size
        self._tokens = tokens
        self._trained = trained
        self._offsets = np.arange(seq_len + 1)
        self._seed = seed
        self._device = device
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

    def sequences_at(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Token ids as int64 on the device, shape (len(indices), seq_len + 1)."""
        tensor = torch.from_numpy(self.token_ids(indices))
        if self._device.startswith("cuda"):
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor

    def counted(self, indices: npt.NDArray[np.int64]) -> int:
        """Targets of these sequences that the loss counts."""
        if self._trained is None:
            return len(indices) * (len(self._offsets) - 1)
        return int(self._of(self._trained, indices)[:, 1:].sum(dtype=np.int64))

    def targets_at(self, indices: npt.NDArray[np.int64], sequences: torch.Tensor) -> torch.Tensor:
        """The next tokens of `sequences_at(indices)`, NOT_COUNTED where the loss leaves them out."""
        targets = sequences[:, 1:].contiguous()
        if self._trained is None:
            return targets
        left_out = torch.from_numpy(self._of(self._trained, indices)[:, 1:] == 0).to(targets.device)
        return targets.masked_fill(left_out, NOT_COUNTED)

    def _of(self, values: npt.NDArray[Any], indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        starts = indices * (len(self._offsets) - 1)
        return values[starts[:, None] + self._offsets[None, :]]

    def token_ids(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same in host memory."""
        return self._of(self._tokens, indices).astype(np.int64)
