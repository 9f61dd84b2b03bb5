"""The bench's torch-free formulas against the real models."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from selectbench.choices.model import Gpt2, Llama
from selectbench.planning.memory import size_of


def parameters(model, vocab_size, seq_len):
    return size_of(model, vocab_size, seq_len).all_parameters


def real_parameters(model, vocab_size, seq_len):
    with torch.device("meta"):
        config = AutoConfig.for_model(**model.transformers_config(vocab_size, seq_len))
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


SIZES = {"vocab_size": st.integers(2, 300), "seq_len": st.integers(2, 40)}
OPTIONAL = st.none() | st.integers(1, 50)


@settings(max_examples=25, deadline=None)
@given(layers=st.integers(1, 3), heads=st.integers(1, 4), per_head=st.integers(1, 8), inner=OPTIONAL,
       positions=st.none() | st.integers(40, 64), **SIZES)  # fmt: skip
def test_gpt2(layers, heads, per_head, inner, positions, vocab_size, seq_len):
    model = Gpt2(n_layer=layers, n_embd=heads * per_head, n_head=heads, n_inner=inner, n_positions=positions)
    assert parameters(model, vocab_size, seq_len) == real_parameters(model, vocab_size, seq_len)


@settings(max_examples=25, deadline=None)
@given(layers=st.integers(1, 3), keys=st.integers(1, 3), groups=st.integers(1, 3), half=st.integers(1, 4),
       inner=OPTIONAL, tied=st.booleans(), **SIZES)  # fmt: skip
def test_llama(layers, keys, groups, half, inner, tied, vocab_size, seq_len):
    heads = keys * groups
    model = Llama(num_hidden_layers=layers, hidden_size=heads * half * 2, num_attention_heads=heads,
                  num_key_value_heads=keys, intermediate_size=inner, tie_word_embeddings=tied)  # fmt: skip
    assert parameters(model, vocab_size, seq_len) == real_parameters(model, vocab_size, seq_len)


def test_gpt2_small_is_the_published_one():
    assert parameters(Gpt2(), 50257, 1024) == 124_439_808
