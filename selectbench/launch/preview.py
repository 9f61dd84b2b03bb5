"""What `plan` shows: the run that would be, without launching anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selectbench import units
from selectbench.data.prepare import streamed
from selectbench.data.prepared import Prepared
from selectbench.data.rows import download_bytes
from selectbench.errors import MissingPackageError, NotDownloadedError, UserError
from selectbench.launch.budget import within
from selectbench.launch.gpu_claim import idle_now
from selectbench.launch.preparation import Request, device_problem, prepare_data, resolve, way_without_network
from selectbench.launch.stages import Ground, stages
from selectbench.machine import INSTALL, Machine, wrong_system_reason
from selectbench.plan.estimate import Estimate, StageCost, estimate, stage_costs
from selectbench.plan.gpu_need import gpu_need
from selectbench.plan.history import past_trials
from selectbench.plan.machine_choices import settled_for
from selectbench.plan.plan import Plan, make_plan
from selectbench.record.environment import code_sha256
from selectbench.suite.data import Dataset
from selectbench.suite.suite import Suite


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
