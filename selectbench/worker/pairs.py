"""Pairs for an encoder and a decoder, padded to the job's length: shapes do not depend on how a step is cut.

The decoder is given a token to start with, then the target without its last token, and must say the target, its
end-of-text token among it (Raffel et al. 2020, arXiv:1910.10683, section 2.1). What it starts with the model's
configuration says; else it is the padding token, as in T5. Padding is hidden from attention and counted by no loss.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selectbench.data.prepared import Prepared, fitting
from selectbench.suite.job import Job
from selectbench.worker.batches import NOT_COUNTED, Batch, SampleOrder

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairTokens:
    """The pairs of a split that fit, as token ids."""

    tokens: npt.NDArray[Any]
    """Sources and targets in turn, one run."""
    starts: Ids
    """Where each source and each target begins, (pairs, 2)."""
    lengths: Ids
    """Tokens of each, (pairs, 2)."""
    seq_len: int
    pad_id: int
    start_id: int
    """Of the token that the decoder is given first."""

    @classmethod
    def of(
        cls, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], seq_len: int, pad_id: int,
        start_id: int | None = None,
    ) -> PairTokens:  # fmt: skip
        """Those that have no side longer than `seq_len`; `start_id` None: the padding token."""
        ends = np.cumsum(lengths.ravel()).reshape(-1, 2)
        chosen = fitting(lengths, seq_len)
        start = pad_id if start_id is None else start_id
        return cls(tokens, (ends - lengths)[chosen], np.asarray(lengths)[chosen], seq_len, pad_id, start)

    def __len__(self) -> int:
        return len(self.lengths)

    def side(self, indices: Ids, side: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Ids of the sources (0) or targets (1), (pairs, seq_len), and which of them are no padding."""
        offsets = np.arange(self.seq_len)
        there = offsets[None, :] < self.lengths[indices, side][:, None]
        places = np.where(there, self.starts[indices, side][:, None] + offsets[None, :], 0)
        return np.where(there, self.tokens[places], self.pad_id).astype(np.int64), there

    def batch(self, indices: Ids) -> Batch:
        """These pairs, on the CPU."""
        source, source_there = self.side(indices, 0)
        target, target_there = self.side(indices, 1)
        given = np.concatenate([np.full((len(indices), 1), self.start_id), target[:, :-1]], axis=1)
        named = {
            "input_ids": torch.from_numpy(source),
            "attention_mask": torch.from_numpy(source_there.astype(np.int64)),
            "decoder_input_ids": torch.from_numpy(given),
        }  # fmt: skip
        targets = torch.from_numpy(np.where(target_there, target, NOT_COUNTED))
        return Batch(torch.from_numpy(np.concatenate([source, target], axis=1)), (), named, targets)


def decoder_start_id(module: Any) -> int | None:
    """The id that a model's configuration has its decoder start with; None: it says none of its vocabulary.

    decoder_start_token_id, else bos_token_id, as transformers' `GenerationMixin._prepare_special_tokens` has it.
    """
    named = (getattr(module.config, f"{name}_token_id", None) for name in ("decoder_start", "bos"))
    found = next((number for number in named if number is not None), None)
    # A configuration that was given another vocabulary may name a token of its old one.
    rows = getattr(module.config, "vocab_size", None)
    return None if found is None or (rows is not None and found >= rows) else int(found)


class PairBatches(SampleOrder):
    """Pairs in the order of a seed."""

    def __init__(self, data: Prepared, job: Job, seed: int, device: str, start_id: int | None = None) -> None:
        lengths = data.train_lengths()
        assert lengths is not None, "the job was checked: seq2seq has pairs"
        self._pairs = PairTokens.of(data.train(), lengths, job.seq_len, data.special_ids["pad"], start_id)
        super().__init__(len(self._pairs), job.global_batch_size, seed)
        self.width = 2 * job.seq_len
        self._device = device

    def counted(self, indices: Ids, step: int) -> int:
        """Target tokens of these pairs."""
        return int(self._pairs.lengths[indices, 1].sum())

    def batch_at(self, indices: Ids, step: int) -> Batch:
        """These pairs on the device."""
        return self._pairs.batch(indices).to(self._device)


class PairHeldOut:
    """Held-out pairs, scored by their targets."""

    def __init__(self, pairs: PairTokens, indices: Ids, scored_bytes: int) -> None:
        self.pairs, self.indices = pairs, indices
        self.tokens, self.bytes = int(pairs.lengths[indices, 1].sum()), scored_bytes

    @classmethod
    def first(cls, data: Prepared, *, tokens: int, seq_len: int, start_id: int | None = None) -> PairHeldOut:
        """The first pairs whose targets have so many tokens together; all that there are where there are fewer.

        Raises ValueError where no pair fits.
        """
        lengths, sizes = data.heldout_lengths(), data.bytes_of_heldout()
        assert lengths is not None
        assert sizes is not None
        pairs = PairTokens.of(data.heldout(), lengths, seq_len, data.special_ids["pad"], start_id)
        if not len(pairs):
            raise ValueError(f"no held-out pair fits seq_len {seq_len}")
        enough = int(np.searchsorted(np.cumsum(pairs.lengths[:, 1]), tokens)) + 1
        indices = np.arange(min(enough, len(pairs)))
        spans = zip(pairs.starts[indices, 1].tolist(), pairs.lengths[indices, 1].tolist(), strict=True)
        return cls(pairs, indices, sum(int(sizes[start : start + n].sum(dtype=np.int64)) for start, n in spans))

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, start: int, end: int) -> Batch:
        """These pairs, on the CPU."""
        return self.pairs.batch(self.indices[start:end])

    def sha256(self) -> str:
        """Digest of sources and targets."""
        batch = self.batch(0, len(self))
        shape = str(tuple(batch.tokens.shape)).encode()
        return hashlib.sha256(shape + batch.tokens.numpy().astype("<i8").tobytes()).hexdigest()

    def source_loss(self) -> tuple[float | None, float | None]:
        """Nobody knows how likely a translation is."""
        return None, None
