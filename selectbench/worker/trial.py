"""Runs one trial from its order to its last event: in this process, or as several ranks below it."""

from __future__ import annotations

import faulthandler
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

# These imports take a second; the trial server does them once, before it forks.
from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

from selectbench.choices.choice import add_to_path, load
from selectbench.choices.combinations import Situation, combination_reason
from selectbench.choices.execution import OwnFramework
from selectbench.choices.model import Lora, OfAnyFamily, OwnModel
from selectbench.choices.optimizer import parameter_uses
from selectbench.data.prepared import Prepared
from selectbench.errors import disk_problem
from selectbench.record.record import FailureKind
from selectbench.record.wire import GaveUp, Order, Phase, Started
from selectbench.suite.job import shares
from selectbench.worker import runtime
from selectbench.worker.attention import masks_by_shape
from selectbench.worker.batches import Batch, Batches, TokenStream, batches_of, held_out_of
from selectbench.worker.evaluation import Reading
from selectbench.worker.loop import Unsupported, train_with, unsupported_where_missing
from selectbench.worker.model import PretrainedModelError, enable_checkpointing, ensure_weights, mapped_model
from selectbench.worker.observation import ModelBehaviour, Watch, examine_model, parts_of_own_code
from selectbench.worker.outcome import ModelFacts, finished
from selectbench.worker.ranks import run_ranks
from selectbench.worker.recorder import Diverged, Emit, Setting


def run_trial(order: Order, emit: Emit) -> None:
    """Train the order's trial; `emit` gets Started first and Finished or GaveUp last.

    Running out of memory, divergence and unsupported choices end in GaveUp; other exceptions are raised. Sets
    torch's thread count, random state and TF32 switch for the whole process.
    """
    # On SIGTERM a trial writes its stack to its log and ends.
    faulthandler.register(signal.SIGTERM, chain=True)
    emit(Started(software=runtime.versions()))
    emit(Phase(phase="setup"))
    add_to_path(order.code)
    with _failures_as_events(emit), runtime.private_caches(Path(order.trial_folder)):
        job, choices = order.job, order.choices
        micro_batches = job.gradient_accumulation_steps(choices.micro_batch_size, order.world_size)
        situation = Situation(choices, order.device, micro_batches, job.task, job.data.kind)
        if reason := combination_reason(situation):  # the plan refuses it too, but an order may come from elsewhere
            raise Unsupported(reason)
        # It is chance which trial draws the weights: that time is not part of an option's start-up.
        with unsupported_where_missing(f"attention {order.choices.attention.name}"):
            ensure_weights(order, Prepared.open(Path(order.data_folder)).vocab_size)
        began = time.perf_counter()
        if order.choices.strategy.name != "single":
            run_ranks(order, emit, run_rank, began)
        else:
            run_rank(order, runtime.World(0, 1, order.device), emit, runtime.Whereabouts(), began)


def run_rank(
    order: Order, world: runtime.World, emit: Emit, whereabouts: runtime.Whereabouts, began: float
) -> None:
    """Train one rank's part; all ranks end together. Raises what `run_trial` turns into GaveUp.

    `began`: time at which the trial began, by `time.perf_counter`.
    """
    with _failures_as_events(emit):
        # Made first, since it counts from here.
        memory = runtime.CudaMemory() if world.device_type == "cuda" else runtime.CpuMemory()
        torch.set_num_threads(order.threads)
        runtime.set_tf32(order.choices.precision.tf32)
        setting = _setting(order, world, emit, whereabouts, memory)
        facts = ModelFacts.of(setting.module, order, world)
        _adapt(setting)
        compiles = order.choices.compile.mode is not None
        if setting.watch.own_parts and not compiles:  # the hooks that count would break a graph
            setting.watch.watch_model(setting.module, setting.stream)
        framework = order.choices.framework
        if isinstance(framework, OwnFramework):
            loop = train_with(partial(load(framework.loop, "framework"), **framework.settings))
        else:
            module, _, function = framework.loop.partition(":")
            with unsupported_where_missing(f"framework {framework.name}"):
                loop = getattr(import_module(module), function)
        # A model of own code may pack sequences, and build on transformers' masks.
        masks = nullcontext() if isinstance(order.job.model, OwnModel) else masks_by_shape()
        # Dropout draws from torch's global generator.
        torch.manual_seed(runtime.derived_seed(order.trial.seed, "dropout", world.rank))
        try:
            with masks, setting.sdpa.in_compiled_graphs() if compiles else nullcontext():
                trained = loop(setting)
        finally:
            if setting.recorder is not None and world.is_first:
                setting.recorder.write_series(Path(order.trial_folder) / "series.json")
        event = finished(setting, facts, trained, began)
        if world.is_first:
            emit(event)


@contextmanager
def _failures_as_events(emit: Emit) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        kinds: dict[type[Exception], FailureKind] = {
            Diverged: "diverged", PretrainedModelError: "crashed", Unsupported: "unsupported",
        }  # fmt: skip
        kind = next((kind for error_type, kind in kinds.items() if isinstance(error, error_type)), None)
        if disk_problem(str(error)) is not None:
            kind = "crashed"  # a log on a full disk may not say it
        if runtime.is_out_of_memory(error):
            kind = "oom"
        if kind is None:
            raise  # the caller handles all other exceptions
        emit(GaveUp(kind=kind, detail=str(error) or type(error).__name__))


def _adapt(setting: Setting) -> None:
    """Apply the adaptation, which decides what is trained; weights that it adds are drawn from the seed."""
    adaptation = setting.order.choices.adaptation
    torch.manual_seed(runtime.derived_seed(setting.order.trial.seed, "adaptation"))
    with unsupported_where_missing(f"adaptation {adaptation.name}"):
        setting.module = adaptation.apply(setting.module, setting.world.device)
        setting.module.train()
        on_cpu = all(p.device.type == "cpu" for p in setting.module.parameters())
        if isinstance(adaptation, Lora):
            setting.left_parameters = _unreached_elements(setting.module, adaptation)
            if setting.behaviour.used_as and on_cpu:
                try:
                    examine_model(setting.module, _first_batch(setting.batches))
                except Exception as error:
                    message = f"{type(setting.module).__name__} can't be called with PEFT's layers: {error}"
                    raise NotImplementedError(message) from error
    sizes: Counter[str] = Counter()
    for parameter, use in parameter_uses(setting.module):
        sizes[use] += parameter.numel() if parameter.requires_grad else 0
    setting.parameters_by_use = dict(sorted((+sizes).items()))
    setting.trainable_parameters = sum(p.numel() for p in setting.module.parameters() if p.requires_grad)


def _unreached_elements(module: Any, adaptation: Lora) -> int:
    """Elements of the matrices between embedding and head that the adaptation does not reach."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    matrices = [(names[id(p)], p) for p, use in parameter_uses(module) if use == "matrix"]
    return sum(p.numel() for name, p in matrices if ".lora_" not in name and not adaptation.is_adapted(name, p))


def _first_batch(batches: Batches) -> Batch:
    return batches.batch_at(batches.sample_indices(0)[:1], 0)


def _setting(
    order: Order, world: runtime.World, emit: Emit, whereabouts: runtime.Whereabouts, memory: runtime.TrainingMemory
) -> Setting:
    job, choices = order.job, order.choices
    data = Prepared.open(Path(order.data_folder))
    with unsupported_where_missing(f"attention {choices.attention.name}"):
        module = mapped_model(order, data.vocab_size, ensure_weights(order, data.vocab_size))
    if choices.activation_checkpointing.enabled:
        with unsupported_where_missing("activation_checkpointing"):
            enable_checkpointing(module)
    module.train()
    batches, held_out = batches_of(order, data, world, module), held_out_of(order, data, module)
    if isinstance(job.model, OfAnyFamily):
        module.behaviour = examine_model(module, _first_batch(batches))
    return Setting(
        order=order, world=world, module=module, loss=choices.loss.build(),
        batches=batches,
        stream=TokenStream(job.global_batch_size, batches.width, world.device),
        shares=shares(job.lr_schedule, job.max_steps), held_out=held_out,
        reading=None if held_out is None else Reading.of(order, data, held_out),
        emit=emit, memory=memory, whereabouts=whereabouts, watch=Watch(parts_of_own_code(job, choices)),
        behaviour=getattr(module, "behaviour", ModelBehaviour()),
    )  # fmt: skip
