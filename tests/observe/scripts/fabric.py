"""Fabric on the rows of plain.py."""

import argparse

import torch
from lightning.fabric import Fabric
from models import contents, gpt2, rows

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--micro", type=int, default=4)
parser.add_argument("--bf16", action="store_true")
a = parser.parse_args()
fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if a.bf16 else "32-true")
fabric.launch()
torch.manual_seed(0)
model = gpt2()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = fabric.setup(model, optimizer)
loader = fabric.setup_dataloaders(
    torch.utils.data.DataLoader(rows(4 * a.steps)[:, :-1].contiguous(), batch_size=a.micro)
)
parts = 4 // a.micro
for number, batch in enumerate(loader):
    is_last = (number + 1) % parts == 0
    with fabric.no_backward_sync(model, enabled=not is_last):
        loss = model(input_ids=batch, labels=batch).loss / parts
        fabric.backward(loss)
    if is_last:
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"rank 0 step {number} loss {loss.item()!r}\n", end="")
print(f"weights {contents(model.module)}\n", end="")
