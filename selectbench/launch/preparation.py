"""Everything that is settled before a trial is launched: suite, device, data, environment, plan and orders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selectbench.choices.model import AnyTokenizer, OwnModel, PretrainedModel
from selectbench.data.prepare import prepare, streamed
from selectbench.data.prepared import Prepared, check_enough, pinned_model
from selectbench.data.reading import dataset_commit
from selectbench.errors import MissingPackageError, UnreachableError, UserError
from selectbench.gpu.devices import PROBE, Gpu, first_difference, read_probe
from selectbench.launch.gpus import GpuClaim, candidates, claim_gpus
from selectbench.launch.trial import server_environment
from selectbench.machine import (
    INSTALL,
    Machine,
    inspect_machine,
    usable_cores,
    wrong_device_reason,
    wrong_system_reason,
)
from selectbench.plan.plan import GpuNeed, Plan, PlannedTrial, gpu_need, gpus_used, make_plan, settled_for
from selectbench.record.environment import code_sha256, collect_environment
from selectbench.record.run_folder import TRIALS, WEIGHTS
from selectbench.record.wire import Order
from selectbench.suite.job import Job
from selectbench.suite.load import find, load_suite
from selectbench.suite.suite import Option, Suite

_OWN_TEXT = """text of your own, --set 'job.data={text: ["corpus/*.txt"]}'"""


@dataclass(frozen=True)
class Request:
    """What the user asked for on the command line."""

    suite: str
    """A path, or the name of a shipped suite."""
    profile: str | None = None
    settings: Sequence[str] = field(default_factory=list)
    """`PATH=VALUE` each."""
    axes: Sequence[str] = field(default_factory=list)
    """`PATH=A,B` each."""
    seeds: str | None = None
    quick: bool = False
    gpus: str | None = None
    """Numbers, UUIDs or beginnings of UUIDs, by commas; None: the idle ones."""
    wait: bool = False
    """For GPUs to become free."""


@dataclass(frozen=True)
class Preparation:
    """What a run starts from."""

    suite: Suite
    machine: Machine
    prepared: Mapping[str, Prepared]
    """By option: tokenizers may differ."""
    environment: dict[str, Any]
    plan: Plan
    claim: GpuClaim
    """The GPUs that trials run on, to be released at the end; none of them on a CPU."""


def resolve(request: Request) -> tuple[Suite, Machine]:
    """The suite for this machine's device, and the machine with all GPUs that it may take.

    Raises UserError with everything that is wrong with the suite, or with what names GPUs.
    """
    device = "cpu" if request.profile == "cpu" else inspect_machine().device
    suite = load_suite(
        request.suite, device=device, profile=request.profile, settings=request.settings,
        axes=request.axes, seeds=request.seeds, quick=request.quick,
    )  # fmt: skip
    machine = inspect_machine(suite.device)
    if request.gpus is None:
        return suite, machine
    if suite.device != "cuda":
        raise UserError(f"--gpus {request.gpus}: this job runs on the {suite.device}; leave --gpus out")
    return suite, machine.on([candidate.gpu for candidate in candidates(request.gpus)])


def prepare_all(request: Request, notify: Callable[[str], None]) -> Preparation:
    """Settle everything and take the GPUs; nothing is launched. Raises UserError, with no GPU taken."""
    if (reason := wrong_system_reason()) is not None:
        raise UserError(reason)
    suite, machine = resolve(request)
    if (reason := device_problem(request, suite)) is not None:
        raise UserError(reason)
    if not machine.trains:
        raise MissingPackageError(f"training needs torch, which is not installed: {INSTALL}")
    with way_without_network(request):
        prepared = prepare_data(suite, notify)
    with ExitStack() as undo:
        need = gpu_need(settled_for(suite, machine, prepared), machine)
        claim = undo.enter_context(_claim(request, need, suite.device, notify))
        if suite.device == "cuda":
            machine = machine.on(claim.gpus)
        suite = settled_for(suite, machine, prepared)
        plan = make_plan(suite, machine, prepared, code_sha256())
        claim.keep(gpus_used(plan))
        environment = _environment(request, suite, claim.gpus)
        undo.pop_all()
    environment["data"] = data_facts(suite, prepared, plan)
    if plan.pretrained:
        environment["pretrained"] = plan.pretrained
    if suite.left_open.machine_choices:
        environment["machine_choices"] = [one.model_dump(mode="json") for one in suite.left_open.machine_choices]
    return Preparation(suite, machine, prepared, environment, plan, claim)


@contextmanager
def way_without_network(request: Request) -> Iterator[None]:
    """Where the hub can't be reached, says what works without it."""
    try:
        yield
    except UnreachableError as error:
        other = f"selectbench run {request.suite}" if request.profile else _OWN_TEXT
        told = f"without a network this works: {other}"
        raise UserError(*(f"{problem}; {told}" for problem in error.problems)) from None


def prepare_data(suite: Suite, notify: Callable[[str], None], *, downloads: bool = True) -> dict[str, Prepared]:
    """Each option's data. Raises UserError where they can't be had, or are too few.

    `downloads` False: raises NotDownloadedError for rows that would be read as they are downloaded.
    """
    made: dict[AnyTokenizer | None, Prepared] = {}
    for option in suite.options:
        job = suite.job.of(option.choices)
        if job.tokenizer not in made:
            made[job.tokenizer] = prepare(
                job.data,
                job.tokenizer,
                cleaning=job.cleaning,
                specials=job.specials,
                code=suite.code,
                notify=notify,
                evaluates=job.evaluates,
                downloads=downloads,
            )
        check_enough(made[job.tokenizer], job)
    return {option.name: made[suite.job.of(option.choices).tokenizer] for option in suite.options}


def _claim(request: Request, need: GpuNeed, device: str, notify: Callable[[str], None]) -> GpuClaim:
    return claim_gpus(request.gpus, need, wait=request.wait, notify=notify) if device == "cuda" else GpuClaim()


def _environment(request: Request, suite: Suite, taken: Sequence[Gpu]) -> dict[str, Any]:
    interpreters = {o.name: o.choices.python for o in suite.options if o.choices.python is not None}
    return collect_environment(find(request.suite).parent, interpreters, taken, suite.device)


def device_problem(request: Request, suite: Suite) -> str | None:
    """Why the suite would not run on the device that the user expects, or None.

    A machine with a GPU runs on it unless the CPU is asked for by name.
    """
    return wrong_device_reason("cpu" if request.profile == "cpu" else "cuda" if suite.device == "cuda" else None)


def data_facts(suite: Suite, prepared: Mapping[str, Prepared], plan: Plan) -> dict[str, Any]:
    """What environment.json says of the data: counts and content key, no path; the baseline's, and what differs."""
    own = prepared[suite.baseline]
    commits = {one.dataset: dataset_commit(one) for one in streamed(suite.job.data)}
    others = {name: one.facts() for name, one in prepared.items() if one.key != own.key}
    more = {"commits": commits, "by_option": others}
    return {**own.facts(), "epochs": plan.epochs, **{key: value for key, value in more.items() if value}}


def check_cuda(plan: Plan, gpus: Sequence[Gpu]) -> None:
    """Ask torch, in a process of its own for each interpreter, whether it can use these GPUs, in this order.

    It is asked where trials run: CUDA_VISIBLE_DEVICES names the GPUs. Raises UserError.
    """
    if plan.suite.device != "cuda":
        return
    for python in dict.fromkeys(p.option.choices.python for p in plan.options if p.unsupported is None):
        check_torch_shows(gpus, python)


def check_torch_shows(gpus: Sequence[Gpu], python: str | None) -> None:
    """Raises UserError where the interpreter's torch does not show exactly these GPUs, in this order."""
    probe = subprocess.run(
        [python or sys.executable, "-P", "-c", PROBE], capture_output=True, text=True, check=False,
        env=server_environment(python, "cuda", gpus),
    )  # fmt: skip
    shown = read_probe(probe.stdout) if probe.returncode == 0 else None
    if not shown:
        raise UserError(_cuda_refused(python, probe.stderr))
    if (difference := first_difference(shown, gpus)) is not None:
        raise UserError(f"torch{_of(python)} does not run on the GPUs that were taken: {difference}")


def _of(python: str | None) -> str:
    return f" of python {python}" if python else ""


def _cuda_refused(python: str | None, stderr: str) -> str:
    said = "\n".join(stderr.strip().splitlines()[-3:])
    return (
        f"this job runs on CUDA, but torch{_of(python)} cannot use the GPU"
        + (f": {said}" if said else "")
        + " (`selectbench doctor` says what is missing; --profile cpu runs on the CPU instead)"
    )


# What a trial and its server are told.


def make_order(preparation: Preparation, planned: PlannedTrial, folder: Path) -> Order:
    """What the worker is told."""
    suite = preparation.suite
    choices = suite.option(planned.trial.option).choices
    world_size = preparation.plan.planned(planned.trial.option).world_size
    return Order(
        trial=planned.trial,
        job=_job_of(preparation, planned.trial.option),
        choices=choices,
        device=suite.device,
        threads=rank_threads(world_size),
        world_size=world_size,
        data_folder=str(preparation.prepared[planned.trial.option].folder),
        trial_folder=str((folder / TRIALS / planned.trial.trial_id).resolve()),
        weights_folder=str((folder / WEIGHTS).resolve()),
        code=suite.code,
        min_timed_seconds=suite.job.timing.least_seconds(suite.device),
    )


def _job_of(preparation: Preparation, option: str) -> Job:
    job = preparation.suite.job.of(preparation.suite.option(option).choices)
    return job.model_copy(update={"model": pinned_model(job.model, preparation.plan.pretrained.get(option))})


def rank_threads(world_size: int) -> int:
    """Threads of a rank's CPU operations: OMP_NUM_THREADS where the user set it, else its share of the cores."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdigit() and int(stated) > 0 else max(1, int(usable_cores()) // world_size)


def preload(preparation: Preparation, python: str | None) -> list[str]:
    """What an interpreter's server imports once: the worker, the model's family, what the choices name."""
    modules = ["selectbench.worker.trial"]
    for planned in preparation.plan.options:
        choices = planned.option.choices
        if planned.unsupported is None and choices.python == python:
            modules += _model_modules(preparation, planned.option)
            modules += [name for choice in choices.each().values() for name in choice.preload]
    return list(dict.fromkeys(modules))


def _model_modules(preparation: Preparation, option: Option) -> list[str]:
    model, vocab_size = preparation.suite.job.of(option.choices).model, preparation.prepared[option.name].vocab_size
    if isinstance(model, OwnModel):  # own code is imported in the trial alone: what it does is the trial's
        return []
    if isinstance(model, PretrainedModel):
        family = model.model_type
        return [f"transformers.models.{family}.modeling_{family}"] if family else []
    family = model.transformers_config(vocab_size, preparation.suite.job.seq_len)["model_type"]
    return [f"transformers.models.{family}.modeling_{family}"]
