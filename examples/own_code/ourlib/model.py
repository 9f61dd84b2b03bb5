"""A model: any module from token ids to logits."""

import torch
from torch import nn


class BagOfPositions(nn.Module):
    """A tiny causal model: each position mixes the mean of what came before with its own embedding."""

    def __init__(self, vocab_size: int, seq_len: int, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(seq_len, width))
        self.mix = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU())
        self.head = nn.Linear(width, vocab_size)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (sequences, seq_len) to logits (sequences, seq_len, vocabulary)."""
        here = self.tokens(token_ids) + self.positions[: token_ids.shape[1]]
        count = torch.arange(1, token_ids.shape[1] + 1, device=token_ids.device)[:, None]
        before = here.cumsum(dim=1) / count
        return self.head(self.mix(torch.cat([here, before], dim=-1)))
