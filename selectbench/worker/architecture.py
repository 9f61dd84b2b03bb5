"""What of a model decides how much work a token is, counted on the live module.

The formula in the bench counts dense matrix products and full attention. Which decoders of transformers do
just that is known from counting their real forward and backward passes, one by one: a family is named here
once a test has done so, and for any other model nothing is said.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from selectbench.record.meters import Architecture

NORM = "norm"
"""A norm stands between a block's last matrix product and the block's output."""

FAMILIES: dict[str, str | None] = {
    "arcee": None, "bloom": "hidden_dropout", "codegen": "resid_pdrop", "cohere": None, "ernie4_5": None,
    "exaone4": NORM, "falcon": "hidden_dropout", "gemma": None, "gemma2": NORM, "gemma3_text": NORM, "glm": None,
    "glm4": NORM, "gpt2": "resid_pdrop", "gpt_bigcode": "resid_pdrop", "gpt_neox": "hidden_dropout",
    "gptj": "resid_pdrop", "granite": None, "helium": None, "llama": None, "mistral": None, "olmo": None,
    "olmo2": NORM, "olmo3": NORM, "opt": "dropout", "persimmon": "hidden_dropout", "phi": "resid_pdrop",
    "phi3": "resid_pdrop", "qwen2": None, "qwen3": None, "seed_oss": "residual_dropout", "smollm3": None,
    "stablelm": "hidden_dropout", "starcoder2": "residual_dropout",
}  # fmt: skip
"""Model types that the formula describes, each with what follows a block's last matrix product: NORM, the
setting of a dropout, or None for nothing but the residual addition."""

_MATRICES = (nn.Linear, Conv1D)
_HOMES = ("torch.nn.modules.", "transformers.models.", "transformers.activations", "transformers.pytorch_utils")
"""Where the parts' classes come from: quantised, adapted and parametrised layers come from elsewhere."""
_ATTENTION_KINDS = {"full_attention", "sliding_attention"}


def architecture_of(module: Any, seq_len: int) -> Architecture | None:
    """Of a model before anything wraps, casts or shards it; its parameters may be on the meta device.

    `seq_len`: tokens of a training sequence. None where the formula does not describe the model: it is none of
    FAMILIES as transformers ships it (so own models, mixtures of experts, encoders, state spaces and linear
    attention), attends to less than the whole sequence, drops whole layers, or is not trained as a whole.
    """
    if not _is_described(module) or not _attends_to_all(module.config, seq_len):
        return None
    blocks = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    if len(blocks) != module.config.num_hidden_layers:
        return None
    inside = [_matrices(block) for block in blocks]
    skipped = 0 if _needs_last_again(module.config) else sum(sizes[-1] for sizes in inside)
    return Architecture(
        matmul_parameters=sum(_matrices(module)),
        block_matmul_parameters=sum(map(sum, inside)) - skipped,
        attention_width=_attention_width(module.config),
        seq_len=seq_len,
    )


def _is_described(module: Any) -> bool:
    """Whether it is a decoder of FAMILIES with its head, all parts transformers' or torch's own, and trained."""
    if not isinstance(module, PreTrainedModel):
        return False
    config = module.config
    return (
        config.model_type in FAMILIES
        and MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type) == type(module).__name__
        and not getattr(config, "is_encoder_decoder", False)
        and not getattr(config, "add_cross_attention", False)
        and not getattr(config, "layerdrop", 0)
        and all(parameter.requires_grad for parameter in module.parameters())
        and all(map(_is_known, module.modules()))
    )


def _is_known(part: nn.Module) -> bool:
    """Whether its matrices are of the kinds that are counted, or embeddings, which are only looked up."""
    if not type(part).__module__.startswith(_HOMES):
        return False
    holds_a_matrix = any(parameter.ndim > 1 for parameter in part.parameters(recurse=False))
    return not holds_a_matrix or isinstance(part, (*_MATRICES, nn.Embedding))


def _attends_to_all(config: Any, seq_len: int) -> bool:
    """Whether every layer's window, where it has one, covers the sequence."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    return kinds <= _ATTENTION_KINDS and (window is None or window >= seq_len)


def _matrices(part: nn.Module) -> list[int]:
    """Elements of its matrices in the order in which its parts are made, which in FAMILIES is that of their use.

    By module, so that a head counts though its weights are the embedding's.
    """
    return [inner.weight.numel() for inner in part.modules() if isinstance(inner, _MATRICES)]


def _needs_last_again(config: Any) -> bool:
    """Whether a block's backward pass needs the output of its last matrix product.

    Where it does not, torch's checkpointing ends the second forward pass just before that product.
    """
    after = FAMILIES[config.model_type]
    return after == NORM or (after is not None and getattr(config, after) > 0)


def _attention_width(config: Any) -> int:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(config.num_hidden_layers * heads * width)
