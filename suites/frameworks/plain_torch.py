"""The job in a loop of its own."""

import job
import torch

settings = job.arguments()
model = job.model(settings).to(settings.device)
optimizer, schedule = job.optimizer_and_schedule(settings, model)
is_bf16 = settings.precision == "bf16"
model.train()

for step, batch in enumerate(torch.utils.data.DataLoader(job.dataset(settings), batch_size=settings.rows)):
    batch = {name: tensor.to(settings.device) for name, tensor in batch.items()}
    with torch.autocast(settings.device, torch.bfloat16, enabled=is_bf16):
        loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), job.CLIP_NORM)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
