"""What a trial and a command cost beyond their work, and whether the bench's memory grows over a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from launch.harness import TINY_SUITE, Workplace


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    place = Workplace(tmp_path)
    place.write()
    place.call("plan", "tiny.yaml")  # the data is prepared
    return place


def beyond_seconds(workplace: Workplace) -> list[float]:
    """Of every trial but the first."""
    measured = [(record["wall_seconds"], record["outcome"]["measurement"]) for record in workplace.records()[1:]]
    return [wall - m["training_seconds"] - m["evaluation_seconds"] for wall, m in measured]


def test_a_trial_beyond_its_steps_and_evaluations(benchmark, workplace: Workplace) -> None:
    """Seconds of each trial after the first (which waits for the server's imports), from the records."""
    benchmark.pedantic(lambda: workplace.call("run", "tiny.yaml", "--seeds", "0,1,2,3,4,5"), rounds=1)
    beyond = beyond_seconds(workplace)
    benchmark.extra_info["median_seconds"] = median(beyond)
    benchmark.extra_info["largest_seconds"] = max(beyond)
    figures = f"median of {len(beyond)}, most {max(beyond):.3f} s"
    print(f"\nbeyond its steps a trial costs {median(beyond):.3f} s ({figures})")


SHARED = (
    TINY_SUITE[: TINY_SUITE.index("baseline:")].replace("  micro_batch_size: 4", "  micro_batch_size: 2")
    + """\
  world_size: 2
  strategy: STRATEGY
baseline: only
options:
  only: {}
"""
)
STRATEGIES = {"ddp": "ddp", "fsdp": "fsdp", **{f"zero{n}": f"{{name: zero, stage: {n}}}" for n in (1, 2, 3)}}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_trial_of_two_ranks_beyond_its_steps_and_evaluations(benchmark, workplace, strategy: str) -> None:
    """The same with two gloo ranks."""
    workplace.write(SHARED.replace("STRATEGY", STRATEGIES[strategy]))
    benchmark.pedantic(lambda: workplace.call("run", "tiny.yaml", "--seeds", "0,1,2,3,4,5"), rounds=1)
    beyond = beyond_seconds(workplace)
    benchmark.extra_info["median_seconds"] = median(beyond)
    print(f"\n{strategy}: beyond its steps a trial costs {median(beyond):.3f} s (most {max(beyond):.3f} s)")


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "tiny.yaml"]], ids=["help", "plan"])
def test_a_command_from_start_to_end(benchmark, workplace: Workplace, arguments: list[str]) -> None:
    """Seconds of the whole process; importing torch would show at once."""
    command = [sys.executable, "-m", "selectbench", *arguments]
    benchmark.pedantic(
        lambda: subprocess.run(command, cwd=workplace.folder, capture_output=True, check=True),
        rounds=7,
        warmup_rounds=1,
    )


def test_memory_of_the_bench_over_a_long_run(benchmark, workplace: Workplace) -> None:
    """Resident memory of the bench after the 5th and after the 60th trial."""
    workplace.write(TINY_SUITE.replace("max_steps: 6", "max_steps: 1").replace("every_steps: 3", "every_steps: 1"))
    resident: list[int] = []

    def watch() -> None:
        seeds = ",".join(map(str, range(30)))
        process = workplace.start("run", "tiny.yaml", "--seeds", seeds, "--set", "job.lr_schedule.warmup_steps=0")
        assert process.stderr is not None
        for line in process.stderr:
            if "completed" in line:
                status = Path(f"/proc/{process.pid}/status").read_text()
                resident.append(next(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmRSS")))
        process.communicate()

    benchmark.pedantic(watch, rounds=1)
    benchmark.extra_info["growth_kibibytes"] = resident[-2] - resident[4]
    print(f"\nresident memory grew by {resident[-2] - resident[4]} KiB from trial 5 to trial {len(resident) - 1}")
