"""What `plan` and `data` show without launching anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selectbench import units
from selectbench.data.prepare import streamed
from selectbench.data.prepared import Look, Prepared, evaluable_tokens, look
from selectbench.data.reading import download_bytes
from selectbench.errors import MissingPackageError, NotDownloadedError, UserError
from selectbench.launch.gpus import idle_now
from selectbench.launch.preparation import Request, device_problem, prepare_data, resolve, way_without_network
from selectbench.launch.stages import Ground, stages, within
from selectbench.machine import INSTALL, Machine, wrong_system_reason
from selectbench.plan.duration import Estimate, StageCost, estimate, past_trials, stage_costs
from selectbench.plan.plan import Plan, gpu_need, heldout_warnings, make_plan, settled_for
from selectbench.record.environment import code_sha256
from selectbench.suite.sources import Dataset
from selectbench.suite.suite import Suite


def prepared_data(request: Request, notify: Callable[[str], None]) -> list[tuple[Prepared, list[str], Look]]:
    """Each distinct preparation with the options that read it. Raises UserError for a wrong suite or unfit data."""
    suite, _ = resolve(request)
    with way_without_network(request):
        by_option = prepare_data(suite, notify)
    options: dict[str, list[str]] = {}
    for name, prepared in by_option.items():
        options.setdefault(prepared.key, []).append(name)
    heldout = {name: evaluable_tokens(prepared, suite.job) for name, prepared in by_option.items()}
    for line in heldout_warnings(suite, heldout):
        notify(f"note: {line}")
    made = {prepared.key: prepared for prepared in by_option.values()}
    return [(made[key], names, look(made[key])) for key, names in options.items()]


# What `plan` shows: the run that would be, without launching anything.


@dataclass(frozen=True)
class Outlook:
    """A plan, what it would cost, and what could not be found out."""

    plan: Plan
    """Of the contest, with what the suite gives the options before anything is searched."""
    estimate: Estimate | None
    costs: list[StageCost]
    """Of every stage in order, the contest the last."""
    notes: list[str]


def preview(
    request: Request, results: Path, notify: Callable[[str], None], budget_seconds: float | None = None
) -> Outlook:
    """Raises UserError for a wrong suite or data; what is missing or in use here are only noted."""
    suite, machine = resolve(request)
    notes = [reason] if (reason := device_problem(request, suite)) is not None else []
    with way_without_network(request):
        prepared = _prepare_if_possible(suite, notify, notes)
    machine = _as_if_it_trained(machine, notes)
    machine = _with_idle_gpus(request, settled_for(suite, machine, prepared), machine, notes)
    suite = settled_for(suite, machine, prepared)
    history = past_trials(results / suite.name, machine)
    own = Ground(suite, machine, prepared, make_plan(suite, machine, prepared, code_sha256()))
    if budget_seconds is not None:
        own, told = within(budget_seconds, own, history)
        notes += told
    costs = stage_costs([(title, stage.plan) for title, stage in stages(own, [])], machine, history)
    return Outlook(own.plan, estimate(own.plan, machine, history), costs, notes)


def _as_if_it_trained(machine: Machine, notes: list[str]) -> Machine:
    """The machine as it would be for training, with a note on what it lacks."""
    if (reason := wrong_system_reason()) is not None:
        notes.append(f"{reason}; planned as if this machine could, with what {INSTALL} brings")
    elif not machine.trains:
        notes.append(f"training needs torch, which is not installed: {INSTALL}; planned as if it were")
    else:
        return machine
    return machine.with_training()


def _with_idle_gpus(request: Request, suite: Suite, machine: Machine, notes: list[str]) -> Machine:
    """The machine with the GPUs that a run would get now."""
    if not machine.gpus:
        return machine
    try:
        found, told = idle_now(request.gpus, gpu_need(suite, machine))
    except UserError as error:  # the folder of locks
        notes += error.problems
        return machine
    notes += told
    return machine.on(found)


def _prepare_if_possible(
    suite: Suite, notify: Callable[[str], None], notes: list[str]
) -> dict[str, Prepared] | None:
    try:
        return prepare_data(suite, notify, downloads=False)
    except MissingPackageError as error:
        notes += error.problems
    except NotDownloadedError:
        notes += [_download(one) for one in streamed(suite.job.data)]
    return None


def _download(data: Dataset) -> str:
    """What a run would download first."""
    return f"a run first downloads about {units.size(download_bytes(data))} of {data.dataset} and keeps its tokens"
