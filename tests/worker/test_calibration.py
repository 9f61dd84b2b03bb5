"""Matrix products are measured with the switches under which trials run theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from selectbench.worker.engine import SingleEngine
from selectbench.worker.runtime import calibrate, set_tf32


@pytest.fixture(autouse=True)
def without_tf32_afterwards() -> Iterator[None]:
    yield
    set_tf32(False)


def switches() -> tuple[str, bool, bool, bool]:
    """How products of fp32 and sums of 16-bit products may be rounded."""
    matmul = torch.backends.cuda.matmul
    return (
        torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_fp16_accumulation,
    )  # fmt: skip


def while_training(trials: Any, monkeypatch: pytest.MonkeyPatch, precision: str) -> set[Any]:
    found = set()
    backward = SingleEngine.backward

    def noting(self: SingleEngine, loss: torch.Tensor) -> None:
        found.add(switches())
        backward(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(SingleEngine, "backward", noting)
        trials.finished(precision=precision, job={"max_steps": 2, "eval": "none"})
    return found


def test_the_switches_are_those_of_training(trials: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {
        dtype: while_training(trials, monkeypatch, precision)
        for dtype, precision in (("float32", "fp32"), ("bfloat16", "bf16_mixed"), ("float16", "fp16_mixed"))
    }
    measured: dict[str, set[Any]] = {}
    multiply = torch.mm

    def noting(a: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        measured.setdefault(str(a.dtype).removeprefix("torch."), set()).add(switches())
        return multiply(a, *arguments, **settings)

    monkeypatch.setattr(torch, "mm", noting)
    calibrate("cpu", sizes=(32,), measured_seconds=0.001)
    assert measured == trained


def test_tf32_is_measured_with_what_the_precision_switches_on(trials: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {name: while_training(trials, monkeypatch, name) for name in ("fp32", "tf32")}
    measured: list[Any] = []
    multiply = torch.mm

    def noting(*arguments: Any, **settings: Any) -> torch.Tensor:
        measured.append(switches())
        return multiply(*arguments, **settings)

    monkeypatch.setattr(torch, "mm", noting)
    monkeypatch.setattr("selectbench.worker.runtime.DTYPES", {"cpu": ("float32", "tf32")})
    calibrate("cpu", sizes=(32,), measured_seconds=0.001)
    assert list(dict.fromkeys(measured)) == [*trained["fp32"], *trained["tf32"]]
    assert trained["fp32"] != trained["tf32"]
