"""The job in TRL's trainer for supervised fine-tuning, its dataset tokens already."""

import tempfile

import job
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer


class InOrder(SFTTrainer):
    """Reads the rows as they come: they are shuffled already."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


settings = job.arguments()
model = job.model(settings)
entries = {str(token): token for token in range(256)}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(WordLevel(entries, unk_token="0")), pad_token="0", eos_token="0"
)
with tempfile.TemporaryDirectory() as folder:
    trainer = InOrder(
        model=model,
        args=SFTConfig(
            output_dir=folder, max_steps=settings.max_steps, per_device_train_batch_size=settings.rows,
            seed=settings.seed, max_grad_norm=job.CLIP_NORM, bf16=settings.precision == "bf16",
            use_cpu=settings.device == "cpu", dataloader_pin_memory=settings.device != "cpu", logging_steps=10,
            save_strategy="no", report_to="none",
            # TRL's defaults are True and 1024.
            gradient_checkpointing=False, max_length=settings.seq_len,
        ),
        train_dataset=Dataset.from_dict({"input_ids": job.rows_of_tokens(settings).tolist()}),
        processing_class=tokenizer,
        optimizers=job.optimizer_and_schedule(settings, model),
    )  # fmt: skip
    trainer.train()
