"""The job in a loop of its own on Lightning's Fabric."""

import job
import torch
from lightning.fabric import Fabric

settings = job.arguments()
fabric = Fabric(
    accelerator=settings.device, devices=1, precision="bf16-mixed" if settings.precision == "bf16" else "32-true"
)
model = job.model(settings)
optimizer, schedule = job.optimizer_and_schedule(settings, model)
model, optimizer = fabric.setup(model, optimizer)
batches = fabric.setup_dataloaders(torch.utils.data.DataLoader(job.dataset(settings), batch_size=settings.rows))
model.train()

for step, batch in enumerate(batches):
    loss = model(**batch).loss
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=job.CLIP_NORM)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        fabric.print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
