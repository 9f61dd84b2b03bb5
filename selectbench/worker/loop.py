"""Our own training loop, the same for every strategy, its optimizer step, and what any loop returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from selectbench.worker.batches import Batch
from selectbench.worker.engine import Engine
from selectbench.worker.recorder import Recorder, Setting, StepTensors


class Unsupported(Exception):  # noqa: N818 - an outcome, not an error
    """A choice can't be had here, found only by trying."""


@dataclass
class FirstGradients:
    """What was found of the gradients in the first step, between backward pass and update."""

    bytes: int | None = None
    """That this rank keeps; None: not known."""
    dtypes: set[torch.dtype] | None = None

    @classmethod
    def of(cls, kept: Sequence[torch.Tensor] | None) -> FirstGradients:
        """What these gradients are; None: they are hidden."""
        if kept is None:
            return cls()
        return cls(sum(g.numel() * g.element_size() for g in kept), {g.dtype for g in kept})


@dataclass
class Trained:
    """What a loop leaves behind for the certificate; None: the loop hides it."""

    recorder: Recorder
    framework: str
    strategy: str
    optimizers: list[torch.optim.Optimizer]
    parameters: list[torch.Tensor] | None
    """Those that this rank keeps between steps."""
    first_gradients: FirstGradients | None
    reduction_dtype: str | None
    compute_dtype: torch.dtype | None
    resolved_config: dict[str, Any] | None = None
    working_dtype: str | None = None
    """Of the weights in forward and backward pass."""

    @property
    def keeps_replicas(self) -> bool:
        """Whether every rank keeps the whole model."""
        return self.strategy == "DistributedDataParallel"


def train(setting: Setting) -> Trained:
    """The whole job, then the steps that timing still needs. Raises Diverged and Unsupported."""
    return train_with_engine(setting, engine_for(setting))


def engine_for(setting: Setting) -> Engine:
    """The engine of the trial's strategy. Raises Unsupported."""
    order = setting.order
    module, _, attribute = order.choices.strategy.engine.partition(":")
    with unsupported_where_missing(f"strategy {order.choices.strategy.name}"):
        engine: Engine = getattr(import_module(module), attribute)(
            setting.module, order.job, order.choices, setting.world
        )
    if order.choices.compile.mode is None:
        setting.sdpa.watch_first_forward(engine.forward)
    return engine


def train_with_engine(setting: Setting, engine: Engine) -> Trained:
    """The job's steps, then those that timing still needs. Raises Diverged."""
    recorder = Recorder(setting, engine.evaluation, engine.optimizers)
    step = OptimizerStep(setting, engine)
    while recorder.wants_step():
        number = recorder.steps_done
        recorder.step_done(step.run(number, setting.share_at(number)))
    return Trained(
        recorder, "native", engine.strategy, engine.optimizers, engine.kept_parameters(), step.first_gradients,
        engine.reduction_dtype, step.compute_dtype, engine.resolved_config, engine.working_dtype(),
    )  # fmt: skip


@contextmanager
def unsupported_where_missing(what: str) -> Iterator[None]:
    """Turns a missing package or feature into the outcome `unsupported`, named by `what`."""
    try:
        yield
    except (ImportError, NotImplementedError) as error:
        raise Unsupported(f"{what}: {error}") from error


class OptimizerStep:
    """Carries out optimizer steps of a fixed cut: a rank has a slice of the step, micro-batches slices of that."""

    def __init__(self, setting: Setting, engine: Engine) -> None:
        self.engine, self.batches, self.stream = engine, setting.batches, setting.stream
        self.world, self.whereabouts = setting.world, setting.whereabouts
        self.clip_norm = setting.order.job.clip_norm
        self.tokens_per_sequence = setting.order.job.tokens_per_sequence
        self.micro_batch_size = setting.order.choices.micro_batch_size
        """Sequences per forward pass; divides each rank's part of the global batch."""
        self.compute_dtype: torch.dtype | None = None
        """Of the logits, once a step has run."""
        self.first_gradients: FirstGradients | None = None
        self._forward_loss = engine.forward_loss(setting.loss)

    def run(self, step: int, share_of_peak: float) -> StepTensors:
        """Trains on this rank's sequences of optimizer step `step` at this share of the peak learning rate.

        Nothing here waits for the device.
        """
        self.engine.begin_step(share_of_peak)
        indices = self.batches.sample_indices(step)
        rows = len(indices) // self.world.size
        start, end = self.world.rank * rows, (self.world.rank + 1) * rows
        counted = max(1, self.batches.counted(indices, step))
        losses, sums = [], []
        for row in range(start, end, self.micro_batch_size):
            self.whereabouts.enter("forward pass", step)
            batch = self.batches.batch_at(indices[row : row + self.micro_batch_size], step)
            sums.append(self.stream.mixed(batch.tokens, row))
            losses.append(self._micro_batch(batch, counted, step, row + self.micro_batch_size >= end))
        if self.first_gradients is None:
            self.first_gradients = FirstGradients.of(self.engine.kept_gradients())
        self.whereabouts.enter("update", step)
        norm, applied = self.engine.clip_and_step(self.clip_norm)
        return StepTensors(_sum(losses), norm, applied, _sum(sums), rows * self.tokens_per_sequence, len(losses))

    def _micro_batch(self, batch: Batch, counted: int, step: int, is_last: bool) -> torch.Tensor:
        """Adds the gradient of a micro-batch; its share of the step's loss.

        `counted`: targets of the whole step, of all ranks and micro-batches.
        """
        with self.engine.micro_batch(is_last):
            summed, self.compute_dtype = self._forward_loss(batch)
            loss = summed / counted
            self.whereabouts.enter("backward pass", step)
            self.engine.backward(loss)
        return loss.detach()


def _sum(scalars: list[torch.Tensor]) -> torch.Tensor:
    return scalars[0] if len(scalars) == 1 else torch.stack(scalars).sum()
