"""A bare training loop of nanoGPT's kind (Karpathy 2022, github.com/karpathy/nanoGPT): what a user would write.

bf16 autocast, fused AdamW, clipping, torch.compile of model and loss, batches fetched while the device is at work.
Run as a program with the name of a size and a file of tokens it prints what it measured as JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from torch import nn


@dataclass(frozen=True)
class Size:
    """Of the job, the same for both."""

    name: str
    n_layer: int
    n_embd: int
    n_head: int
    seq_len: int
    sequences: int
    """Of a step, in one forward pass."""
    vocab_size: int
    warmup_steps: int
    timed_steps: int
    timed_seconds: float
    """At the least."""
    lr: float = 6e-4
    weight_decay: float = 0.1

    @property
    def tokens_per_step(self) -> int:
        """That the model is trained on."""
        return self.sequences * self.seq_len


FULL = Size("gpt2 124M", 12, 768, 12, 1024, 16, 50304, warmup_steps=30, timed_steps=120, timed_seconds=10.0)
TINY = Size("tiny", 1, 64, 2, 64, 4, 256, warmup_steps=4, timed_steps=12, timed_seconds=0.0)
SIZES = {size.name: size for size in (FULL, TINY)}


def bare_model(size: Size) -> nn.Module:
    """GPT-2 with its loss inside."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            wide = size.n_embd
            self.ln_1, self.ln_2 = nn.LayerNorm(wide), nn.LayerNorm(wide)
            self.attn, self.proj = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide)
            self.up, self.down = nn.Linear(wide, 4 * wide), nn.Linear(4 * wide, wide)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, length, wide = x.shape
            parts = self.attn(self.ln_1(x)).split(wide, dim=2)
            q, k, v = (part.view(rows, length, size.n_head, -1).transpose(1, 2) for part in parts)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).contiguous().view(rows, length, wide))
            return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))

    class Gpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(size.vocab_size, size.n_embd)
            self.wpe = nn.Embedding(size.seq_len, size.n_embd)
            self.blocks = nn.ModuleList(Block() for _ in range(size.n_layer))
            self.ln_f = nn.LayerNorm(size.n_embd)
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                elif parameter.dim() >= 2:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    return Gpt()


def batches(size: Size, tokens: Path, device: str) -> Iterator[Any]:
    """Inputs and targets from random places, from pinned memory, as nanoGPT's get_batch."""
    stream, draw = np.memmap(tokens, dtype=np.uint16, mode="r"), np.random.default_rng(0)
    while True:
        starts = draw.integers(len(stream) - size.seq_len - 1, size=size.sequences)
        rows = torch.from_numpy(np.stack([stream[s : s + size.seq_len + 1] for s in starts]).astype(np.int64))
        pair = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        yield tuple(t.pin_memory().to(device, non_blocking=True) for t in pair) if device == "cuda" else pair


def train_bare(size: Size, tokens: Path) -> dict[str, float]:
    """Warm up, then windows of steps between synchronised edges until they are long enough."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = bare_model(size).to(device)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": size.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=size.lr, betas=(0.9, 0.95), fused=True)
    compiled, source, done = torch.compile(model), batches(size, tokens, device), 0

    def step() -> torch.Tensor:
        nonlocal batch, done
        share = (done + 1) / size.warmup_steps if done < size.warmup_steps else 0.5 + 0.5 * math.cos(done / 1e3)
        for group in optimizer.param_groups:
            group["lr"] = size.lr * share
        with torch.autocast(device, dtype=torch.bfloat16):
            loss: torch.Tensor = compiled(*batch)
        batch = next(source)  # while the device is at work
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        return loss.detach()

    def wait() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    batch = next(source)
    first = float(step())
    for _ in range(size.warmup_steps - 1):
        step()
    seconds, timed, last = 0.0, 0, torch.tensor(first)
    while timed < size.timed_steps or seconds < size.timed_seconds:
        begin = wait()
        for _ in range(size.timed_steps // 4):
            last = step()
        seconds, timed = seconds + wait() - begin, timed + size.timed_steps // 4
    return {
        "tokens_per_second": timed * size.tokens_per_step / seconds, "first_loss": first, "last_loss": float(last),
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(train_bare(SIZES[sys.argv[1]], Path(sys.argv[2]))))
