"""How long a run will take: from earlier trials on such hardware, else from the rates of matrix products."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from selectbench.errors import UserError
from selectbench.gpu.devices import Gpu, MatmulDtype, peak_flops_per_second
from selectbench.machine import Machine, cpu_model, usable_cores
from selectbench.planning.plan import Plan, PlannedOption
from selectbench.record.environment import read_environment, stored_rates
from selectbench.record.record import Completed, Record
from selectbench.record.run_folder import ENVIRONMENT, RECORDS_FILE, read_records
from selectbench.suite.command import CommandJob
from selectbench.suite.job import Eval, Job

CPU_SHARE = 0.5
"""Of a plain matrix product's rate, what a small model's training reaches; seen on two-core machines."""
CPU_WITHOUT_UNITS_COST: dict[MatmulDtype, float] = {"bfloat16": 4.5, "float16": 15.0}
"""How much slower a half precision is on a CPU that has no instructions for it; seen likewise."""
MATMUL_SHARE = 0.75
"""Of a data sheet's peak, what large matrix products reach: what `doctor --calibrate` measures."""
TENSOR_CORE_SHARE = {False: 0.3, True: 0.6}
"""Of that, what training reaches, by whether the model is compiled.

nanoGPT's README: GPT-2 124M takes 250 ms a step on A100s and compiled 135 ms, which is 45 % of the peak."""
FP32_SHARE = 0.8
"""The same without tensor cores: the products themselves are most of the time."""
HALF_OVER_FP32 = 2.0
"""Tensor cores over the other ones at least, where the GPU's data sheet is not known."""
FIRST_TENSOR_CORES = (7, 0)
"""Compute capability."""
TRIAL_SECONDS = {"cpu": 1.0, "cuda": 3.0}
"""What a trial costs beyond its steps and evaluations until one has been measured: on a CPU 0.1 to 2 s were seen;
on CUDA a guess for its context, the libraries' handles and the kernels, which are loaded when first used."""
COMPILE_SECONDS = 30.0
"""What torch.compile costs once per trial; seen with small models."""
IMPORT_SECONDS = 7.0
"""What the first trial of an interpreter waits for torch and transformers: five to ten seconds (worker.server)."""
SETTLE_SECONDS = {"cpu": 0.0, "cuda": 1.0}
"""Before each trial, until the GPU is seen idle: the driver's utilisation is of up to the last second."""


@dataclass(frozen=True)
class History:
    """Completed trials of a suite on hardware like this machine's, those of the newest run last."""

    trials: list[Record] = field(default_factory=list)
    """Without those that waited for a server to start."""
    start_seconds: float | None = None
    """What a trial waits for its interpreter's imports, on average; None: not known."""


def past_trials(suite_folder: Path, machine: Machine) -> History:
    """Of all runs of a suite that ran on hardware of this machine's kind; what can't be read says nothing.

    The first trial of each interpreter waited for its imports: it counts for that alone where its option has
    another. Of a run that was resumed the first of its first part alone is known.
    """
    trials, starts = [], []
    for path in sorted(suite_folder.glob(f"*/{RECORDS_FILE}")):
        if not _is_alike(path.parent, machine):
            continue
        try:
            done = [record for record in read_records(path)[0] if isinstance(record.outcome, Completed)]
            first = {record.trial.read_settings().get("python"): record for record in reversed(done)}.values()
        except (UserError, TypeError):  # TypeError: of what is no path
            continue
        repeats = Counter(record.trial.option for record in done)
        waited = [record for record in first if repeats[record.trial.option] > 1]
        trials += [record for record in done if not any(record is each for each in waited)]
        for record in waited:
            others = [r for r in done if r.trial.option == record.trial.option and r is not record]
            starts.append(max(0.0, record.wall_seconds - fmean(r.wall_seconds for r in others)))
    return History(trials, fmean(starts) if starts else None)


def _is_alike(run: Path, machine: Machine) -> bool:
    """Whether the run's GPUs are of the kind of this machine's, or its processor and the cores of it are."""
    try:
        then = read_environment(run / ENVIRONMENT)
    except UserError:
        return False
    gpus = {gpu.get("name") for gpu in then.get("gpus") or []}
    if machine.device == "cuda":
        return bool(gpus) and gpus <= {gpu.name for gpu in machine.gpus}
    limits = [then.get("cores_by_affinity"), then.get("cores_by_cgroup")]
    cores = min((float(limit) for limit in limits if limit is not None), default=None)
    if then.get("lanes", 1) != machine.lanes:
        return False
    return not gpus and then.get("cpu_model") == cpu_model() and cores == usable_cores()


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of one trial of each option that can run, and where the figure comes from."""

    seconds: dict[str, float]
    from_records: int
    """Options whose figure comes from earlier trials of theirs."""


def estimate(plan: Plan, machine: Machine, history: History) -> Estimate | None:
    """None where neither earlier trials nor the machine's rate say anything."""
    ids = {planned.trial.trial_id for planned in plan.trials}
    same: dict[str, list[float]] = {}  # this code, these settings, one of the suite's seeds
    for record in history.trials:
        if record.trial.trial_id in ids:
            same.setdefault(record.trial.option, []).append(record.wall_seconds)
    known: dict[str, float] = {}
    rough: dict[str, float | None] = {}
    for planned in plan.options:
        if planned.unsupported is None:
            name = planned.option.name
            if of_records := same.get(name) or _scaled_seconds(plan, planned, history):
                known[name] = fmean(of_records)
            rough[name] = _rough_seconds(plan, planned, machine)
    # What was not measured is taken to be as much slower than told roughly as what was.
    slower = median([known[name] / told for name, told in rough.items() if told and name in known] or [1.0])
    seconds: dict[str, float] = {}
    for name, told in rough.items():
        expected = known.get(name, None if told is None else told * slower)
        if expected is None:
            return None
        seconds[name] = expected + SETTLE_SECONDS[plan.suite.device]
    return Estimate(seconds, len(known))


@dataclass(frozen=True)
class StageCost:
    """What one stage of a run takes."""

    title: str
    trials: int
    """That can run here."""
    seconds: float | None
    """Of all of them; None: unknown."""
    usd: float | None
    """Rent of the GPUs for that time at the suite's price; None: unknown, or there is no price."""
    start_seconds: float = 0.0
    """Of those seconds, what is waited for the interpreters' imports, once in a run."""


def stage_costs(stages: Sequence[tuple[str, Plan]], machine: Machine, history: History) -> list[StageCost]:
    """Of every stage of a run, by title and plan in order; the first one waits for the imports."""
    costs = [_stage_cost(title, plan, machine, history) for title, plan in stages]
    first, *others = costs
    if first.seconds is None or not first.trials:
        return costs
    (_, plan), start = stages[0], history.start_seconds
    pythons = {planned.option.choices.python for planned in plan.options if planned.unsupported is None}
    waited = len(pythons) * (IMPORT_SECONDS if start is None else start)
    return [replace(first, seconds=first.seconds + waited, start_seconds=waited), *others]


def _stage_cost(title: str, plan: Plan, machine: Machine, history: History) -> StageCost:
    every = Counter(planned.trial.option for planned in plan.trials)
    trials = {p.option.name: every[p.option.name] for p in plan.options if p.unsupported is None}
    found = estimate(plan, machine, history)
    if found is None:
        return StageCost(title, sum(trials.values()), None, None)
    price = plan.suite.cost.usd_per_gpu_hour if plan.suite.cost and plan.suite.device == "cuda" else None
    seconds = {name: count * found.seconds[name] for name, count in trials.items()}
    gpu_seconds = sum(of_option * plan.planned(name).world_size for name, of_option in seconds.items())
    usd = None if price is None else gpu_seconds / 3600 * price
    rounds = len({planned.round for planned in plan.trials if planned.phase == "contest"})
    turns = math.ceil(rounds / machine.lanes) / rounds if rounds else 1.0  # lanes run whole rounds side by side
    return StageCost(title, sum(trials.values()), turns * sum(seconds.values()), usd)


def _scaled_seconds(plan: Plan, planned: PlannedOption, history: History) -> list[float]:
    """From trials of such work at other seeds, rates or lengths, scaled to the option's job."""
    if plan.suite.command is not None:
        return _command_seconds(plan.suite.command, planned, history)
    choices = planned.option.built
    work, job = _work(choices.model_dump(mode="json")), plan.suite.built.of(choices)
    least = job.timing.least_seconds(plan.suite.device)
    return [
        _seconds_of(job, record, least)
        for record in history.trials
        if record.identity is not None and record.identity.parameters == planned.parameters
        and _work(record.trial.read_settings()) == work
    ]  # fmt: skip


def _command_seconds(job: CommandJob, planned: PlannedOption, history: History) -> list[float]:
    """From trials of the same command and option at other seeds, or stopped after another number of steps."""
    found = []
    for record in history.trials:
        if record.trial.option == planned.option.name and isinstance(record.outcome, Completed):
            before = record.outcome.measurement
            steps = max(1, before.steps_applied + before.steps_skipped)
            beside = max(0.0, record.wall_seconds - before.training_seconds)
            found.append(beside + before.training_seconds * job.stops_after / steps)
    return found


def _work(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides how long a token takes: neither the optimizer's numbers nor the global batch."""
    kept = {name: value for name, value in settings.items() if name != "global_batch_size" and value is not None}
    optimizer = {name: value for name, value in kept.get("optimizer", {}).items() if not isinstance(value, float)}
    return {**kept, "optimizer": optimizer}


def _seconds_of(job: Job, record: Record, least_timed_seconds: float) -> float:
    """What the job takes by a trial of such work: steps by their tokens, evaluations by those that they score."""
    assert isinstance(record.outcome, Completed)
    before = record.outcome.measurement
    steps, step = before.steps_applied + before.steps_skipped, before.step_time_median_seconds
    training, evaluating = before.training_seconds, before.evaluation_seconds
    added = max(0, before.timed_steps - steps) * (step or 0.0)
    scored = (before.heldout_tokens or 0) * len(record.evaluation_curve)
    per_token = (training / max(1, steps) if step is None else step) / before.tokens_per_step
    # A token is taken to be scored as slowly as it is trained where none was scored.
    per_scored_token = evaluating / scored if scored else per_token
    beside = max(0.0, record.wall_seconds - training - evaluating - added) + (before.compile_seconds or 0.0)
    return _seconds_in_all(job, beside, per_token, per_scored_token, least_timed_seconds)


def _seconds_in_all(
    job: Job, beside: float, per_token: float, per_scored_token: float, least_timed_seconds: float
) -> float:
    """What is beside the work, the job's steps, steps for timing alone, and its evaluations; rates in seconds."""
    step = per_token * job.tokens_per_step
    untimed = max(0.0, least_timed_seconds - max(0.0, (job.max_steps - job.timing.warmup_steps) * step))
    return beside + job.max_steps * step + untimed + per_scored_token * _scored_tokens(job)


def _scored_tokens(job: Job) -> int:
    if not isinstance(job.eval, Eval):
        return 0
    between = (job.max_steps - 1) // job.eval.every_steps if job.eval.every_steps else 0
    return job.eval.tokens * (1 + between + job.eval.at_start)


def _rough_seconds(plan: Plan, planned: PlannedOption, machine: Machine) -> float | None:
    """By the rates of matrix products: a trained token takes 6 FLOPs per parameter and a scored one 2.

    Kaplan et al., arXiv:2001.08361. None: nothing tells them.
    """
    if plan.suite.command is not None or planned.parameters is None:
        return None
    choices, device = planned.option.built, plan.suite.device
    is_compiled = choices.compile.mode is not None
    rate = _training_flops_per_second(machine, choices.matmul_dtype, compiled=is_compiled)
    scoring_rate = _training_flops_per_second(machine, "float32", compiled=False)
    if rate is None or scoring_rate is None:
        return None
    job, shared = plan.suite.built.of(choices), 1  # on a CPU the ranks share the cores
    if device == "cuda":
        shared = max(1, planned.world_size)
    per_token, per_scored_token = (
        flops * planned.parameters / of / shared for flops, of in ((6.0, rate), (2.0, scoring_rate))
    )
    beside = TRIAL_SECONDS[device] + (COMPILE_SECONDS if is_compiled else 0.0)
    return _seconds_in_all(job, beside, per_token, per_scored_token, job.timing.least_seconds(device))


def _training_flops_per_second(machine: Machine, dtype: MatmulDtype, *, compiled: bool) -> float | None:
    """Of one rank, in training whose matrix products run in this dtype; None: nothing tells it."""
    if machine.device == "cpu":
        slower = 1.0 if dtype in machine.cpu_units else CPU_WITHOUT_UNITS_COST.get(dtype, 1.0)
        return CPU_SHARE * _matmul_flops_per_second() / slower / machine.lanes
    rates = [_matmul_rate(gpu, dtype) for gpu in machine.gpus]
    known = [rate for rate in rates if rate is not None]
    if not known or len(known) < len(rates):
        return None
    return min(known) * (FP32_SHARE if dtype == "float32" else TENSOR_CORE_SHARE[compiled])


def _matmul_rate(gpu: Gpu, dtype: MatmulDtype) -> float | None:
    """What large products reach: as measured on this very GPU, else by its data sheet or its cores."""
    if (measured := stored_rates(gpu.uuid).get(dtype)) is not None:
        return measured
    if gpu.is_mig:  # sheets and cores are the whole board's
        return None
    peak = peak_flops_per_second(gpu.name, dtype)
    if peak is None and gpu.cores is not None and gpu.max_sm_clock_hertz is not None:
        # Two operations for each core and cycle, and what tensor cores at least bring.
        peak = 2.0 * gpu.cores * gpu.max_sm_clock_hertz
        has_units = gpu.compute_capability is not None and gpu.compute_capability >= FIRST_TENSOR_CORES
        peak *= HALF_OVER_FP32 if has_units and dtype in ("bfloat16", "float16") else 1.0
    return None if peak is None else MATMUL_SHARE * peak


@cache
def _matmul_flops_per_second(sizes: Sequence[int] = (128, 512), probe_seconds: float = 0.1) -> float:
    """The best of a tenth of a second; on busy cores large products wait for their slowest thread."""
    matrices = [np.ones((size, size), dtype=np.float32) for size in sizes]
    fastest, end = 0.0, time.perf_counter() + probe_seconds
    while time.perf_counter() < end:
        for matrix in matrices:
            start = time.perf_counter()
            matrix @ matrix
            fastest = max(fastest, 2.0 * len(matrix) ** 3 / (time.perf_counter() - start))
    return fastest
