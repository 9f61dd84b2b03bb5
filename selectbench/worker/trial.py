"""Runs one trial from its order to its last event."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

# A second's work that the trial server does once, before it forks: transformers loads families on demand.
from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

from selectbench.data.prepared import Prepared
from selectbench.record.wire import Finished, GaveUp, Order, Phase, Started
from selectbench.suite.job import Eval
from selectbench.worker.batches import Batches
from selectbench.worker.compilation import compilation_counter, private_caches
from selectbench.worker.engine import SingleEngine
from selectbench.worker.evaluation import HeldOut
from selectbench.worker.loop import Emit, TrainingLoop
from selectbench.worker.memory import TrainingMemory, is_out_of_memory, training_memory
from selectbench.worker.model import BuiltModel, build_model
from selectbench.worker.outcome import finished
from selectbench.worker.precision import set_tf32
from selectbench.worker.schedule import shares
from selectbench.worker.seeds import derived_seed
from selectbench.worker.series import Diverged
from selectbench.worker.step import OptimizerStep
from selectbench.worker.token_stream import TokenStream


class Unsupported(Exception):  # noqa: N818 - an outcome, not an error
    """A choice can't be had here, found only by trying."""


def run_trial(order: Order, emit: Emit) -> None:
    """Trains the order's trial; `emit` gets Started first and Finished or GaveUp last.

    Running out of memory, divergence and what can't be had here end in GaveUp; any other exception is
    the caller's. Sets torch's thread count, random state and TF32 switch for the whole process.
    """
    began = time.perf_counter()
    memory = training_memory(order.device)
    emit(Started())
    emit(Phase(phase="setup"))
    try:
        with private_caches(Path(order.trial_folder)):
            emit(_train(order, emit, began, memory))
    except Diverged as reason:
        emit(GaveUp(kind="diverged", detail=str(reason)))
    except Unsupported as reason:
        emit(GaveUp(kind="unsupported", detail=str(reason)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        emit(GaveUp(kind="oom", detail=str(error) or type(error).__name__))


def _train(order: Order, emit: Emit, began: float, memory: TrainingMemory) -> Finished:
    torch.set_num_threads(order.threads)
    set_tf32(order.choices.precision.tf32)
    data = Prepared.open(Path(order.data_folder))
    with _unsupported_where_missing("attention"):
        built = build_model(
            order.job, order.choices, vocab_size=data.vocab_size, seed=order.trial.seed, device=order.device
        )
    engine = _engine(order, built)
    loop = _loop(order, built, engine, data, emit, memory)
    # Dropout draws from torch's global generator.
    torch.manual_seed(derived_seed(order.trial.seed, "dropout"))
    startup_seconds = time.perf_counter() - began
    try:
        loop.run()
    finally:
        loop.series.write(
            Path(order.trial_folder) / "series.json", shares=loop.shares, peak_learning_rates=engine.peak_lrs()
        )
    return finished(order, built, loop, startup_seconds)


@contextlib.contextmanager
def _unsupported_where_missing(dimension: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, NotImplementedError) as error:
        raise Unsupported(f"{dimension}: {error}") from error


def _engine(order: Order, built: BuiltModel) -> SingleEngine:
    with _unsupported_where_missing("optimizer"):
        optimizers = order.choices.optimizer.build(built.module)
    return SingleEngine(
        list(built.module.parameters()),
        optimizers,
        device=order.device,
        gradient_scaling=order.choices.precision.gradient_scaling,
        keep_gradients=order.device == "cuda" and order.choices.compile.mode == "max-autotune",
    )


def _loop(
    order: Order, built: BuiltModel, engine: SingleEngine, data: Prepared, emit: Emit, memory: TrainingMemory
) -> TrainingLoop:
    job, choices = order.job, order.choices
    batches = Batches(
        data.train(), seq_len=job.seq_len, global_batch_size=job.global_batch_size,
        seed=order.trial.seed, device=order.device,
    )  # fmt: skip
    step = OptimizerStep(
        forward=built.forward, engine=engine, batches=batches,
        stream=TokenStream(job.global_batch_size, job.seq_len, order.device),
        precision=choices.precision, device=order.device, micro_batch_size=choices.micro_batch_size,
        tokens_per_step=job.tokens_per_step, clip_norm=job.clip_norm,
    )  # fmt: skip
    return TrainingLoop(
        job=job, module=built.module, optimizer_step=step, shares=shares(job.lr_schedule, job.max_steps),
        held_out=_held_out(order, data), device=order.device, min_timed_seconds=order.min_timed_seconds,
        emit=emit, memory=memory, count_compilations=compilation_counter(choices.compile.mode),
    )  # fmt: skip


def _held_out(order: Order, data: Prepared) -> HeldOut | None:
    evaluation = order.job.eval
    if not isinstance(evaluation, Eval):
        return None
    return HeldOut.first(data.heldout(), data.token_bytes(), tokens=evaluation.tokens, seq_len=order.job.seq_len)
