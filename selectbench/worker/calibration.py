"""Measures how fast large square matrix products run on this process's device: one line of JSON for each dtype."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from statistics import median

import torch

from selectbench.worker.runtime import is_out_of_memory, set_tf32

SIZES = {"cuda": (4096, 8192, 16384), "cpu": (1024,)}
"""Small ones don't fill a large GPU; the largest may not fit a small one, and is then left out."""
DTYPES = {"cuda": ("float32", "tf32", "bfloat16", "float16"), "cpu": ("float32", "bfloat16", "float16")}
BATCH_SECONDS = 0.1
"""Products between two waits for the device take about so long."""
MEASURED_SECONDS = 1.0
"""For each dtype and size, the warm-up left out."""
WARM_UP = 2


def calibrate(device: str, sizes: Sequence[int] = (), measured_seconds: float = MEASURED_SECONDS) -> None:
    """Print `{"dtype", "flops_per_second", "size", "torch", "problem"}` for each dtype as it is measured.

    `device`: cpu or cuda; `sizes`: SIZES' unless given. A dtype that can't be had has a problem and no rate.
    """
    for name in DTYPES[device]:
        modern = name in ("tf32", "bfloat16")
        lacks = device == "cuda" and modern and torch.cuda.get_device_capability() < (8, 0)
        problem = "needs compute capability 8.0" if lacks else None
        found = None if problem else _best(device, name, sizes or SIZES[device], measured_seconds)
        rate, size = found or (None, None)
        measured = {"dtype": name, "flops_per_second": rate, "size": size, "torch": torch.__version__}
        print(json.dumps({**measured, "problem": problem or (None if found else "out of memory")}), flush=True)


def _best(device: str, name: str, sizes: Sequence[int], measured_seconds: float) -> tuple[float, int] | None:
    """The highest rate and its size; None: not even the smallest fits.

    TF32 is switched as a trial's precision switches it, and how sums of 16-bit products may be rounded is left to
    torch, as trials leave it.
    """
    set_tf32(name == "tf32")
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    found = []
    for size in sizes:
        try:
            found.append((_flops_per_second(device, dtype, size, measured_seconds), size))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return max(found, default=None)


def _flops_per_second(device: str, dtype: torch.dtype, size: int, measured_seconds: float) -> float:
    """Median over batches of products of normal random values: what a GPU draws, and its clock, hang on them."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = min(_seconds(device, a, b, out, 1) for _ in range(WARM_UP))
    batch = max(1, math.ceil(BATCH_SECONDS / seconds))
    batches = [_seconds(device, a, b, out, batch)]
    while sum(batches) < measured_seconds:
        batches.append(_seconds(device, a, b, out, batch))
    return 2 * size**3 * batch / median(batches)


def _seconds(device: str, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, products: int) -> float:
    """From one synchronised edge to the next."""
    _wait_for(device)
    begin = time.perf_counter()
    for _ in range(products):
        torch.mm(a, b, out=out)
    _wait_for(device)
    return time.perf_counter() - begin


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
