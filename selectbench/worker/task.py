"""What a task trains on and is scored on: one class each for its training data and its held-out ones."""

from __future__ import annotations

from pathlib import Path

from selectbench.data.prepared import Prepared
from selectbench.record.wire import Order
from selectbench.suite.evaluate import Eval
from selectbench.worker.batches import Batches, CausalBatches
from selectbench.worker.evaluation import CausalHeldOut, HeldOut
from selectbench.worker.examination import Examination
from selectbench.worker.masked import MaskedBatches, MaskedHeldOut
from selectbench.worker.pairs import PairBatches, PairHeldOut
from selectbench.worker.world import World


def batches_of(order: Order, data: Prepared, world: World) -> Batches:
    """The training data of the order's task, in the order of its seed."""
    job = order.job
    if job.task == "seq2seq":
        return PairBatches(data, job, order.trial.seed, world.device)
    causal = CausalBatches(
        data.train(), seq_len=job.seq_len, global_batch_size=job.global_batch_size, seed=order.trial.seed,
        device=world.device, trained=data.train_mask(),
    )  # fmt: skip
    return MaskedBatches(causal, data, order.trial.seed) if job.task == "masked_lm" else causal


def examination_of(order: Order, data: Prepared) -> Examination | None:
    """What is generated and scored after the last step; None: nothing."""
    job = order.job
    if not isinstance(job.eval, Eval):
        return None
    at_once = order.choices.micro_batch_size
    return Examination.of(job.eval, data, job.seq_len, at_once, Path(order.trial_folder))


def held_out_of(order: Order, data: Prepared) -> HeldOut | None:
    """What every evaluation of the job scores; None: it does not evaluate."""
    job = order.job
    if not isinstance(job.eval, Eval):
        return None
    if job.task == "seq2seq":
        return PairHeldOut.first(data, tokens=job.eval.tokens, seq_len=job.seq_len)
    causal = CausalHeldOut.first(data, tokens=job.eval.tokens, seq_len=job.seq_len)
    return MaskedHeldOut.of(causal, data) if job.task == "masked_lm" else causal
