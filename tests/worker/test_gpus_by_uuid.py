"""Libraries that look for their GPU by CUDA_VISIBLE_DEVICES find it where a run names its GPUs by UUID."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from stand_in import StandIn

from selectbench.gpu.devices import gpus
from selectbench.launch.trial import server_environment

GIB = 1 << 30
FREE_BYTES = [[3 * GIB, 80 * GIB], [5 * GIB, 16 * GIB]]
DRIVER = f"""\
import json
from types import SimpleNamespace
import torch
torch.cuda.cudart = lambda: SimpleNamespace(cudaMemGetInfo={FREE_BYTES}.__getitem__)
torch.cuda.current_device = lambda: 1
"""
"""CUDA's own answers, free and total by device, where there is no CUDA."""


def said(stand_in: StandIn, code: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What code prints as JSON with a trial server's environment, on the stand-in's GPUs in reverse."""
    monkeypatch.setenv("TORCHINDUCTOR_AUTOTUNE_MULTI_DEVICE", "1")  # a user's own
    environment = {**server_environment(device="cuda", gpus=gpus()[::-1]), **stand_in.environment()}
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa2222-0000,GPU-aaaa1111-0000"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER + code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_deepspeed_takes_a_gpus_free_memory_from_cuda(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed")
    code = """
import selectbench.worker.engine_zero
from deepspeed.accelerator import cuda_accelerator, get_accelerator
own = get_accelerator()
print(json.dumps([
    type(own).__name__, cuda_accelerator.pynvml is not None, own.available_memory(), own.available_memory(0)
]))
"""
    expected = ["CUDA_Accelerator", True, 5 * GIB, 3 * GIB]
    assert said(stand_in, code, monkeypatch) == expected


def test_inductor_measures_on_the_ranks_own_gpu(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from torch._inductor.autotune_process import TuningProcessPool
print(json.dumps(TuningProcessPool.get_device_list()))
"""
    assert said(stand_in, code, monkeypatch) == [None]
