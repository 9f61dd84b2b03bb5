"""TRL's SFTTrainer on the rows of plain.py."""

import argparse

import torch
from datasets import Dataset
from models import contents, gpt2, rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--micro", type=int, default=4)
a = parser.parse_args()
words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(64)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w0")
torch.manual_seed(0)
model = gpt2()
data = Dataset.from_dict({"input_ids": rows(4 * a.steps)[:, :-1].tolist()})


class InOrder(SFTTrainer):
    """Rows as they come."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


arguments = SFTConfig(
    output_dir="out", max_steps=a.steps, per_device_train_batch_size=a.micro,
    gradient_accumulation_steps=4 // a.micro,
    learning_rate=1e-2, lr_scheduler_type="constant", optim="adamw_torch", weight_decay=0.01, report_to=[],
    save_strategy="no", disable_tqdm=True, logging_steps=1, use_cpu=True, bf16=False, gradient_checkpointing=False,
    max_length=64, dataloader_pin_memory=False, seed=0, packing=False,
)  # fmt: skip
trainer = InOrder(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
trainer.train()
for line in trainer.state.log_history:
    if "loss" in line:
        print(f"rank 0 step {line['step']} loss {line['loss']!r}\n", end="")
print(f"weights {contents(model)}\n", end="")
