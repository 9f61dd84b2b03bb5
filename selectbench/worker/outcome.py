"""The measurement and the certificate of a completed trial, from what its loop has collected."""

from __future__ import annotations

import math

from selectbench.record.record import Identity, Measurement, decimate
from selectbench.record.wire import Finished, Order
from selectbench.worker import identity as found
from selectbench.worker.loop import TrainingLoop
from selectbench.worker.model import BuiltModel
from selectbench.worker.precision import tf32_allowed
from selectbench.worker.schedule import shape_sha256
from selectbench.worker.token_stream import stream_sha256


def finished(order: Order, built: BuiltModel, loop: TrainingLoop, startup_seconds: float) -> Finished:
    """The trial's last event."""
    return Finished(
        measurement=_measurement(order, loop, startup_seconds),
        identity=_identity(order, built, loop),
        evaluation_curve=loop.evaluation_curve,
        loss_curve=decimate(list(enumerate(loop.series.losses))),
    )


def _measurement(order: Order, loop: TrainingLoop, startup_seconds: float) -> Measurement:
    timing, series, held_out = loop.timing, loop.series, loop.held_out
    return Measurement(
        tokens_per_step=order.job.tokens_per_step,
        steps_applied=sum(series.applied),
        steps_skipped=len(series.applied) - sum(series.applied),
        timed_steps=len(timing.timed_steps),
        timed_seconds=timing.timed_seconds,
        step_seconds=decimate(timing.timed_steps),
        step_time_median_seconds=timing.median_seconds(),
        step_time_iqr_seconds=timing.iqr_seconds(),
        warmup_seconds=timing.warmup_seconds(),
        startup_seconds=startup_seconds,
        compile_seconds=timing.compile_seconds(),
        recompilations=timing.recompilations,
        training_seconds=timing.training_seconds,
        evaluation_seconds=loop.evaluation_seconds,
        first_loss=series.losses[0],
        last_loss=series.losses[-1],
        final_loss=loop.evaluation_curve[-1].loss if held_out else None,
        heldout_tokens=held_out.tokens if held_out else None,
        heldout_bytes=held_out.bytes if held_out else None,
        **loop.memory.peaks(),
    )


def _identity(order: Order, built: BuiltModel, loop: TrainingLoop) -> Identity:
    step, series = loop.optimizer_step, loop.series
    first_norm = series.gradient_norms[0]
    return Identity(
        initial_weights_sha256=built.initial_weights_sha256,
        token_stream_sha256=stream_sha256(series.stream_sums),
        evaluation_set_sha256=loop.held_out.sha256() if loop.held_out else None,
        parameters=built.parameters,
        tokens_per_step=order.job.tokens_per_step,
        steps_requested=order.job.max_steps,
        steps_applied=sum(series.applied),
        gradient_accumulation_steps=order.job.global_batch_size // order.choices.micro_batch_size,
        learning_rate_shape_sha256=shape_sha256(loop.shares),
        parameter_dtype=found.parameter_dtype(built.module),
        gradient_dtype=found.gradient_dtype(built.module),
        compute_dtype=found.dtype_name({step.compute_dtype} if step.compute_dtype else set()),
        optimizer_state_dtype=found.optimizer_state_dtypes(step.engine.optimizers),
        matmul_tf32=tf32_allowed(),
        attention=found.attention(built.module),
        optimizer=found.optimizer_names(step.engine.optimizers),
        compiled=built.forward is not built.module and bool(loop.timing.compiling_steps),
        first_step_loss=series.losses[0],
        first_step_gradient_norm=first_norm if math.isfinite(first_norm) else None,
    )
