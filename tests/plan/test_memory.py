"""The expected peak of a GPU's memory, by hand: states, activations and loss, and what a strategy adds."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from selectbench.choices import Choices
from selectbench.choices.combinations import Situation, combination_reason
from selectbench.choices.execution import Ddp, Weights
from selectbench.planning.memory import (
    COMMUNICATION_BYTES,
    CONTEXT_BYTES,
    MemoryNeed,
    Regime,
    layout_of,
    memory_need,
)
from selectbench.suite.job import Job

GPT2 = {
    "model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50304, "n_positions": 1024,
    "activation_function": "gelu_pytorch_tanh",
}  # fmt: skip
MATRICES = 12 * 12 * 768**2 + 50304 * 768
PARAMETERS = MATRICES + 1024 * 768
"""But for norms and biases: a tenth of a percent."""
JOB = Job.model_validate(
    {"model": {"family": "gpt2", "vocab_size": 50304}, "tokenizer": {"bpe": 512}, "seq_len": 1024,
     "global_batch_size": 64, "max_steps": 10}
)  # fmt: skip


def need(size: int = 16, ranks: int = 1, config: dict[str, Any] | None = None, **choices: Any) -> MemoryNeed:
    content = {"optimizer": {"name": "adamw", "lr": 1e-3}, "micro_batch_size": size, **choices}
    found = memory_need(JOB, Choices.model_validate(content), config or GPT2, ranks)
    assert found is not None
    return found


TOKENS = 16 * 1024
LOGITS = 4 * TOKENS * 50304
OF_A_BLOCK = {
    # Two norms' inputs in fp32, query, key, value, three inputs of matrices, and the two around the activation.
    "fp32": 16 * 768 * 4, "bf16_mixed": 2 * 768 * 4 + 14 * 768 * 2, "bf16_pure": 16 * 768 * 2,
}  # fmt: skip


@pytest.mark.parametrize("precision", OF_A_BLOCK)
def test_gpt2_124m_at_16_sequences(precision: str) -> None:
    found = need(precision=precision)
    half = 2 * MATRICES if precision == "bf16_mixed" else 0
    assert found.activations == pytest.approx(half + 12 * TOKENS * OF_A_BLOCK[precision], rel=0.02)
    assert found.loss == 3 * LOGITS
    assert found.states == pytest.approx(PARAMETERS * (8 if precision == "bf16_pure" else 16))
    assert found.overhead == CONTEXT_BYTES


def test_it_agrees_with_what_was_measured_of_gpt2_124m() -> None:
    # Saved tensors of the whole model at 16 x 1024, measured with hooks: 9.8 GB in fp32, 5.5 GB under bf16 autocast
    # and the copies of the weights in 0.25 GB.
    assert need(precision="fp32").activations == pytest.approx(9.8e9, rel=0.02)
    assert need(precision="bf16_mixed").activations == pytest.approx(5.75e9, rel=0.02)


def test_activations_and_loss_grow_with_the_size_and_states_do_not() -> None:
    one, two = need(4), need(8)
    assert two.states == one.states
    assert two.loss == 2 * one.loss
    assert two.activations == pytest.approx(2 * one.activations)


def test_checkpointing_keeps_what_flows_between_blocks() -> None:
    found = need(activation_checkpointing=True)
    assert found.activations == pytest.approx(TOKENS * 768 * 4 * (12 + 2), rel=0.01)


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"),
    [("adamw", 16), ("lion", 12), ("sgd", 12), ("adamw_8bit", 10 + 8 / 256), ("adafactor", 8), ("muon", 16)],
)
def test_optimizers_keep_their_state(optimizer: str, bytes_per_parameter: float) -> None:
    assert need(optimizer={"name": optimizer, "lr": 1e-3}).states == pytest.approx(bytes_per_parameter * PARAMETERS)


def test_master_weights_come_with_gradients_in_fp32() -> None:
    # bf16 weights, fp32 gradients, master weights and two moments.
    assert need(precision="bf16_master").states == pytest.approx((2 + 4 + 4 + 8) * PARAMETERS)


def test_ranks_share_what_their_strategy_shards_and_pay_for_talking() -> None:
    alone, four = need(strategy="ddp"), need(ranks=4, strategy="ddp", world_size=4)
    assert four.states == alone.states
    assert four.overhead - alone.overhead == COMMUNICATION_BYTES
    zero = {stage: need(ranks=4, strategy={"name": "zero", "stage": stage}, world_size=4) for stage in (1, 2, 3)}
    buckets = 2 * 4 * PARAMETERS  # less than DeepSpeed's most
    # Its own copy of what it updates, and the moments, a quarter each.
    assert zero[1].states == pytest.approx((8 + 12 / 4) * PARAMETERS + buckets)
    assert zero[2].states == pytest.approx((4 + 16 / 4) * PARAMETERS + buckets)
    assert zero[3].states == pytest.approx(20 / 4 * PARAMETERS + buckets)
    whole = need(16, ranks=4, strategy={"name": "fsdp", "reshard_after_forward": False}, world_size=4)
    assert whole.states == pytest.approx((16 / 4 + 4) * PARAMETERS)
    # Four micro-batches of four: gradients are summed before they are shared.
    summed = need(4, ranks=4, strategy={"name": "fsdp", "reshard_after_forward": False}, world_size=4)
    assert summed.states == pytest.approx((16 / 4 + 4 + 4) * PARAMETERS)
    assert need(ranks=4, strategy="fsdp", world_size=4).states < whole.states


LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4,
    "intermediate_size": 512, "vocab_size": 1000, "tie_word_embeddings": False,
}  # fmt: skip


def test_low_rank_additions_are_trained_over_frozen_weights() -> None:
    linear = 2 * (4 * 256**2 + 3 * 256 * 512)
    embeddings = 2 * 1000 * 256
    additions = 8 * 2 * (4 * (256 + 256) + 3 * (256 + 512))
    lora = need(config=LLAMA, adaptation={"name": "lora", "r": 8})
    assert lora.states == pytest.approx(4 * (linear + embeddings) + 16 * additions)
    qlora = need(config=LLAMA, adaptation={"name": "qlora", "r": 8})
    assert qlora.states == pytest.approx(0.53 * linear + 4 * embeddings + 16 * additions)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100},
        {**LLAMA, "model_type": "mixtral", "num_local_experts": 8},
        {"model_type": "llama"},
        {**LLAMA, "hidden_size": None},
        {**LLAMA, "hidden_size": "256"},
        {**LLAMA, "num_attention_heads": 0},
        {},
    ],
)
def test_what_is_not_known_is_none(config: dict[str, Any]) -> None:
    assert layout_of(config, Regime(128, autocast=False, half=False, eager=False)) is None


class OwnDdp(Ddp):
    """DDP with one setting more: another name around the same wrapper."""

    name: Literal["own_ddp"] = "own_ddp"  # type: ignore[assignment]


def test_a_strategy_that_wraps_in_ddp_has_its_needs_and_its_rows_under_its_own_name() -> None:
    choices = Choices.model_validate(
        {"optimizer": {"name": "adamw", "lr": 1e-3}, "precision": "bf16_master", "micro_batch_size": 4}
    )
    own = choices.model_copy(update={"strategy": OwnDdp(gradient_as_bucket_view=False)})
    reason = combination_reason(Situation(own))
    assert reason is not None
    assert reason.startswith("precision bf16_master with strategy own_ddp: DDP keeps no master weights")
    weights = Weights(PARAMETERS, 0.0, 4, 2, has_working_copy=True, ranks=2, accumulates=False)
    assert own.strategy.gathered_bytes(weights) == 4 * PARAMETERS
    assert not own.strategy.sharded()
