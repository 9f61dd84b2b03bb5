"""Initial weights are drawn once per model and seed, and mapped by whoever needs them."""

from pathlib import Path

import pytest
import torch

from selectbench.worker.model import ensure_weights, mapped_model, weights_sha256

VOCABULARY = 300
LLAMA = {"family": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
         "intermediate_size": 64, "tie_word_embeddings": True}  # fmt: skip


def mappings_of(path):
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    return [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]


def test_parameters_lie_in_the_mapped_file(trials):
    order = trials.order(job={"model": {"family": "gpt2", "n_layer": 2, "n_embd": 256, "n_head": 4}})
    path = ensure_weights(order, VOCABULARY)
    module = mapped_model(order, VOCABULARY, path)
    mapped = mappings_of(path)
    for name, parameter in module.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in mapped), name


def test_a_file_per_seed_and_model_and_no_other(trials):
    first = ensure_weights(trials.order(seed=0), VOCABULARY)
    drawn = first.stat().st_mtime_ns
    same = trials.order(seed=0, precision="bf16_mixed", optimizer={"name": "sgd", "lr": 0.1}, option="other")
    assert ensure_weights(same, VOCABULARY) == first
    assert first.stat().st_mtime_ns == drawn
    others = [trials.order(seed=1), trials.order(job={"seq_len": 16})]
    assert len({first, *(ensure_weights(order, VOCABULARY) for order in others)}) == 3
    assert len(list(first.parent.iterdir())) == 3


@pytest.mark.parametrize("model", [LLAMA, {**LLAMA, "tie_word_embeddings": False}])
def test_buffers_and_ties_are_those_of_a_model_built_whole(trials, model):
    order = trials.order(job={"model": model})
    module = mapped_model(order, VOCABULARY, ensure_weights(order, VOCABULARY))
    rotary = module.model.rotary_emb.inv_freq
    assert rotary.tolist() == pytest.approx([10000 ** (-2 * i / 8) for i in range(4)], rel=1e-6)
    tied = module.lm_head.weight is module.model.embed_tokens.weight
    assert tied == model["tie_word_embeddings"]
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


def test_training_leaves_the_file_as_it_was(trials):
    order = trials.order()
    path = ensure_weights(order, VOCABULARY)
    before = weights_sha256(mapped_model(order, VOCABULARY, path))
    assert trials.finished().identity.initial_weights_sha256 == before
    assert weights_sha256(mapped_model(order, VOCABULARY, path)) == before


def test_drawing_leaves_torchs_generator_alone(trials):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    order = trials.order(seed=9)
    mapped_model(order, VOCABULARY, ensure_weights(order, VOCABULARY))
    assert torch.equal(torch.rand(3), expected)
