"""Everything that is settled before a trial is launched: suite, device, data, environment, plan."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selectbench.data.prepare import Prepared, check_enough, prepare
from selectbench.errors import MissingPackageError, UserError
from selectbench.launch.server import server_environment
from selectbench.machine import INSTALL, Machine, inspect_machine, wrong_device_reason
from selectbench.plan.plan import Plan, make_plan
from selectbench.record.environment import collect_environment
from selectbench.suite.load import load_suite
from selectbench.suite.shipped import find
from selectbench.suite.suite import Suite

CUDA_PROBE = "import torch; print(torch.cuda.is_available())"


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


@dataclass(frozen=True)
class Preparation:
    """What a run starts from."""

    suite: Suite
    machine: Machine
    prepared: Prepared
    environment: dict[str, Any]
    plan: Plan


def resolve(request: Request) -> tuple[Suite, Machine]:
    """The suite for this machine's device. Raises UserError with everything that is wrong with it."""
    suite = load_suite(
        request.suite, device=inspect_machine().device, profile=request.profile, settings=request.settings,
        axes=request.axes, seeds=request.seeds, quick=request.quick,
    )  # fmt: skip
    return suite, inspect_machine(suite.device)


def prepare_all(request: Request, notify: Callable[[str], None]) -> Preparation:
    """Settle everything; nothing is launched. Raises UserError."""
    suite, machine = resolve(request)
    if (reason := device_problem(request, suite)) is not None:
        raise UserError(reason)
    if not machine.trains:
        raise MissingPackageError(f"training needs torch, which is not installed: {INSTALL}")
    prepared = prepare(suite.job.data, suite.job.tokenizer, notify=notify)
    check_enough(prepared, suite.job)
    interpreters = {o.name: o.choices.python for o in suite.options if o.choices.python is not None}
    environment = collect_environment(find(request.suite).parent, interpreters)
    plan = make_plan(suite, machine, prepared, environment["code_sha256"])
    environment["data"] = data_facts(prepared, plan)
    return Preparation(suite, machine, prepared, environment, plan)


def device_problem(request: Request, suite: Suite) -> str | None:
    """Why the suite would not run on the device that the user expects, or None.

    A machine with a GPU runs on it unless the CPU is asked for by name.
    """
    return wrong_device_reason("cpu" if request.profile == "cpu" else "cuda" if suite.device == "cuda" else None)


def data_facts(prepared: Prepared, plan: Plan) -> dict[str, Any]:
    """What environment.json says of the data: counts and content key, no path."""
    facts = {key: value for key, value in asdict(prepared).items() if key != "folder"}
    return {**facts, "epochs": plan.epochs}


def check_cuda(plan: Plan) -> None:
    """Ask torch, in a process of its own for each interpreter, whether it can use the GPU. Raises UserError."""
    if plan.suite.device != "cuda":
        return
    for python in dict.fromkeys(p.option.choices.python for p in plan.options if p.unsupported is None):
        probe = subprocess.run(
            [python or sys.executable, "-P", "-c", CUDA_PROBE], capture_output=True, text=True, check=False,
            env=server_environment(python),
        )  # fmt: skip
        if probe.stdout.strip() != "True":
            raise UserError(_cuda_refused(python, probe.stderr))


def _cuda_refused(python: str | None, stderr: str) -> str:
    said = "\n".join(stderr.strip().splitlines()[-3:])
    return (
        f"this job runs on CUDA, but torch{f' of python {python}' if python else ''} cannot use the GPU"
        + (f": {said}" if said else "")
        + " (`selectbench doctor` says what is missing; --profile cpu runs on the CPU instead)"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping of a run folder. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON mapping was expected")
    return content
