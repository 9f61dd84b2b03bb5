"""The measurement and the certificate of a completed trial, from what its loop has collected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from selectbench.record.as_json import LOSSES
from selectbench.record.meters import Architecture
from selectbench.record.record import Identity, Measurement, RankMemory, decimate
from selectbench.record.wire import Finished, Order, RankDevice
from selectbench.suite.own_code import own_code_sha256
from selectbench.suite.schedule import distinct_rates, shape_sha256
from selectbench.worker import identity as found
from selectbench.worker.architecture import architecture_of
from selectbench.worker.loop import Trained
from selectbench.worker.model import weights_sha256
from selectbench.worker.precision import tf32_allowed
from selectbench.worker.recorder import Recorder
from selectbench.worker.series import RanksDisagreeError
from selectbench.worker.setting import Setting
from selectbench.worker.token_stream import stream_sha256
from selectbench.worker.world import World


@dataclass(frozen=True)
class Before:
    """What is seen of the model before anything wraps, casts or shards it."""

    weights_sha256: str | None
    """On the first rank, which reports."""
    parameters: int
    attention: str | None
    dropout: float | None
    code_sha256: str | None
    architecture: Architecture | None

    @classmethod
    def training(cls, module: Any, order: Order, world: World) -> Before:
        """Look at the model and the own code."""
        return cls(
            weights_sha256(module) if world.is_first else None,
            sum(p.numel() for p in module.parameters()),
            found.attention(module),
            found.largest_dropout(module),
            own_code_sha256(order.code) if world.is_first else None,
            architecture_of(module, order.job.seq_len),
        )


def finished(setting: Setting, before: Before, trained: Trained, began: float) -> Finished:
    """The trial's last event; every rank calls it together.

    `began`: when the trial did, its initial weights drawn, by `time.perf_counter`.
    """
    recorder = trained.recorder
    check_replicas(setting.world, trained)
    memory = [msgspec.convert(item, RankMemory) for item in setting.world.gathered(_rank_memory(setting, trained))]
    devices = setting.world.gathered(_device(setting.world))
    return Finished(
        measurement=_measurement(setting, before, recorder, memory, began),
        identity=_identity(setting, before, trained),
        evaluation_curve=recorder.evaluation_curve,
        inside=recorder.inside,
        loss_curve=LOSSES.keep(decimate(list(enumerate(recorder.series.losses)))),
        resolved_config=trained.resolved_config,
        timed_windows=recorder.timing.stretches,
        training_window=recorder.training_window,
        devices=[msgspec.convert(item, RankDevice) for item in devices if item],
    )


def _device(world: World) -> dict[str, str | None]:
    """The GPU that torch runs this rank on; {} on a CPU."""
    if world.device_type != "cuda":
        return {}
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    place = [getattr(found, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    uuid = getattr(found, "uuid", None)
    bus_id = None if None in place else f"{place[0]:08X}:{place[1]:02X}:{place[2]:02X}.0"
    return {"uuid": None if uuid is None else str(uuid), "pci_bus_id": bus_id}


def check_replicas(world: World, trained: Trained) -> None:
    """Ranks that each keep the whole model must keep the same one. Raises RanksDisagreeError on all of them."""
    if not trained.keeps_replicas or world.size == 1:
        return
    sums = torch.stack([p.detach().double().sum() for p in trained.parameters or []]).tolist()
    if len({tuple(found) for found in world.gathered(sums)}) > 1:  # type: ignore[arg-type]
        raise RanksDisagreeError(
            "the ranks' weights differ after the last step: gradients were not brought together"
        )


def _rank_memory(setting: Setting, trained: Trained) -> dict[str, int | None]:
    kept = trained.parameters
    return {
        "rank": setting.world.rank,
        **setting.memory.peaks(),
        "parameter_bytes": None if kept is None else found.storage_bytes(kept),
        "gradient_bytes": trained.first_gradients.bytes if trained.first_gradients else None,
        "optimizer_state_bytes": found.optimizer_state_bytes(trained.optimizers, kept or []),
        "managed_state_bytes": found.managed_state_bytes(trained.optimizers),
    }


def _largest(memory: Sequence[RankMemory]) -> dict[str, int | None]:
    keys = (
        "peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "num_alloc_retries", "peak_pss_growth_bytes",
        "managed_state_bytes",
    )  # fmt: skip
    known = {key: [value for rank in memory if (value := getattr(rank, key)) is not None] for key in keys}
    return {key: max(values, default=None) for key, values in known.items()}


def _measurement(
    setting: Setting, before: Before, recorder: Recorder, memory: list[RankMemory], began: float
) -> Measurement:
    timing, series, held_out = recorder.timing, recorder.series, recorder.held_out
    source_loss, source_loss_error = held_out.source_loss() if held_out else (None, None)
    return Measurement(
        tokens_per_step=setting.order.job.tokens_per_step,
        steps_applied=sum(series.applied),
        steps_skipped=len(series.applied) - sum(series.applied),
        timed_steps=len(timing.timed_steps),
        timed_seconds=timing.timed_seconds,
        step_seconds=decimate(timing.timed_steps),
        step_time_median_seconds=timing.median_seconds(),
        step_time_iqr_seconds=timing.iqr_seconds(),
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
        architecture=before.architecture,
        **_largest(memory),
    )


def _identity(setting: Setting, before: Before, trained: Trained) -> Identity:
    recorder, order = trained.recorder, setting.order
    series, rates = recorder.series, recorder.learning_rates
    first_norm = series.gradient_norms[0]
    gradients = trained.first_gradients.dtypes if trained.first_gradients else None
    return Identity(
        initial_weights_sha256=before.weights_sha256,
        token_stream_sha256=stream_sha256(series.stream_sums),
        evaluation_set_sha256=recorder.held_out.sha256() if recorder.held_out else None,
        parameters=before.parameters,
        trainable_parameters=setting.trainable_parameters,
        tokens_per_step=max(series.tokens, key=lambda tokens: abs(tokens - order.job.tokens_per_step)),
        steps_requested=len(series.losses),
        steps_applied=sum(series.applied),
        gradient_accumulation_steps=max(series.micro_batches),
        learning_rate_shape_sha256=shape_sha256([share for step in rates.all_shares for share in step]),
        peak_learning_rate=distinct_rates(rates.highest),
        parameter_dtype=found.updated_dtype(trained.optimizers),
        working_dtype=trained.working_dtype,
        gradient_dtype=found.dtype_name(gradients) if gradients else None,
        compute_dtype=_name_of(trained.compute_dtype),
        optimizer_state_dtype=found.optimizer_state_dtypes(trained.optimizers),
        matmul_tf32=tf32_allowed(),
        attention=before.attention,
        sdpa_backends=setting.sdpa.found,
        optimizer=found.optimizer_names(trained.optimizers),
        compiled=recorder.compilations > 0,
        first_step_loss=series.losses[0],
        first_step_gradient_norm=first_norm if first_norm is not None and math.isfinite(first_norm) else None,
        world_size=dist.get_world_size() if dist.is_initialized() else 1,
        strategy=trained.strategy,
        framework=trained.framework,
        loss=order.choices.loss.name if trained.compute_dtype else None,
        reduction_dtype=trained.reduction_dtype if setting.world.size > 1 else None,
        dropout=before.dropout,
        code_sha256=before.code_sha256,
    )


def _name_of(dtype: torch.dtype | None) -> str:
    return found.dtype_name({dtype} if dtype else set())
