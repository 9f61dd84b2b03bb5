"""The measurement and the certificate of a completed trial, and how much work its model does for a token."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from operator import and_
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from selectbench.data.prepared import Prepared
from selectbench.gpu.devices import TorchDevice
from selectbench.observe.selectbench_seen import dtype_name, optimizer_name, states, storage_bytes
from selectbench.record.record import (
    LOSSES,
    Architecture,
    Identity,
    Measurement,
    RankMemory,
    Watched,
    decimate,
    interquartile_range,
    largest_of_ranks,
)
from selectbench.record.wire import Finished, Order
from selectbench.suite.job import distinct_rates, shape_sha256
from selectbench.worker import runtime
from selectbench.worker.batches import stream_sha256
from selectbench.worker.loop import Trained
from selectbench.worker.model import random_parts, weights_sha256
from selectbench.worker.observation import XZ_BYTES, CoreUse, causality, own_files, rate_effect, xz_bits_per_byte
from selectbench.worker.recorder import RanksDisagreeError, Recorder, Setting
from selectbench.worker.runtime import World, tf32_allowed

# The parts of a model that decide how much work a token is, counted on the live module.
#
# The formula in the bench counts dense matrix products and full attention. A family of transformers is listed here
# once a test has counted its real forward and backward passes and confirmed the formula; for other models there is
# no figure.


NORM = "norm"
"""A norm stands between a block's last matrix product and the block's output."""

FAMILIES: dict[str, str | None] = {
    "arcee": None, "bloom": "hidden_dropout", "codegen": "resid_pdrop", "cohere": None, "ernie4_5": None,
    "exaone4": NORM, "falcon": "hidden_dropout", "gemma": None, "gemma2": NORM, "gemma3_text": NORM, "glm": None,
    "glm4": NORM, "gpt2": "resid_pdrop", "gpt_bigcode": "resid_pdrop", "gpt_neox": "hidden_dropout",
    "gptj": "resid_pdrop", "granite": None, "helium": None, "llama": None, "mistral": None, "olmo": None,
    "olmo2": NORM, "olmo3": NORM, "opt": "dropout", "persimmon": "hidden_dropout", "phi": "resid_pdrop",
    "phi3": "resid_pdrop", "qwen2": None, "qwen3": None, "seed_oss": "residual_dropout", "smollm3": None,
    "stablelm": "hidden_dropout", "starcoder2": "residual_dropout",
}  # fmt: skip
"""Model types that the formula describes, each with what follows a block's last matrix product: NORM, the
setting of a dropout, or None for nothing but the residual addition."""

_MATRICES = (nn.Linear, Conv1D)
_PACKAGES = ("torch.nn.modules.", "transformers.models.", "transformers.activations", "transformers.pytorch_utils")
"""Modules of the parts' classes; quantised, adapted and parametrised layers come from other modules."""
_ATTENTION_KINDS = {"full_attention", "sliding_attention"}


def architecture_of(module: Any, seq_len: int) -> Architecture | None:
    """The architecture of a model before anything wraps, casts or shards it; parameters may be on the meta device.

    `seq_len`: tokens of a training sequence. None where the formula does not describe the model: it is not one of
    FAMILIES as transformers ships it (so own models, mixtures of experts, encoders, state spaces and linear
    attention), attends to less than the whole sequence, drops whole layers, or is not trained as a whole.
    """
    if not _is_described(module):
        return None
    config = module.config
    window = getattr(config, "sliding_window", None)  # of every layer that has one
    attends_to_all = window is None or window >= seq_len
    if not attends_to_all or not set(getattr(config, "layer_types", None) or ()) <= _ATTENTION_KINDS:
        return None
    blocks = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    if len(blocks) != config.num_hidden_layers:
        return None
    matrices = [_matrices(block) for block in blocks]
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Where a block's backward pass does not need the output of its last matrix product, torch's checkpointing ends
    # the second forward pass just before that product.
    last_operation = FAMILIES[config.model_type]
    needs_last = last_operation == NORM or (last_operation is not None and getattr(config, last_operation) > 0)
    skipped = 0 if needs_last else sum(sizes[-1] for sizes in matrices)
    return Architecture(
        matmul_parameters=sum(_matrices(module)),
        block_matmul_parameters=sum(map(sum, matrices)) - skipped,
        attention_width=config.num_hidden_layers * config.num_attention_heads * int(head_width),
        seq_len=seq_len,
    )


def _is_described(module: Any) -> bool:
    """Whether the model is a decoder of FAMILIES with a head, of transformers' and torch's parts, all trained."""
    if not isinstance(module, PreTrainedModel):
        return False
    config = module.config
    return (
        config.model_type in FAMILIES
        and MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type) == type(module).__name__
        and not getattr(config, "is_encoder_decoder", False)
        and not getattr(config, "add_cross_attention", False)
        and not getattr(config, "layerdrop", 0)
        and all(parameter.requires_grad for parameter in module.parameters())
        and all(type(part).__module__.startswith(_PACKAGES) for part in module.modules())
        # Matrices are of the kinds that are counted, or embeddings, which are only looked up.
        and all(
            isinstance(part, (*_MATRICES, nn.Embedding)) or all(p.ndim < 2 for p in part.parameters(recurse=False))
            for part in module.modules()
        )
    )


def _matrices(part: nn.Module) -> list[int]:
    """Elements of each matrix of a module, in the order of construction, which in FAMILIES is the order of use.

    Counted by module, so that a head counts even if its weights are tied to the embedding.
    """
    return [inner.weight.numel() for inner in part.modules() if isinstance(inner, _MATRICES)]


# The measurement and the certificate of a completed trial, from what its loop has collected.


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the model before anything wraps, casts or shards it."""

    weights_sha256: str | None
    """Digest of the weights, on each node's first rank; None on others."""
    parameters: int
    attention: str | None
    dropout: float | None
    code_files: dict[str, str] | None
    architecture: Architecture | None

    @classmethod
    def of(cls, module: Any, order: Order, world: World) -> ModelFacts:
        """Collect these facts of the model and the own code."""
        return cls(
            weights_sha256(module) if world.rank == (order.place.first_rank if order.place else 0) else None,
            sum(p.numel() for p in module.parameters()),
            runtime.attention(module),
            max((value for *_, value in random_parts(module)), default=0.0),
            own_files(order.code),
            architecture_of(module, order.job.seq_len),
        )


def finished(setting: Setting, facts: ModelFacts, trained: Trained, began: float) -> Finished:
    """Make the trial's last event; all ranks call it together.

    `began`: time at which the trial began, after drawing initial weights, by `time.perf_counter`.
    """
    recorder = trained.recorder
    check_replicas(setting.world, trained)
    check_nodes(setting, facts)
    parameters, first = trained.parameters, trained.first_step
    rank_memory = {
        "rank": setting.world.rank,
        **setting.memory.peaks(),
        "parameter_bytes": None if parameters is None else storage_bytes(parameters),
        "gradient_bytes": first.gradient_bytes,
        "optimizer_state_bytes": runtime.optimizer_state_bytes(trained.optimizers, parameters or []),
        "managed_state_bytes": runtime.managed_state_bytes(trained.optimizers),
    }
    memory = [msgspec.convert(m, RankMemory) for m in setting.world.gathered(rank_memory)]
    devices = cast("list[TorchDevice | None]", setting.world.gathered(_device(setting.world)))
    return Finished(
        measurement=_measurement(setting, facts, recorder, memory, began),
        identity=_identity(setting, facts, trained),
        evaluation_curve=recorder.evaluation_curve,
        inside=recorder.inside,
        loss_curve=LOSSES.as_json(decimate(list(enumerate(recorder.series.losses)))),
        resolved_config=trained.resolved_config,
        timed_windows=recorder.timing.stretches,
        training_window=recorder.training_window,
        watched=_watched(setting, facts, trained),
        devices=[device for device in devices if device],
    )


def _device(world: World) -> TorchDevice | None:
    """The GPU that torch runs this rank on; None on a CPU."""
    if world.device_type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    place = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    uuid = getattr(properties, "uuid", None)
    bus_id = None if None in place else f"{place[0]:08X}:{place[1]:02X}:{place[2]:02X}.0"
    return TorchDevice(None if uuid is None else str(uuid), bus_id)


def check_replicas(world: World, trained: Trained) -> None:
    """Check that ranks with a full copy of the model have equal copies. Raises RanksDisagreeError on all ranks."""
    if trained.strategy != "DistributedDataParallel" or world.size == 1:
        return
    sums = torch.stack([p.detach().double().sum() for p in trained.parameters or []]).tolist()
    if len({tuple(s) for s in world.gathered(sums)}) > 1:  # type: ignore[arg-type]
        raise RanksDisagreeError(
            "the ranks' weights differ after the last step: gradients were not brought together"
        )


def check_nodes(setting: Setting, facts: ModelFacts) -> None:
    """Check that all nodes have the same initial weights, held-out data, software and own code.

    Raises RanksDisagreeError on all ranks.
    """
    if setting.order.place is None:
        return
    heldout = setting.held_out.sha256() if setting.held_out else None
    for subject, value in (
        ("the initial weights are", facts.weights_sha256), ("the held-out tokens are", heldout),
        ("the software is", runtime.versions()), ("own code is", facts.code_files),
    ):  # fmt: skip
        values = setting.world.gathered(value)
        known = [v for v in values if v is not None]  # only one rank of each node has the weights' digest
        if any(v != known[0] for v in known):
            rank = next(number for number, v in enumerate(values) if v not in (None, known[0]))
            raise RanksDisagreeError(f"{subject} not the same on rank {rank}'s node as on rank 0's")


def _measurement(
    setting: Setting, facts: ModelFacts, recorder: Recorder, memory: list[RankMemory], began: float
) -> Measurement:
    timing, series, held_out = recorder.timing, recorder.series, setting.held_out
    source_loss, source_loss_error = held_out.source_loss() if held_out else (None, None)
    uses = cast("list[CoreUse]", setting.world.gathered(recorder.core_waits.use))  # ranks share the cores
    waited, data = sum(use.waited_seconds for use in uses), Prepared.open(Path(setting.order.data_folder))
    text = setting.reading.text if setting.reading and data.has_text and setting.world.is_first else None
    return Measurement(
        tokens_per_step=setting.order.job.tokens_per_step,
        steps_applied=_applied(recorder),
        steps_skipped=len(series.applied) - _applied(recorder),
        timed_steps=len(timing.timed_steps),
        timed_seconds=timing.timed_seconds,
        step_seconds=decimate(timing.timed_steps),
        step_time_median_seconds=timing.median_seconds(),
        step_time_iqr_seconds=interquartile_range(timing.timed_steps),
        warmup_seconds=timing.warmup_seconds(),
        startup_seconds=(recorder.first_step_at or began) - began,
        compile_seconds=timing.compile_seconds(),
        recompilations=timing.recompilations,
        training_seconds=timing.training_seconds,
        evaluation_seconds=recorder.evaluation_seconds,
        first_loss=series.losses[0],
        last_loss=series.losses[-1],
        final_loss=recorder.evaluation_curve[-1].loss if held_out else None,
        heldout_tokens=held_out.tokens if held_out else None,
        heldout_bytes=held_out.bytes if held_out else None,
        initial_loss=next((p.loss for p in recorder.evaluation_curve if p.step == 0), None),
        scores=recorder.scores.scores,
        copy_scores=recorder.scores.copy_scores,
        score_signatures=recorder.scores.signatures,
        sentences=recorder.scores.sentences,
        source_loss=source_loss,
        source_loss_error=source_loss_error,
        memory_by_rank=memory,
        architecture=facts.architecture,
        run_queue_wait_seconds=None if math.isnan(waited) else waited,
        involuntary_switches=sum(use.switches for use in uses),
        cpu_seconds=sum(use.worked_seconds for use in uses),
        cores_seconds=None if math.isnan(uses[0].cores_seconds) else uses[0].cores_seconds,
        trial_seconds=time.perf_counter() - began,
        heldout_xz_bits_per_byte=text and xz_bits_per_byte(data.heldout()[:XZ_BYTES].tolist(), text),
        parameters_by_use=setting.parameters_by_use,
        left_parameters=setting.left_parameters,
        evaluation_attention=runtime.evaluation_kernel(setting.module) if held_out else None,
        **largest_of_ranks(memory),
    )


def _applied(recorder: Recorder) -> int:
    """Number of the job's steps that updated every group of parameters, without an overflow."""
    return sum(map(and_, recorder.series.applied, recorder.learning_rates.updated))


def _watched(setting: Setting, facts: ModelFacts, trained: Trained) -> Watched:
    """Comes last, since the rate test moves the weights. All ranks call it together."""
    order, world, recorder, watch = setting.order, setting.world, trained.recorder, setting.watch
    counts = watch.counts(world, order.job.global_batch_size, recorder.steps_done)
    files = own_files(order.code)
    return Watched(
        causality=_attempt(lambda: _causality(setting, recorder)),
        clock_ratio=watch.clock_ratio(),
        code_files=None if files is None else {**files, **(facts.code_files or {})},
        rate_effect=_attempt(lambda: rate_effect(trained.optimizers, recorder.learning_rates.peaks))
        if "optimizer" in watch.own_parts and not order.choices.strategy.sharded() else None,
        **counts,
    )  # fmt: skip


CAUSALITY_SEQUENCES = 4


def _attempt(call: Callable[[], Any]) -> Any:
    """Result of a call, or None where it fails: a test after the training must not lose the trial."""
    try:
        return call()
    except Exception:
        traceback.print_exc()
        return None


def _causality(setting: Setting, recorder: Recorder) -> dict[str, float] | None:
    if setting.order.job.task != "causal_lm":
        return None
    rows = min(CAUSALITY_SEQUENCES, setting.order.choices.micro_batch_size)
    batches, held_out = setting.batches, setting.held_out
    if held_out:
        batch = held_out.batch(0, min(rows, len(held_out))).to(setting.world.device)
    else:
        batch = batches.batch_at(batches.sample_indices(0)[:rows], 0)
    with recorder.evaluation() as forward:
        return causality(forward, batch)


def _identity(setting: Setting, facts: ModelFacts, trained: Trained) -> Identity:
    recorder, order = trained.recorder, setting.order
    series, rates = recorder.series, recorder.learning_rates
    first_norm = series.gradient_norms[0]
    first = trained.first_step
    return Identity(
        initial_weights_sha256=facts.weights_sha256,
        token_stream_sha256=stream_sha256(series.stream_sums),
        evaluation_set_sha256=setting.held_out.sha256() if setting.held_out else None,
        parameters=facts.parameters,
        trainable_parameters=setting.trainable_parameters,
        tokens_per_step=max(series.tokens, key=lambda tokens: abs(tokens - order.job.tokens_per_step)),
        steps_requested=len(series.losses),
        steps_applied=_applied(recorder),
        gradient_accumulation_steps=max(series.micro_batches),
        learning_rate_shape_sha256=shape_sha256([share for step in rates.shares for share in step]),
        peak_learning_rate=distinct_rates(rates.highest),
        parameter_dtype=dtype_name(p.dtype for p in runtime.updated_parameters(trained.optimizers)),
        working_dtype=trained.working_dtype,
        gradient_dtype=dtype_name(first.gradient_dtypes) if first.gradient_dtypes else None,
        compute_dtype=dtype_name({first.compute_dtype} if first.compute_dtype else set()),
        optimizer_state_dtype=sorted({dtype_name([t.dtype]) for t in states(trained.optimizers) if t.numel() > 1}),
        matmul_tf32=tf32_allowed(),
        attention=facts.attention,
        sdpa_backends=setting.sdpa.names,
        optimizer=[optimizer_name(optimizer) for optimizer in trained.optimizers],
        compiled=recorder.compilations > 0,
        first_step_loss=series.losses[0],
        first_step_gradient_norm=first_norm if first_norm is not None and math.isfinite(first_norm) else None,
        world_size=dist.get_world_size() if dist.is_initialized() else 1,
        strategy=trained.strategy,
        framework=trained.framework,
        loss=order.choices.loss.name if first.compute_dtype else None,
        reduction_dtype=trained.reduction_dtype if setting.world.size > 1 else None,
        dropout=facts.dropout,
        random_modules=setting.behaviour.random_modules if facts.dropout == 0 else [],
        first_step_added_loss=None
        if first.added_loss is None
        else float(setting.world.total(first.added_loss.double())),
    )
