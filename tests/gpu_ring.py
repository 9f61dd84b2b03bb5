"""Everything that needs a GPU, in one go: `python tests/gpu_ring.py --results DIR` in the project's root.

Runs `pytest -m gpu`, then the precision, optimizer and accumulation suites with few seeds on the CUDA profile;
prints what came out and holds it against what is known of GPUs; leaves the runs, each a folder to keep, under DIR,
and the whole summary in DIR/gpu_ring.txt. It needs Python 3.11 or newer, a torch that can use the GPU and the
packages of `[train,dev]`; selectbench itself need not be installed: the project's root goes onto PYTHONPATH.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("precision", "optimizer", "accumulation")
STEPS = ("doctor", "tests", *SUITES)
SHOWN = (
    "tokens_per_second", "peak_memory_bytes", "peak_device_memory_bytes", "joules_per_token", "mean_power_watts",
    "mfu", "matmul_rate_share", "final_loss",
)  # fmt: skip


class Summary:
    """Lines for the terminal and for the file that is kept."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.failed: list[str] = []

    def say(self, *lines: str) -> None:
        """Said at once, and kept."""
        with self.path.open("a", encoding="utf-8") as kept:
            for line in lines:
                print(line, flush=True)
                kept.write(line + "\n")

    def fail(self, what: str) -> None:
        """Makes the exit status 1."""
        self.failed.append(what)
        self.say(f"FAILED: {what}")


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *arguments]


def torch_sees_a_gpu() -> bool:
    """Asked in a process of its own, so that this one holds no memory of the GPU."""
    probe = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run(python("-c", probe), check=False).returncode == 0


def called(summary: Summary, command: Sequence[str], allowed: Sequence[int] = (0,)) -> None:
    """Run it in the project's root, its output shown and kept; a failure is noted and the ring goes on."""
    summary.say("", f"$ {' '.join(command)}")
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            summary.say(line.rstrip("\n"))
    if process.returncode not in allowed:
        summary.fail(f"status {process.returncode}: {' '.join(command)}")


def run_suite(summary: Summary, suite: str, results: Path, seeds: str, extra: Sequence[str]) -> None:
    """The suite's CUDA profile; then its figures and what they are held against."""
    settings = ["--profile", "cuda", "--seeds", seeds, "--results", str(results), *extra]
    before = runs_of(results, suite)
    called(summary, python("-m", "selectbench", "run", f"suites/{suite}.yaml", *settings), allowed=(0, 3))
    new = sorted(runs_of(results, suite) - before) or sorted(runs_of(results, suite))
    if not new:
        summary.fail(f"{suite} left no run")
        return
    tell(summary, new[-1])


def runs_of(results: Path, suite: str) -> set[Path]:
    """The suite's run folders."""
    return set((results / suite).glob("*Z-*"))


def tell(summary: Summary, run: Path) -> None:
    """A run's figures, warnings and checks."""
    from gpu_expectations import checks, value

    from selectbench.launch.publish import read_run

    stored = read_run(run)
    ranking = stored.ranking()
    summary.say("", f"== {run}", ranking.answer, "option | " + " | ".join(SHOWN))
    for row in ranking.rows:
        figures = [value(row, name) for name in SHOWN]
        told = " | ".join("-" if figure is None else f"{figure:.5g}" for figure in figures)
        states = ", ".join(f"{count} {verdict}" for verdict, count in row.gpu.states.items()) if row.gpu else "-"
        failures = "; ".join(f"seed {f.seed} {f.kind}: {f.detail.splitlines()[0]}" for f in row.failures)
        summary.say(f"{row.option} | {told} | {states} {failures}")
    summary.say(*(f"warning: {warning}" for warning in ranking.warnings))
    for check in checks(stored.suite, ranking):
        summary.say(str(check))
        if not check.holds:
            summary.failed.append(f"{run.parent.name}: {check}")


def main() -> int:
    """0: all tests passed and every figure is as expected; 1: something is to be explained; 2: there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where runs are kept")
    parser.add_argument("--seeds", default="0,1", help="of each suite (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=STEPS, help="this step alone; may be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="handed to each run")
    chosen = parser.parse_args()
    results = chosen.results.resolve()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    summary = Summary(results / "gpu_ring.txt")
    steps = chosen.only or STEPS
    if not torch_sees_a_gpu():
        summary.say("torch sees no GPU here: nothing was run (`python -m selectbench doctor` says what is missing)")
        return 2
    if "doctor" in steps:
        called(summary, python("-m", "selectbench", "doctor", "--calibrate"), allowed=(0, 2))
    if "tests" in steps:
        called(summary, python("-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-p", "no:cacheprovider", "tests"))
    for suite in [suite for suite in SUITES if suite in steps]:
        run_suite(summary, suite, results, chosen.seeds, [word for each in chosen.set for word in ("--set", each)])
    summary.say("", f"{len(summary.failed)} to be explained" if summary.failed else "all as expected")
    summary.say(*summary.failed)
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
