"""What a trial really used, read from the live objects rather than from the order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def dtype_name(dtypes: set[torch.dtype]) -> str:
    """`float32`, or all names sorted and joined where there are several."""
    return "+".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def updated_dtype(optimizers: Sequence[torch.optim.Optimizer]) -> str:
    """Of all parameters that the optimizers update: master weights where there are such."""
    return dtype_name({p.dtype for p in _updated(optimizers)})


def _updated(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.Tensor]:
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def optimizer_state_dtypes(optimizers: Sequence[torch.optim.Optimizer]) -> list[str]:
    """Of all state tensors of more than one element, sorted; scalars are step counters."""
    found = {t.dtype for t in _states(optimizers) if t.numel() > 1}
    return sorted(str(dtype).removeprefix("torch.") for dtype in found)


def _states(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.Tensor]:
    values = (v for o in optimizers for state in o.state.values() for v in state.values())
    return [local_part(v) for v in values if isinstance(v, torch.Tensor)]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor's part on this rank; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def storage_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the tensors' elements, those that share memory (tied, or views of one buffer) once."""
    unique = {(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in tensors if t.numel()}
    return sum(unique.values())


def optimizer_state_bytes(
    optimizers: Sequence[torch.optim.Optimizer], kept_parameters: Sequence[torch.Tensor]
) -> int:
    """Bytes of this rank's optimizer state, master weights beside the model's own among it."""
    own = {t.data_ptr() for t in kept_parameters}
    masters = [local for p in _updated(optimizers) if (local := local_part(p)).data_ptr() not in own]
    return storage_bytes(_states(optimizers)) + storage_bytes(masters)


def managed_state_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int | None:
    """Bytes of state that bitsandbytes allocated as CUDA's managed memory, past torch's allocator; None: no such.

    To torch these are tensors of the CPU (`bitsandbytes.functional.get_paged`); the library marks them itself.
    """
    return storage_bytes([state for state in _states(optimizers) if getattr(state, "is_paged", False)]) or None


def optimizer_names(optimizers: Sequence[torch.optim.Optimizer]) -> list[str]:
    """Classes with the implementation that their parameter groups ask for, `AdamW(fused)`."""
    return [f"{type(optimizer).__name__}{_implementation(optimizer.param_groups)}" for optimizer in optimizers]


def _implementation(groups: list[dict[str, Any]]) -> str:
    if not any("fused" in group for group in groups):
        return ""
    found = {"fused" if g.get("fused") else "foreach" if g.get("foreach") else "for_loop" for g in groups}
    return f"({'+'.join(sorted(found))})"


def attention(module: Any) -> str | None:
    """The kernel as a transformers model's configuration reports it; None for any other model."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


def largest_dropout(module: torch.nn.Module) -> float:
    """The largest of all dropout layers and of all numbers that parts keep under a name with `dropout` in it."""
    layers = [part.p for part in module.modules() if isinstance(part, torch.nn.modules.dropout._DropoutNd)]
    kept = [
        float(value)
        for part in module.modules()
        for name, value in vars(part).items()
        if "dropout" in name and isinstance(value, float)
    ]
    return max([0.0, *layers, *kept])
