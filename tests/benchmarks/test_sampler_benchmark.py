"""What watching the GPUs costs the training loop: the loop with a bench beside it that samples, and without.

The bench is a process of its own, as in a run, and reads two GPUs of the stand-in driver at the default intervals.
The stand-in reads its script anew at every call, so that a reading takes longer than of a real driver. The loop
leaves a core to the bench, as a loop whose work is on a GPU does; without a spare core it would be preempted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from benchmarks.test_loop_benchmark import JOB, SETTINGS, VOCABULARY, compare, our_loop
from processes import start
from stand_in import StandIn

from selectbench.choices import Choices
from selectbench.worker.engine import SingleEngine
from selectbench.worker.model import new_model
from selectbench.worker.runtime import SINGLE_RANK

BENCH = """\
import sys, time
from selectbench.gpu.sampler import Sampler
from selectbench.gpu.devices import gpus
from selectbench.gpu.devices import use_of
from selectbench.suite.suite import MeterSettings
found = gpus()
for _ in sys.stdin:
    sampler = Sampler(found, MeterSettings())
    sampler.start([use_of(gpu) for gpu in found])
    print("sampling", flush=True)
    begin, used = time.perf_counter(), time.process_time()
    sys.stdin.readline()
    samples = sampler.stop()
    assert min(len(each.state) for each in samples) > 5 * (time.perf_counter() - begin), "it did not sample"
    print((time.process_time() - used) / (time.perf_counter() - begin), flush=True)
"""


class Bench:
    """Samples while asked to."""

    def __init__(self, driver: StandIn) -> None:
        self.process = start(
            [sys.executable, "-c", BENCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, **driver.environment()},
        )  # fmt: skip

    def ask(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("next\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@pytest.fixture
def bench(driver_library: Path, tmp_path: Path) -> Iterator[Bench]:
    driver = StandIn(tmp_path)
    driver.set("gpu1.memory_total", 16 << 30, "gpu1.power_watts", 70)
    made = Bench(driver)
    yield made
    made.process.communicate(timeout=60)


def test_loop_with_and_without_the_sampler(benchmark: Any, bench: Bench) -> None:
    torch.set_num_threads(1)
    choices = Choices.model_validate(SETTINGS)
    alone = our_loop(SingleEngine(new_model(JOB, VOCABULARY, attention="sdpa"), JOB, choices, SINGLE_RANK), choices)

    shares: list[float] = []
    compare(benchmark, watched(alone, bench, shares), alone, "tokens/s with the sampler over those without")
    benchmark.extra_info["sampler_share_of_a_core_median"] = median(shares)
    print(f"the sampler's share of a core: {median(shares):.4f} ({min(shares):.4f} to {max(shares):.4f})")


def watched(loop: Callable[[], float], bench: Bench, shares: list[float]) -> Callable[[], float]:
    """The loop's seconds; `shares` gets the bench's CPU time over them."""

    def seconds() -> float:
        assert bench.ask() == "sampling\n"
        took = loop()
        shares.append(float(bench.ask()))
        return took

    return seconds
