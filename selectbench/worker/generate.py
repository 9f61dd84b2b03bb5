"""Greedy decoding with nothing but the logits of an evaluation: the same under every strategy and precision.

Every step is a whole forward pass, without a cache of keys and values: slower, and exactly what the evaluation
computes, whatever wraps or shards the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selectbench.worker.batches import Batch
from selectbench.worker.evaluation import Logits
from selectbench.worker.world import World


def generate_targets(logits: Logits, batch: Batch, *, end_id: int, start_id: int, world: World) -> list[list[int]]:
    """Token ids of the most likely target, token by token, of each source of a batch of pairs; without the end.

    Every rank makes the same calls with the same sources.
    """
    rows, most = batch.targets.shape
    given = torch.full((rows, 1), start_id, dtype=torch.int64, device=world.device)
    done = torch.zeros(rows, dtype=torch.bool, device=world.device)
    for _ in range(most):
        step = Batch(batch.tokens, (), {**batch.named, "decoder_input_ids": given}, batch.targets)
        said = logits(step)[:, -1].argmax(dim=-1)
        given = torch.cat([given, torch.where(done, end_id, said)[:, None]], dim=1)
        done |= said == end_id
        if world.from_first(int(done.all())):
            break
    return [_until(row[1:], end_id) for row in given.tolist()]


def continue_tokens(logits: Logits, prompt: Sequence[int], *, count: int, longest: int, world: World) -> list[int]:
    """The `count` most likely tokens after a prompt; the model is shown `longest` tokens at most."""
    known = list(prompt)
    for _ in range(count):
        ids = torch.tensor([known[-longest:]], dtype=torch.int64, device=world.device)
        said = logits(Batch(ids, (ids,), {}, ids))[0, -1].argmax()
        known.append(int(said))
    return known[len(prompt) :]


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
