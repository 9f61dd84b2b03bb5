"""The bench's torch-free formulas of Bert, T5 and Bart against the real models, settings drawn at random."""

import task_jobs as jobs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from selectbench.choices.model import T5, Bart, Bert
from selectbench.planning.memory import size_of
from selectbench.worker.model import AUTO


def parameters(model, vocab_size, seq_len):
    return size_of(model, vocab_size, seq_len).all_parameters


def real_parameters(task, model, vocab_size, seq_len):
    with torch.device("meta"):
        config = AutoConfig.for_model(**model.transformers_config(vocab_size, seq_len))
        return sum(p.numel() for p in AUTO[task].from_config(config).parameters())


SIZES = {"vocab_size": st.integers(2, 300), "seq_len": st.integers(2, 40)}
SHAPE = {"layers": st.integers(1, 3), "heads": st.integers(1, 4), "per_head": st.integers(1, 8),
         "inner": st.none() | st.integers(1, 50)}  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(**SHAPE, **SIZES)
def test_bert(layers, heads, per_head, inner, vocab_size, seq_len):
    model = Bert(num_hidden_layers=layers, hidden_size=heads * per_head, num_attention_heads=heads,
                 intermediate_size=inner)  # fmt: skip
    assert parameters(model, vocab_size, seq_len) == real_parameters("masked_lm", model, vocab_size, seq_len)


@settings(max_examples=25, deadline=None)
@given(of_heads=st.none() | st.integers(1, 9), **SHAPE, **SIZES)
def test_t5(layers, heads, per_head, inner, of_heads, vocab_size, seq_len):
    model = T5(num_layers=layers, d_model=heads * per_head, num_heads=heads, d_kv=of_heads, d_ff=inner)
    assert parameters(model, vocab_size, seq_len) == real_parameters("seq2seq", model, vocab_size, seq_len)


@settings(max_examples=25, deadline=None)
@given(**SHAPE, **SIZES)
def test_bart(layers, heads, per_head, inner, vocab_size, seq_len):
    model = Bart(num_layers=layers, d_model=heads * per_head, num_heads=heads, ffn_dim=inner)
    assert parameters(model, vocab_size, seq_len) == real_parameters("seq2seq", model, vocab_size, seq_len)


def test_the_published_sizes():
    """BERT-base with its head for masked language modelling and without a pooler, T5-small, BART-base."""
    assert parameters(Bert(), 30522, 512) == 109_514_298
    assert parameters(T5(d_ff=2048), 32128, 512) == 60_506_624
    assert parameters(Bart(d_model=768, num_heads=12), 50265, 1024) == 139_420_416


def test_plain_models_have_as_many():
    assert parameters(Bert(num_hidden_layers=2, hidden_size=32, num_attention_heads=2), 300, 32) == count(
        jobs.plain_bert
    )
    assert parameters(T5(num_layers=2, d_model=32, num_heads=2), 300, 32) == count(jobs.plain_t5)
    assert parameters(Bart(num_layers=2, d_model=32, num_heads=2), 300, 32) == count(jobs.plain_bart)


def count(plain):
    return sum(p.numel() for p in plain(300, 0).parameters())
