"""The tiny job of the worker's tests written out in plain PyTorch, with any optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from transformers import GPT2Config, GPT2LMHeadModel

from selectbench.data.prepared import Prepared
from selectbench.worker.runtime import derived_seed

STEPS, SEQUENCES, LENGTH, VOCABULARY = 8, 8, 32, 300


def plain_gpt2(seed: int) -> Any:
    torch.manual_seed(derived_seed(seed, "weights"))
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=VOCABULARY, n_positions=LENGTH, resid_pdrop=0.0,
                        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
                        activation_function="gelu_pytorch_tanh")  # fmt: skip
    return GPT2LMHeadModel._from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def decaying(model: Any) -> list[dict[str, Any]]:
    """Decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def plain_training(
    data_folder: Path, seed: int, model: Any, optimizer: Any, before_step: Callable[[int], None] = lambda step: None
) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of every step, clipped at 1."""
    tokens = torch.from_numpy(np.array(Prepared.open(data_folder).train(), dtype=np.int64))
    order = np.random.Generator(np.random.PCG64(derived_seed(seed, "order", 0))).permutation(
        (len(tokens) - 1) // LENGTH
    )
    losses, norms = [], []
    for step in range(STEPS):
        before_step(step)
        rows = [
            tokens[i * LENGTH : i * LENGTH + LENGTH + 1] for i in order[step * SEQUENCES : (step + 1) * SEQUENCES]
        ]
        batch = torch.stack(rows)
        logits = model(input_ids=batch[:, :-1]).logits
        summed = F.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1), reduction="sum")
        loss = summed / (SEQUENCES * LENGTH)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def plain_evaluation(data_folder: Path, model: Any) -> float:
    """Mean loss over the first 1000 held-out tokens, rounded up to whole sequences."""
    count = math.ceil(1000 / LENGTH)
    tokens = np.array(Prepared.open(data_folder).heldout()[: count * LENGTH + 1], dtype=np.int64)
    stream = torch.from_numpy(tokens)
    inputs, targets = stream[:-1].view(count, LENGTH), stream[1:].view(count, LENGTH)
    with torch.no_grad():
        logits = model.eval()(input_ids=inputs).logits
    model.train()
    return float(F.cross_entropy(logits.double().flatten(0, 1), targets.flatten()))
