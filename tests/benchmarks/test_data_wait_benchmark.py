"""The share of a step's time in which the training loop waits for data: less than 1 % is aimed at."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from selectbench.launch.preparation import Request, prepare_all
from selectbench.launch.run import make_order
from selectbench.record.wire import Finished
from selectbench.worker import trial
from selectbench.worker.batches import Batch, Batches, batches_of

TARGET = 0.01
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Timed:
    """Batches that note how long each step had to wait for them, on the host."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.width = batches, batches.width
        self.waited: list[float] = []

    def sample_indices(self, step: int) -> npt.NDArray[np.int64]:
        self.waited.append(0.0)
        return self._timed(self.batches.sample_indices, step)

    def counted(self, indices: npt.NDArray[np.int64], step: int) -> int:
        return self._timed(self.batches.counted, indices, step)

    def batch_at(self, indices: npt.NDArray[np.int64], step: int) -> Batch:
        return self._timed(self.batches.batch_at, indices, step)

    def _timed(self, get: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        found = get(*arguments)
        self.waited[-1] += time.perf_counter() - began
        return found


def test_the_loop_does_not_wait_for_data(
    benchmark: BenchmarkFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline of the shipped suite precision, shortened as `--quick` does, in the worker's own loop."""
    made: list[Timed] = []

    def timed(*arguments: Any) -> Timed:
        made.append(Timed(batches_of(*arguments)))
        return made[-1]

    monkeypatch.setattr(trial, "batches_of", timed)
    preparation = prepare_all(Request("precision", profile=DEVICE, quick=True), lambda line: None)
    events: list[Any] = []
    with preparation.claim:
        baseline = next(p for p in preparation.plan.trials if p.trial.option == preparation.suite.baseline)
        order = make_order(preparation, baseline, tmp_path)
        Path(order.trial_folder).mkdir(parents=True)
        benchmark.pedantic(lambda: trial.run_trial(order, events.append), rounds=1)
    assert isinstance(events[-1], Finished), events[-1]

    seconds = json.loads((Path(order.trial_folder) / "series.json").read_text())["step_seconds"]
    waited = made[0].waited[: len(seconds)]
    share = sum(waited) / sum(seconds)
    benchmark.extra_info["data_wait_share"] = share
    print(
        f"\n{DEVICE}: of {1e3 * median(seconds):.1f} ms a step waits {1e6 * median(waited):.0f} µs for data (most "
        f"{1e6 * max(waited):.0f}); over {len(seconds)} steps {share:.3%} of the time, aimed at: {TARGET:.0%}"
    )
