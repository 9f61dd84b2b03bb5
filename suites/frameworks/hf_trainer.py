"""The job in transformers' Trainer."""

import tempfile

import job
from transformers import Trainer, TrainingArguments


class InOrder(job.InOrder, Trainer):
    """The rows in the order that all scripts have."""


settings = job.arguments()
model = job.model(settings)
with tempfile.TemporaryDirectory() as folder:
    trainer = InOrder(
        model=model,
        args=TrainingArguments(**job.trainer_arguments(settings, folder)),
        train_dataset=job.dataset(settings),
        optimizers=job.optimizer_and_schedule(settings, model),
    )
    trainer.train()
