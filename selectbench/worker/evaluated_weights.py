"""Optimizers that train at other weights than they are to be evaluated at, as schedule-free ones do.

They say so by having `train()` and `eval()`, which put the parameters to the one or the other in place: the
convention of the schedulefree package (Defazio et al. 2024, arXiv:2405.15682), which transformers keeps too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from selectbench.worker.evaluation import Logits


def switching(optimizers: Sequence[torch.optim.Optimizer]) -> list[Any]:
    """Those that have two sets of weights."""
    return [o for o in optimizers if all(callable(getattr(o, name, None)) for name in ("train", "eval"))]


def begin_training(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """To the weights that are trained; such optimizers refuse a step before that."""
    for optimizer in switching(optimizers):
        optimizer.train()


@contextmanager
def at_evaluated_weights(
    optimizers: Sequence[torch.optim.Optimizer], evaluation: Callable[[], AbstractContextManager[Logits]]
) -> Iterator[Logits]:
    """An engine's `evaluation` of the weights that the optimizers say are to be evaluated.

    After it the weights are those of before to the last bit: going there and back would round them, and a
    training that is evaluated more often would be another one. A copy of them is kept for the time.
    """
    found = switching(optimizers)
    trained = [(p, p.detach().clone()) for o in found for group in o.param_groups for p in group["params"]]
    for optimizer in found:
        optimizer.eval()
    try:
        with evaluation() as logits:
            yield logits
    finally:
        begin_training(found)
        with torch.no_grad():
            for parameter, value in trained:
                parameter.copy_(value)
