"""The working copy of bf16_master follows its master weights to the last bit, in one operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selectbench.worker.engine import WorkingCopy


class Called(TorchDispatchMode):
    """Names of the operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.fixture
def master() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(7, 7) for _ in range(5)))
    model[0].requires_grad_(False)
    return model


def test_refreshing_rounds_every_trained_weight_in_one_operation(master: torch.nn.Module) -> None:
    copy = WorkingCopy(master, torch.bfloat16)
    with torch.no_grad():
        for parameter in list(master.parameters())[2:]:
            parameter.add_(torch.randn_like(parameter))
    with Called() as called:
        copy.refresh()
    assert called.names == ["aten::_foreach_copy_"]
    for kept, working in zip(master.parameters(), copy.module.parameters(), strict=True):
        assert working.equal(kept.bfloat16())
        assert not kept.requires_grad or not kept.equal(working.float())  # something was rounded
