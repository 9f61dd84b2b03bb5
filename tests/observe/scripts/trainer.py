"""HF's Trainer on the rows of plain.py."""

import argparse

import torch
from models import contents, gpt2, rows
from transformers import Trainer, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--micro", type=int, default=4)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--eval", type=int)
a = parser.parse_args()
torch.manual_seed(0)
model = gpt2()
data = [{"input_ids": row, "labels": row} for row in rows(4 * a.steps)[:, :-1]]


class InOrder(Trainer):
    """Rows as they come."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


arguments = TrainingArguments(
    output_dir="out", max_steps=a.steps, per_device_train_batch_size=a.micro,
    gradient_accumulation_steps=4 // a.micro,
    learning_rate=1e-2, lr_scheduler_type="linear", warmup_steps=0, optim="adamw_torch", weight_decay=0.01,
    report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1, use_cpu=True, bf16=a.bf16, seed=0,
    eval_strategy="steps" if a.eval else "no", eval_steps=a.eval, dataloader_pin_memory=False,
)  # fmt: skip
trainer = InOrder(model=model, args=arguments, train_dataset=data, eval_dataset=data[:8])
trainer.train()
for line in trainer.state.log_history:
    if "loss" in line:
        print(f"rank 0 step {line['step']} loss {line['loss']!r}\n", end="")
print(f"weights {contents(model)}\n", end="")
