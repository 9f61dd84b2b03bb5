"""Engines of torch for several ranks: DDP and FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from selectbench.choices import Choices
from selectbench.worker.engine import SingleEngine
from selectbench.worker.evaluation import Logits, evaluation_forward
from selectbench.worker.model import (
    ForwardLoss,
    SummedLoss,
    blocks_of,
    cast_parameters,
    empty_copy,
    forward_then_loss,
)
from selectbench.worker.runtime import dtype_name, local_part


class DdpEngine(SingleEngine):
    """torch's DistributedDataParallel around what one process would train."""

    strategy = "DistributedDataParallel"

    def _trained_module(self, choices: Choices) -> Any:
        if choices.precision.working_dtype is not None:  # as the table of combinations was found to say
            raise NotImplementedError("DDP keeps no master weights beside the copy that it reduces")
        return super()._trained_module(choices)

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


# FSDP2: every block's parameters, gradients and optimizer state divided among the ranks.


class FsdpEngine(SingleEngine):
    """torch's `fully_shard` on every block and on the whole."""

    strategy = "FSDPModule"

    def _prepared(self, module: Any, choices: Choices) -> Any:
        """Sharded by block, then the rest; master weights, where there are such, are the shards themselves."""
        self._empty = empty_copy(module)
        self._policy = _policy(choices.precision.working_dtype)
        mesh = init_device_mesh(self.world.device_type, (self.world.size,))
        for block in blocks_of(module):
            if choices.compile.mode is not None:
                block.compile(mode=choices.compile.mode)
            self._shard(block, mesh, choices, reshard=choices.strategy.reshard_after_forward)
        # The root's parameters are needed until the end of the forward pass and first in the backward pass.
        return self._shard(module, mesh, choices, reshard=False)

    def _shard(self, part: Any, mesh: DeviceMesh, choices: Choices, *, reshard: bool) -> Any:
        """Part by part, so that no rank ever holds a whole model of its own beside the mapped one."""
        precision = choices.precision
        dtype = getattr(torch, precision.parameter_dtype)
        cast_parameters(part, dtype, self.world.device, through=precision.working_dtype, copy=False)
        return fully_shard(part, mesh=mesh, reshard_after_forward=reshard, mp_policy=self._policy)

    def _trained_module(self, choices: Choices) -> Any:
        return self.module  # its policy makes the working copies

    def _compiled(self, module: Any, choices: Choices) -> Any:
        return module  # block by block, before they were sharded

    def forward_loss(self, loss: SummedLoss) -> ForwardLoss:
        """The loss apart: the root, around the compiled blocks, gathers its parameters between graphs."""
        return forward_then_loss(self.forward, loss, self._choices, self.world.device_type)

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Gradients are reduced in the last only; before it they accumulate unsharded."""
        self.module.set_requires_gradient_sync(is_last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """FSDP averages over ranks; the sum over them is asked for."""
        super().backward(loss * self.world.size)

    def _norm(self) -> torch.Tensor:
        norm = super()._norm()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @property
    def reduction_dtype(self) -> str | None:  # type: ignore[override]
        """As every sharded part has it: that of its policy, else of its shards."""
        return self._found("reduce_dtype")

    def working_dtype(self) -> str:
        """What the shards are gathered in, as every sharded part has it."""
        return self._found("param_dtype")

    def _found(self, policy: str) -> str:
        groups = [g for part in _sharded_parts(self.module) if (g := part._get_fsdp_state()._fsdp_param_group)]
        stored = {p.dtype for p in self.parameters}
        stated = [getattr(group.mp_policy, policy) for group in groups]
        return dtype_name({found for dtype in stated for found in ({dtype} if dtype else stored)})

    def evaluation(self) -> AbstractContextManager[Logits]:
        """Through the sharded model where it computes in fp32; else its weights are gathered for the time."""
        if self._policy.param_dtype is None and all(p.dtype == torch.float32 for p in self.parameters):
            return self._evaluation_of_shards()
        weights = {name: _whole(p).float() for name, p in self.module.named_parameters()}
        return evaluation_forward(self._empty, weights | dict(self.module.named_buffers()))

    @contextmanager
    def _evaluation_of_shards(self) -> Iterator[Logits]:
        with evaluation_forward(self.module) as logits:
            yield logits
        for part in _sharded_parts(self.module):
            part.reshard()  # what a forward pass leaves gathered for a backward pass that does not come

    def kept_parameters(self) -> list[torch.Tensor]:
        """The rank's shards."""
        return [local_part(p) for p in self.module.parameters()]

    def kept_gradients(self) -> list[torch.Tensor] | None:
        """The rank's shards of the reduced gradients."""
        return [local_part(p.grad) for p in self.parameters if p.grad is not None]


def _sharded_parts(module: Any) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _policy(working_dtype: str | None) -> MixedPrecisionPolicy:
    if working_dtype is None:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=getattr(torch, working_dtype), reduce_dtype=torch.float32)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
