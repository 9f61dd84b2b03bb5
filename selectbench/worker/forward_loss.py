"""Forward pass and loss of a micro-batch as one function: torch.compile sees both, and no logits outlive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from selectbench.choices import Choices
from selectbench.worker.batches import Batch
from selectbench.worker.model import check_shape, logits_of
from selectbench.worker.precision import autocast

SummedLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (sequences, seq_len, vocabulary) and targets (sequences, seq_len) to the sum of token losses."""
ForwardLoss = Callable[[Batch], tuple[torch.Tensor, torch.dtype]]
"""A batch to the sum of its token losses, and the dtype of the logits."""


def compiled_as_asked(function: Any, choices: Choices) -> Any:
    """By torch.compile where the choices say so."""
    mode = choices.compile.mode
    return function if mode is None else torch.compile(function, mode=mode)


def loss_alone(loss: SummedLoss, choices: Choices) -> SummedLoss:
    """The loss of logits of any dtype, for a loop that calls the model by itself or through a wrapper.

    A wrapper ends the model's graph: the loss is then a graph of its own, in which what is done to the logits,
    the largest tensors of a step, becomes one pass over them. In torch.compile's default mode: with
    CUDA graphs, as in max-autotune, the logits would be copied into the graph's own memory first.
    """
    in_fp32 = _in_fp32(loss)
    return torch.compile(in_fp32) if _is_compiled(choices) else in_fp32


def forward_then_loss(forward: Any, loss: SummedLoss, choices: Choices, device_type: str) -> ForwardLoss:
    """For a model in a wrapper of torch's or DeepSpeed's, compiled or not: one after the other."""
    both = _both(forward, loss_alone(loss, choices), choices, device_type)
    return lambda batch: both(batch.arguments, batch.named, batch.targets)


def forward_with_loss(
    forward: Any, uncompiled: Any, loss: SummedLoss, choices: Choices, device_type: str
) -> ForwardLoss:
    """For a bare model: compiled together where both may be compiled, of whatever is around it `uncompiled`."""
    if not _is_compiled(choices):
        return forward_then_loss(forward, loss, choices, device_type)
    both = compiled_as_asked(_both(uncompiled, _in_fp32(loss), choices, device_type), choices)
    return lambda batch: both(batch.arguments, batch.named, batch.targets)


def _is_compiled(choices: Choices) -> bool:
    return choices.compile.mode is not None and choices.loss.is_compiled


def _in_fp32(loss: SummedLoss) -> SummedLoss:
    return lambda logits, targets: loss(logits.float(), targets)


def _both(forward: Any, loss: SummedLoss, choices: Choices, device_type: str) -> Any:
    """The loss is taken outside of autocast; logits are gone when the function returns."""
    precision = choices.precision

    def both(
        arguments: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor], targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.dtype]:
        with autocast(precision, device_type):
            logits = logits_of(forward(*arguments, **named))
        check_shape(logits, targets)
        return loss(logits, targets), logits.dtype

    return both
