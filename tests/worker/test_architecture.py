"""The counted shape of a model against torch's own count of a real forward and backward pass."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from selectbench.analysis.metrics import hardware_flops_per_token, model_flops_per_token
from selectbench.suite.job import Job
from selectbench.worker.model import enable_checkpointing, new_model
from selectbench.worker.outcome import FAMILIES, NORM, architecture_of

SEQUENCES, SEQ_LEN = 2, 12
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
OWN_SIZES = {
    "codegen": {"rotary_dim": 8}, "exaone4": {"head_dim": 8}, "gemma": {"head_dim": 16}, "gemma2": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16}, "glm": {"head_dim": 8}, "glm4": {"head_dim": 8}, "gptj": {"rotary_dim": 8},
    "helium": {"head_dim": 8}, "qwen3": {"head_dim": 24}, "seed_oss": {"head_dim": 8},
}  # fmt: skip


def make(family: str, kind: Any = AutoModelForCausalLM, **settings: Any) -> Any:
    """A tiny model in training mode without dropout, its attention the eager one, whose products are counted."""
    config = AutoConfig.for_model(family, **{**SIZES, **OWN_SIZES.get(family, {}), **settings})
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "dropout",
                 "residual_dropout"):  # fmt: skip
        if name not in settings and isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
    module = kind.from_config(config, attn_implementation="eager")
    module.config.use_cache = False
    return module.train()


def counted_per_token(module: Any, seq_len: int = SEQ_LEN) -> float:
    """What torch counts in a forward and backward pass; the CPU's fused attention would count as nothing."""
    inputs = torch.zeros(SEQUENCES, seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        module(input_ids=inputs).logits.sum().backward()
    return counter.get_total_flops() / (SEQUENCES * seq_len)


def formula(module: Any, recomputed: bool, seq_len: int = SEQ_LEN) -> float:
    found = architecture_of(module, seq_len)
    assert found is not None
    return hardware_flops_per_token(found, recomputed)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_does_exactly_the_counted_work(family: str) -> None:
    # Equal and not just close: embeddings are trained, so that even the first block's input has a gradient.
    module = make(family)
    found = architecture_of(module, SEQ_LEN)
    assert found is not None
    assert found.seq_len == SEQ_LEN
    assert counted_per_token(module) == model_flops_per_token(found) == hardware_flops_per_token(found, False)
    enable_checkpointing(module)
    assert counted_per_token(module) == hardware_flops_per_token(found, recomputed=True)


@pytest.mark.parametrize("family", sorted(name for name, after in FAMILIES.items() if after not in (None, NORM)))
def test_dropout_at_a_blocks_end_makes_it_compute_its_last_product_again(family: str) -> None:
    module = make(family, **{str(FAMILIES[family]): 0.1})
    enable_checkpointing(module)
    assert counted_per_token(module) == formula(module, recomputed=True)
    assert formula(module, recomputed=True) > formula(make(family), recomputed=True)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"n_inner": 40}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 1, "head_dim": 24, "attention_bias": True}),
        ("opt", {"word_embed_proj_dim": 16}),
        ("falcon", {"new_decoder_architecture": True, "alibi": False}),
        ("falcon", {"multi_query": False, "parallel_attn": False, "alibi": True}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("stablelm", {"use_parallel_residual": True}),
        ("mistral", {"sliding_window": SEQ_LEN}),
        ("gemma2", {"sliding_window": SEQ_LEN}),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_variants_of_the_families(family: str, settings: dict[str, Any], again: bool) -> None:
    module = make(family, **settings)
    if again:
        enable_checkpointing(module)
    assert counted_per_token(module) == formula(module, again)


@pytest.mark.parametrize("seq_len", [1, 7, 32])
def test_the_length_of_the_sequence(seq_len: int) -> None:
    module = make("llama")
    assert counted_per_token(module, seq_len) == formula(module, recomputed=False, seq_len=seq_len)


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_by_hand(tied: bool) -> None:
    found = architecture_of(make("gpt2", num_hidden_layers=3, tie_word_embeddings=tied), 16)
    assert found is not None
    assert found.matmul_parameters == 3 * 12 * 32 * 32 + 64 * 32  # tied or not, the head is a product
    assert found.block_matmul_parameters == 3 * 8 * 32 * 32  # all but the last of 4 x 32 x 32 of each block
    assert found.attention_width == 3 * 32


@pytest.mark.parametrize(
    "model",
    [
        {"family": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2},
        {"family": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2},
    ],
)
def test_a_jobs_model_is_the_same_on_the_meta_device_and_with_any_kernel(model: dict[str, Any]) -> None:
    job = Job.model_validate({"model": model, "data": {"text": ["-"]}, "tokenizer": {"bpe": 300}, "seq_len": 16,
                              "global_batch_size": 1, "max_steps": 1})  # fmt: skip
    empty = architecture_of(new_model(job, 64, attention="sdpa", empty=True), 16)
    assert empty is not None
    assert empty == architecture_of(new_model(job, 64, attention="eager"), 16)


def test_a_model_that_is_not_transformers_is_not_described() -> None:
    own = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64))
    assert architecture_of(own, 16) is None
    assert architecture_of(object(), 16) is None


@pytest.mark.parametrize(
    ("family", "kind", "settings"),
    [
        ("mixtral", AutoModelForCausalLM, {"num_local_experts": 2}),
        ("qwen2_moe", AutoModelForCausalLM, {"num_experts": 2, "shared_expert_intermediate_size": 32}),
        ("mamba", AutoModelForCausalLM, {}),
        ("diffllama", AutoModelForCausalLM, {}),
        ("t5", AutoModelForSeq2SeqLM, {"d_model": 32, "d_kv": 8, "d_ff": 48, "decoder_start_token_id": 0}),
        ("bert", AutoModelForMaskedLM, {"pad_token_id": 0}),
        ("bert", AutoModelForCausalLM, {"pad_token_id": 0, "is_decoder": True}),
        ("gpt2", AutoModelForCausalLM, {"add_cross_attention": True}),
        ("opt", AutoModelForCausalLM, {"layerdrop": 0.5}),
        ("mistral", AutoModelForCausalLM, {"sliding_window": SEQ_LEN - 1}),
        ("gemma2", AutoModelForCausalLM, {"sliding_window": SEQ_LEN - 1}),
        ("olmo3", AutoModelForCausalLM, {"sliding_window": 4}),
        ("qwen3", AutoModelForCausalLM, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    ],
)
def test_models_that_the_formula_does_not_describe(family: str, kind: Any, settings: dict[str, Any]) -> None:
    assert architecture_of(make(family, kind, **settings), SEQ_LEN) is None


def test_a_model_without_its_head_or_changed_by_hand_is_not_described() -> None:
    assert architecture_of(make("llama").model, SEQ_LEN) is None
    frozen = make("llama")
    frozen.model.embed_tokens.requires_grad_(False)
    assert architecture_of(frozen, SEQ_LEN) is None
    changed = make("llama")
    changed.model.layers[0].mlp.up_proj = LowRank(changed.model.layers[0].mlp.up_proj)
    assert architecture_of(changed, SEQ_LEN) is None
    shorter = make("llama")
    shorter.model.layers = shorter.model.layers[:1]
    assert architecture_of(shorter, SEQ_LEN) is None
    subclass = make("llama")
    subclass.__class__ = type("Mine", (type(subclass),), {})
    assert architecture_of(subclass, SEQ_LEN) is None


class LowRank(torch.nn.Linear):
    """A layer of the user's, which does more than its weight tells."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False)
