"""The whole model on every rank, gradients averaged in buckets while the backward pass runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from selectbench.choices import Choices
from selectbench.worker.engine import SingleEngine
from selectbench.worker.forward_loss import ForwardLoss, SummedLoss, forward_then_loss
from selectbench.worker.identity import dtype_name


class DdpEngine(SingleEngine):
    """torch's DistributedDataParallel around what one process would train."""

    strategy = "DistributedDataParallel"

    def _wrapped(self, module: Any, choices: Choices) -> Any:
        # A static graph is recorded in the first step, where torch (pytorch#143580) can't leave out a reduction.
        # One more does no harm: the average of what is averaged already, and of new gradients, is their sum's.
        self._records_graph = choices.strategy.static_graph
        device = self.world.device
        self._replica = DistributedDataParallel(
            module,
            device_ids=[device] if self.world.device_type == "cuda" else None,
            bucket_cap_mb=choices.strategy.bucket_cap_mb,
            gradient_as_bucket_view=choices.strategy.gradient_as_bucket_view,
            static_graph=choices.strategy.static_graph,
        )
        return self._replica

    def forward_loss(self, loss: SummedLoss) -> ForwardLoss:
        """The loss apart: DDP is compiled as one, split at the buckets, so that reductions overlap."""
        return forward_then_loss(self.forward, loss, self._choices, self.world.device_type)

    @property
    def reduction_dtype(self) -> str | None:  # type: ignore[override]
        """Of the gradients in the buckets; None where a communication hook does something else with them."""
        if self._replica._get_ddp_logging_data().get("comm_hook"):
            return None
        return dtype_name({p.grad.dtype for p in self.parameters if p.grad is not None}) or None

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Gradients stay on their rank but in the last: DDP decides that in the forward pass."""
        with nullcontext() if is_last or self._records_graph else self._replica.no_sync():
            yield
        if is_last:
            self._records_graph = False

    def backward(self, loss: torch.Tensor) -> None:
        """DDP averages over ranks; the sum over them is asked for."""
        super().backward(loss * self.world.size)
