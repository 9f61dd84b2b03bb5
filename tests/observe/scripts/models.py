"""One small model in the ways in which scripts call theirs, and the rows that all of them train on."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

VOCABULARY, LENGTH = 64, 16


class Core(nn.Module):
    """Tokens to logits; positions make the order of tokens matter."""

    def __init__(self, dropout: float = 0.0, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(128, width)
        self.middle = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, idx):
        hidden = self.embedding(idx) + self.position.weight[: idx.shape[1]]
        return self.head(self.drop(torch.relu(self.middle(hidden))))


class WithTargets(nn.Module):
    """As nanoGPT's: logits and loss; without targets the last place's logits only."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.core = Core(**settings)

    def forward(self, idx, targets=None):
        logits = self.core(idx)
        if targets is None:
            return logits[:, [-1], :], None
        return logits, F.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1), ignore_index=-1)


class Past(nn.Module):
    """A model that its script calls by a method of its own."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.core = Core(**settings)
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    def logits(self, tokens):
        return self.core(tokens) + self.bias


def gpt2(dropout: float = 0.0):
    """A small transformers model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2,
        resid_pdrop=dropout, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def rows(count: int, seed: int = 1) -> torch.Tensor:
    """[count, LENGTH + 1]"""
    return torch.randint(0, VOCABULARY, (count, LENGTH + 1), generator=torch.Generator().manual_seed(seed))


def contents(module: nn.Module) -> str:
    """A digest of all that a module holds after training."""
    whole = hashlib.sha256()
    for value in module.state_dict().values():
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        whole.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
