"""How long a run will take: from earlier trials of the same option and job, else a rough reckoning."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np

from selectbench.machine import Machine
from selectbench.plan.plan import Plan, PlannedOption
from selectbench.record.record import Completed, Record
from selectbench.record.store import FILE_NAME, read_records

CPU_EFFICIENCY = 0.5
"""Share of a plain matrix product's rate that a small model's training reaches; seen on two-core machines."""
CPU_WITHOUT_UNITS_COST = {"bfloat16": 4.5, "float16": 15.0}
"""How much slower a half precision is on a CPU that has no instructions for it; seen likewise."""
CPU_UNITS = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}
"""The flags in /proc/cpuinfo of instructions for it."""
TRIAL_SECONDS = 0.2
"""What a trial costs beyond its steps and evaluations."""
COMPILE_SECONDS = 30.0
"""What torch.compile costs once per trial; seen with small models."""
CUDA_EFFICIENCY = 0.4
"""Share of the fp32 peak (cores x 2 x clock) that training reaches."""


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of one trial of each option that can run, and where the figure comes from."""

    seconds: dict[str, float]
    from_records: int
    """Options whose figure comes from earlier trials; the others' are rough."""


def estimate(plan: Plan, machine: Machine, history: Sequence[Record]) -> Estimate | None:
    """None where neither earlier trials nor the machine's rate say anything."""
    seconds: dict[str, float] = {}
    known = _known_seconds(plan, history)
    rate = None if len(known) == len(plan.options) else _flops_per_second(machine)
    for planned in plan.options:
        name = planned.option.name
        if planned.unsupported:
            continue
        guess = known.get(name) or _rough_seconds(plan, planned, rate)
        if guess is None:
            return None
        seconds[name] = guess
    return Estimate(seconds, from_records=len(known.keys() & seconds.keys()))


@dataclass(frozen=True)
class StageCost:
    """What one stage of a run takes."""

    title: str
    trials: int
    """That can run here."""
    seconds: float | None
    """Of all of them; None: not foretold."""
    usd: float | None
    """Rent of the GPUs for that time at the suite's price; None: not foretold, or there is no price."""


def stage_cost(title: str, plan: Plan, machine: Machine, history: Sequence[Record]) -> StageCost:
    """From earlier trials of these very settings, else a rough reckoning."""
    rounds = len(plan.suite.seeds)
    able = [planned for planned in plan.options if planned.unsupported is None]
    found = estimate(plan, machine, history)
    if found is None:
        return StageCost(title, rounds * len(able), None, None)
    price = plan.suite.cost.usd_per_gpu_hour if plan.suite.cost and plan.suite.device == "cuda" else None
    gpu_seconds = sum(found.seconds[planned.option.name] * planned.world_size for planned in able)
    return StageCost(
        title, rounds * len(able), rounds * sum(found.seconds.values()),
        None if price is None else rounds * gpu_seconds / 3600 * price,
    )  # fmt: skip


def past_records(suite_folder: Path) -> list[Record]:
    """The records of all runs of a suite, newest run last, without trials that waited for a server to start."""
    runs = (read_records(path)[0] for path in sorted(suite_folder.glob(f"*/{FILE_NAME}")))
    return [record for records in runs for record in _without_starts(records)]


def _without_starts(records: Sequence[Record]) -> list[Record]:
    """Without the first trial of each interpreter, which waited for its imports, where its option has another.

    Of a run that was resumed the first of its first part alone is known.
    """
    done = [record for record in records if isinstance(record.outcome, Completed)]
    first = {record.trial.every_setting().get("python"): record for record in reversed(done)}.values()
    alike = Counter(record.trial.option for record in done)
    return [r for r in records if alike[r.trial.option] < 2 or not any(r is waited for waited in first)]


def _known_seconds(plan: Plan, history: Sequence[Record]) -> dict[str, float]:
    ids = {planned.trial.trial_id: planned.trial.option for planned in plan.trials}
    walls: dict[str, list[float]] = {}
    for record in history:
        name = ids.get(record.trial.trial_id)
        if name and isinstance(record.outcome, Completed):
            walls.setdefault(name, []).append(record.wall_seconds)
    return {name: fmean(values) for name, values in walls.items()}


def _rough_seconds(plan: Plan, planned: PlannedOption, rate: float | None) -> float | None:
    """6 FLOPs per parameter and training token (Kaplan et al. 2020, arXiv:2001.08361), 2 per scored one."""
    if rate is None or plan.parameters is None:
        return None
    job = plan.suite.job.of(planned.option.choices)
    flops = 6.0 * plan.parameters * plan.tokens
    if job.eval != "none":
        points = 1 + (job.max_steps - 1) // job.eval.every_steps if job.eval.every_steps else 1
        flops += 2.0 * plan.parameters * job.eval.tokens * points
    precision = planned.option.choices.precision
    half = precision.autocast_dtype or precision.parameter_dtype
    cost = _half_precision_cost(half) if plan.suite.device == "cpu" else 1.0
    compiling = COMPILE_SECONDS if planned.option.choices.compile.mode else 0.0
    return (
        TRIAL_SECONDS
        + compiling
        + cost * flops / rate
        + (job.timing.min_timed_seconds or (10.0 if plan.suite.device == "cuda" else 0.0))
    )


def _half_precision_cost(dtype: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> float:
    try:
        flags = set(cpuinfo.read_text().split())
    except OSError:
        flags = set()
    return 1.0 if flags & set(CPU_UNITS.get(dtype, ())) else CPU_WITHOUT_UNITS_COST.get(dtype, 1.0)


def _flops_per_second(machine: Machine) -> float | None:
    if machine.device == "cpu":
        return CPU_EFFICIENCY * _matmul_flops_per_second()
    first = next(iter(machine.gpus), None)
    cores, clock = (first.cores, first.max_sm_clock_hertz) if first else (None, None)
    return CUDA_EFFICIENCY * 2.0 * cores * clock if cores and clock else None


@cache
def _matmul_flops_per_second(size: int = 512, probe_seconds: float = 0.1) -> float:
    """The best of a tenth of a second: whatever else runs can only make it slower."""
    matrix = np.ones((size, size), dtype=np.float32)
    fastest, end = float("inf"), time.perf_counter() + probe_seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        matrix @ matrix
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * size**3 / fastest
