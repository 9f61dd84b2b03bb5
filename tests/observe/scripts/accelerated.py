"""accelerate on the rows of plain.py."""

import argparse

import torch
from accelerate import Accelerator
from models import contents, gpt2, rows

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--micro", type=int, default=4)
parser.add_argument("--bf16", action="store_true")
a = parser.parse_args()
accelerator = Accelerator(
    cpu=True, gradient_accumulation_steps=4 // a.micro, mixed_precision="bf16" if a.bf16 else "no"
)
torch.manual_seed(0)
model = gpt2()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
loader = torch.utils.data.DataLoader(rows(4 * a.steps)[:, :-1].contiguous(), batch_size=a.micro)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
for number, batch in enumerate(loader):
    with accelerator.accumulate(model):
        loss = model(input_ids=batch, labels=batch).loss
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    print(f"rank {accelerator.process_index} step {number} loss {loss.item()!r}\n", end="")
print(f"weights {contents(accelerator.unwrap_model(model))}\n", end="")
accelerator.end_training()
