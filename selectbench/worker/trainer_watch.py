"""Between transformers' Trainer and the recorder: what each step of the Trainer leaves behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from transformers import TrainerCallback

from selectbench.worker.evaluation import Logits, evaluation_forward
from selectbench.worker.forward_loss import loss_alone
from selectbench.worker.loop import recorder_for
from selectbench.worker.model import logits_of
from selectbench.worker.recorder import Recorder
from selectbench.worker.setting import Setting
from selectbench.worker.step import FirstGradients, StepTensors
from selectbench.worker.whereabouts import Stage


class Watch(TrainerCallback):  # type: ignore[misc]
    """Between the Trainer and the recorder: collects what each step leaves behind, and ends the training.

    A step is over when the optimizer's is: the schedule's step, the callbacks after it and the fetch of the
    next batches count to the step after.
    """

    def __init__(self, setting: Setting, optimizer: torch.optim.Optimizer) -> None:
        self.setting = setting
        self.optimizer = optimizer
        self.recorder: Recorder | None = None
        self.first_gradients: FirstGradients | None = None
        self.compute_dtype: torch.dtype | None = None
        self._loss_of_logits = loss_alone(setting.loss, setting.order.choices)
        self._norm: torch.Tensor | None = None
        self._yes = torch.ones((), dtype=torch.bool, device=setting.world.device)
        self._losses: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._tokens = 0
        # The Trainer sets seeds of its own and its loader draws from torch's generator: dropout would differ.
        self._restore_random_state: Callable[[], None] | None = _random_state(setting.world.device)

    def note_compute_dtype(self) -> None:
        """Looks at the logits inside of autocast: accelerate converts what comes out of it."""
        forward = self.setting.module.forward

        @wraps(forward)
        def noting(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            self.compute_dtype = logits_of(output).dtype
            return output

        self.setting.module.forward = noting

    def note_gradient_norm(self, accelerator: Any) -> None:
        """Keeps what accelerate's clipping finds before it clips."""
        clip = accelerator.clip_grad_norm_

        @wraps(clip)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._norm = clip(*args, **kwargs)
            return self._norm

        accelerator.clip_grad_norm_ = noting

    def enter(self, stage: Stage) -> None:
        """The rank goes over to another stage of its step."""
        assert self.recorder is not None
        self.setting.whereabouts.enter(stage, self.recorder.steps_done)

    def consumes(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """A micro-batch goes into the model: (sequences, seq_len) token ids and their next ones."""
        self.enter("forward pass")
        world, order = self.setting.world, self.setting.order
        first_row = (world.rank * accumulation_of(self.setting) + len(self._sums)) * order.choices.micro_batch_size
        self._sums.append(self.setting.stream.mixed(torch.cat([inputs, targets[:, -1:]], dim=1), first_row))
        self._tokens += targets.numel()

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: object = None) -> torch.Tensor:
        """The micro-batch's part of the step's mean; the Trainer multiplies it by the number of ranks.

        The Trainer's own count of items leaves one out of each sequence, as if labels were still to be shifted.
        """
        summed = self._loss_of_logits(logits_of(outputs), labels)
        loss = summed / self.setting.order.job.tokens_per_step
        self._losses.append(loss.detach().clone())  # the Trainer multiplies in place
        return loss

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Everything is wrapped, accelerate has replaced the optimizer's groups: the measurement begins."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["initial_lr"]
        self.recorder = recorder_for(self.setting, self._evaluation, [self.optimizer])
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        control.should_training_stop = not self.recorder.wants_step()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first forward pass of a step."""
        if self._restore_random_state:
            self._restore_random_state()
            self._restore_random_state = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are complete and clipped."""
        if self.first_gradients is None:
            kept = [p.grad for p in self.setting.module.parameters() if p.grad is not None]
            self.first_gradients = FirstGradients.of(kept)
        self.enter("update")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights are updated, the learning rates still those of the step."""
        assert self.recorder is not None
        assert self._norm is not None, "accelerate's clip_grad_norm_ was not called"
        # Fused optimizers skip a step by themselves, which accelerate does not see.
        scales = self.setting.order.choices.precision.gradient_scaling
        applied = self._norm.isfinite() if scales else self._yes
        losses, sums, tokens = self._losses, self._sums, self._tokens
        self._losses, self._sums, self._tokens = [], [], 0
        self.recorder.step_done(
            StepTensors(
                torch.stack(losses).sum(), self._norm, applied, torch.stack(sums).sum(), tokens, len(losses)
            )
        )
        control.should_training_stop = not self.recorder.wants_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer halts the schedule where fp16 skips a step; the job's goes by steps."""
        if kwargs["optimizer"].step_was_skipped:
            with warnings.catch_warnings(action="ignore"):  # torch misses the first step where that is skipped
                kwargs["lr_scheduler"].step()

    @contextmanager
    def _evaluation(self) -> Iterator[Logits]:
        """Without accelerate's autocast, which it has put around the module's forward."""
        module = self.setting.module
        wrapped = module.__dict__.pop("forward")
        try:
            with evaluation_forward(module) as logits:
                yield logits
        finally:
            module.forward = wrapped


def accumulation_of(setting: Setting) -> int:
    """Micro-batches per optimizer step and rank."""
    return setting.order.job.gradient_accumulation_steps(setting.order.choices.micro_batch_size, setting.world.size)


def _random_state(device: str) -> Callable[[], None]:
    """A function that sets torch's generators back to how they are now."""
    cpu = torch.get_rng_state()
    gpu = torch.cuda.get_rng_state(device) if device != "cpu" else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)

    return restore
