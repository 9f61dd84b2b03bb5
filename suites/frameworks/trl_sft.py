"""The job in TRL's trainer for supervised fine-tuning, its dataset tokens already."""

import tempfile

import job
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer


class InOrder(job.InOrder, SFTTrainer):
    """The rows in the order that all scripts have."""


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
            **job.trainer_arguments(settings, folder),
            # TRL's defaults are True and 1024.
            gradient_checkpointing=False, max_length=settings.seq_len,
        ),
        train_dataset=Dataset.from_dict({"input_ids": job.rows_of_tokens(settings).tolist()}),
        processing_class=tokenizer,
        optimizers=job.optimizer_and_schedule(settings, model),
    )  # fmt: skip
    trainer.train()
