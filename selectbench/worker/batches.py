"""What each task trains on and is scored on: the order of a seed, the tensors that a model gets, their digest."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from struct import pack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selectbench.data.prepared import HELDOUT, TRAIN, Answers, Prepared, fitting_pairs, sequences
from selectbench.record.wire import Order
from selectbench.suite.job import Eval, Job
from selectbench.worker.runtime import World, derived_seed

Ids = npt.NDArray[np.int64]

NOT_COUNTED = -100
"""A target that no loss counts: the default ignore_index of torch's cross-entropy."""


@dataclass(frozen=True)
class Batch:
    """Sequences of a task: the model's arguments, and the targets that it should predict."""

    tokens: torch.Tensor
    """All token ids of the sequences, int64, (sequences, width); the certificate's digest is computed from them."""
    arguments: tuple[torch.Tensor, ...]
    """Positional arguments of the model's forward."""
    named: dict[str, torch.Tensor]
    """Keyword arguments of the model's forward."""
    targets: torch.Tensor
    """Token ids, int64, a row for each row of logits; NOT_COUNTED where the loss leaves them out."""

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """A batch with the function applied to every tensor."""
        named = {name: function(tensor) for name, tensor in self.named.items()}
        return Batch(function(self.tokens), tuple(map(function, self.arguments)), named, function(self.targets))

    def to(self, device: str) -> Batch:
        """Copy a batch on the CPU to a device."""
        return self.map(lambda tensor: to_device(tensor, device))


class SampleOrder:
    """Sequence numbers, reshuffled in every epoch and cut into optimizer steps; they depend on the seed alone."""

    def __init__(self, sequences: int, global_batch_size: int, seed: int) -> None:
        self.sequences, self.global_batch_size = sequences, global_batch_size
        self._seed = seed
        # A step reaches back at most into epochs that begin in it: older orders are not needed again.
        self._order = lru_cache(maxsize=2)(self._drawn_order)

    def sample_indices(self, step: int) -> npt.NDArray[np.int64]:
        """Sequence numbers of one optimizer step, shape (global_batch_size,)."""
        first = step * self.global_batch_size
        epochs, positions = np.divmod(np.arange(first, first + self.global_batch_size), self.sequences)
        return np.concatenate([self._order(int(epoch))[positions[epochs == epoch]] for epoch in np.unique(epochs)])

    def _drawn_order(self, epoch: int) -> npt.NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64(derived_seed(self._seed, "order", epoch)))
        return generator.permutation(self.sequences)


class CausalBatches(SampleOrder):
    """Sequences of a token stream for next-token prediction.

    A sequence is `seq_len + 1` tokens long: inputs and their next tokens. Sequences are cut with stride `seq_len`,
    those of chats around the answers. A micro-batch is a slice of a step's sequences.
    """

    def __init__(
        self, tokens: npt.NDArray[np.integer], *, seq_len: int, global_batch_size: int, seed: int, device: str,
        answers: Answers | None = None,
    ) -> None:  # fmt: skip
        """`tokens`: 1-D, at least seq_len + 1 of them.

        `answers`: the sequences of a chat; None: cut evenly, and all targets count.
        """
        count = sequences(len(tokens), seq_len) if answers is None else len(answers.starts)
        super().__init__(count, global_batch_size, seed)
        self.width = seq_len + 1
        self._tokens, self._answers, self._seq_len, self.device = tokens, answers, seq_len, device

    def counted(self, indices: npt.NDArray[np.int64], step: int) -> int:
        """Targets of these sequences that the loss counts."""
        if self._answers is None:
            return len(indices) * self._seq_len
        return int(self._answers.counted(indices, self._seq_len).sum())

    def batch_at(self, indices: npt.NDArray[np.int64], step: int) -> Batch:
        """The batch of these sequences, on the device."""
        tokens = self.sequences_at(indices)
        targets = tokens[:, 1:].contiguous()
        if self._answers is not None:
            is_counted = torch.from_numpy(self._answers.counted(indices, self._seq_len))
            targets = targets.masked_fill(~to_device(is_counted, self.device), NOT_COUNTED)
        return Batch(tokens, (tokens[:, :-1].contiguous(),), {}, targets)

    def sequences_at(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Token ids as int64 on the device, shape (len(indices), seq_len + 1)."""
        return to_device(torch.from_numpy(self.token_ids(indices)), self.device)

    def token_ids(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Token ids as int64 in host memory, shape (len(indices), seq_len + 1)."""
        starts = indices * self._seq_len if self._answers is None else self._answers.starts[indices]
        return self._tokens[starts[:, None] + np.arange(self._seq_len + 1)].astype(np.int64)


def causal(batches: Batches) -> CausalBatches:
    """The batches of a causal job, for loops that train on nothing else; `plan` keeps them from other tasks."""
    assert type(batches) is CausalBatches
    return batches


def to_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A CPU's tensor on the device; the copy to a GPU is from pinned memory and does not hold up the host."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)


@dataclass(frozen=True)
class HeldOut:
    """The sequences that every evaluation of a job scores."""

    whole: Batch | PairTokens
    """All sequences, on the CPU; pairs stay unpadded, since padded they may be many times larger."""
    bytes: int | None
    """UTF-8 bytes of the tokens scored; None: they stand for no text."""
    also_hashed: tuple[npt.NDArray[Any], ...] = ()
    """Arrays that the digest covers besides the token ids."""
    source_nats: npt.NDArray[np.float64] | None = None
    """Nats of each scored token under the source that generated it; None: not known."""

    @property
    def pairs(self) -> PairTokens | None:
        """The pairs; None: the job's sequences are no pairs."""
        return self.whole if isinstance(self.whole, PairTokens) else None

    def __len__(self) -> int:
        return len(self.whole.tokens if isinstance(self.whole, Batch) else self.whole)

    def batch(self, start: int, end: int) -> Batch:
        """Sequences `start` to `end`, on the CPU; fewer at the end of the set."""
        if isinstance(self.whole, PairTokens):
            return self.whole.batch(np.arange(start, min(end, len(self))))
        return self.whole.map(lambda tensor: tensor[start:end])

    @cached_property
    def tokens(self) -> int:
        """Number of scored targets."""
        if isinstance(self.whole, PairTokens):
            return int(self.whole.lengths[:, 1].sum())
        return int((self.whole.targets != NOT_COUNTED).sum())

    def sha256(self) -> str:
        """Digest of the token ids, their shape, the hidden tokens, and which targets are scored."""
        pieces = (self.batch(start, start + 1024).tokens.numpy() for start in range(0, len(self), 1024))
        digest = hashlib.sha256(str((len(self), self.batch(0, 1).tokens.shape[1])).encode())
        for part in (*(piece.astype("<i8") for piece in pieces), *self.also_hashed):
            digest.update(part.tobytes())
        return digest.hexdigest()

    def source_loss(self) -> tuple[float | None, float | None]:
        """Mean of the source's nats over the scored tokens, and its standard error; None: not known."""
        if self.source_nats is None:
            return None, None
        error = self.source_nats.std(ddof=1) / np.sqrt(len(self.source_nats)) if len(self.source_nats) > 1 else None
        return float(self.source_nats.mean()), None if error is None else float(error)


def causal_held_out(data: Prepared, *, tokens: int, seq_len: int) -> HeldOut:
    """The first `tokens` held-out tokens, rounded up to whole sequences; all of them where there are fewer.

    Of chats only the targets of training are scored. `data.prepared.check_enough` must hold.
    """
    stream, chat = data.heldout(), data.answers(HELDOUT, seq_len)
    if chat is None:
        count = min(-(-tokens // seq_len), sequences(len(stream), seq_len))
    else:
        count = bisect_left(range(len(chat.starts)), tokens, key=chat.counted_tokens)

    def cut(values: Any) -> Any:
        starts = np.arange(count) * seq_len if chat is None else chat.starts[:count]
        return None if values is None else np.asarray(values)[starts[:, None] + np.arange(seq_len + 1)]

    ids, sizes, nats = cut(stream).astype(np.int64), cut(data.bytes_of_heldout()), cut(data.truth_of_heldout())
    scored = np.ones((count, seq_len), bool) if chat is None else chat.counted(np.arange(count), seq_len)
    tensor = torch.from_numpy(ids)
    return HeldOut(
        Batch(tensor, (tensor[:, :-1],), {}, torch.from_numpy(np.where(scored, ids[:, 1:], NOT_COUNTED))),
        None if sizes is None else int(sizes[:, 1:][scored].sum(dtype=np.int64)),
        () if chat is None else (np.packbits(scored),),
        None if nats is None else nats[:, 1:][scored],
    )


# Pairs for an encoder and a decoder, padded to the job's length: shapes do not depend on how a step is cut.
#
# The decoder gets a start token, then the target without its last token, and must predict the target including its
# end-of-text token (Raffel et al. 2020, arXiv:1910.10683, section 2.1). The model's configuration names the start
# token; else it is the padding token, as in T5. Padding is hidden from attention and counted by no loss.


@dataclass(frozen=True)
class PairTokens:
    """Token ids of a split's pairs, of which both sides fit into `seq_len`."""

    tokens: npt.NDArray[Any]
    """All sources and targets in turn, concatenated."""
    starts: Ids
    """Where each source and each target begins, (pairs, 2)."""
    lengths: Ids
    """Number of tokens of each source and target, (pairs, 2)."""
    seq_len: int
    pad_id: int
    start_id: int
    """Id of the decoder's start token."""

    @classmethod
    def of(cls, data: Prepared, side: str, seq_len: int, start_id: int | None = None) -> PairTokens:
        """The pairs of TRAIN or HELDOUT with no side longer than `seq_len`; `start_id` None: the padding token."""
        tokens, lengths = data.train() if side == TRAIN else data.heldout(), data.lengths(side)
        assert lengths is not None, "the job was checked: seq2seq has pairs"
        ends = np.cumsum(lengths.ravel()).reshape(-1, 2)
        chosen, pad_id = fitting_pairs(lengths, seq_len), data.special_ids["pad"]
        start = pad_id if start_id is None else start_id
        return cls(tokens, (ends - lengths)[chosen], np.asarray(lengths)[chosen], seq_len, pad_id, start)

    def __len__(self) -> int:
        return len(self.lengths)

    def side(self, indices: Ids, side: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Padded ids of the sources (0) or targets (1), (pairs, seq_len), and a mask that is False for padding."""
        offsets = np.arange(self.seq_len)
        is_token = offsets[None, :] < self.lengths[indices, side][:, None]
        positions = np.where(is_token, self.starts[indices, side][:, None] + offsets[None, :], 0)
        return np.where(is_token, self.tokens[positions], self.pad_id).astype(np.int64), is_token

    def batch(self, indices: Ids) -> Batch:
        """The batch of these pairs, on the CPU."""
        source, source_mask = self.side(indices, 0)
        target, target_mask = self.side(indices, 1)
        decoder_ids = np.concatenate([np.full((len(indices), 1), self.start_id), target[:, :-1]], axis=1)
        keywords = {
            "input_ids": torch.from_numpy(source),
            "attention_mask": torch.from_numpy(source_mask.astype(np.int64)),
            "decoder_input_ids": torch.from_numpy(decoder_ids),
        }  # fmt: skip
        targets = torch.from_numpy(np.where(target_mask, target, NOT_COUNTED))
        return Batch(torch.from_numpy(np.concatenate([source, target], axis=1)), (), keywords, targets)


def decoder_start_id(module: Any) -> int | None:
    """Id of the decoder's start token in a model's configuration; None: it names no token of its vocabulary.

    decoder_start_token_id, else bos_token_id, as in transformers' `GenerationMixin._prepare_special_tokens`.
    """
    ids = (getattr(module.config, f"{name}_token_id", None) for name in ("decoder_start", "bos"))
    start_id = next((number for number in ids if number is not None), None)
    # A configuration with a changed vocabulary may still name a token of the old one.
    vocab_size = getattr(module.config, "vocab_size", None)
    return None if start_id is None or (vocab_size is not None and start_id >= vocab_size) else int(start_id)


class PairBatches(SampleOrder):
    """Pairs in the order of a seed."""

    def __init__(self, data: Prepared, job: Job, seed: int, device: str, start_id: int | None = None) -> None:
        self._pairs = PairTokens.of(data, TRAIN, job.seq_len, start_id)
        super().__init__(len(self._pairs), job.global_batch_size, seed)
        self.width = 2 * job.seq_len
        self._device = device

    def counted(self, indices: Ids, step: int) -> int:
        """Target tokens of these pairs."""
        return int(self._pairs.lengths[indices, 1].sum())

    def batch_at(self, indices: Ids, step: int) -> Batch:
        """The batch of these pairs, on the device."""
        return self._pairs.batch(indices).to(self._device)


def pairs_held_out(data: Prepared, *, tokens: int, seq_len: int, start_id: int | None = None) -> HeldOut:
    """The first pairs whose targets have `tokens` tokens in total; all pairs where they have fewer.

    `data.prepared.check_enough` must hold.
    """
    sizes, pairs = data.bytes_of_heldout(), PairTokens.of(data, HELDOUT, seq_len, start_id)
    assert sizes is not None
    enough = int(np.searchsorted(np.cumsum(pairs.lengths[:, 1]), tokens)) + 1
    indices = np.arange(min(enough, len(pairs)))
    spans = zip(pairs.starts[indices, 1].tolist(), pairs.lengths[indices, 1].tolist(), strict=True)
    scored_bytes = sum(int(sizes[start : start + n].sum(dtype=np.int64)) for start, n in spans)
    return HeldOut(replace(pairs, starts=pairs.starts[indices], lengths=pairs.lengths[indices]), scored_bytes)


# Masked language modelling: some tokens are hidden from the model, which must predict them.
#
# Of a sequence's tokens 15 % are chosen; of these 80 % are replaced by the mask token, 10 % by any token, 10 % stay
# (Devlin et al. 2019, arXiv:1810.04805, section 3.1). The choice depends on the seed, the step and the
# sequence, not on how a step is cut; for the held-out text on the sequence alone, so that all evaluations are the
# same.


CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1


def hide_tokens(tokens: Ids, seeds: list[int], vocab_size: int, mask_id: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Inputs with the chosen tokens hidden, and a mask of these; one seed and at least one token for each row."""
    inputs, chosen = tokens.copy(), np.zeros(tokens.shape, bool)
    for row, seed in enumerate(seeds):
        generator = np.random.Generator(np.random.PCG64(seed))
        chosen[row] = generator.random(tokens.shape[1]) < CHOSEN
        chosen[row, generator.integers(tokens.shape[1])] |= not chosen[row].any()
        action, random_ids = generator.random(tokens.shape[1]), generator.integers(vocab_size, size=tokens.shape[1])
        inputs[row] = np.where(chosen[row] & (action < MASKED), mask_id, inputs[row])
        inputs[row] = np.where(chosen[row] & (action >= 1 - REPLACED), random_ids, inputs[row])
    return inputs, chosen


def _batch(tokens: Ids, inputs: Ids, chosen: npt.NDArray[np.bool_]) -> Batch:
    targets = torch.from_numpy(np.where(chosen, tokens, NOT_COUNTED))
    return Batch(torch.from_numpy(tokens), (), {"input_ids": torch.from_numpy(inputs)}, targets)


class MaskedBatches(CausalBatches):
    """The sequences of a causal job without their last token, in the same order."""

    def __init__(self, data: Prepared, **settings: Any) -> None:
        """`settings`: those of CausalBatches."""
        super().__init__(data.train(), **settings)
        self._vocab_size, self._mask_id = data.vocab_size, data.special_ids["mask"]
        self.width -= 1

    def counted(self, indices: Ids, step: int) -> int:
        """Number of hidden tokens in these sequences."""
        return int(self._hidden(indices, step)[2].sum())

    def batch_at(self, indices: Ids, step: int) -> Batch:
        """The batch of these sequences, on the device."""
        return _batch(*self._hidden(indices, step)).to(self.device)

    def _hidden(self, indices: Ids, step: int) -> tuple[Ids, Ids, npt.NDArray[np.bool_]]:
        tokens = self.token_ids(indices)[:, :-1]
        seeds = [derived_seed(self._seed, "mask", step, int(index)) for index in indices]
        return tokens, *hide_tokens(tokens, seeds, self._vocab_size, self._mask_id)


def masked_held_out(data: Prepared, *, tokens: int, seq_len: int) -> HeldOut:
    """The causal job's sequences without their last token, the same ones hidden in every evaluation."""
    causal_sequences = causal_held_out(data, tokens=tokens, seq_len=seq_len)
    ids: Ids = causal_sequences.batch(0, len(causal_sequences)).arguments[0].numpy()
    seeds = [derived_seed(0, "held-out mask", number) for number in range(len(ids))]
    inputs, chosen = hide_tokens(ids, seeds, data.vocab_size, data.special_ids["mask"])
    sizes = data.bytes_of_heldout()
    scored = None if sizes is None else np.asarray(sizes[: ids.size]).reshape(ids.shape)[chosen]
    return HeldOut(
        _batch(ids, inputs, chosen), None if scored is None else int(scored.sum(dtype=np.int64)),
        (inputs.astype("<i8"), np.packbits(chosen)),
    )  # fmt: skip


# A digest of the tokens that the model consumed, cheap enough for every step and without synchronisation.


class TokenStream:
    """Per optimizer step the sum over all tokens of `(token + 1) * key[row, column]`, modulo 2**64.

    The keys are fixed odd random numbers, one per place in the global batch: the sum depends on which
    token stands where, and not on how the step was cut into micro-batches (a multilinear hash: Carter
    and Wegman 1979, doi:10.1016/0022-0000(79)90044-8). It is accumulated on the device and read with the
    losses; the SHA-256 of all steps' sums is the digest.
    """

    def __init__(self, global_batch_size: int, width: int, device: str) -> None:
        """`width`: number of token ids of a sequence, including ids that are only targets."""
        generator = torch.Generator().manual_seed(derived_seed(0, "token_stream_keys"))
        bound = 1 << 62
        keys = torch.randint(-bound, bound, (global_batch_size, width), generator=generator)
        self._keys = (keys * 2 + 1).to(device)

    def partial_sum(self, sequences: torch.Tensor, first_row: int) -> torch.Tensor:
        """The part of a micro-batch whose first sequence is row `first_row` of the global batch; int64 scalar."""
        return ((sequences + 1) * self._keys[first_row : first_row + len(sequences)]).sum()

    def unordered_sum(self, sequences: torch.Tensor) -> torch.Tensor:
        """A sum over sequences that depends neither on their order nor on how they are cut; int64 scalar."""
        return ((sequences + 1) * self._keys[0, : sequences.shape[-1]]).sum()


def stream_sha256(step_sums: Iterable[int]) -> str:
    """Digest of all steps' sums, in order."""
    return hashlib.sha256(b"".join(pack("<q", value) for value in step_sums)).hexdigest()


# What a task trains on and is scored on.


Batches = CausalBatches | PairBatches
"""The training data of a task, in the order of a seed; `width`: token ids of a sequence in `Batch.tokens`."""


def batches_of(order: Order, data: Prepared, world: World, module: Any) -> Batches:
    """The training data of the order's task, in the order of its seed, in the form that the model takes."""
    job = order.job
    if job.task == "seq2seq":
        return PairBatches(data, job, order.trial.seed, world.device, decoder_start_id(module))
    settings: dict[str, Any] = {
        "seq_len": job.seq_len, "global_batch_size": job.global_batch_size, "seed": order.trial.seed,
        "device": world.device,
    }  # fmt: skip
    if job.task == "masked_lm":
        return MaskedBatches(data, **settings)
    return CausalBatches(data.train(), answers=data.answers(TRAIN, job.seq_len), **settings)


def held_out_of(order: Order, data: Prepared, module: Any) -> HeldOut | None:
    """The held-out set of the job's evaluations; None: the job does not evaluate."""
    job = order.job
    if not isinstance(job.eval, Eval):
        return None
    if job.task == "seq2seq":
        start_id = decoder_start_id(module)
        return pairs_held_out(data, tokens=job.eval.tokens, seq_len=job.seq_len, start_id=start_id)
    make = masked_held_out if job.task == "masked_lm" else causal_held_out
    return make(data, tokens=job.eval.tokens, seq_len=job.seq_len)
