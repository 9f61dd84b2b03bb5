"""A loss: the sum over tokens, so that it does not depend on how a step is cut."""

import torch
import torch.nn.functional as F


def with_z_loss(logits: torch.Tensor, targets: torch.Tensor, weight: float = 1e-4) -> torch.Tensor:
    """Cross-entropy and `weight` times the squared log of the softmax's normaliser."""
    entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return entropy + weight * logits.logsumexp(dim=-1).square().sum()
