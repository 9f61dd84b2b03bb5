"""Everything that is settled before a trial is launched: suite, device, data, environment, plan."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from selectbench.choices.tokenizer import AnyTokenizer
from selectbench.data.prepare import Prepared, check_enough, prepare, streamed
from selectbench.data.rows import dataset_commit
from selectbench.errors import MissingPackageError, UnreachableError, UserError
from selectbench.launch.gpu_claim import GpuClaim, candidates, claim_gpus
from selectbench.launch.server import server_environment
from selectbench.machine import INSTALL, Machine, inspect_machine, wrong_device_reason, wrong_system_reason
from selectbench.nvml import Gpu
from selectbench.nvml.same_device import first_difference
from selectbench.nvml.torch_devices import PROBE, read_probe
from selectbench.plan.gpu_need import GpuNeed, gpu_need, gpus_used
from selectbench.plan.machine_choices import settled_for
from selectbench.plan.plan import Plan, make_plan
from selectbench.record.environment import code_sha256, collect_environment
from selectbench.suite.load import load_suite
from selectbench.suite.shipped import find
from selectbench.suite.suite import Suite

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
