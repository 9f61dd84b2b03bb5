"""GPT-2's GELU: the built-in family has torch's kernel of it, a user's own configuration what it says."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import GPT2Config
from worker.conftest import GPT2

from selectbench.worker.model import new_model

STEPS = 60


@pytest.fixture
def own_configuration(tmp_path):
    """The same model as transformers configures it by itself."""
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    assert config.activation_function == "gelu_new"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict() | {"vocab_size": 300}))
    return {"config": str(path)}


def losses(trials, model):
    finished = trials.finished(job={"model": model, "max_steps": STEPS})
    series = json.loads((trials.trial_folder / "series.json").read_text())
    return finished, series["loss_nats_per_token"]


def test_it_is_the_same_function(trials, own_configuration):
    built_in, ours = losses(trials, GPT2)
    written_out, theirs = losses(trials, own_configuration)
    assert built_in.identity.initial_weights_sha256 == written_out.identity.initial_weights_sha256
    assert ours[0] - ours[-1] > 1
    assert ours == pytest.approx(theirs, rel=0, abs=1e-6)


def saved_of_width(module: torch.nn.Module, width: int) -> int:
    """Tensors of this width that a forward pass keeps for the backward pass, each memory once."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    ids = torch.zeros(2, 8, dtype=torch.int64)
    parameters = {p.data_ptr() for p in module.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(input_ids=ids).logits
    assert output.requires_grad
    return sum(t.numel() == ids.numel() * width for place, t in kept.items() if place not in parameters)


def test_a_block_keeps_the_input_and_the_output_of_its_gelu_and_no_more(trials, own_configuration):
    wide = 4 * GPT2["n_embd"]
    kept = {
        name: saved_of_width(new_model(trials.order(job={"model": model}).job, 300, attention="sdpa"), wide)
        for name, model in {"built in": GPT2, "own": own_configuration}.items()
    }
    assert kept["built in"] == 2 * GPT2["n_layer"]
    assert kept["own"] > 4 * GPT2["n_layer"]  # the formula's steps


def test_a_users_own_configuration_is_left_alone(trials, own_configuration):
    model = new_model(trials.order(job={"model": own_configuration}).job, 300, attention="sdpa")
    assert model.config.activation_function == "gelu_new"
    built_in = new_model(trials.order().job, 300, attention="sdpa")
    assert built_in.config.activation_function == "gelu_pytorch_tanh"


def test_no_other_family_has_it(trials):
    for family, task in (("llama", "causal_lm"), ("bert", "masked_lm"), ("t5", "seq2seq"), ("bart", "seq2seq")):
        data = {"pairs": ["unused.tsv"]} if task == "seq2seq" else {"text": ["unused"]}
        job = trials.order(job={"model": {"family": family}, "task": task, "data": data}).job
        model = new_model(job, 300, attention="sdpa", empty=True)
        assert not any(type(part).__name__ == "NewGELUActivation" for part in model.modules())
