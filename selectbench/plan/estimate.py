"""How long a run will take: from earlier trials on this machine, else a rough estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from selectbench.machine import Machine
from selectbench.plan.history import History, does_like_work, scored_tokens, seconds_of
from selectbench.plan.peaks import matmul_dtype
from selectbench.plan.plan import Plan, PlannedOption
from selectbench.plan.rates import training_flops_per_second
from selectbench.record.record import Completed

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
