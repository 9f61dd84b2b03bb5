"""How much of a GPU's memory a training is expected to take at its peak, from formulas.

Model states by `plan.model_states`, what the backward pass needs by `plan.layout`, and the loss: together the peak
where the backward pass begins. Compiled models and fused losses take less. What is told is an expectation: whether
an option fits, its trial shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selectbench.choices import Choices
from selectbench.choices.optimizer import AdamW
from selectbench.plan.layout import Layout, Regime, Stack, layout_of
from selectbench.plan.model_states import BYTES, expected
from selectbench.suite.job import Job

LOSS_COPIES = 3
"""In fp32, of the size of the logits, at the beginning of the backward pass: the log-softmax that the loss has
kept, its gradient, and the logits' (torch's cross_entropy, which is log_softmax and nll_loss)."""
CONTEXT_BYTES = 600 << 20
"""A CUDA context with its kernels, and the workspaces of cuBLAS; some hundred MiB by the driver and the GPU."""
COMMUNICATION_BYTES = 1 << 30
"""NCCL's buffers and its own context, where there are several ranks."""
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default for its two buckets each, of gradients and of parameters (deepspeed.ai/docs/config-json)."""
FOUR_BITS = 0.53
"""Bytes of an element in NF4 with its quantised scales (Dettmers et al. 2023, arXiv:2305.14314: 4.127 bits)."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of one rank at the peak."""

    states: float
    """Weights, gradients, optimizer state, and what a strategy keeps besides."""
    activations: float
    """What the backward pass needs, copies of the weights under autocast among it."""
    loss: float
    """Beside them at the peak: the loss, or what a block computes on the way back."""
    beside: float
    """The CUDA context and the libraries'."""

    @property
    def total(self) -> int:
        """All of it."""
        return round(self.states + self.activations + self.loss + self.beside)


def memory_need(job: Job, choices: Choices, config: Mapping[str, Any], ranks: int) -> MemoryNeed | None:
    """Of an option's job, whose model transformers builds from this configuration; None: it is not known here."""
    precision = choices.precision
    products = precision.autocast_dtype or precision.working_dtype or precision.parameter_dtype
    weights = BYTES[precision.working_dtype or precision.parameter_dtype]
    regime = Regime(
        job.seq_len, autocast=precision.autocast_dtype is not None, half=BYTES[products] == 2,
        eager=choices.attention.name == "eager",
    )  # fmt: skip
    layout = layout_of(config, regime)
    if layout is None:
        return None
    tokens = choices.micro_batch_size * job.seq_len
    copies = BYTES[products] * layout.matrix_parameters if regime.autocast else 0
    kept = tokens * _kept_of_a_token(layout, choices, weights, BYTES[products])
    on_the_way = tokens * max(_on_the_way(stack, choices, weights, BYTES[products]) for stack in layout.stacks)
    accumulates = job.gradient_accumulation_steps(choices.micro_batch_size, ranks) > 1
    return MemoryNeed(
        states=_states(choices, layout, ranks, accumulates=accumulates), activations=copies + kept,
        loss=max(LOSS_COPIES * 4.0 * tokens * layout.vocab_size, on_the_way),
        beside=CONTEXT_BYTES + (COMMUNICATION_BYTES if ranks > 1 else 0),
    )  # fmt: skip


def _kept_of_a_token(layout: Layout, choices: Choices, weights: int, products: int) -> float:
    """Bytes, the logits not among them."""
    recomputed = choices.activation_checkpointing.enabled
    return layout.outside.bytes_in(weights, products) + sum(
        stack.blocks * (stack.width * weights if recomputed else stack.saved.bytes_in(weights, products))
        for stack in layout.stacks
    )


def _on_the_way(stack: Stack, choices: Choices, weights: int, products: int) -> float:
    """Bytes of a token while a block is passed back.

    Gradients of its widest layer, of what goes in and what comes out, and of the stream; where the block is
    computed again, all that it saves too.
    """
    gradients = 2 * products * max(max(sides) for sides in stack.matrices) + 4 * weights * stack.width
    recomputed = choices.activation_checkpointing.enabled
    return gradients + (stack.saved.bytes_in(weights, products) if recomputed else 0)


def _states(choices: Choices, layout: Layout, ranks: int, *, accumulates: bool) -> float:
    """What stays from micro-batch to micro-batch, and what the strategy gathers."""
    rank = getattr(choices.adaptation, "r", None)
    if rank is None:
        return _of_trained(choices, layout.parameters, ranks) + _gathered(choices, layout, ranks, accumulates)
    additions = rank * sum(stack.blocks * (a + b) for stack in layout.stacks for a, b in stack.matrices)
    linear = sum(stack.parameters for stack in layout.stacks)
    element = FOUR_BITS if choices.adaptation.name == "qlora" else BYTES["float32"]
    frozen = element * linear + BYTES["float32"] * (layout.parameters - linear)
    return frozen + _of_trained(choices, additions, ranks)


def _of_trained(choices: Choices, parameters: int, ranks: int) -> float:
    """An optimizer whose state is not known is taken for AdamW, which keeps most of those that are."""
    found = expected(choices, parameters, ranks)
    if found is None:
        found = expected(choices.model_copy(update={"optimizer": AdamW(lr=1.0)}), parameters, ranks)
    assert found is not None
    offloaded = getattr(choices.strategy, "offload_optimizer", False)
    # Gradients are accumulated in the dtype of what is updated, though half as large in the backward pass.
    updated, kept = (BYTES[d] for d in _dtypes(choices))
    return found.parameters + found.gradients * updated / kept + (0.0 if offloaded else found.optimizer_state)


def _dtypes(choices: Choices) -> tuple[str, str]:
    """Of what the optimizer updates, and of what the passes use."""
    precision = choices.precision
    return precision.parameter_dtype, precision.working_dtype or precision.parameter_dtype


def _gathered(choices: Choices, layout: Layout, ranks: int, accumulates: bool) -> float:
    """What a strategy holds for a while beside its share of the model states."""
    strategy, parameters = choices.strategy, layout.parameters
    updated, kept = (BYTES[d] for d in _dtypes(choices))
    if strategy.name == "ddp":
        return 0.0 if strategy.gradient_as_bucket_view else float(updated * parameters)
    if strategy.name == "fsdp":
        two_blocks = max(2 * stack.parameters / stack.blocks for stack in layout.stacks)
        outside = parameters - sum(stack.parameters for stack in layout.stacks)
        whole = outside + two_blocks if strategy.reshard_after_forward else parameters
        return kept * whole + (kept * parameters if accumulates else 0)
    if strategy.name == "zero":
        master = 0.0 if choices.precision.working_dtype else updated * parameters / ranks
        return master + 2.0 * kept * min(parameters, BUCKET_ELEMENTS)
    return 0.0
