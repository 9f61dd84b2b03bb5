"""Our own training loop, the same for every strategy, and what any loop is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch

from selectbench.record.wire import Order
from selectbench.worker.attention import SdpaBackends
from selectbench.worker.batches import Batch, Batches, HeldOut, TokenStream
from selectbench.worker.engine import Engine
from selectbench.worker.evaluation import Examination, Logits, Look, at_evaluated_weights, begin_training
from selectbench.worker.model import SummedLoss
from selectbench.worker.recorder import Emit, LearningRates, Recorder, StepTensors
from selectbench.worker.runtime import TrainingMemory, Whereabouts, World


@dataclass
class Setting:
    """One rank's part of a trial, before an engine or a framework has touched the model."""

    order: Order
    world: World
    module: Any
    """The model on the CPU: initial weights in fp32, mapped and not to be written to; training mode."""
    loss: SummedLoss
    batches: Batches
    stream: TokenStream
    shares: list[float]
    """Of the peak learning rate, per step of the job."""
    held_out: HeldOut | None
    examination: Examination | None
    look: Look | None
    emit: Emit
    memory: TrainingMemory
    whereabouts: Whereabouts
    count_compilations: Callable[[], int]
    sdpa: SdpaBackends = field(default_factory=SdpaBackends)
    """What the training's attention is seen to use."""
    trainable_parameters: int | None = None
    """Once it is settled what is trained."""
    recorder: Recorder | None = None
    """Once the loop has made one: what is known is kept even where the training fails."""

    def share_at(self, step: int) -> float:
        """The share of the peak; a step added for timing trains on at the job's last one."""
        return self.shares[min(step, len(self.shares) - 1)]


# Our own training loop: the same for every way of sharing the work.


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
    order = setting.order
    recorder = recorder_for(setting, engine.evaluation, engine.optimizers)
    step = OptimizerStep(
        engine=engine, loss=setting.loss, batches=setting.batches, stream=setting.stream,
        world=setting.world, whereabouts=setting.whereabouts,
        micro_batch_size=order.choices.micro_batch_size, clip_norm=order.job.clip_norm,
        tokens_per_sequence=order.job.tokens_per_sequence,
    )  # fmt: skip
    while recorder.wants_step():
        number = recorder.steps_done
        recorder.step_done(step.run(number, setting.share_at(number)))
    return Trained(
        recorder, "native", engine.strategy, engine.optimizers, engine.kept_parameters(), step.first_gradients,
        engine.reduction_dtype, step.compute_dtype, engine.resolved_config, engine.working_dtype(),
    )  # fmt: skip


def recorder_for(
    setting: Setting,
    evaluation: Callable[[], AbstractContextManager[Logits]],
    optimizers: list[torch.optim.Optimizer],
) -> Recorder:
    """The recorder of a trial; make it when optimizers have their peak learning rates and no step was made.

    All that is evaluated goes through it, so here optimizers are put to the weights that are.
    """
    order = setting.order
    begin_training(optimizers)
    setting.recorder = Recorder(
        job=order.job, world=setting.world, evaluation=partial(at_evaluated_weights, optimizers, evaluation),
        held_out=setting.held_out, examination=setting.examination, look=setting.look,
        sequences_per_batch=order.choices.micro_batch_size, min_timed_seconds=order.min_timed_seconds,
        emit=setting.emit, memory=setting.memory, learning_rates=LearningRates(optimizers),
        whereabouts=setting.whereabouts, count_compilations=setting.count_compilations,
    )  # fmt: skip
    return setting.recorder


@contextmanager
def unsupported_where_missing(what: str) -> Iterator[None]:
    """Turns a missing package or feature into the outcome `unsupported`, named by `what`."""
    try:
        yield
    except (ImportError, NotImplementedError) as error:
        raise Unsupported(f"{what}: {error}") from error


@dataclass
class OptimizerStep:
    """Carries out optimizer steps of a fixed cut: a rank has a slice of the step, micro-batches slices of that."""

    engine: Engine
    loss: SummedLoss
    batches: Batches
    stream: TokenStream
    world: World
    whereabouts: Whereabouts
    micro_batch_size: int
    """Sequences per forward pass; divides each rank's part of the global batch."""
    clip_norm: float | None
    tokens_per_sequence: int
    """As the job counts them."""
    compute_dtype: torch.dtype | None = None
    """Of the logits, once a step has run."""
    first_gradients: FirstGradients | None = field(default=None)

    def __post_init__(self) -> None:
        self._forward_loss = self.engine.forward_loss(self.loss)

    def run(self, step: int, share_of_peak: float) -> StepTensors:
        """Trains on this rank's sequences of optimizer step `step` at this share of the peak learning rate."""
        self.engine.begin_step(share_of_peak)
        indices = self.batches.sample_indices(step)
        rows = len(indices) // self.world.size
        start, end = self.world.rank * rows, (self.world.rank + 1) * rows
        counted = max(1, self.batches.counted(indices, step))
        losses, sums = [], []
        for row in range(start, end, self.micro_batch_size):
            self.whereabouts.enter("forward pass", step)
            mine = indices[row : row + self.micro_batch_size]
            batch = self.batches.batch_at(mine, step)
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
