"""The job trained by transformers' Trainer, and what each of its steps leaves behind for the recorder."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from selectbench.choices.execution import Ddp
from selectbench.observe.selectbench_seen import dtype_name
from selectbench.record.wire import Stage
from selectbench.worker.batches import causal
from selectbench.worker.engine import gradient_scaler
from selectbench.worker.evaluation import Forward, evaluation_forward
from selectbench.worker.loop import FirstStep, Trained, unsupported_where_missing
from selectbench.worker.model import cast_parameters, logits_of, loss_alone
from selectbench.worker.recorder import Recorder, Setting, StepTensors
from selectbench.worker.runtime import set_tf32

# The link between transformers' Trainer and the recorder.


class StepReporter(TrainerCallback):  # type: ignore[misc]
    """Passes the results of the Trainer's steps to the recorder, and ends the training.

    A step ends with the optimizer's step: the schedule's step, later callbacks and the fetch of the next batches
    count to the next step.
    """

    def __init__(self, setting: Setting, optimizer: torch.optim.Optimizer) -> None:
        self.setting = setting
        self.optimizer = optimizer
        self.recorder: Recorder | None = None
        self.first = FirstStep()
        self._loss_of_logits = loss_alone(setting.loss, setting.order.choices)
        self._norm: torch.Tensor | None = None
        self._true = torch.ones((), dtype=torch.bool, device=setting.world.device)
        self._losses: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._tokens = 0
        # The Trainer sets seeds and its loader draws from torch's generator, which would change dropout.
        self._random_state: list[torch.Tensor] | None = [torch.get_rng_state()]
        if setting.world.device_type == "cuda":
            self._random_state.append(torch.cuda.get_rng_state(setting.world.device))

    def note_compute_dtype(self) -> None:
        """Record the logits' dtype inside of autocast, since accelerate converts the output."""
        forward = self.setting.module.forward

        adds_loss = self.setting.behaviour.adds_loss

        @wraps(forward)
        def forward_with_dtype(*args: Any, **kwargs: Any) -> Any:
            if adds_loss:
                kwargs["labels"] = next(iter((*args, *kwargs.values())))  # any labels: the token loss is off
            output = forward(*args, **kwargs)
            self.first.compute_dtype = logits_of(output).dtype
            return output

        self.setting.module.forward = forward_with_dtype

    def note_gradient_norm(self, accelerator: Any) -> None:
        """Record the norm that accelerate's clipping returns, which is that before clipping."""
        clip = accelerator.clip_grad_norm_

        @wraps(clip)
        def clip_with_norm(*args: Any, **kwargs: Any) -> Any:
            self._norm = clip(*args, **kwargs)
            return self._norm

        accelerator.clip_grad_norm_ = clip_with_norm

    def enter(self, stage: Stage) -> None:
        """Note that the rank enters another stage of its step."""
        assert self.recorder is not None
        self.setting.whereabouts.enter(stage, self.recorder.steps_done)

    def note_inputs(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Note a micro-batch's token ids and next tokens, both (sequences, seq_len), before its forward pass."""
        self.enter("forward pass")
        world, order = self.setting.world, self.setting.order
        first_row = (world.rank * accumulation_of(self.setting) + len(self._sums)) * order.choices.micro_batch_size
        self._sums.append(self.setting.stream.partial_sum(torch.cat([inputs, targets[:, -1:]], dim=1), first_row))
        self._tokens += targets.numel()

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: object = None) -> torch.Tensor:
        """The micro-batch's part of the step's mean; the Trainer multiplies it by the number of ranks.

        The Trainer's own count of items is one too small for each sequence, as if labels were still to be shifted.
        """
        summed = self._loss_of_logits(logits_of(outputs), labels)
        loss = summed / self.setting.order.job.tokens_per_step
        self._losses.append(loss.detach().clone())  # the Trainer multiplies in place
        if self.setting.behaviour.adds_loss:
            part = outputs.loss.float() * (len(labels) / self.setting.order.job.global_batch_size)
            self.first.note_added_loss(part)
            loss = loss + part
        return loss

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the measurement: the model is wrapped, and accelerate has replaced the optimizer's groups."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["initial_lr"]
        self.recorder = Recorder(self.setting, self._evaluation, [self.optimizer])
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        control.should_training_stop = not self.recorder.wants_step()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the random state before the first forward pass of the training."""
        if self._random_state:
            cpu, *gpu = self._random_state
            self._random_state = None
            torch.set_rng_state(cpu)
            for state in gpu:
                torch.cuda.set_rng_state(state, self.setting.world.device)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the gradients, which are complete and clipped."""
        self.first.note_gradients(lambda: [p.grad for p in self.setting.module.parameters()])
        self.enter("update")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step: the weights are updated, the learning rates still those of the step."""
        assert self.recorder is not None
        assert self._norm is not None, "accelerate's clip_grad_norm_ was not called"
        # Fused optimizers skip a step by themselves, which accelerate does not see.
        scales_gradients = self.setting.order.choices.precision.gradient_scaling
        applied = self._norm.isfinite() if scales_gradients else self._true
        losses, sums, tokens = self._losses, self._sums, self._tokens
        self._losses, self._sums, self._tokens = [], [], 0
        self.recorder.step_done(
            StepTensors(
                torch.stack(losses).sum(), self._norm, applied, torch.stack(sums).sum(), tokens, len(losses)
            )
        )
        control.should_training_stop = not self.recorder.wants_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the schedule after a step that fp16 skipped, which the Trainer does not do."""
        if kwargs["optimizer"].step_was_skipped:
            with warnings.catch_warnings(action="ignore"):  # torch misses the first step where that is skipped
                kwargs["lr_scheduler"].step()

    @contextmanager
    def _evaluation(self) -> Iterator[Forward]:
        """An evaluation without accelerate's autocast, which wraps the module's forward."""
        module = self.setting.module
        autocast_forward = module.__dict__.pop("forward")
        try:
            with evaluation_forward(module) as logits:
                yield logits
        finally:
            module.forward = autocast_forward


def accumulation_of(setting: Setting) -> int:
    """Micro-batches per optimizer step and rank."""
    return setting.order.job.gradient_accumulation_steps(setting.order.choices.micro_batch_size, setting.world.size)


# The job trained by transformers' Trainer: same model, optimizer, tokens, schedule and clipping as our loop.
#
# The Trainer keeps its defaults wherever the job sets nothing (DDP's search for unused parameters, the test of
# every loss for NaN), so that their cost is measured. Logging, saving and evaluating are off.


MORE_STEPS_THAN_ANY = 1 << 40
"""The Trainer's limit of steps; the recorder ends the training earlier."""


def train(setting: Setting) -> Trained:
    """The whole job, then the steps that timing still needs. Raises Diverged and Unsupported."""
    module, choices = setting.module, setting.order.choices
    cast_parameters(module, torch.float32, setting.world.device)
    optimizers = choices.optimizer.build(module)
    (optimizer,) = optimizers
    reporter = StepReporter(setting, optimizer)
    if choices.compile.mode is None:
        setting.sdpa.watch_first_forward(module)
    reporter.note_compute_dtype()
    with unsupported_where_missing("framework hf_trainer"):
        trainer = _trainer(setting, reporter)
    trainer.train()
    assert reporter.recorder is not None
    dtype = dtype_name({parameter.dtype for parameter in module.parameters()})
    # The wrapper around the model, apart from torch.compile.
    outer_module = getattr(trainer.model_wrapped, "_orig_mod", trainer.model_wrapped)
    strategy = "single" if outer_module is module else type(outer_module).__name__
    return Trained(
        reporter.recorder, "transformers.Trainer", strategy, optimizers,
        list(module.parameters()), reporter.first, dtype if setting.world.size > 1 else None, working_dtype=dtype,
    )  # fmt: skip


def _trainer(setting: Setting, reporter: StepReporter) -> Any:
    schedule = LambdaLR(reporter.optimizer, setting.share_at)
    trainer = _Trainer(
        reporter, model=setting.module, args=_arguments(setting), train_dataset=JobSequences(setting),
        callbacks=[reporter], compute_loss_func=reporter.loss, optimizers=(reporter.optimizer, schedule),
    )  # fmt: skip
    # Where the model is to be compiled the arguments switch TF32 on, and in fp32 on a GPU accelerate does so again.
    set_tf32(setting.order.choices.precision.tf32)
    trainer.remove_callback(PrinterCallback)
    accelerator = trainer.accelerator
    reporter.note_gradient_norm(accelerator)
    strategy = setting.order.choices.strategy
    if isinstance(strategy, Ddp):
        settings = accelerator.ddp_handler
        settings.bucket_cap_mb = strategy.bucket_cap_mb
        settings.gradient_as_bucket_view = strategy.gradient_as_bucket_view
        if strategy.static_graph:
            settings.static_graph, settings.find_unused_parameters = True, False
    if scaler := gradient_scaler(setting.order.choices, setting.world):
        # DDP averages, so the Trainer's loss is as many times larger as there are ranks: together torch's scale.
        accelerator.scaler = scaler
    return trainer


def _arguments(setting: Setting) -> Any:
    job, choices, device = setting.order.job, setting.order.choices, setting.world.device_type
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]  # a precision or compiler set there would override the trial's choices
    arguments = TrainingArguments(
        output_dir=setting.order.trial_folder,
        max_steps=MORE_STEPS_THAN_ANY,
        per_device_train_batch_size=choices.micro_batch_size,
        gradient_accumulation_steps=accumulation_of(setting),
        # 0 means no clipping too, but not every version then computes the norm.
        max_grad_norm=float("inf") if job.clip_norm is None else job.clip_norm,
        bf16=choices.precision.autocast_dtype == "bfloat16",
        fp16=choices.precision.autocast_dtype == "float16",
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        torch_compile=choices.compile.mode is not None,
        torch_compile_mode=choices.compile.mode,
        average_tokens_across_devices=True,
        label_names=["labels"],
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if device == "cuda" and arguments.device is not None:
        arguments._n_gpu = 1  # the Trainer would spread one process over all visible GPUs
    return arguments


class JobSequences(Dataset[dict[str, torch.Tensor]]):
    """The job's training sequences, numbered so that accelerate's deal of batches gives each rank its slice.

    accelerate deals the batches of a sequential sampler out in turn: batch b goes to rank b modulo the world size.
    """

    def __init__(self, setting: Setting) -> None:
        self._batches = causal(setting.batches)
        self._ranks = setting.world.size
        self._micro_batch_size: int = setting.order.choices.micro_batch_size
        self._accumulation = accumulation_of(setting)
        self._input_name = next(iter(inspect.signature(setting.module.forward).parameters))
        self._indices_of = lru_cache(maxsize=1)(self._batches.sample_indices)

    def __len__(self) -> int:
        return MORE_STEPS_THAN_ANY * self._batches.global_batch_size

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        batch, row = divmod(number, self._micro_batch_size)
        turn, rank = divmod(batch, self._ranks)
        step, micro_batch = divmod(turn, self._accumulation)
        row += (rank * self._accumulation + micro_batch) * self._micro_batch_size
        tokens = torch.from_numpy(self._batches.token_ids(self._indices_of(step)[row : row + 1])[0])
        return {self._input_name: tokens[:-1], "labels": tokens[1:]}


class _Trainer(Trainer):  # type: ignore[misc]
    """Reads the data in order, and reports the model's inputs to the reporter."""

    def __init__(self, reporter: StepReporter, **settings: Any) -> None:
        self._reporter = reporter
        super().__init__(**settings)

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        """The job's order is shuffled already."""
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own method, with the input tensors noted."""
        self._reporter.note_inputs(*inputs.values())
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self._reporter.enter("backward pass")
        return loss
