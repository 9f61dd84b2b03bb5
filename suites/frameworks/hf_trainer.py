"""The job in transformers' Trainer."""

import tempfile

import job
import torch
from transformers import Trainer, TrainingArguments


class InOrder(Trainer):
    """Reads the rows as they come: they are shuffled already."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


settings = job.arguments()
model = job.model(settings)
with tempfile.TemporaryDirectory() as folder:
    trainer = InOrder(
        model=model,
        args=TrainingArguments(
            output_dir=folder, max_steps=settings.max_steps, per_device_train_batch_size=settings.rows,
            seed=settings.seed, max_grad_norm=job.CLIP_NORM, bf16=settings.precision == "bf16",
            use_cpu=settings.device == "cpu", dataloader_pin_memory=settings.device != "cpu", logging_steps=10,
            save_strategy="no", report_to="none",
        ),
        train_dataset=job.dataset(settings),
        optimizers=job.optimizer_and_schedule(settings, model),
    )  # fmt: skip
    trainer.train()
