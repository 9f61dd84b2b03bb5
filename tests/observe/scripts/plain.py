"""A training loop of one's own: what it prints is what a test holds against another run of it."""

from __future__ import annotations

import argparse
import contextlib
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from models import LENGTH, VOCABULARY, Core, Past, WithTargets, contents, gpt2, rows

parser = argparse.ArgumentParser()
parser.add_argument("--style", default="targets")
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--rows", type=int, default=4, help="of a step, over all ranks")
parser.add_argument("--micro", type=int, help="rows of a micro-batch")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--data-seed", type=int, default=1)
parser.add_argument("--lr", type=float, default=1e-2)
parser.add_argument("--decay", action="store_true")
parser.add_argument("--optimizer", default="AdamW")
parser.add_argument("--dropout", type=float, default=0.0)
parser.add_argument("--reverse", action="store_true", help="another order of the steps' rows")
parser.add_argument("--clip", type=float, default=1.0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--fp16", action="store_true")
parser.add_argument("--overflow", type=int, help="the step whose loss is not finite")
parser.add_argument("--compile", default="", help="model, method or step")
parser.add_argument("--backend", default="aot_eager")
parser.add_argument("--strategy", default="")
parser.add_argument("--original", action="store_true")
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--padding", default="", help="left or right")
parser.add_argument("--sum", action="store_true", help="micro-batches' means are not divided by their number")
parser.add_argument("--validate", type=int, help="after how many steps")
parser.add_argument("--save", type=int, help="after how many steps")
parser.add_argument("--two-optimizers", action="store_true")
parser.add_argument("--closure", action="store_true")
parser.add_argument("--watch", action="store_true")
parser.add_argument("--swallow", action="store_true", help="what is raised")
a = parser.parse_args()

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    dist.init_process_group("gloo")
torch.manual_seed(a.seed)
kinds = {"targets": WithTargets, "bare": Core, "past": Past}
core = gpt2(a.dropout) if a.style == "hf" else kinds[a.style](dropout=a.dropout)
model = core
if a.compile == "model":
    model = torch.compile(model, backend=a.backend)
if a.compile == "method":
    model.compile(backend=a.backend)
if a.strategy == "ddp":
    model = torch.nn.parallel.DistributedDataParallel(model)
if a.strategy == "fsdp1":
    from torch.distributed.fsdp import FullyShardedDataParallel

    core = model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=a.original)
if a.strategy == "fsdp2":
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))

kind = getattr(torch.optim, a.optimizer)
if a.two_optimizers:
    matrices = [p for p in core.parameters() if p.dim() > 1]
    others = [p for p in core.parameters() if p.dim() < 2]
    optimizers = [kind(matrices, lr=a.lr), torch.optim.SGD(others, lr=a.lr / 10)]
else:
    optimizers = [kind(core.parameters(), lr=a.lr)]
if a.watch:
    from probe import watch

    watch(core, optimizers[0])
schedules = [
    torch.optim.lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=a.steps) for o in optimizers
]
updates = [torch.compile(o.step, backend=a.backend) if a.compile == "step" else o.step for o in optimizers]
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=a.fp16)

data = rows(a.rows * a.steps, a.data_seed)
if a.reverse:
    data = data.reshape(a.steps, a.rows, LENGTH + 1).flip(0).reshape(-1, LENGTH + 1)
if a.workers:
    loader = torch.utils.data.DataLoader(
        data, batch_size=a.rows, num_workers=a.workers, multiprocessing_context="fork"
    )
    steps = list(loader)
else:
    steps = list(data.split(a.rows))


def padded(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = ids.clone(), torch.ones_like(ids)
    for row in range(len(ids)):
        ids[row, LENGTH - row % 3 :], mask[row, LENGTH - row % 3 :] = 0, 0
    if a.padding == "left":
        for row in range(len(ids)):
            shift = int((mask[row] == 0).sum())
            ids[row], mask[row] = ids[row].roll(shift), mask[row].roll(shift)
    return ids, mask


def loss_of(batch: torch.Tensor) -> torch.Tensor:
    x, y = batch[:, :-1], batch[:, 1:]
    if a.style == "hf":
        if a.padding:
            ids, mask = padded(x)
            return model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        return model(input_ids=x, labels=x).loss
    if a.style == "targets":
        return model(x, y)[1]
    logits = model.logits(x) if a.style == "past" else model(x)
    return F.cross_entropy(logits.reshape(-1, VOCABULARY).float(), y.reshape(-1))


def autocast():
    kind = torch.bfloat16 if a.bf16 else torch.float16 if a.fp16 else None
    return torch.autocast("cpu", dtype=kind) if kind else contextlib.nullcontext()


def train() -> None:
    for number, whole in enumerate(steps):
        mine = whole[rank::world]
        parts = mine.split(a.micro or len(mine))

        def forward_and_backward(number: int = number, parts: tuple[torch.Tensor, ...] = parts) -> torch.Tensor:
            total = torch.zeros(())
            for optimizer in optimizers:
                optimizer.zero_grad()
            for index, part in enumerate(parts):
                is_last = index == len(parts) - 1
                with contextlib.nullcontext() if is_last or a.strategy != "ddp" else model.no_sync():
                    with autocast():
                        loss = loss_of(part) / (1 if a.sum else len(parts))
                    if a.overflow == number + 1:
                        loss = loss * float("inf")
                    scaler.scale(loss).backward()
                    total += loss.detach()
            return total

        if a.closure:
            total = optimizers[0].step(forward_and_backward)
        else:
            total = forward_and_backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer) if a.fp16 else None
            torch.nn.utils.clip_grad_norm_(core.parameters(), a.clip)
            for optimizer, update in zip(optimizers, updates, strict=True):
                scaler.step(optimizer) if a.fp16 else update()
            scaler.update()
        for schedule in schedules if a.decay else []:
            schedule.step()
        print(f"rank {rank} step {number + 1} loss {float(total)!r}\n", end="", flush=True)
        if a.validate and (number + 1) % a.validate == 0:
            model.eval()
            with torch.no_grad():
                print("validation", float(loss_of(rows(4, 99))))
            model.train()
        if a.save and (number + 1) % a.save == 0:
            torch.save(core.state_dict(), "kept.pt")


while True:
    try:
        train()
        break
    except SystemExit:
        if not a.swallow:
            raise
        print("swallowed", flush=True)
print(f"weights {contents(core)}\n", end="")
if a.compile:
    print(f"graphs {torch._dynamo.utils.counters['stats']['unique_graphs']}\n", end="")
if world > 1:
    dist.destroy_process_group()
