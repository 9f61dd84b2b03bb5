"""How long a run will take: from earlier trials on such hardware, else from the rates of matrix products."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from selectbench.choices import Choices
from selectbench.errors import UserError
from selectbench.gpu.devices import Gpu
from selectbench.machine import Machine, cpu_model, usable_cores
from selectbench.plan.plan import Plan, PlannedOption
from selectbench.record.environment import stored_rates
from selectbench.record.record import Completed, Measurement, Record
from selectbench.record.run_folder import ENVIRONMENT, RECORDS_FILE, read_json, read_records
from selectbench.suite.job import Eval, Job

# What a GPU's matrix products could reach by its data sheet, by the name that the driver gives it.
#
# Dense figures only: where a sheet counts structured sparsity in, half of it stands here. Tensor cores that add up
# in fp32, as torch has them do; float32 is without tensor cores. SXM, PCIe and NVL boards of one chip differ, and
# so do their names. A figure that could not be confirmed is left out, and so is every GPU whose sheet is not known.


MatmulDtype = Literal["float32", "tf32", "bfloat16", "float16"]

_TERA = 1e12
_VENDOR = "NVIDIA "


@dataclass(frozen=True)
class Sheet:
    """Peak rates of one board, in TFLOP/s; None: it has no such units, or the figure is not confirmed."""

    source: str
    float32: float | None
    tf32: float | None
    bfloat16: float | None
    float16: float | None


_HOPPER = "https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper"
_V100 = "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
_GA102 = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_ADA_PRO = (
    "https://images.nvidia.com/aem-dam/en-zz/Solutions/technologies/"
    "NVIDIA-ADA-GPU-PROVIZ-Architecture-Whitepaper_1.1.pdf"
)
_RTX_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_A10 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf"
_A10G = "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf"
_A30 = "https://www.nvidia.com/content/dam/en-zz/Solutions/data-center/products/a30-gpu/pdf/a30-datasheet.pdf"
_A40 = "https://images.nvidia.cn/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
_T4 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"
_PRODUCT = "https://www.nvidia.com/en-us/data-center"

_SHEETS = {
    "Tesla V100-SXM2-16GB": Sheet(_V100, 15.7, None, None, 125),
    "Tesla V100-SXM2-32GB": Sheet(_V100, 15.7, None, None, 125),
    "Tesla V100-PCIE-16GB": Sheet(_V100, 14, None, None, 112),
    "Tesla V100-PCIE-32GB": Sheet(_V100, 14, None, None, 112),
    "Tesla T4": Sheet(_T4, 8.1, None, None, 65),
    "A100-SXM4-40GB": Sheet(_A100, 19.5, 156, 312, 312),
    "A100-SXM4-80GB": Sheet(_A100, 19.5, 156, 312, 312),
    "A100-PCIE-40GB": Sheet(_A100, 19.5, 156, 312, 312),
    "A100 80GB PCIe": Sheet(_A100, 19.5, 156, 312, 312),
    "A10": Sheet(_A10, 31.2, 62.5, 125, 125),
    "A10G": Sheet(_A10G, None, 35, 70, 70),
    "A30": Sheet(_A30, 10.3, 82, 165, 165),
    "A40": Sheet(_A40, 37.4, 74.8, 149.7, 149.7),
    "RTX A6000": Sheet(_GA102, 38.7, 77.4, 154.8, 154.8),
    "GeForce RTX 3090": Sheet(_GA102, 35.6, 35.6, 71, 71),
    "L4": Sheet(f"{_PRODUCT}/l4/", 30.3, 60, 121, 121),
    "L40": Sheet(f"{_PRODUCT}/l40/", 90.5, 90.5, 181.05, 181.05),
    "L40S": Sheet(f"{_PRODUCT}/l40s/", 91.6, 183, 362.05, 362.05),
    "RTX 6000 Ada Generation": Sheet(_ADA_PRO, 91.1, 182.1, 364.2, 364.2),
    "GeForce RTX 4090": Sheet(_ADA, 82.6, 82.6, 165.2, 165.2),
    "GeForce RTX 5090": Sheet(_RTX_BLACKWELL, 104.8, 104.8, 209.5, 209.5),
    "H100 80GB HBM3": Sheet(_HOPPER, 66.9, 494.7, 989.4, 989.4),
    "H100 PCIe": Sheet(_HOPPER, 51.2, 378, 756, 756),
    "H100 NVL": Sheet(f"{_PRODUCT}/h100/", 60, 417.5, 835.5, 835.5),
    "H200": Sheet(f"{_PRODUCT}/h200/", 67, 494.5, 989.5, 989.5),
    "H200 NVL": Sheet(f"{_PRODUCT}/h200/", 60, 417.5, 835.5, 835.5),
    "B200": Sheet(f"{_PRODUCT}/hgx/", None, None, 2250, 2250),
}
"""By the driver's name; drivers before 470 leave `NVIDIA` out of it, and Tesla boards never had it."""


def matmul_dtype(choices: Choices) -> MatmulDtype:
    """What the matrix products of a precision run in: under autocast, of a working copy or of the weights."""
    precision = choices.precision
    found: Literal["float32", "bfloat16", "float16"] = (
        precision.autocast_dtype or precision.working_dtype or precision.parameter_dtype
    )
    return "tf32" if found == "float32" and precision.tf32 else found


def peak_flops_per_second(gpu_name: str, dtype: MatmulDtype) -> float | None:
    """Of dense matrix products in this dtype, for the whole board; None: not known."""
    sheet = _SHEETS.get(gpu_name.removeprefix(_VENDOR))
    tera = None if sheet is None else getattr(sheet, dtype)
    return None if tera is None else tera * _TERA


def source(gpu_name: str) -> str | None:
    """Where the GPU's figures are from; None: it has none."""
    sheet = _SHEETS.get(gpu_name.removeprefix(_VENDOR))
    return sheet.source if sheet else None


# How fast a machine trains, where no trial has told it yet: from its processor's or its GPUs' matrix products.


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


def training_flops_per_second(machine: Machine, dtype: MatmulDtype, *, compiled: bool) -> float | None:
    """Of one rank, in training whose matrix products run in this dtype; None: nothing tells it."""
    if machine.device == "cpu":
        slower = 1.0 if dtype in machine.cpu_units else CPU_WITHOUT_UNITS_COST.get(dtype, 1.0)
        return CPU_SHARE * _matmul_flops_per_second() / slower
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
    if peak is None:
        peak = _by_cores(gpu, dtype)
    return None if peak is None else MATMUL_SHARE * peak


def _by_cores(gpu: Gpu, dtype: MatmulDtype) -> float | None:
    """Two operations for each core and cycle, and what tensor cores at least bring."""
    if gpu.cores is None or gpu.max_sm_clock_hertz is None:
        return None
    plain = 2.0 * gpu.cores * gpu.max_sm_clock_hertz
    has_units = gpu.compute_capability is not None and gpu.compute_capability >= FIRST_TENSOR_CORES
    return plain * HALF_OVER_FP32 if has_units and dtype in ("bfloat16", "float16") else plain


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


# What earlier runs of a suite on hardware like this machine's tell of how long trials take.


@dataclass(frozen=True)
class History:
    """Completed trials, those of the newest run last."""

    trials: list[Record] = field(default_factory=list)
    """Without those that waited for a server to start."""
    start_seconds: float | None = None
    """What a trial waits for its interpreter's imports, on average; None: not known."""


def past_trials(suite_folder: Path, machine: Machine) -> History:
    """Of all runs of a suite that ran on hardware of this machine's kind; what can't be read says nothing."""
    trials, starts = [], []
    for path in sorted(suite_folder.glob(f"*/{RECORDS_FILE}")):
        if not _is_alike(path.parent, machine):
            continue
        done = [record for record in read_records(path)[0] if isinstance(record.outcome, Completed)]
        waited = _that_waited(done)
        trials += [record for record in done if not any(record is each for each in waited)]
        starts += [_beyond_the_others(record, done) for record in waited]
    return History(trials, fmean(starts) if starts else None)


def _is_alike(run: Path, machine: Machine) -> bool:
    """Whether the run's GPUs are of the kind of this machine's, or its processor and the cores of it are."""
    try:
        then = read_json(run / ENVIRONMENT)
    except UserError:
        return False
    gpus = {gpu.get("name") for gpu in then.get("gpus") or []}
    if machine.device == "cuda":
        return bool(gpus) and gpus <= {gpu.name for gpu in machine.gpus}
    limits = [then.get("cores_by_affinity"), then.get("cores_by_cgroup")]
    cores = min((float(limit) for limit in limits if limit is not None), default=None)
    return not gpus and then.get("cpu_model") == cpu_model() and cores == usable_cores()


def _that_waited(done: Sequence[Record]) -> list[Record]:
    """The first trial of each interpreter, which waited for its imports, where its option has another.

    Of a run that was resumed the first of its first part alone is known.
    """
    first = {record.trial.every_setting().get("python"): record for record in reversed(done)}.values()
    alike = Counter(record.trial.option for record in done)
    return [record for record in first if alike[record.trial.option] > 1]


def _beyond_the_others(waited: Record, done: Sequence[Record]) -> float:
    others = [r.wall_seconds for r in done if r.trial.option == waited.trial.option and r is not waited]
    return max(0.0, waited.wall_seconds - fmean(others))


def does_like_work(record: Record, settings: dict[str, Any], parameters: int | None) -> bool:
    """Whether a trial of these settings and a model of so many parameters takes as long per token as the record's.

    What the optimizer's numbers are, and the global batch, changes nothing of what a micro-batch takes.
    """
    if parameters is None or record.identity is None or record.identity.parameters != parameters:
        return False
    return _that_take_time(record.trial.every_setting()) == _that_take_time(settings)


def _that_take_time(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if name != "global_batch_size" and value is not None}
    optimizer = {name: value for name, value in kept.get("optimizer", {}).items() if not isinstance(value, float)}
    return {**kept, "optimizer": optimizer}


def seconds_of(job: Job, record: Record, least_timed_seconds: float) -> float:
    """What the job takes in the settings of a trial that did it, or another of such work, before.

    Steps by their tokens, evaluations by the tokens that they score; what is neither stays as it was.
    """
    assert isinstance(record.outcome, Completed)
    before = record.outcome.measurement
    step = _seconds_per_token(before) * job.tokens_per_step
    compiling = before.compile_seconds or 0.0
    timed = (job.max_steps - job.timing.warmup_steps) * step
    return (
        _beside(before, record.wall_seconds)
        + compiling
        + job.max_steps * step
        + max(0.0, least_timed_seconds - max(0.0, timed))
        + _evaluation_seconds(job, record, step)
    )


def _seconds_per_token(before: Measurement) -> float:
    if before.step_time_median_seconds is not None:
        return before.step_time_median_seconds / before.tokens_per_step
    steps = before.steps_applied + before.steps_skipped
    return before.training_seconds / max(1, steps * before.tokens_per_step)


def _beside(before: Measurement, wall_seconds: float) -> float:
    """Of a trial's wall, what was neither training, timing nor evaluating: starting and ending."""
    steps = before.steps_applied + before.steps_skipped
    added = max(0, before.timed_steps - steps) * (before.step_time_median_seconds or 0.0)
    return max(0.0, wall_seconds - before.training_seconds - before.evaluation_seconds - added)


def scored_tokens(job: Job) -> int:
    """Held-out tokens of all evaluations of a trial."""
    if not isinstance(job.eval, Eval):
        return 0
    between = (job.max_steps - 1) // job.eval.every_steps if job.eval.every_steps else 0
    return job.eval.tokens * (1 + between + job.eval.at_start)


def _evaluation_seconds(job: Job, record: Record, step_seconds: float) -> float:
    """As the record's went; where it had none, a token is taken to be scored as slowly as it is trained."""
    assert isinstance(record.outcome, Completed)
    before, asked = record.outcome.measurement, scored_tokens(job)
    scored = (before.heldout_tokens or 0) * len(record.evaluation_curve)
    if scored:
        return before.evaluation_seconds * asked / scored
    return step_seconds * asked / job.tokens_per_step


# How long a run will take: from earlier trials on this machine, else a rough estimate.


TRIAL_SECONDS = {"cpu": 0.2, "cuda": 3.0}
"""What a trial costs beyond its steps and evaluations: on CUDA its context, the libraries' handles and the kernels,
which are loaded when they are first used. The latter is a guess until a trial has told it."""
COMPILE_SECONDS = 30.0
"""What torch.compile costs once per trial; seen with small models."""
IMPORT_SECONDS = 7.0
"""What the first trial of an interpreter waits for torch and transformers: five to ten seconds (worker.server)."""
SETTLE_SECONDS = {"cpu": 0.0, "cuda": 1.0}
"""Before each trial, until the GPU is seen idle: the driver's utilisation is of up to the last second."""


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of one trial of each option that can run, and where the figure comes from."""

    seconds: dict[str, float]
    from_records: int
    """Options whose figure comes from earlier trials; the others' are rough."""


def estimate(plan: Plan, machine: Machine, history: History) -> Estimate | None:
    """None where neither earlier trials nor the machine's rate say anything."""
    seconds: dict[str, float] = {}
    told = 0
    same = _of_these_trials(plan, history)
    for planned in plan.options:
        if planned.unsupported:
            continue
        name = planned.option.name
        known = same[name] if name in same else _of_like_trials(plan, planned, history)
        told += known is not None
        guess = _rough_seconds(plan, planned, machine) if known is None else known
        if guess is None:
            return None
        seconds[name] = guess + SETTLE_SECONDS[plan.suite.device]
    return Estimate(seconds, from_records=told)


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


def _of_these_trials(plan: Plan, history: History) -> dict[str, float]:
    """By option, what its very trials took: this code, these settings, one of the suite's seeds."""
    ids = {planned.trial.trial_id: planned.trial.option for planned in plan.trials}
    walls: dict[str, list[float]] = {}
    for record in history.trials:
        name = ids.get(record.trial.trial_id)
        if name and isinstance(record.outcome, Completed):
            walls.setdefault(name, []).append(record.wall_seconds)
    return {name: fmean(values) for name, values in walls.items()}


def _of_like_trials(plan: Plan, planned: PlannedOption, history: History) -> float | None:
    """From trials of other seeds, rates or lengths, scaled to the option's job; None: there are none."""
    choices = planned.option.choices
    settings, job = choices.model_dump(mode="json"), plan.suite.job.of(choices)
    least = job.timing.least_seconds(plan.suite.device)
    found = [
        seconds_of(job, record, least)
        for record in history.trials
        if does_like_work(record, settings, planned.parameters)
    ]
    return fmean(found) if found else None


def _rough_seconds(plan: Plan, planned: PlannedOption, machine: Machine) -> float | None:
    """6 FLOPs per parameter and training token (Kaplan et al. 2020, arXiv:2001.08361), 2 in fp32 per scored one."""
    choices, device = planned.option.choices, plan.suite.device
    compiled = choices.compile.mode is not None
    rate = training_flops_per_second(machine, matmul_dtype(choices), compiled=compiled)
    scoring_rate = training_flops_per_second(machine, "float32", compiled=False)
    if rate is None or scoring_rate is None or planned.parameters is None:
        return None
    job = plan.suite.job.of(choices)
    # On a CPU the ranks share the cores.
    ranks = planned.world_size if device == "cuda" else 1
    step = 6.0 * planned.parameters * job.tokens_per_step / rate / ranks
    timed = max(0.0, (job.max_steps - job.timing.warmup_steps) * step)
    return (
        TRIAL_SECONDS[device]
        + (COMPILE_SECONDS if compiled else 0.0)
        + job.max_steps * step
        + max(0.0, job.timing.least_seconds(device) - timed)
        + 2.0 * planned.parameters * scored_tokens(job) / scoring_rate / ranks
    )
