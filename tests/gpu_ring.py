"""Everything that needs a GPU, in slices of nine minutes at most: `python tests/gpu_ring.py --results DIR`.

The most telling slice comes first (`--list`). Each is a process of its own, ended with all that it started where
it takes longer. A call goes on where the last one ended, as long as code, GPUs and settings are the same: first
what has not run yet, then what was cut off, which a suite resumes. Figures are held against what is known of GPUs.

What came out is appended to DIR/gpu_ring.txt, which slices ended and how is kept in DIR/gpu_ring.json, and the
runs, each a folder to keep, lie under DIR. It needs Python 3.11 or newer, a torch that can use the GPU and the
packages of `[train,dev]`; selectbench itself need not be installed: the project's root goes onto PYTHONPATH.

Exit status: 0: all as expected; 1: something is to be explained; 2: no GPU, or a wrong command; 3: slices are left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bounded_process import Summary, run_bounded

ROOT = Path(__file__).resolve().parents[1]
SLICE_SECONDS = 540.0
ALL_AS_EXPECTED, TO_BE_EXPLAINED, NO_GPU, SLICES_ARE_LEFT, INTERRUPTED = 0, 1, 2, 3, 130
RESULTS = "{results}"
"""In a slice's arguments: the folder that runs are kept in."""
PROBE = """
import torch
print(torch.__version__, *map(torch.cuda.get_device_name, range(torch.cuda.device_count())), sep="|")
"""
SHOWN = (
    "tokens_per_second", "peak_memory_bytes", "peak_device_memory_bytes", "joules_per_token", "mean_power_watts",
    "mfu", "matmul_rate_share", "final_loss",
)  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One process of the ring."""

    name: str
    tells: str
    arguments: tuple[str, ...]
    """Of this interpreter."""
    suite: str | None = None
    """Whose run is told at the end, and held against what is expected."""
    good: tuple[int, ...] = (0,)
    """Exit statuses with which there is nothing to explain."""
    bound_seconds: float = SLICE_SECONDS
    """After which it has been ended with its whole process group."""


def with_settings(one: Slice, settings: Sequence[str]) -> Slice:
    """The suite's settings changed as the user says."""
    changed = tuple(word for setting in settings for word in ("--set", setting)) if one.suite else ()
    return replace(one, arguments=one.arguments + changed)


def of_tests(name: str, tells: str, *where: str) -> Slice:
    """The tests that are marked `gpu`."""
    options = ("-m", "gpu", "-q", "--tb=short", "-p", "no:cacheprovider")
    return Slice(name, tells, ("-m", "pytest", *options, *where))


def of_suite(name: str, tells: str, suite: str, seeds: str, *settings: str) -> Slice:
    """The suite's CUDA profile with few seeds."""
    command = ("-m", "selectbench", "run", f"suites/{suite}.yaml", "--profile", "cuda", "--seeds", seeds)
    return with_settings(Slice(name, tells, (*command, "--results", RESULTS), suite), settings)


SLICES = (
    Slice(
        "doctor", "what this machine can run, and how fast its matrix products are",
        ("-m", "selectbench", "doctor", "--calibrate"), good=(0, 2), bound_seconds=180.0,
    ),
    of_tests("tests", "every strategy and precision trains the same job, and nothing waits", "tests/worker"),
    of_tests("meters", "meters and drivers agree with each other", "tests", "--ignore", "tests/worker"),
    of_suite("precision", "speed, memory, energy and quality of each precision", "precision", "0,1"),
    of_suite("strategies", "ddp, fsdp and zero on one GPU", "distributed", "0", "choices.world_size=1"),
    Slice(
        "bare_loop", "our loop over a bare one, in pairs: 0.98 or more is the aim",
        ("tests/gpu_bare_loop.py", "--results", RESULTS),
    ),
    of_suite("optimizer", "each optimizer at its own learning rate", "optimizer", "0"),
    of_suite("accumulation", "what micro-batches and checkpointing cost", "accumulation", "0,1"),
    of_suite("compile", "each precision with a compiled model", "precision", "0,1", "choices.compile=default"),
    of_suite("framework", "our loop beside the Trainer's", "framework", "0"),
)  # fmt: skip


class Ended:
    """Which slices ended, and what of each is to be explained, in a file; None: it was cut off."""

    def __init__(self, path: Path, facts: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Goes on with what the file has of the same `facts`: code, GPUs and settings."""
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not fresh else {}
        self.path, self.facts = path, dict(facts)
        self.slices: dict[str, list[str] | None] = content["slices"] if content.get("facts") == self.facts else {}

    def add(self, name: str, to_explain: list[str] | None) -> None:
        """Kept at once."""
        self.slices[name] = to_explain
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"facts": self.facts, "slices": self.slices}, indent=1), encoding="utf-8")
        unfinished.replace(self.path)

    def left(self, slices: Sequence[Slice]) -> list[Slice]:
        """Those that have not run yet, then those that were cut off."""
        new = [one for one in slices if one.name not in self.slices]
        return new + [one for one in slices if self.slices.get(one.name, []) is None]


def run_slice(one: Slice, results: Path, summary: Summary) -> list[str] | None:
    """What of it is to be explained; None where it was cut off."""
    summary.say("", f"== {one.name}: {one.tells}")
    if one.arguments[0].endswith(".py") and not (ROOT / one.arguments[0]).is_file():
        return [f"{one.name}: there is no {one.arguments[0]} here"]
    before = written(results, one.suite)
    command = [sys.executable, *(word.replace(RESULTS, str(results)) for word in one.arguments)]
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    status = run_bounded(command, one.bound_seconds, summary, folder=ROOT, environment=environment)
    if status is None:
        summary.say(
            f"{one.name} took more than {one.bound_seconds:g} s and was ended; a later call goes on with it"
        )
        return None
    wrong = [] if status in one.good else [f"{one.name}: exit status {status}"]
    changed = sorted(written(results, one.suite).items() - before.items(), key=lambda run: run[1])
    if one.suite and not changed:
        return [*wrong, f"{one.name} left no run"]
    return wrong + (told(changed[-1][0], summary) if changed else [])


def written(results: Path, suite: str | None) -> dict[Path, int]:
    """The suite's run folders, and when each was last written to, in nanoseconds."""
    runs = (results / suite).glob("*Z-*") if suite else ()
    return {run: max(path.stat().st_mtime_ns for path in (run, *run.iterdir())) for run in runs}


def told(run: Path, summary: Summary) -> list[str]:
    """Says a run's figures, warnings and checks; the checks that do not hold."""
    from gpu_expectations import checks, value

    from selectbench.launch.publish import read_run

    stored = read_run(run)
    ranking = stored.ranking()
    summary.say("", f"-- {run}", ranking.answer, "option | " + " | ".join(SHOWN))
    for row in ranking.rows:
        figures = [value(row, name) for name in SHOWN]
        shown = " | ".join("-" if figure is None else f"{figure:.5g}" for figure in figures)
        states = ", ".join(f"{count} {verdict}" for verdict, count in row.gpu.states.items()) if row.gpu else "-"
        failures = "; ".join(f"seed {f.seed} {f.kind}: {f.detail.splitlines()[0]}" for f in row.failures)
        summary.say(f"{row.option} | {shown} | {states} {failures}")
    expected = checks(stored.suite, ranking)
    summary.say(*(f"warning: {warning}" for warning in ranking.warnings), *map(str, expected))
    return [f"{run.parent.name}: {check}" for check in expected if not check.holds]


def run_ring(
    wanted: Sequence[Slice], results: Path, ended: Ended, summary: Summary,
    *, seconds: float | None = None, again: bool = False,
) -> int:  # fmt: skip
    """Run what is left of these, or all `again`, while the next surely fits into `seconds`; the exit status."""
    begin = time.monotonic()
    for one in wanted if again else ended.left(wanted):
        if seconds is not None and time.monotonic() - begin + one.bound_seconds > seconds:
            summary.say("", f"{one.name} may take {one.bound_seconds:g} s, more than is left: a later call runs it")
            break
        ended.add(one.name, run_slice(one, results, summary))
    return verdict(wanted, ended, summary)


def verdict(wanted: Sequence[Slice], ended: Ended, summary: Summary) -> int:
    """Says what came of these slices, in this call and those before; the exit status."""
    to_explain = [line for one in wanted for line in ended.slices.get(one.name) or []]
    left = [one.name for one in ended.left(wanted)]
    summary.say("", f"{len(wanted) - len(left)} of {len(wanted)} slices ended, {len(to_explain)} to be explained")
    summary.say(*to_explain, *([f"left for a later call: {', '.join(left)}"] if left else []))
    return TO_BE_EXPLAINED if to_explain else SLICES_ARE_LEFT if left else ALL_AS_EXPECTED


def facts_of(settings: Sequence[str]) -> dict[str, Any] | None:
    """What the slices' outcomes hang on; None where torch sees no GPU."""
    # In a process of its own, so that this one holds no memory of the GPU.
    answer = subprocess.run([sys.executable, "-c", PROBE], check=False, stdout=subprocess.PIPE, text=True)
    torch_version, *gpus = answer.stdout.strip().split("|")
    files = [path for folder in ("selectbench", "suites", "tests") for path in (ROOT / folder).rglob("*")]
    code = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix in (".py", ".yaml")):
        code.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    found = {"code_sha256": code.hexdigest(), "torch": torch_version, "gpus": gpus, "settings": list(settings)}
    return found if gpus else None


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command; `only` has slices. Exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where runs are kept")
    parser.add_argument("--list", action="store_true", help="the slices in their order, and what each tells")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME[,NAME]", help="these slices, also again"
    )
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever has ended")
    parser.add_argument("--minutes", type=float, help="begin no slice that may take longer than is left of these")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="handed to each suite")
    chosen = parser.parse_args(arguments)
    by_name = {one.name: one for one in SLICES}
    names = [name for words in chosen.only for name in words.split(",")]
    for name in names:
        if name not in by_name:
            from selectbench.errors import did_you_mean

            parser.error(f"--only: there is no slice {name!r}{did_you_mean(name, list(by_name))}; --list has them")
    chosen.only = [by_name[name] for name in dict.fromkeys(names)]
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    chosen = parsed(arguments)
    if chosen.list:
        print(*(f"{one.name:12} {one.tells} ({one.bound_seconds / 60:g} min at most)" for one in SLICES), sep="\n")
        return ALL_AS_EXPECTED
    results, facts = chosen.results.resolve(), facts_of(chosen.set)
    summary = Summary(results / "gpu_ring.txt")
    if facts is None:
        summary.say("torch sees no GPU here: nothing was run (`python -m selectbench doctor` says what is missing)")
        return NO_GPU
    wanted = [with_settings(one, chosen.set) for one in chosen.only or SLICES]
    ended = Ended(results / "gpu_ring.json", facts, fresh=chosen.fresh)
    seconds = None if chosen.minutes is None else 60 * chosen.minutes
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # whatever was inherited, also by the slices
    try:
        return run_ring(wanted, results, ended, summary, seconds=seconds, again=bool(chosen.only))
    except KeyboardInterrupt:
        summary.say("", "interrupted: the next call goes on with this slice")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
