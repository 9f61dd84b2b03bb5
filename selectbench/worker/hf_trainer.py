"""The job trained by transformers' Trainer: same model, optimizer, tokens, schedule and clipping as our loop.

The Trainer keeps its own defaults wherever the job says nothing (DDP's search for unused parameters, the
test of every loss for NaN): that is what its convenience costs. Logging, saving and evaluating are off.
"""

from __future__ import annotations

import inspect
import os
from functools import lru_cache
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from selectbench.worker.batches import causal
from selectbench.worker.identity import dtype_name
from selectbench.worker.loop import Trained, unsupported_where_missing
from selectbench.worker.loss_scale import first_scale
from selectbench.worker.model import cast_parameters
from selectbench.worker.precision import set_tf32
from selectbench.worker.setting import Setting
from selectbench.worker.trainer_watch import Watch, accumulation_of

MORE_STEPS_THAN_ANY = 1 << 40
"""The Trainer's own limit; the recorder ends the training."""


def train(setting: Setting) -> Trained:
    """The whole job, then the steps that timing still needs. Raises Diverged and Unsupported."""
    module, choices = setting.module, setting.order.choices
    cast_parameters(module, torch.float32, setting.world.device)
    optimizers = choices.optimizer.build(module)
    (optimizer,) = optimizers
    watch = Watch(setting, optimizer)
    if choices.compile.mode is None:
        setting.sdpa.watch_first_forward(module)
    watch.note_compute_dtype()
    with unsupported_where_missing("framework hf_trainer"):
        trainer = _trainer(setting, watch)
    trainer.train()
    assert watch.recorder is not None
    dtype = dtype_name({parameter.dtype for parameter in module.parameters()})
    return Trained(
        watch.recorder, "transformers.Trainer", _wrapper(trainer.model_wrapped, module), optimizers,
        list(module.parameters()), watch.first_gradients,
        dtype if setting.world.size > 1 else None, watch.compute_dtype, working_dtype=dtype,
    )  # fmt: skip


def _trainer(setting: Setting, watch: Watch) -> Any:
    schedule = LambdaLR(watch.optimizer, setting.share_at)
    trainer = _Trainer(
        watch, model=setting.module, args=_arguments(setting), train_dataset=JobSequences(setting),
        callbacks=[watch], compute_loss_func=watch.loss, optimizers=(watch.optimizer, schedule),
    )  # fmt: skip
    # Where the model is to be compiled the arguments switch TF32 on, and in fp32 on a GPU accelerate does so again.
    set_tf32(setting.order.choices.precision.tf32)
    trainer.remove_callback(PrinterCallback)
    accelerator = trainer.accelerator
    watch.note_gradient_norm(accelerator)
    strategy = setting.order.choices.strategy
    if strategy.name == "ddp":
        settings = accelerator.ddp_handler
        settings.bucket_cap_mb = strategy.bucket_cap_mb
        settings.gradient_as_bucket_view = strategy.gradient_as_bucket_view
        if strategy.static_graph:
            settings.static_graph, settings.find_unused_parameters = True, False
    if setting.order.choices.precision.gradient_scaling:
        # DDP averages, so the Trainer's loss is as many times larger as there are ranks: together torch's scale.
        scale = first_scale(setting.world.size)
        accelerator.scaler = torch.amp.GradScaler(setting.world.device_type, init_scale=scale)
    return trainer


def _arguments(setting: Setting) -> Any:
    job, choices, device = setting.order.job, setting.order.choices, setting.world.device_type
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]  # a precision or a compiler set there would be laid over the trial's choices
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

    accelerate deals batches of a sequential sampler out in turn: number b goes to rank b modulo their number.
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
    """Reads in order, and tells what the model consumes."""

    def __init__(self, watch: Watch, **settings: Any) -> None:
        self._watch = watch
        super().__init__(**settings)

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        """The job's order is shuffled already."""
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, with the tensors noted on their way."""
        self._watch.consumes(*inputs.values())
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self._watch.enter("backward pass")
        return loss


def _wrapper(trained: Any, module: Any) -> str:
    """What is around the model besides torch.compile."""
    inner = getattr(trained, "_orig_mod", trained)
    return "single" if inner is module else type(inner).__name__
