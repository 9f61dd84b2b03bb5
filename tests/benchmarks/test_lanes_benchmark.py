"""What running trials side by side saves: two lanes of half the cores each against one trial at a time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from launch.harness import TINY_SUITE, Workplace

CORES = len(os.sched_getaffinity(0))
SETTINGS = ("--set", "job.max_steps=60", "--set", "job.global_batch_size=16", "--set", "job.eval.every_steps=60",
            "--set", "choices.micro_batch_size=16", "--no-screen")  # fmt: skip
LARGER = TINY_SUITE.replace("n_layer: 1, n_embd: 32", "n_layer: 2, n_embd: 128").replace(
    "seq_len: 16", "seq_len: 64"
)
LARGER = LARGER.replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3]").replace(
    "{micro_batch_size: 2}", "{micro_batch_size: 8}"
)


@pytest.mark.skipif(CORES < 2, reason="two lanes need two cores")
def test_wall_time_of_two_lanes(benchmark, tmp_path: Path) -> None:
    """Of a whole command, without the check of interference; serial with a lane's threads, and with all cores'."""
    place = Workplace(tmp_path)
    place.write(LARGER)
    place.call("plan", "tiny.yaml")  # the data is prepared

    def seconds(threads: int, *more: str) -> float:
        began = time.monotonic()
        done = place.call("run", "tiny.yaml", "--fresh", *SETTINGS, *more, OMP_NUM_THREADS=str(threads))
        assert done.returncode == 0, done.stderr
        return time.monotonic() - began

    half, whole = seconds(CORES // 2), seconds(CORES)
    side_by_side = benchmark.pedantic(
        lambda: seconds(CORES // 2, "--lanes", "2", "--no-interference-check"), rounds=1
    )
    benchmark.extra_info |= {
        "of_serial_with_as_many_threads": side_by_side / half,
        "of_serial": side_by_side / whole,
    }
    print(
        f"\ntwo lanes take {side_by_side:.1f} s: {side_by_side / half:.2f} of one trial at a time with as many "
        f"threads ({half:.1f} s), {side_by_side / whole:.2f} of one with all cores ({whole:.1f} s)"
    )
