"""Training of any family of transformers in plain PyTorch: nothing of selectbench is imported here.

What the job is comes from outside: the seed of the weights, the tokens, and which of them stand in which
micro-batch. Nothing is random in the forward pass because the model is in evaluation mode, whatever its family
calls its dropout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LENGTH, VOCABULARY = 32, 512

# A configuration of two layers by rule: what a family's own configuration tells of size is replaced by its name.

SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size(_per_layer_input)?|decoder_vocab_size|vocabulary_size|ngram_vocab_size", VOCABULARY),
    (r"num_(hidden_|decoder_|encoder_)?layers|n_layers?|num_blocks|(en|de)coder_layers|depth", 2),
    (r"num_nextn_predict_layers|num_mtp_modules|first_k_dense_replace|num_kv_shared_layers|num_dense_layers", 0),
    (r"hidden_size|n_embd|d_model|width|embed_dim|embedding_size|word_embed_proj_dim|dim_model", 64),
    (r"lru_width|d_embed|emb_dim", 64),
    (r"hidden_size_per_layer_input|rotary_dim|qk_rope_head_dim|index_head_dim|qk_nope_head_dim|v_head_dim", 16),
    (r"\w*(moe|expert|mlp)\w*intermediate_size\w*|expert_ffn_hidden_size|moe_hidden_size", 32),
    (r"intermediate_size|ffn_dim|n_inner|d_ff|dim_ff|d_inner|(en|de)coder_ffn_dim|inner_dim|ffn_hidden_size", 128),
    (r"num_(decoder_|encoder_)?attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|mamba_n_heads", 4),
    (r"n_kv_heads|num_\w*key_value_heads|num_(linear_)?(key|value)_heads|linear_num_\w+_heads", 4),
    (r"\w*head_dim\w*|d_kv|dim_head|d_head|kv_channels", 16),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_moe_experts|moe_n_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|num_selected_experts|top_k_experts|router_top_k", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts|mamba_n_groups|n_groups", 1),
    (r"max_(position_embeddings|seq_len|sequence_length)|n_positions|max_position|max_target_positions|n_ctx", 256),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank", 16),
    (r"mamba_d_head|mamba_headdim", 32), (r"mamba_d_ssm", 128),  # twice the width, in four heads
)  # fmt: skip
LISTED = ("layer_types", "layers_block_type", "block_types", "mlp_layer_types")


def small(family: str) -> dict[str, Any]:
    """The family's own configuration, two layers deep and 64 wide."""
    return _shrunk(CONFIG_MAPPING[family]().to_dict())


def _shrunk(content: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    layers = next((content[key] for key in ("num_hidden_layers", "num_layers", "n_layer") if key in content), None)
    for key, value in content.items():
        if key in ("transformers_version", "architectures", "per_layer_config", "torch_dtype", "dtype"):
            continue
        if key.endswith("token_id") and key != "pad_token_id":
            continue
        if key == "pad_token_id":
            found[key] = value if not isinstance(value, int) or value < VOCABULARY else 0
        elif key in ("is_decoder", "causal"):
            found[key] = True
        elif isinstance(value, dict) and key.endswith("_config"):
            found[key] = _shrunk(value)
        elif value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            size = next((size for name, size in SIZES if re.fullmatch(name, key)), value)
            found[key] = size
        elif isinstance(value, list) and value and key in LISTED:
            found[key] = (list(dict.fromkeys(value)) * 2)[:2]  # one layer of each kind, as far as two layers go
        elif isinstance(value, list) and len(value) == layers:
            found[key] = value[:2]
        elif key == "attention_types":
            found[key] = [[kinds, 1] for kinds, _ in value]
        else:
            found[key] = value
    if "expand" in content and "head_dim" in content:
        found["head_dim"] = 32  # of the state space, as wide as above
    return found


def families() -> list[str]:
    """Every family that transformers builds for the next token, by name."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


# The training itself.


@dataclass
class Reference:
    """What two programs must agree on."""

    losses: list[float] = field(default_factory=list)
    """Of the tokens alone, nats per token, before each update."""
    norms: list[float] = field(default_factory=list)
    """Of the gradient, before clipping."""
    heldout: float = 0.0
    """After the last step."""
    added: float = 0.0
    """What the first step's loss had besides."""
    attention: str = ""
    """The kernel that the class has."""


def model_of(config: Mapping[str, Any], seed: int, attention: str | None = None) -> Any:
    """In fp32, drawn from the seed; `attention` None: what its class has by default."""
    made = AutoConfig.for_model(**config)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(made, attn_implementation=attention, dtype=torch.float32)
    model.config.use_cache = False
    return model.eval()


def groups_of(model: Any, decay: float) -> Iterator[dict[str, Any]]:
    """Weights of layers and experts decay; biases, norms and what a state space has for rates do not."""
    decays, others = [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_bias = "bias" in name and name != "relative_attention_bias"  # which is a table of embeddings
            is_weight = name == "weight" or "proj" in name or name == "relative_attention_bias"
            (decays if parameter.ndim >= 2 and is_weight and not is_bias else others).append(parameter)
    for parameters, share in ((decays, decay), (others, 0.0)):
        unique = list({id(p): p for p in parameters}.values())
        if unique:
            yield {"params": unique, "weight_decay": share}


def orthogonal(update: torch.Tensor) -> torch.Tensor:
    """Five steps of Newton and Schulz in bfloat16, as Jordan 2024 gives them."""
    a, b, c = 3.4445, -4.7750, 2.0315
    found = update.bfloat16()
    found = found.T if len(update) > update.shape[1] else found
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return (found.T if len(update) > update.shape[1] else found).float()


def trained(
    model: Any, steps: Sequence[Sequence[torch.Tensor]], rates: Sequence[float], heldout: torch.Tensor, *,
    added: float = 0.0, muon: bool = False,
) -> Reference:  # fmt: skip
    """AdamW over the steps, each a list of micro-batches of token ids (sequences, LENGTH + 1), clipped at 1.

    `added`: the coefficient of the model's auxiliary loss, which each micro-batch has by its share of the step.
    `muon`: without decay, for the matrices between embedding and head, of which every expert has its own.
    """
    groups = list(groups_of(model, 0.0 if muon else 0.1))
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    between = [p for name, p in model.named_parameters() if not any(end in name for end in ("embed", "head"))]
    hidden = [(p, torch.zeros_like(p)) for p in between if muon and p.ndim > 1]
    found = Reference(attention=model.config._attn_implementation)
    for micro_batches, rate in zip(steps, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        sequences, told = sum(map(len, micro_batches)), 0.0
        for tokens in micro_batches:
            output = model(input_ids=tokens[:, :-1])
            share = len(tokens) / sequences
            loss = share * F.cross_entropy(output.logits.float().flatten(0, 1), tokens[:, 1:].flatten())
            told += loss.item()
            if added:
                part = share * added * output.aux_loss
                found.added += part.item() if not found.losses else 0.0
                loss = loss + part
            loss.backward()
        found.norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for parameter, momentum in hidden:
            assert parameter.grad is not None
            momentum.lerp_(parameter.grad, 0.05)
            updates = parameter.grad.lerp(momentum, 0.95)
            parameter.grad = None
            stack = parameter.data.view(-1, *parameter.shape[-2:])
            for matrix, update in zip(stack, updates.view(stack.shape), strict=True):
                matrix -= rate * 0.2 * max(matrix.shape) ** 0.5 * orthogonal(update)
        optimizer.step()
        found.losses.append(told)
    with torch.no_grad():
        logits = torch.cat([model(input_ids=rows[:, :-1]).logits.double() for rows in heldout.split(8)])
    found.heldout = float(F.cross_entropy(logits.flatten(0, 1), heldout[:, 1:].flatten()))
    return found
