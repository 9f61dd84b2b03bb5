"""torch's switches for a precision: TF32 and autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from selectbench.choices.precision import PrecisionChoice


def set_tf32(allowed: bool) -> None:
    """Lets fp32 matrix products use TF32, or forbids it.

    Always through this one call: torch keeps its older and newer flags consistent in it, whereas after
    `torch.backends.cuda.matmul.fp32_precision = "tf32"` every read of the older ones raises, and
    Inductor reads them.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def tf32_allowed() -> bool:
    """Whether fp32 matrix products may use TF32."""
    return torch.get_float32_matmul_precision() != "highest"


@contextmanager
def without_tf32() -> Iterator[None]:
    """True fp32 products inside, whatever the precision of the training."""
    before = tf32_allowed()
    set_tf32(False)
    try:
        yield
    finally:
        set_tf32(before)


def autocast(precision: PrecisionChoice, device: str) -> AbstractContextManager[object]:
    """The context of the forward pass; enter a new one each time."""
    if precision.autocast_dtype is None:
        return nullcontext()
    return torch.autocast(device, dtype=getattr(torch, precision.autocast_dtype))
