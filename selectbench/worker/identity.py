"""What a trial really used, read from the live objects rather than from the order."""

from __future__ import annotations

from typing import Any

import torch


def dtype_name(dtypes: set[torch.dtype]) -> str:
    """`float32`, or all names sorted and joined where there are several."""
    return "+".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def parameter_dtype(module: torch.nn.Module) -> str:
    """Of all parameters."""
    return dtype_name({p.dtype for p in module.parameters()})


def gradient_dtype(module: torch.nn.Module) -> str:
    """Of all gradients that the last step left on the parameters."""
    return dtype_name({p.grad.dtype for p in module.parameters() if p.grad is not None})


def optimizer_state_dtypes(optimizers: list[torch.optim.Optimizer]) -> list[str]:
    """Of all state tensors of more than one element, sorted; scalars are step counters."""
    tensors = (v for o in optimizers for state in o.state.values() for v in state.values())
    found = {t.dtype for t in tensors if isinstance(t, torch.Tensor) and t.numel() > 1}
    return sorted(str(dtype).removeprefix("torch.") for dtype in found)


def optimizer_names(optimizers: list[torch.optim.Optimizer]) -> list[str]:
    """Classes with the implementation that their parameter groups ask for, `AdamW(fused)`."""
    return [f"{type(optimizer).__name__}{_implementation(optimizer.param_groups)}" for optimizer in optimizers]


def _implementation(groups: list[dict[str, Any]]) -> str:
    if not any("fused" in group for group in groups):
        return ""
    found = {"fused" if g.get("fused") else "foreach" if g.get("foreach") else "for_loop" for g in groups}
    return f"({'+'.join(sorted(found))})"


def attention(module: Any) -> str:
    """The kernel as the model's configuration reports it."""
    return str(module.config._attn_implementation)
