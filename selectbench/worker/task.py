"""What a task trains on and is scored on: one class each for its training data and its held-out ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selectbench.data.prepared import Prepared
from selectbench.record.wire import Order
from selectbench.suite.evaluate import Eval
from selectbench.worker.batches import Batches, CausalBatches
from selectbench.worker.evaluation import CausalHeldOut, HeldOut
from selectbench.worker.examination import Examination
from selectbench.worker.masked import MaskedBatches, MaskedHeldOut
from selectbench.worker.pairs import PairBatches, PairHeldOut, decoder_start_id
from selectbench.worker.world import World


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
