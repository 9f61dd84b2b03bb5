"""Our own training loop and the one around a user's, and what any loop returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, NoReturn

import torch

from selectbench.worker.batches import Batch, causal
from selectbench.worker.engine import Engine, gradient_scaler
from selectbench.worker.model import loss_alone
from selectbench.worker.recorder import Recorder, Setting, StepTensors
from selectbench.worker.runtime import autocast


class Unsupported(Exception):  # noqa: N818 - an outcome, not an error
    """A choice is not supported here, which only an attempt shows."""


@dataclass
class FirstStep:
    """Facts about the first step on this rank; None: not known, or there is none."""

    compute_dtype: torch.dtype | None = None
    """The logits' dtype."""
    gradient_bytes: int | None = None
    """Bytes of the gradients between backward pass and update."""
    gradient_dtypes: set[torch.dtype] | None = None
    added_loss: torch.Tensor | None = None
    """Loss that the model added to this rank's part of the loss."""
    has_gradients: bool = False
    """Whether all backward passes were made."""

    def note_added_loss(self, part: torch.Tensor) -> None:
        """Add a loss that the model added to a micro-batch's; calls in later steps have no effect."""
        if not self.has_gradients:
            self.added_loss = part.detach() if self.added_loss is None else self.added_loss + part.detach()

    def note_gradients(self, gradients: Callable[[], Sequence[torch.Tensor | None] | None]) -> None:
        """Note the gradients after a step's backward passes; called back once. None: gradients are hidden."""
        if not self.has_gradients:
            self.has_gradients = True
            if (values := gradients()) is not None:
                present = [gradient for gradient in values if gradient is not None]
                self.gradient_bytes = sum(g.numel() * g.element_size() for g in present)
                self.gradient_dtypes = {g.dtype for g in present}


@dataclass
class Trained:
    """What a loop returns for the certificate; None: the loop does not show it."""

    recorder: Recorder
    framework: str
    strategy: str
    optimizers: list[torch.optim.Optimizer]
    parameters: list[torch.Tensor] | None
    """The parameters that this rank stores between steps."""
    first_step: FirstStep
    reduction_dtype: str | None
    resolved_config: dict[str, Any] | None = None
    working_dtype: str | None = None
    """Dtype of the weights in forward and backward pass."""


def train(setting: Setting) -> Trained:
    """Train the job's steps, then those that timing still needs. Raises Diverged and Unsupported."""
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
    """Train the job's steps, then those that timing still needs. Raises Diverged."""
    recorder = Recorder(setting, engine.evaluation, engine.optimizers)
    step = OptimizerStep(setting, engine)
    while recorder.wants_step():
        number = recorder.steps_done
        recorder.step_done(step.run(number, setting.share_at(number)))
    return Trained(
        recorder, "native", engine.strategy, engine.optimizers, engine.stored_parameters(), step.first,
        engine.reduction_dtype, engine.resolved_config, engine.working_dtype(),
    )  # fmt: skip


@contextmanager
def unsupported_where_missing(what: str) -> Iterator[None]:
    """Turn a missing package or feature into the outcome `unsupported`; `what` names it in the message."""
    try:
        yield
    except (ImportError, NotImplementedError) as error:
        raise Unsupported(f"{what}: {error}") from error


class OptimizerStep:
    """Runs optimizer steps: each rank has a slice of the step's sequences, each micro-batch a slice of that."""

    def __init__(self, setting: Setting, engine: Engine) -> None:
        self.engine, self.batches, self.stream = engine, setting.batches, setting.stream
        self.world, self.whereabouts = setting.world, setting.whereabouts
        self.clip_norm = setting.order.job.clip_norm
        self.tokens_per_sequence = setting.order.job.tokens_per_sequence
        self.micro_batch_size = setting.order.choices.micro_batch_size
        """Sequences per forward pass; divides each rank's part of the global batch."""
        self.first = FirstStep()
        self._adds_loss, self._sequences = setting.behaviour.adds_loss, setting.order.job.global_batch_size
        self._forward_loss = engine.forward_loss(setting.loss)

    def run(self, step: int, share_of_peak: float) -> StepTensors:
        """Train on this rank's sequences of optimizer step `step` at this share of the peak learning rate.

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
            sums.append(self.stream.partial_sum(batch.tokens, row))
            losses.append(self._micro_batch(batch, counted, step, row + self.micro_batch_size >= end))
        self.first.note_gradients(self.engine.stored_gradients)
        self.whereabouts.enter("update", step)
        norm, applied = self.engine.clip_and_step(self.clip_norm)
        return StepTensors(_sum(losses), norm, applied, _sum(sums), rows * self.tokens_per_sequence, len(losses))

    def _micro_batch(self, batch: Batch, counted: int, step: int, is_last: bool) -> torch.Tensor:
        """Add a micro-batch's gradient; returns its part of the step's loss.

        `counted`: targets of the whole step, of all ranks and micro-batches.
        """
        with self.engine.micro_batch(is_last):
            if self._adds_loss:
                batch = replace(batch, named={**batch.named, "labels": batch.targets})
            summed, added, self.first.compute_dtype = self._forward_loss(batch)
            loss = total = summed / counted
            if added is not None:  # a mean over the micro-batch, weighted by its share of the step's sequences
                part = added * (len(batch.tokens) / self._sequences)
                total = loss + part
                self.first.note_added_loss(part)
            self.whereabouts.enter("backward pass", step)
            self.engine.backward(total)
        return loss.detach()


def _sum(scalars: list[torch.Tensor]) -> torch.Tensor:
    return scalars[0] if len(scalars) == 1 else torch.stack(scalars).sum()


# A user's own training loop does forward pass, backward pass and update; we give it the job and measure.


MicroBatch = tuple[torch.Tensor, torch.Tensor, bool]
"""Token ids and their next tokens, both int64, (sequences, seq_len), and whether it is the step's last."""


class OwnLoopError(RuntimeError):
    """The user's loop did not do what the job asks for; one line that says where."""


class OwnTrial:
    """What a user's own training loop works with: it does forward pass, backward pass and update; we measure.

    Every rank runs the function in a process of its own.

    def train(trial):
        for step in trial.steps():
            loss = torch.zeros((), device=trial.device)
            for inputs, targets, is_last in step.micro_batches():
                with trial.accumulation(is_last):
                    with trial.autocast():
                        logits = trial.model(inputs).logits
                    part = trial.loss(logits, targets) / trial.tokens_per_step
                    del logits  # the largest tensor of all would live through the backward pass
                    (part * trial.world_size).backward()
                loss += part.detach()
            norm = torch.nn.utils.clip_grad_norm_(trial.parameters, trial.clip_norm)
            for optimizer in trial.optimizers:
                optimizer.step()
            step.done(loss=loss, gradient_norm=norm)
    """

    model: Any
    """Call it with token ids of shape (sequences, seq_len). On the device, in training mode, compiled and
    wrapped as the choices say: under strategy ddp it is torch's DistributedDataParallel, which averages
    gradients over ranks."""
    parameters: list[torch.Tensor]
    """The model's, for clipping."""
    optimizers: list[torch.optim.Optimizer]
    """As the choice of optimizer says; nearly always one. Their learning rates are set by `steps`."""
    device: torch.device
    """This rank's."""
    rank: int
    """From 0."""
    world_size: int
    """Ranks; multiply the loss by it before its backward pass, as gradients are averaged."""
    tokens_per_step: int
    """Of all ranks and micro-batches of an optimizer step: what a sum of token losses is divided by."""
    clip_norm: float
    """Largest global gradient norm; infinite where the job does not clip."""
    gradient_scaler: Any
    """A torch.amp.GradScaler under precision fp16_mixed, None otherwise."""

    def __init__(self, setting: Setting, engine: Engine, recorder: Recorder, name: str) -> None:
        order, world = setting.order, setting.world
        self.model = engine.forward
        self.parameters = engine.stored_parameters()
        self.optimizers = engine.optimizers
        self.device = torch.device(world.device)
        self.rank, self.world_size = world.rank, world.size
        self.tokens_per_step = order.job.tokens_per_step
        self.clip_norm = float("inf") if order.job.clip_norm is None else order.job.clip_norm
        self.gradient_scaler = gradient_scaler(order.choices, world)
        self._setting, self._engine, self._recorder, self._name = setting, engine, recorder, name
        self._loss_of_logits = loss_alone(setting.loss, order.choices)
        self._first = FirstStep()
        self._step: OwnStep | None = None
        self._begun = self._ended = False
        self._updates = 0
        for optimizer in self.optimizers:
            optimizer.register_step_pre_hook(self._before_update)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass in the trial's precision; a new one each time."""
        return autocast(self._setting.order.choices.precision, self._setting.world.device_type)

    def accumulation(self, is_last: bool) -> AbstractContextManager[None]:
        """Around forward and backward pass: under ddp, gradients stay on their rank but in the step's last."""
        return self._engine.micro_batch(is_last)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sum of the tokens' losses in nats, as the choice of loss says, in fp32.

        `logits`: (sequences, seq_len, vocabulary); `targets`: (sequences, seq_len).
        """
        self._first.compute_dtype = logits.dtype
        return self._loss_of_logits(logits, targets)

    def steps(self) -> Iterator[OwnStep]:
        """The job's optimizer steps, then those that timing still needs: gradients cleared, learning rates set."""
        if self._begun:
            self._fail("trial.steps() was called twice: it gives all steps at once")
        self._begun = True
        while self._recorder.wants_step():
            number = self._recorder.steps_done
            self._engine.begin_step(self._setting.share_at(number))
            self._step = OwnStep(self, number)
            yield self._step
            if not self._step.is_done:
                self._fail(f"step {number}: step.done(...) was not called")
        self._ended = True

    def _before_update(self, *_: object) -> None:
        self._updates += 1
        self._first.note_gradients(lambda: [p.grad for p in self.parameters])

    def _updated(self) -> bool:
        """Whether every optimizer has made one step since the last call."""
        updates, self._updates = self._updates, 0
        return updates == len(self.optimizers)

    def _fail(self, what: str) -> NoReturn:
        raise OwnLoopError(f"framework {self._name}: {what}")

    def _trained(self) -> Trained:
        """The result after the user's function returned. Raises OwnLoopError where it returned too early."""
        if not self._ended:
            self._fail(
                f"returned after {self._recorder.steps_done} steps, the job has "
                f"{self._setting.order.job.max_steps} and timing may need more: go through trial.steps() to its end"
            )
        engine = self._engine
        return Trained(
            self._recorder, self._name, engine.strategy, self.optimizers, self.parameters, self._first,
            engine.reduction_dtype, working_dtype=engine.working_dtype(),
        )  # fmt: skip


class OwnStep:
    """One optimizer step of a user's loop."""

    number: int
    """From 0."""
    is_done: bool = False
    """Whether `done` was called."""

    def __init__(self, trial: OwnTrial, number: int) -> None:
        self.number = number
        self._trial = trial
        self._sums: list[torch.Tensor] = []
        self._tokens = 0
        self._missing: int | None = None

    def micro_batches(self) -> Iterator[MicroBatch]:
        """What this rank trains on in the step, on the device; all of them are to be used."""
        trial, setting = self._trial, self._trial._setting
        if self._missing is not None:
            trial._fail(f"step {self.number}: step.micro_batches() was called twice")
        batches = causal(setting.batches)
        indices = batches.sample_indices(self.number)
        rows, size = len(indices) // trial.world_size, setting.order.choices.micro_batch_size
        first = trial.rank * rows
        self._missing = rows // size
        for row in range(first, first + rows, size):
            setting.whereabouts.enter("forward pass", self.number)
            sequences = batches.sequences_at(indices[row : row + size])
            self._sums.append(setting.stream.partial_sum(sequences, row))
            self._tokens += size * (sequences.shape[1] - 1)
            self._missing -= 1
            inputs = sequences[:, :-1].contiguous()
            setting.watch.note_given(inputs, self.number)
            yield inputs, sequences[:, 1:].contiguous(), self._missing == 0

    def done(
        self, *, loss: torch.Tensor, gradient_norm: torch.Tensor | None = None,
        applied: torch.Tensor | bool = True,
    ) -> None:  # fmt: skip
        """Call it when the weights are updated. Values that are tensors are read later, without waiting.

        `loss`: the sum of this rank's token losses over `tokens_per_step`, a detached scalar. `gradient_norm`:
        the global one before clipping, the same on every rank, after unscaling; None: it stays unverified.
        `applied`: False, or a boolean scalar, where fp16's scaling skipped the update. Raises OwnLoopError
        where the step was not made in full.
        """
        fail, where = self._trial._fail, f"step {self.number}"
        if self.is_done:
            fail(f"{where}: step.done(...) was called twice")
        if self._missing is None:
            fail(f"{where}: step.micro_batches() was not used")
        if self._missing:
            fail(f"{where}: {self._missing} of its micro-batches were not used")
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            given = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            fail(f"{where}: step.done(loss=...): expected a scalar tensor, found {given}")
        if not self._trial._updated() and applied is True:
            fail(f"{where}: not every one of trial.optimizers made one step; where fp16 skips it say applied=False")
        self.is_done = True
        self._trial._recorder.step_done(
            StepTensors(
                loss.detach().float(),
                gradient_norm if gradient_norm is None else gradient_norm.detach(),
                self._on_device(applied),
                torch.stack(self._sums).sum(),
                self._tokens,
                len(self._sums),
            )
        )

    def _on_device(self, applied: torch.Tensor | bool) -> torch.Tensor:
        """A boolean scalar on the device; a new one is filled there, since copying it would wait."""
        if isinstance(applied, torch.Tensor):
            return applied.to(device=self._trial.device, dtype=torch.bool, non_blocking=True)
        return torch.full((), applied, dtype=torch.bool, device=self._trial.device)


def train_with(function: Callable[[OwnTrial], object]) -> Callable[[Setting], Trained]:
    """A training loop of ours around the user's.

    It raises Diverged and Unsupported, OwnLoopError for a loop that does not do the job, and whatever the
    function raises.
    """

    def train(setting: Setting) -> Trained:
        name = setting.order.choices.framework.name
        engine = engine_for(setting)
        trial = OwnTrial(setting, engine, Recorder(setting, engine.evaluation, engine.optimizers), name)
        function(trial)
        return trial._trained()

    return train
