"""The job in a loop of its own on accelerate."""

import job
import torch
from accelerate import Accelerator

settings = job.arguments()
accelerator = Accelerator(
    cpu=settings.device == "cpu", mixed_precision="bf16" if settings.precision == "bf16" else "no"
)
model = job.model(settings)
optimizer, schedule = job.optimizer_and_schedule(settings, model)
batches = torch.utils.data.DataLoader(job.dataset(settings), batch_size=settings.rows)
model, optimizer, schedule, batches = accelerator.prepare(model, optimizer, schedule, batches)
model.train()

for step, batch in enumerate(batches):
    loss = model(**batch).loss
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), job.CLIP_NORM)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        accelerator.print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
