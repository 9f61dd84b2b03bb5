"""How fast a machine trains, where no trial has told it yet: from its processor's or its GPUs' matrix products."""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from selectbench.machine import Machine
from selectbench.nvml import Gpu
from selectbench.plan.peaks import MatmulDtype, peak_flops_per_second
from selectbench.record.calibration import stored_rates

CPU_SHARE = 0.5
"""Of a plain matrix product's rate, what a small model's training reaches; seen on two-core machines."""
CPU_WITHOUT_UNITS_COST: dict[MatmulDtype, float] = {"bfloat16": 4.5, "float16": 15.0}
"""How much slower a half precision is on a CPU that has no instructions for it; seen likewise."""
MATMUL_SHARE = 0.75
"""Of a data sheet's peak, what large matrix products reach: what `doctor --calibrate` measures."""
TENSOR_CORE_SHARE = {False: 0.3, True: 0.6}
"""Of that, what training reaches, by whether the model is compiled.

nanoGPT's README: GPT-2 124M takes 250 ms a step on A100s and compiled 135 ms, which is 45 % of the peak."""
FP32_SHARE = 0.8
"""The same without tensor cores: the products themselves are most of the time."""
HALF_OVER_FP32 = 2.0
"""Tensor cores over the other ones at least, where the GPU's data sheet is not known."""
FIRST_TENSOR_CORES = (7, 0)
"""Compute capability."""


def training_flops_per_second(machine: Machine, dtype: MatmulDtype, *, compiled: bool) -> float | None:
    """Of one rank, in training whose matrix products run in this dtype; None: nothing tells it."""
    if machine.device == "cpu":
        slower = 1.0 if dtype in machine.cpu_units else CPU_WITHOUT_UNITS_COST.get(dtype, 1.0)
        return CPU_SHARE * _matmul_flops_per_second() / slower
    rates = [_matmul_rate(gpu, dtype) for gpu in machine.gpus]
    known = [rate for rate in rates if rate is not None]
    if not known or len(known) < len(rates):
        return None
    return min(known) * (FP32_SHARE if dtype == "float32" else TENSOR_CORE_SHARE[compiled])


def _matmul_rate(gpu: Gpu, dtype: MatmulDtype) -> float | None:
    """What large products reach: as measured on this very GPU, else by its data sheet or its cores."""
    if (measured := stored_rates(gpu.uuid).get(dtype)) is not None:
        return measured
    if gpu.is_mig:  # sheets and cores are the whole board's
        return None
    peak = peak_flops_per_second(gpu.name, dtype)
    if peak is None:
        peak = _by_cores(gpu, dtype)
    return None if peak is None else MATMUL_SHARE * peak


def _by_cores(gpu: Gpu, dtype: MatmulDtype) -> float | None:
    """Two operations for each core and cycle, and what tensor cores at least bring."""
    if gpu.cores is None or gpu.max_sm_clock_hertz is None:
        return None
    plain = 2.0 * gpu.cores * gpu.max_sm_clock_hertz
    has_units = gpu.compute_capability is not None and gpu.compute_capability >= FIRST_TENSOR_CORES
    return plain * HALF_OVER_FP32 if has_units and dtype in ("bfloat16", "float16") else plain


@cache
def _matmul_flops_per_second(size: int = 512, probe_seconds: float = 0.1) -> float:
    """The best of a tenth of a second: whatever else runs can only make it slower."""
    matrix = np.ones((size, size), dtype=np.float32)
    fastest, end = float("inf"), time.perf_counter() + probe_seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        matrix @ matrix
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * size**3 / fastest
