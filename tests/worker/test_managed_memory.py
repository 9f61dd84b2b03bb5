"""Optimizer state that bitsandbytes keeps in CUDA's managed memory is told apart from what torch allocates."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selectbench.worker.runtime import managed_state_bytes, optimizer_state_bytes

SHAPE = (400, 512)
ON_A_GPU = SimpleNamespace(shape=SHAPE, numel=lambda: SHAPE[0] * SHAPE[1], device=torch.device("cuda", 0))
"""What the library asks of a parameter before it allocates."""


class Driver:
    """Two functions of bitsandbytes' native library, over the host's memory."""

    def __init__(self) -> None:
        self.blocks: list[Any] = []

    def cget_managed_ptr(self, size: ctypes.c_size_t) -> int:
        self.blocks.append(ctypes.create_string_buffer(size.value))
        return ctypes.addressof(self.blocks[-1])

    def cfill_uint8(self, start: ctypes.c_void_p, _: object, value: ctypes.c_uint8, count: ctypes.c_int64) -> None:
        ctypes.memset(start, value.value, count.value)


def test_the_librarys_own_paged_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(bitsandbytes.functional, "lib", Driver())
    parameter = torch.nn.Parameter(torch.zeros(SHAPE))
    optimizer = bitsandbytes.optim.PagedAdamW8bit([parameter])
    moments = [optimizer.get_state_buffer(ON_A_GPU, dtype=torch.uint8) for _ in range(2)]
    assert all(moment.device.type == "cpu" for moment in moments)
    optimizer.state[parameter] = {"step": 1, "state1": moments[0], "state2": moments[1], "absmax1": torch.ones(800)}
    assert managed_state_bytes([optimizer]) == 2 * 400 * 512
    assert optimizer_state_bytes([optimizer], [parameter]) == 2 * 400 * 512 + 4 * 800


def test_state_of_an_allocator_is_not_managed() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(4)
    optimizer.step()
    assert managed_state_bytes([optimizer]) is None


OPTIMIZER = """
import torch

class Paging(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["momentum_buffer"].is_paged = True
"""


def test_a_trial_records_it_by_rank_and_of_the_largest(trials: Any, tmp_path: Any) -> None:
    (tmp_path / "paging.py").write_text(OPTIMIZER)
    optimizer = {"name": "paging:Paging", "lr": 1e-2, "settings": {"momentum": 0.9}}
    measured = trials.finished(optimizer=optimizer, code=[str(tmp_path)]).measurement
    (rank,) = measured.memory_by_rank
    assert measured.managed_state_bytes == rank.managed_state_bytes == rank.parameter_bytes
    assert trials.finished().measurement.managed_state_bytes is None
