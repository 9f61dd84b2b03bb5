"""What each task trains on and is scored on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selectbench.data.prepared import Prepared
from selectbench.record.wire import Order
from selectbench.suite.job import Eval
from selectbench.worker.batches import (
    NOT_COUNTED,
    Batch,
    Batches,
    CausalBatches,
    PairBatches,
    PairHeldOut,
    decoder_start_id,
)
from selectbench.worker.evaluation import CausalHeldOut, HeldOut
from selectbench.worker.examination import Examination
from selectbench.worker.runtime import World, derived_seed

# Masked language modelling: some tokens are hidden from the model, and it must say which they were.
#
# Of a sequence's tokens 15 % are chosen; of these 80 % are replaced by the mask token, 10 % by any token, 10 % stay
# (Devlin et al. 2019, arXiv:1810.04805, section 3.1). Which they are follows from the seed, the step and the
# sequence, not from how a step is cut; for the held-out text from the sequence alone, so that every evaluation asks
# the same.


CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1
Ids = npt.NDArray[np.int64]


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

    def source_loss(self) -> tuple[float | None, float | None]:
        """What the source itself would score on a gap is not known."""
        return None, None


# What a task trains on and is scored on: one class each for its training data and its held-out ones.


def batches_of(order: Order, data: Prepared, world: World, module: Any) -> Batches:
    """The training data of the order's task, in the order of its seed, as the model wants them."""
    job = order.job
    if job.task == "seq2seq":
        return PairBatches(data, job, order.trial.seed, world.device, decoder_start_id(module))
    causal = CausalBatches(
        data.train(), seq_len=job.seq_len, global_batch_size=job.global_batch_size, seed=order.trial.seed,
        device=world.device, trained=data.train_mask(),
    )  # fmt: skip
    return MaskedBatches(causal, data, order.trial.seed) if job.task == "masked_lm" else causal


def examination_of(order: Order, data: Prepared, module: Any) -> Examination | None:
    """What is generated and scored after the last step; None: nothing."""
    job = order.job
    if not isinstance(job.eval, Eval) or job.task != "seq2seq":
        return None
    at_once, start_id = order.choices.micro_batch_size, decoder_start_id(module)
    return Examination.of(job.eval, data, job.seq_len, at_once, Path(order.trial_folder), start_id)


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
