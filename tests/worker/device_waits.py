"""Counts what makes the host wait for a GPU, on any device: reading values, or shapes that hang on values."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING = frozenset({
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "bincount", "histc", "allclose", "_assert_async",
})  # fmt: skip
"""Operations of aten that read values on the host, or cut their result by values."""


class Waits(TorchDispatchMode):
    """Names of the operations that waited, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._opname in READING:
            self.found.append(func._opname)
        return func(*args, **(kwargs or {}))


TO_HOST = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)


class Copies(TorchFunctionMode):
    """What is fetched to the host: on a CPU no operation shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TO_HOST:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))
