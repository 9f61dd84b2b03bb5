"""What each task trains on and is scored on: the order of a seed, the tensors that a model gets, their digest."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from struct import pack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selectbench.data.prepared import HELDOUT, TRAIN, Answers, Prepared, fitting, sequences
from selectbench.record.wire import Order
from selectbench.suite.job import Eval, Job
from selectbench.worker.runtime import World, derived_seed

Ids = npt.NDArray[np.int64]

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

    A sequence is `seq_len + 1` tokens long: inputs and their next tokens. It is cut with stride `seq_len`, of chats
    around the answers. A micro-batch is a slice of a step's sequences.
    """

    def __init__(
        self, tokens: npt.NDArray[np.integer], *, seq_len: int, global_batch_size: int, seed: int, device: str,
        answers: Answers | None = None,
    ) -> None:  # fmt: skip
        """`tokens`: 1-D, at least seq_len + 1 of them (ValueError where there are fewer).

        `answers`: the sequences of a chat; None: cut evenly, and all targets count.
        """
        found = sequences(len(tokens), seq_len) if answers is None else len(answers.starts)
        if found < 1:
            raise ValueError(f"the training split has {len(tokens)} tokens, one sequence needs {seq_len + 1}")
        super().__init__(found, global_batch_size, seed)
        self.width = seq_len + 1
        self._tokens, self._answers, self._seq_len = tokens, answers, seq_len
        self.device = device

    def counted(self, indices: npt.NDArray[np.int64], step: int) -> int:
        """Targets of these sequences that the loss counts."""
        if self._answers is None:
            return len(indices) * self._seq_len
        return int(self._answers.counted(indices, self._seq_len).sum())

    def batch_at(self, indices: npt.NDArray[np.int64], step: int) -> Batch:
        """These sequences on the device."""
        if self._answers is None:
            found = self.sequences_at(indices)
            return Batch(found, (found[:, :-1].contiguous(),), {}, found[:, 1:].contiguous())
        ids = self.token_ids(indices)
        targets = np.where(self._answers.counted(indices, self._seq_len), ids[:, 1:], NOT_COUNTED)
        known = torch.from_numpy(ids)
        return Batch(known, (known[:, :-1].contiguous(),), {}, torch.from_numpy(targets)).to(self.device)

    def sequences_at(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Token ids as int64 on the device, shape (len(indices), seq_len + 1)."""
        return moved(torch.from_numpy(self.token_ids(indices)), self.device)

    def token_ids(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same in host memory."""
        starts = indices * self._seq_len if self._answers is None else self._answers.starts[indices]
        return self._tokens[starts[:, None] + np.arange(self._seq_len + 1)].astype(np.int64)


def causal(batches: Batches) -> CausalBatches:
    """The batches of a causal job, for loops that train on nothing else; `plan` keeps them from other tasks."""
    assert isinstance(batches, CausalBatches)
    return batches


def moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A CPU's tensor on the device; the copy to a GPU is from pinned memory and does not hold up the host."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)


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
        stream, chat = data.heldout(), data.answers(HELDOUT, seq_len)
        if chat is None:
            count = min(-(-tokens // seq_len), sequences(len(stream), seq_len))
        else:
            count = bisect_left(range(len(chat.starts)), tokens, key=chat.upto)
        if count < 1:
            raise ValueError(f"the held-out split has {len(stream)} tokens, one sequence needs {seq_len + 1}")

        def cut(values: Any) -> Any:
            starts = np.arange(count) * seq_len if chat is None else chat.starts[:count]
            return None if values is None else np.asarray(values)[starts[:, None] + np.arange(seq_len + 1)]

        sizes, truth = cut(data.bytes_of_heldout()), cut(data.truth_of_heldout())
        counted = None if chat is None else chat.counted(np.arange(count), seq_len)
        scored = np.ones((count, seq_len), bool) if counted is None else counted
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


# Pairs for an encoder and a decoder, padded to the job's length: shapes do not depend on how a step is cut.
#
# The decoder is given a token to start with, then the target without its last token, and must say the target, its
# end-of-text token among it (Raffel et al. 2020, arXiv:1910.10683, section 2.1). What it starts with the model's
# configuration says; else it is the padding token, as in T5. Padding is hidden from attention and counted by no
# loss.


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
        lengths = data.lengths(TRAIN)
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
        lengths, sizes = data.lengths(HELDOUT), data.bytes_of_heldout()
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

    def source_loss(self) -> tuple[None, None]:
        """Nobody knows how likely a translation is."""
        return None, None


# Masked language modelling: some tokens are hidden from the model, and it must say which they were.
#
# Of a sequence's tokens 15 % are chosen; of these 80 % are replaced by the mask token, 10 % by any token, 10 % stay
# (Devlin et al. 2019, arXiv:1810.04805, section 3.1). Which they are follows from the seed, the step and the
# sequence, not from how a step is cut; for the held-out text from the sequence alone, so that every evaluation asks
# the same.


CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1


def hidden(tokens: Ids, seeds: list[int], vocab_size: int, mask_id: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Inputs with the chosen tokens hidden, and which those are; a seed for each row. At least one is chosen."""
    inputs, chosen = tokens.copy(), np.zeros(tokens.shape, bool)
    for row, seed in enumerate(seeds):
        draw = np.random.Generator(np.random.PCG64(seed))
        chosen[row] = draw.random(tokens.shape[1]) < CHOSEN
        chosen[row, draw.integers(tokens.shape[1])] |= not chosen[row].any()
        fate, other = draw.random(tokens.shape[1]), draw.integers(vocab_size, size=tokens.shape[1])
        inputs[row] = np.where(chosen[row] & (fate < MASKED), mask_id, inputs[row])
        inputs[row] = np.where(chosen[row] & (fate >= 1 - REPLACED), other, inputs[row])
    return inputs, chosen


def _batch(tokens: Ids, inputs: Ids, chosen: npt.NDArray[np.bool_]) -> Batch:
    targets = np.where(chosen, tokens, NOT_COUNTED)
    known = torch.from_numpy(inputs)
    return Batch(torch.from_numpy(tokens), (), {"input_ids": known}, torch.from_numpy(targets))


class MaskedBatches:
    """The sequences of a causal job without their last token, in the same order."""

    def __init__(self, causal: CausalBatches, data: Prepared, seed: int) -> None:
        self._causal, self._seed = causal, seed
        self._vocab_size, self._mask_id = data.vocab_size, data.special_ids["mask"]
        self.width = causal.width - 1

    def sample_indices(self, step: int) -> Ids:
        """Sequence numbers of one optimizer step, shape (global_batch_size,)."""
        return self._causal.sample_indices(step)

    def counted(self, indices: Ids, step: int) -> int:
        """Tokens of these sequences that are chosen."""
        return int(self._hidden(indices, step)[2].sum())

    def batch_at(self, indices: Ids, step: int) -> Batch:
        """These sequences on the device."""
        return _batch(*self._hidden(indices, step)).to(self._causal.device)

    def _hidden(self, indices: Ids, step: int) -> tuple[Ids, Ids, npt.NDArray[np.bool_]]:
        tokens = self._causal.token_ids(indices)[:, :-1]
        seeds = [derived_seed(self._seed, "mask", step, int(index)) for index in indices]
        inputs, chosen = hidden(tokens, seeds, self._vocab_size, self._mask_id)
        return tokens, inputs, chosen


class MaskedHeldOut:
    """Held-out sequences with the same tokens hidden in every evaluation."""

    def __init__(self, tokens: Ids, inputs: Ids, chosen: npt.NDArray[np.bool_], scored_bytes: int | None) -> None:
        self._tokens, self._inputs, self._chosen = tokens, inputs, chosen
        self.tokens, self.bytes = int(chosen.sum()), scored_bytes

    @classmethod
    def of(cls, causal: CausalHeldOut, data: Prepared) -> MaskedHeldOut:
        """The causal job's sequences without their last token."""
        tokens = causal.sequences[:, :-1]
        seeds = [derived_seed(0, "held-out mask", number) for number in range(len(tokens))]
        inputs, chosen = hidden(tokens, seeds, data.vocab_size, data.special_ids["mask"])
        sizes = data.bytes_of_heldout()
        width = tokens.shape[1]
        flat = None if sizes is None else np.asarray(sizes[: tokens.size]).reshape(-1, width)
        return cls(tokens, inputs, chosen, None if flat is None else int(flat[chosen].sum(dtype=np.int64)))

    def __len__(self) -> int:
        return len(self._tokens)

    def batch(self, start: int, end: int) -> Batch:
        """These sequences, on the CPU."""
        return _batch(self._tokens[start:end], self._inputs[start:end], self._chosen[start:end])

    def sha256(self) -> str:
        """Digest of the tokens, of what is hidden and of how."""
        digest = hashlib.sha256(str(self._tokens.shape).encode())
        for part in (self._tokens, self._inputs):
            digest.update(part.astype("<i8").tobytes())
        digest.update(np.packbits(self._chosen).tobytes())
        return digest.hexdigest()

    def source_loss(self) -> tuple[None, None]:
        """What the source itself would score on a gap is not known."""
        return None, None


# A digest of the tokens that the model consumed, cheap enough for every step and free of synchronisation.


class TokenStream:
    """Per optimizer step the sum over all tokens of `(token + 1) * key[row, column]`, modulo 2**64.

    The keys are fixed odd random numbers, one per place in the global batch: the sum depends on which
    token stands where, and not on how the step was cut into micro-batches (a multilinear hash: Carter
    and Wegman 1979, doi:10.1016/0022-0000(79)90044-8). It is accumulated on the device and read with the
    losses; the SHA-256 of all steps' sums is the digest.
    """

    def __init__(self, global_batch_size: int, width: int, device: str) -> None:
        """`width`: token ids of a sequence, those that are targets alone among them."""
        generator = torch.Generator().manual_seed(derived_seed(0, "token_stream_keys"))
        bound = 1 << 62
        keys = torch.randint(-bound, bound, (global_batch_size, width), generator=generator)
        self._keys = (keys * 2 + 1).to(device)

    def mixed(self, sequences: torch.Tensor, first_row: int) -> torch.Tensor:
        """The part of a micro-batch whose first sequence is row `first_row` of the global batch; int64 scalar."""
        return ((sequences + 1) * self._keys[first_row : first_row + len(sequences)]).sum()

    def anywhere(self, sequences: torch.Tensor) -> torch.Tensor:
        """A sum over sequences that depends neither on their order nor on how they are cut; int64 scalar."""
        return ((sequences + 1) * self._keys[0, : sequences.shape[-1]]).sum()


def stream_sha256(step_sums: Iterable[int]) -> str:
    """Digest of all steps' sums, in order."""
    return hashlib.sha256(b"".join(pack("<q", value) for value in step_sums)).hexdigest()


# What a task trains on and is scored on: one class each for its training data and its held-out ones.


Batches = CausalBatches | MaskedBatches | PairBatches
"""The training data of a task, in the order of a seed; `width`: token ids of a sequence in `Batch.tokens`."""
HeldOut = CausalHeldOut | MaskedHeldOut | PairHeldOut
"""The sequences that every evaluation of a job scores.

`tokens`: targets scored; `bytes`: UTF-8 bytes of the tokens scored, None where they stand for no text.
"""


def batches_of(order: Order, data: Prepared, world: World, module: Any) -> Batches:
    """The training data of the order's task, in the order of its seed, as the model wants them."""
    job = order.job
    if job.task == "seq2seq":
        return PairBatches(data, job, order.trial.seed, world.device, decoder_start_id(module))
    causal = CausalBatches(
        data.train(), seq_len=job.seq_len, global_batch_size=job.global_batch_size, seed=order.trial.seed,
        device=world.device, answers=data.answers(TRAIN, job.seq_len),
    )  # fmt: skip
    return MaskedBatches(causal, data, order.trial.seed) if job.task == "masked_lm" else causal


def held_out_of(order: Order, data: Prepared, module: Any) -> HeldOut | None:
    """What every evaluation of the job scores; None: it does not evaluate."""
    job = order.job
    if not isinstance(job.eval, Eval):
        return None
    if job.task == "seq2seq":
        start_id = decoder_start_id(module)
        return PairHeldOut.first(data, tokens=job.eval.tokens, seq_len=job.seq_len, start_id=start_id)
    causal = CausalHeldOut.first(data, tokens=job.eval.tokens, seq_len=job.seq_len)
    return MaskedHeldOut.of(causal, data) if job.task == "masked_lm" else causal
