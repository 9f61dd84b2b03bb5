"""Another Python interpreter that trials may run in: what it holds, asked of itself once. No torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectbench.errors import UserError
from selectbench.machine import Machine, cuda_version_in, pip_install, unusable_gpu_reason
from selectbench.nvml import gpus

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OLDEST_PYTHON = (3, 11)
WORKER_PACKAGES = (
    "msgspec", "numpy", "nvidia-ml-py", "packaging", "pydantic", "safetensors", "torch", "transformers",
)  # fmt: skip
"""What the worker imports whatever the choices are."""
PROBE_SECONDS = 60
ITS_OWN = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONEXECUTABLE",
    "__PYVENV_LAUNCHER__",
    "VIRTUAL_ENV",
    "VIRTUAL_ENV_PROMPT",
)
"""Variables that tie a process to the interpreter it was started from."""
PROBE = """\
import sys
sys.path = [folder for folder in sys.path if folder]
import json, platform
found = {"implementation": platform.python_implementation(), "version": list(sys.version_info[:3]),
         "packages": {}, "torch": None}
try:
    from importlib import metadata, util
except ImportError:
    metadata = None
for distribution in metadata.distributions() if metadata else []:
    try:
        name, version = distribution.metadata["Name"], distribution.version
    except Exception:
        continue  # a distribution without its metadata counts as none
    if name and version:
        found["packages"].setdefault(name, version)
if metadata:
    spec = util.find_spec("torch")
    found["torch"] = spec.origin if spec else None
print("\\n" + json.dumps(found))
"""
"""Runs under any Python 3, and tells what it finds on the last line that it prints."""


@dataclass(frozen=True)
class Interpreter:
    """What an interpreter says of itself."""

    path: str
    """As the suite names it."""
    python: str
    """Implementation and version, `CPython 3.12.1`."""
    version: tuple[int, int]
    """(3, 12)."""
    packages: Mapping[str, str]
    """Versions by canonical distribution name."""
    torch_cuda_version: str | None
    """The CUDA that its torch is built for; None: built without, or no torch."""


@cache
def inspect_interpreter(path: str) -> Interpreter:
    """Ask the interpreter. Raises UserError where it does not start, with what it printed."""
    from packaging.utils import canonicalize_name  # slow to import, and of no use to a report

    found = _probe(path)
    versions = {str(canonicalize_name(name)): version for name, version in found["packages"].items()}
    return Interpreter(
        path=path,
        python=f"{found['implementation']} {'.'.join(map(str, found['version']))}",
        version=(found["version"][0], found["version"][1]),
        packages=versions,
        torch_cuda_version=cuda_version_in(Path(found["torch"])) if found["torch"] else None,
    )


def _probe(path: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [path, "-c", PROBE], capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL, env=foreign_environment(path), check=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"python {path}: cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"python {path}: does not answer within {PROBE_SECONDS} s") from None
    try:
        found: dict[str, Any] = json.loads(done.stdout.rstrip().splitlines()[-1])
    except (ValueError, IndexError):
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        status = f"exit status {done.returncode}"
        raise UserError(f"python {path}: is no Python that works ({status}){f': {said}' if said else ''}") from None
    return found


def foreign_environment(path: str) -> dict[str, str]:
    """Our variables without what ties them to its own interpreter; the other's tools come first."""
    kept = {name: value for name, value in os.environ.items() if name not in ITS_OWN}
    return {**kept, "PATH": os.pathsep.join([str(Path(path).parent), os.environ.get("PATH", os.defpath)])}


def machine_for(machine: Machine, python: str | None) -> Machine:
    """The machine as trials see it that run in this interpreter; None: in the bench's own.

    Raises UserError where the interpreter does not start.
    """
    if python is None:
        return machine
    return replace(machine, packages=dict(inspect_interpreter(python).packages), python=python)


def worker_problem(machine: Machine) -> str | None:
    """What keeps any trial from running in the machine's other interpreter, with the remedy; None where nothing."""
    if machine.python is None:
        return None
    found = inspect_interpreter(machine.python)
    if found.version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return f"python {machine.python}: is {found.python}, Python {oldest} or later is needed"
    lacking = [r for r in _requirements(WORKER_PACKAGES) if not _satisfies(found.packages.get(r.name), r)]
    if lacking:
        words = ", ".join(_lack(requirement, found.packages.get(requirement.name)) for requirement in lacking)
        return f"python {machine.python}: {words}: {pip_install(machine.python, [str(r) for r in lacking])}"
    return _gpu_problem(machine, found)


def _gpu_problem(machine: Machine, found: Interpreter) -> str | None:
    visible = gpus() if machine.device == "cuda" else []
    if not visible:
        return None
    reason = unusable_gpu_reason(visible[0], found.packages["torch"], found.torch_cuda_version)
    return reason and f"python {found.path}: {reason}"


def _requirements(names: Sequence[str]) -> list[Requirement]:
    """As the installed package itself states them; by name alone where it is not installed."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        texts = metadata.requires("selectbench") or []
    except metadata.PackageNotFoundError:
        texts = []
    stated = {canonicalize_name(r.name): r.specifier for r in map(Requirement, texts)}
    return [Requirement(f"{name}{stated.get(canonicalize_name(name), '')}") for name in names]


def _satisfies(version: str | None, requirement: Requirement) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _lack(requirement: Requirement, version: str | None) -> str:
    return f"{requirement.name} is not installed" if version is None else f"{requirement.name} is {version}"
