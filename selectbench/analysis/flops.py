"""Floating-point operations of training on one token, from the model's shape.

A multiplication and an addition are two operations. Only matrix products count: embeddings that are looked up,
norms, activations, the softmax, the loss and the optimizer's own arithmetic do not.
"""

from __future__ import annotations

from selectbench.record.meters import Architecture

RULE = (
    "A token's FLOPs are 6 x the parameters of the matrix products (the output head among them) + 12 x sequence "
    "length x the heads' width summed over the layers: two for each multiplication and addition of the forward "
    "pass, twice as many for the backward pass (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Attention "
    "counts in full, without the half that a causal mask leaves out, so a kernel that skips it does less than is "
    "counted. Embeddings, norms, softmax, loss and optimizer are left out."
)


def model_flops_per_token(a: Architecture) -> float:
    """6 x matmul_parameters + 12 x attention_width x seq_len, forward and backward pass.

    Source: Chowdhery et al. 2022, arXiv:2204.02311 (PaLM), appendix B: 6N + 12LHQT. Two operations for each
    parameter forward and four backward; scores and their product with the values are 4 x width x seq_len
    forward and twice that backward. There is no discount for a causal mask, and recomputation is left out.
    """
    return 6.0 * a.matmul_parameters + 12.0 * a.attention_width * a.seq_len


def hardware_flops_per_token(a: Architecture, recomputed: bool) -> float:
    """The same and, where activations are `recomputed`, the second forward pass through the blocks.

    That adds 2 x block_matmul_parameters + 4 x attention_width x seq_len: the head is outside the blocks, and
    torch ends a block's second pass once all that the backward pass needs is there. What a fused attention
    kernel or torch.compile computes again of its own accord is left out.
    """
    again = 2.0 * a.block_matmul_parameters + 4.0 * a.attention_width * a.seq_len
    return model_flops_per_token(a) + (again if recomputed else 0.0)
