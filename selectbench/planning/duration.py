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
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from selectbench.choices import Choices
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
"""Share of a plain matrix product's rate that a small model's training reaches; seen on two-core machines."""
CPU_WITHOUT_UNITS_COST: dict[MatmulDtype, float] = {"bfloat16": 4.5, "float16": 15.0}
"""How much slower a half precision is on a CPU that has no instructions for it; seen on such machines."""
MATMUL_SHARE = 0.75
"""Share of a data sheet's peak that large matrix products reach, as `doctor --calibrate` measures it."""
TENSOR_CORE_SHARE = {False: 0.3, True: 0.6}
"""Share of the rate of large products that training reaches, by whether the model is compiled.

nanoGPT's README: GPT-2 124M takes 250 ms a step on A100s and compiled 135 ms, which is 45 % of the peak."""
FP32_SHARE = 0.8
"""The same share without tensor cores: the products themselves take most of the time."""
HALF_OVER_FP32 = 2.0
"""Least speedup of tensor cores over the other cores, for a GPU whose data sheet is not known."""
FIRST_TENSOR_CORES = (7, 0)
"""Compute capability of the first GPUs with tensor cores."""
TRIAL_SECONDS = {"cpu": 1.0, "cuda": 3.0}
"""What a trial costs beyond its steps and evaluations until one has been measured: on a CPU 0.1 to 2 s were seen;
on CUDA a guess for its context, the libraries' handles and the kernels, which are loaded when first used."""
COMPILE_SECONDS = 30.0
"""What torch.compile costs once per trial; seen with small models."""
IMPORT_SECONDS = 7.0
"""What the first trial of an interpreter waits for torch and transformers: five to ten seconds (worker.server)."""
SETTLE_SECONDS = {"cpu": 0.0, "cuda": 1.0}
"""Wait before each trial until the GPU is seen idle: the driver's utilisation covers up to the last second."""


@dataclass(frozen=True)
class History:
    """Completed trials of a suite on hardware like this machine's, those of the newest run last."""

    trials: list[Record] = field(default_factory=list)
    """All but the trials that waited for a server to start."""
    start_seconds: float | None = None
    """What a trial waits for its interpreter's imports, on average; None: not known."""


def past_trials(suite_folder: Path, machine: Machine) -> History:
    """Completed trials of all runs of a suite on hardware of this machine's kind; unreadable runs are skipped.

    The first trial of each interpreter waited for its imports: it counts only for the time of a start where its
    option has another trial. Of a resumed run, only the first trial before the interruption is known as such.
    """
    trials, starts = [], []
    for path in sorted(suite_folder.glob(f"*/{RECORDS_FILE}")):
        if not _has_like_hardware(path.parent, machine):
            continue
        try:
            completed = [record for record in read_records(path)[0] if isinstance(record.outcome, Completed)]
            first_trials = {r.trial.read_settings().get("python"): r for r in reversed(completed)}.values()
        except (UserError, TypeError):  # TypeError: `python` is no path
            continue
        repeats = Counter(record.trial.option for record in completed)
        slowed = [record for record in first_trials if repeats[record.trial.option] > 1]
        trials += [record for record in completed if not any(record is other for other in slowed)]
        for record in slowed:
            others = [r for r in completed if r.trial.option == record.trial.option and r is not record]
            starts.append(max(0.0, record.wall_seconds - fmean(r.wall_seconds for r in others)))
    return History(trials, fmean(starts) if starts else None)


def _has_like_hardware(run: Path, machine: Machine) -> bool:
    """Whether the run had GPUs of this machine's kind or, on a CPU, the same processor, cores and lanes."""
    try:
        environment = read_environment(run / ENVIRONMENT)
    except UserError:
        return False
    gpus = {gpu.get("name") for gpu in environment.get("gpus") or []}
    if machine.device == "cuda":
        return bool(gpus) and gpus <= {gpu.name for gpu in machine.gpus}
    limits = [environment.get("cores_by_affinity"), environment.get("cores_by_cgroup")]
    cores = min((float(limit) for limit in limits if limit is not None), default=None)
    if environment.get("lanes", 1) != machine.lanes:
        return False
    return not gpus and environment.get("cpu_model") == cpu_model() and cores == usable_cores()


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of one trial of each option that can run, and where the figure comes from."""

    seconds: dict[str, float]
    from_records: int
    """Number of options whose figure comes from their earlier trials."""
    paced: bool = False
    """Whether the others' rough figures are scaled by what earlier trials took."""


def estimate(plan: Plan, machine: Machine, history: History) -> Estimate | None:
    """Estimate each option's trials; None where neither earlier trials nor the machine's rates say anything."""
    ids = {planned.trial.trial_id for planned in plan.trials}
    walls: dict[str, list[float]] = {}  # of trials of this code, these settings, one of the suite's seeds
    for record in history.trials:
        if record.trial.trial_id in ids:
            walls.setdefault(record.trial.option, []).append(record.wall_seconds)
    seconds: dict[str, float] = {}
    from_records, pace = 0, _pace(history, machine)
    for planned in plan.options:
        if planned.unsupported is not None:
            continue
        name = planned.option.name
        measured = walls.get(name) or _scaled_seconds(plan, planned, history)
        from_records += bool(measured)
        expected = fmean(measured) if measured else _rough_seconds(plan, planned, machine, pace)
        if expected is None:
            return None
        seconds[name] = expected + SETTLE_SECONDS[plan.suite.device]
    return Estimate(seconds, from_records, bool(pace))


@dataclass(frozen=True)
class StageCost:
    """What one stage of a run takes."""

    title: str
    trials: int
    """Number of trials that can run here."""
    seconds: float | None
    """Total of these trials; None: unknown."""
    usd: float | None
    """Rent of the GPUs for that time at the suite's price; None: unknown, or the suite has no price."""
    start_seconds: float = 0.0
    """Part of `seconds` that is spent waiting for the interpreters' imports, once in a run."""


@dataclass(frozen=True)
class Outlook:
    """A plan, what it would cost, and what is missing or unknown here."""

    plan: Plan
    """The contest's plan with the settings of the suite, before any search."""
    estimate: Estimate | None = None
    """Times of trials; None: not even a rough one."""
    costs: Sequence[StageCost] = ()
    """Costs of the stages in order; the contest is the last."""
    obstacles: Sequence[str] = ()
    """Why the run cannot start here."""
    notes: Sequence[str] = ()
    """What is missing here or taken for granted."""
    slurm: Sequence[str] = ()
    """Lines on the Slurm job and which limits it exceeds; empty: the run is on this machine."""
    script: str = ""
    """The job script that Slurm would get."""


def stage_costs(stages: Sequence[tuple[str, Plan]], machine: Machine, history: History) -> list[StageCost]:
    """Cost of every stage of a run, given by title and plan in order; the first one waits for the imports."""
    costs = [_stage_cost(title, plan, machine, history) for title, plan in stages]
    first, *others = costs
    if first.seconds is None or not first.trials:
        return costs
    (_, plan), measured = stages[0], history.start_seconds
    pythons = {planned.option.choices.python for planned in plan.options if planned.unsupported is None}
    import_seconds = len(pythons) * (IMPORT_SECONDS if measured is None else measured)
    return [replace(first, seconds=first.seconds + import_seconds, start_seconds=import_seconds), *others]


def _stage_cost(title: str, plan: Plan, machine: Machine, history: History) -> StageCost:
    counts = Counter(planned.trial.option for planned in plan.trials)
    trials = {p.option.name: counts[p.option.name] for p in plan.options if p.unsupported is None}
    estimated = estimate(plan, machine, history)
    if estimated is None:
        return StageCost(title, sum(trials.values()), None, None)
    price = plan.suite.cost.usd_per_gpu_hour if plan.suite.cost and plan.suite.device == "cuda" else None
    seconds = {name: count * estimated.seconds[name] for name, count in trials.items()}
    gpu_seconds = sum(option_seconds * plan.planned(name).world_size for name, option_seconds in seconds.items())
    usd = None if price is None else gpu_seconds / 3600 * price
    rounds = len({planned.round for planned in plan.trials if planned.phase == "contest"})
    turns = math.ceil(rounds / machine.lanes) / rounds if rounds else 1.0  # lanes run whole rounds side by side
    return StageCost(title, sum(trials.values()), turns * sum(seconds.values()), usd)


def _scaled_seconds(plan: Plan, planned: PlannedOption, history: History) -> list[float]:
    """Walls of trials with the same work at other seeds, rates or lengths, scaled to the option's job."""
    if plan.suite.command is not None:
        return _command_seconds(plan.suite.command, planned, history)
    choices = planned.option.built
    work, job = _cost_settings(choices.model_dump(mode="json")), plan.suite.built.of(choices)
    least = job.timing.least_seconds(plan.suite.device)
    return [
        _scaled_to_job(job, record, least)
        for record in history.trials
        if record.identity is not None and record.identity.parameters == planned.parameters
        and _cost_settings(record.trial.read_settings()) == work
    ]  # fmt: skip


def _command_seconds(job: CommandJob, planned: PlannedOption, history: History) -> list[float]:
    """Walls of the same command and option at other seeds, or stopped after another number of steps, scaled."""
    seconds = []
    for record in history.trials:
        if record.trial.option == planned.option.name and isinstance(record.outcome, Completed):
            measurement = record.outcome.measurement
            steps = max(1, measurement.steps_applied + measurement.steps_skipped)
            overhead = max(0.0, record.wall_seconds - measurement.training_seconds)
            seconds.append(overhead + measurement.training_seconds * job.stops_after / steps)
    return seconds


def _cost_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide how long a token takes: all but the optimizer's numbers and the global batch."""
    relevant = {k: value for k, value in settings.items() if k != "global_batch_size" and value is not None}
    optimizer = {k: value for k, value in relevant.get("optimizer", {}).items() if not isinstance(value, float)}
    return {**relevant, "optimizer": optimizer}


def _scaled_to_job(job: Job, record: Record, least_timed_seconds: float) -> float:
    """Seconds of the job from a trial of the same work: steps by their tokens, evaluations by scored tokens."""
    overhead, per_token, per_scored_token = _measured_rates(record)
    assert isinstance(record.outcome, Completed)
    overhead += record.outcome.measurement.compile_seconds or 0.0
    if per_scored_token is None:  # scoring is taken to be as slow as training
        per_scored_token = per_token
    return _total_seconds(job, overhead, per_token, per_scored_token, least_timed_seconds)


def _measured_rates(record: Record) -> tuple[float, float, float | None]:
    """Seconds of a trial beside its steps and evaluations, per trained token, and per scored one if any was."""
    assert isinstance(record.outcome, Completed)
    measurement = record.outcome.measurement
    steps, step = measurement.steps_applied + measurement.steps_skipped, measurement.step_time_median_seconds
    training, evaluating = measurement.training_seconds, measurement.evaluation_seconds
    added = max(0, measurement.timed_steps - steps) * (step or 0.0)
    scored = (measurement.heldout_tokens or 0) * len(record.evaluation_curve)
    return (
        max(0.0, record.wall_seconds - training - evaluating - added),
        (training / max(1, steps) if step is None else step) / measurement.tokens_per_step,
        evaluating / scored if scored else None,
    )


class _Pace(NamedTuple):
    """What the newest trial of an option took, to scale the rough figures of others."""

    dtype: MatmulDtype
    overhead_seconds: float
    training: float
    """Seconds per trained token over its rough figure."""
    scoring: float | None
    """Seconds per scored token over its rough figure; None: none was scored."""


def _pace(history: History, machine: Machine) -> list[_Pace]:
    paces = []
    for record in {record.trial.option: record for record in history.trials}.values():
        try:
            settings = record.trial.read_settings()
            choices = Choices.model_validate({k: v for k, v in settings.items() if k in Choices.model_fields})
        except (UserError, ValidationError):  # settings of another version
            continue
        parameters = None if record.identity is None else record.identity.parameters
        if parameters and (rough := _rough_rates(choices, parameters, choices.ranks(machine), machine)):
            overhead, training, scoring = _measured_rates(record)
            scoring = None if scoring is None else scoring / rough[1]
            paces.append(_Pace(choices.matmul_dtype, overhead, training / rough[0], scoring))
    return paces


def _total_seconds(
    job: Job, overhead: float, per_token: float, per_scored_token: float, least_timed_seconds: float
) -> float:
    """Overhead, the job's steps, extra steps for timing, and its evaluations; rates in seconds per token."""
    step = per_token * job.tokens_per_step
    untimed = max(0.0, least_timed_seconds - max(0.0, (job.max_steps - job.timing.warmup_steps) * step))
    return overhead + job.max_steps * step + untimed + per_scored_token * _scored_tokens(job)


def _scored_tokens(job: Job) -> int:
    if not isinstance(job.eval, Eval):
        return 0
    between = (job.max_steps - 1) // job.eval.every_steps if job.eval.every_steps else 0
    return job.eval.tokens * (1 + between + job.eval.at_start)


def _rough_seconds(plan: Plan, planned: PlannedOption, machine: Machine, paces: Sequence[_Pace]) -> float | None:
    """Seconds by the rates of matrix products, scaled by what earlier trials took; None: these are unknown."""
    if plan.suite.command is not None or planned.parameters is None:
        return None
    choices, device = planned.option.built, plan.suite.device
    if (rates := _rough_rates(choices, planned.parameters, planned.world_size, machine)) is None:
        return None
    slower = [p.training for p in paces if p.dtype == choices.matmul_dtype] or [p.training for p in paces]
    slower_scoring = [p.scoring for p in paces if p.scoring is not None]
    overhead = median([p.overhead_seconds for p in paces] or [TRIAL_SECONDS[device]])
    overhead += COMPILE_SECONDS if choices.compile.mode is not None else 0.0
    job, per_token = plan.suite.built.of(choices), rates[0] * median(slower or [1.0])
    per_scored_token = rates[1] * median(slower_scoring or [1.0])
    return _total_seconds(job, overhead, per_token, per_scored_token, job.timing.least_seconds(device))


def _rough_rates(choices: Choices, parameters: int, ranks: int, machine: Machine) -> tuple[float, float] | None:
    """Seconds per trained and scored token, of 6 and 2 FLOPs per parameter (Kaplan et al., arXiv:2001.08361)."""
    rate = _training_flops_per_second(machine, choices.matmul_dtype, compiled=choices.compile.mode is not None)
    scoring_rate = _training_flops_per_second(machine, "float32", compiled=False)
    if rate is None or scoring_rate is None:
        return None
    shared = max(1, ranks) if machine.device == "cuda" else 1  # on a CPU the ranks share the cores
    return 6.0 * parameters / rate / shared, 2.0 * parameters / scoring_rate / shared


def _training_flops_per_second(machine: Machine, dtype: MatmulDtype, *, compiled: bool) -> float | None:
    """Rate of one rank in training whose matrix products run in this dtype; None where it is unknown."""
    if machine.device == "cpu":
        slower = 1.0 if dtype in machine.cpu_units else CPU_WITHOUT_UNITS_COST.get(dtype, 1.0)
        return CPU_SHARE * _matmul_flops_per_second() / slower / machine.lanes
    rates = [_matmul_rate(gpu, dtype) for gpu in machine.gpus]
    known = [rate for rate in rates if rate is not None]
    if not known or len(known) < len(rates):
        return None
    return min(known) * (FP32_SHARE if dtype == "float32" else TENSOR_CORE_SHARE[compiled])


def _matmul_rate(gpu: Gpu, dtype: MatmulDtype) -> float | None:
    """FLOPs per second of large products: as measured on this very GPU, else by its data sheet or its cores."""
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
    """The best rate within a tenth of a second; on busy cores large products wait for their slowest thread."""
    matrices = [np.ones((size, size), dtype=np.float32) for size in sizes]
    fastest, end = 0.0, time.perf_counter() + probe_seconds
    while time.perf_counter() < end:
        for matrix in matrices:
            start = time.perf_counter()
            matrix @ matrix
            fastest = max(fastest, 2.0 * len(matrix) ** 3 / (time.perf_counter() - start))
    return fastest
