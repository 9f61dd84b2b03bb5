"""The formulas of a training's memory against what autograd saves, and what torch allocates, in a real one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from selectbench.choices import Choices
from selectbench.choices.model import T5, AnyModel, Bart, Bert, Gpt2, Llama
from selectbench.planning.memory import Layout, Regime, layout_of, memory_need
from selectbench.suite.job import Job
from selectbench.worker.model import enable_checkpointing

VOCABULARY, SEQ_LEN, SEQUENCES = 512, 64, 4
AUTO: dict[str, Any] = {
    "causal_lm": AutoModelForCausalLM, "masked_lm": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM,
}  # fmt: skip
PRECISIONS = ("fp32", "bf16_mixed", "bf16_pure")

MODELS: dict[str, AnyModel] = {
    "gpt2": Gpt2(n_layer=3, n_embd=128, n_head=4),
    "gpt2 narrow": Gpt2(n_layer=4, n_embd=96, n_head=3, n_inner=200),
    "llama": Llama(num_hidden_layers=3, hidden_size=128, num_attention_heads=4, tie_word_embeddings=True),
    "llama grouped": Llama(num_hidden_layers=2, hidden_size=96, num_attention_heads=4, num_key_value_heads=1),
    "bert": Bert(num_hidden_layers=3, hidden_size=128, num_attention_heads=4),
    "bart": Bart(num_layers=2, d_model=128, num_heads=4),
    "t5": T5(num_layers=2, d_model=128, num_heads=4),
}


def config_of(model: AnyModel, **over: Any) -> dict[str, Any]:
    config = model.transformers_config(VOCABULARY, SEQ_LEN)  # type: ignore[union-attr]
    # The one operation, whatever a family has for its default.
    gelu = {"activation_function": "gelu_pytorch_tanh"} if config["model_type"] == "gpt2" else {}
    return {**config, **gelu, **over}


class Trained:
    """A real model of a configuration with a batch, run in a precision on the CPU."""

    def __init__(self, config: dict[str, Any], precision: str, attention: str = "sdpa") -> None:
        kind = {"bert": "masked_lm", "t5": "seq2seq", "bart": "seq2seq"}.get(config["model_type"], "causal_lm")
        made = AutoConfig.for_model(**config)
        self.model = AUTO[kind].from_config(made, attn_implementation=attention, dtype=torch.float32)
        self.model.config.use_cache = False
        self.model.train()
        if precision == "bf16_pure":
            self.model.bfloat16()
        self.is_mixed = precision == "bf16_mixed"
        self.ids = torch.randint(0, config["vocab_size"], (SEQUENCES, SEQ_LEN))
        self.inputs: dict[str, torch.Tensor] = {"input_ids": self.ids}
        if kind == "seq2seq":
            mask = torch.ones_like(self.ids)
            mask[:, -3:] = 0
            self.inputs |= {"attention_mask": mask, "decoder_input_ids": self.ids}

    def logits(self) -> torch.Tensor:
        context: AbstractContextManager[object] = (
            torch.autocast("cpu", dtype=torch.bfloat16) if self.is_mixed else nullcontext()
        )
        with context:
            return self.model(**self.inputs).logits

    def backward(self) -> None:
        """As a step does it: nothing but the graph holds the logits."""
        loss = torch.nn.functional.cross_entropy(self.logits().float().flatten(0, 1), self.ids.flatten())
        loss.backward()

    def saved_bytes(self) -> int:
        """Of everything that the forward pass keeps for the backward pass, but for parameters and buffers."""
        own = [*self.model.parameters(), *self.model.buffers()]
        known = {tensor.untyped_storage().data_ptr() for tensor in own}
        kept: dict[int, torch.Tensor] = {}  # alive until they are counted: an address is used again

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            place = tensor.untyped_storage().data_ptr()
            if place not in known:
                kept[place] = tensor
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            output = self.logits()
        assert output.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    def peak_bytes(self) -> int:
        """What forward and backward pass allocate together at their highest."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.backward()
        found = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = highest = 0
        for event in sorted(found, key=lambda event: event.start_ns()):
            now += event.nbytes()
            highest = max(highest, now)
        return highest


def layout(config: dict[str, Any], precision: str, *, eager: bool = False) -> Layout:
    mixed = precision == "bf16_mixed"
    found = layout_of(config, Regime(SEQ_LEN, autocast=mixed, half=precision != "fp32", eager=eager))
    assert found is not None
    return found


def expected_saved(config: dict[str, Any], precision: str, *, eager: bool = False) -> float:
    found = layout(config, precision, eager=eager)
    weights, products = {"fp32": (4, 4), "bf16_mixed": (4, 2), "bf16_pure": (2, 2)}[precision]
    of_a_token = found.outside.bytes_in(weights, products) + sum(
        stack.blocks * stack.saved.bytes_in(weights, products) for stack in found.stacks
    )
    copies = products * found.matrix_parameters if precision == "bf16_mixed" else 0
    return SEQUENCES * SEQ_LEN * of_a_token + copies


# In pure bf16 a CPU computes T5's attention, over a learnt bias, in fp32: no GPU does.
@pytest.mark.parametrize(
    ("name", "precision"), [(n, p) for n in MODELS for p in PRECISIONS if (n, p) != ("t5", "bf16_pure")]
)
def test_what_autograd_saves(name: str, precision: str) -> None:
    config = config_of(MODELS[name])
    measured = Trained(config, precision).saved_bytes()
    tolerance = 0.15 if name == "t5" else 0.03
    assert expected_saved(config, precision) == pytest.approx(measured, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama grouped"])
def test_attention_that_keeps_its_scores(name: str, precision: str) -> None:
    config = config_of(MODELS[name])
    measured = Trained(config, precision, "eager").saved_bytes()
    assert expected_saved(config, precision, eager=True) == pytest.approx(measured, rel=0.03)


def test_an_activation_that_is_written_out_keeps_its_parts() -> None:
    config = config_of(MODELS["gpt2"], activation_function="gelu_new")
    measured = Trained(config, "fp32").saved_bytes()
    assert expected_saved(config, "fp32") == pytest.approx(measured, rel=0.03)
    # What GPT-2's configuration means where it names none.
    del config["activation_function"]
    assert expected_saved(config, "fp32") == pytest.approx(measured, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "mistral", "smollm3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
def test_other_decoders_by_the_keys_of_their_configurations(model_type: str, precision: str) -> None:
    config = {
        "model_type": model_type, "num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 384, "vocab_size": VOCABULARY,
        "max_position_embeddings": SEQ_LEN, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        "tie_word_embeddings": False,
    }  # fmt: skip
    trained = Trained(config, precision)
    assert expected_saved(config, precision) == pytest.approx(trained.saved_bytes(), rel=0.05)
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    assert layout(config, precision).parameters == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_but_for_norms_and_biases(name: str) -> None:
    expected = layout(config_of(MODELS[name]), "fp32")
    assert expected.parameters == pytest.approx(expected.all_parameters, rel=0.05)


@pytest.mark.parametrize(
    ("name", "vocab_size", "checkpointing", "precision"),
    [
        ("gpt2", 4096, False, "fp32"),
        ("gpt2", 4096, False, "bf16_mixed"),
        ("gpt2", 64, False, "fp32"),
        *(
            pytest.param(*case, precision, marks=pytest.mark.slow)
            for precision in PRECISIONS
            for case in (("gpt2", 4096, True), ("llama", 2048, False), ("llama", 64, False))
        ),
    ],
)
def test_the_peak_of_a_forward_and_a_backward_pass(
    name: str, vocab_size: int, checkpointing: bool, precision: str
) -> None:
    model = MODELS[name]
    config = config_of(model, vocab_size=vocab_size)
    trained = Trained(config, precision)
    if checkpointing:
        enable_checkpointing(trained.model)
    job = Job.model_validate(
        {"model": model.model_dump(), "tokenizer": {"bpe": 300}, "seq_len": SEQ_LEN,
         "global_batch_size": SEQUENCES, "max_steps": 1}
    )  # fmt: skip
    choices = Choices.model_validate(
        {"optimizer": {"name": "adamw", "lr": 1e-3}, "precision": precision, "micro_batch_size": SEQUENCES,
         "activation_checkpointing": checkpointing}
    )  # fmt: skip
    need = memory_need(job, choices, config, 1)
    assert need is not None
    assert need.activations + need.loss == pytest.approx(trained.peak_bytes(), rel=0.15)
