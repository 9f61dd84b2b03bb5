"""What the machine and the software were when trials ran, and the rates that were measured on its GPUs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, TypedDict, cast, get_type_hints

import msgspec

import selectbench
from selectbench import machine
from selectbench.data.prepared import Prepared, cache_root, sealed, unsealed
from selectbench.errors import UserError
from selectbench.gpu.devices import Gpu, gpus, topology
from selectbench.record.record import Recorded
from selectbench.record.run_folder import read_json, reading, write_whole, writing

PACKAGE = Path(selectbench.__file__).parent
_OF_TRIALS = (
    "__init__.py", "cores.py", "errors.py", "machine.py", "text.py", "units.py", "choices/*.py", "record/*.py",
    "worker/*.py", "data/__init__.py", "data/prepared.py", "data/reading.py", "data/tokenizer.py",
    "gpu/__init__.py", "gpu/devices.py", "observe/selectbench_seen.py", "suite/__init__.py", "suite/command.py",
    "suite/document.py", "suite/job.py", "suite/metrics.py", "suite/sources.py", "suite/suite.py",
)  # fmt: skip
"""Held by `tests/worker/test_trial_code.py` against the worker's imports and against what real trials load."""


# What the machine and the software were when trials ran. Every key of environment.json is documented here.
#
# Some runs have more keys. `data`: the facts of `Prepared`, with `commits`, the hub's commit of data sets that were
# read as downloaded. `pretrained`: by option, the commit on the hub of a model that was trained before, or the
# SHA-256 of its folder's files. `nodes`: how many machines a run has, which are alike in all keys.
# `own_files_sha256`: digest of the files that are no modules in folders of own code. `machine_choices`: what the
# suite left to the machine, what was requested, what was taken and why (`suite.suite.MachineChoice`).
#
# Host and user names, folders and secrets stay out: only listed variables are read, and paths in them are cut to
# their last part.


ALLOCATOR_VARIABLES = (
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "MALLOC_ARENA_MAX",
    "MALLOC_CHECK_", "MALLOC_CONF", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_PERTURB_",
    "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD",
)  # fmt: skip
THREAD_VARIABLES = (
    *machine.WAIT_VARIABLES, "OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "OMP_SCHEDULE", "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY", "KMP_SETTINGS", "MKL_NUM_THREADS", "MKL_DYNAMIC", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
SWITCH_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "DNNL_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE", "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_MAX_AUTOTUNE",
)  # fmt: skip
GIT_SECONDS = 20


GPU_FACTS = (
    "name", "memory_total_bytes", "compute_capability", "power_limit_watts", "ecc_enabled", "max_sm_clock_hertz",
)  # fmt: skip
"""Fields of `gpu.devices.Gpu` that environment.json has of each GPU."""


class InterpreterFacts(TypedDict, total=False):
    """Another interpreter that trials run in; its path stays out."""

    python: str
    """Implementation and version."""
    libraries: dict[str, str | None]
    """Versions; None: not installed there."""
    torch_cuda_version: str | None
    """The CUDA that its torch is built for; None: built without."""


class Environment(TypedDict, total=False):
    """environment.json: what may explain a figure, no name of a person or host; earlier files had fewer keys."""

    selectbench_version: str
    """Version of the package."""
    code_sha256: str
    """Digest of the package's .py files that a trial executes, names and content."""
    python: str
    """Implementation and version, `CPython 3.11.7`."""
    system: str
    """Operating system and machine type, `Linux x86_64`."""
    kernel: str
    """Release of the kernel."""
    libc: str
    """C library and its version, '' where unknown."""
    cpu_model: str | None
    """As the kernel names it."""
    cpu_features: list[str]
    """Its vector and matrix instructions that decide how fast a training runs; empty: not known."""
    cpu_count: int | None
    """Logical cores of the machine."""
    cores_by_affinity: int
    """Cores that this process may be scheduled on."""
    cores_by_cgroup: float | None
    """CPU quota in cores; None: no quota."""
    memory_total_bytes: int | None
    """The machine's memory."""
    memory_limit_bytes: int | None
    """The cgroup's limit of memory; None: no limit."""
    gpus: list[dict[str, Any]]
    """`GPU_FACTS` of the GPUs that the run has taken, in the order of ranks; empty for a run on the CPU."""
    driver_version: str | None
    """Version of the NVIDIA driver."""
    cuda_driver_version: tuple[int, int] | None
    """The newest CUDA that the driver runs."""
    gpu_topology: list[list[str | None]]
    """How each GPU reaches each other, as `nvidia-smi topo -m` words it."""
    torch_cuda_version: str | None
    """The CUDA that torch is built for; None: built without."""
    allocator: dict[str, str]
    """Variables that change how memory is allocated and are set; paths are cut to their last part."""
    threads: dict[str, str]
    """Variables that change how many threads run, where and how they wait, as set or given to trials on the CPU."""
    switches: dict[str, str]
    """Variables that change which kernels run and are set."""
    libraries: dict[str, str | None]
    """Versions; None: not installed."""
    interpreters: dict[str, InterpreterFacts]
    """By option, the interpreter that it names; other options run in the bench's interpreter."""
    git_revision: str | None
    """Commit of the repository that holds the suite; None: not in one, or no git."""
    git_dirty: bool | None
    """Whether its tracked files differ from that commit."""


class UnusedRows(TypedDict):
    """Rows of an option's embedding for tokens that the data lack, where they are many: `data.unused_rows`."""

    rows: Annotated[int, msgspec.Meta(ge=1)]
    """Tokens that the model has rows for."""
    entries: int
    """Tokens that the data have."""
    unused: int
    """Parameters in rows of tokens that never occur."""
    parameters: Annotated[int, msgspec.Meta(ge=1)]
    """Parameters of the whole model without biases and norms."""


def _checked(kinds: Mapping[str, Any]) -> Any:
    """A class for checking a mapping, which may lack any of these keys and have others."""
    return msgspec.defstruct("Checked", [(key, kind, None) for key, kind in kinds.items()])


_DATA = {
    **get_type_hints(Prepared), "folder": Any, "epochs": float | None, "commits": dict[str, str],
    "unused_rows": dict[str, UnusedRows],
}  # fmt: skip
_GPU = _checked({key: kind for key, kind in get_type_hints(Gpu).items() if key in GPU_FACTS})
_WHOLE = _checked({
    **get_type_hints(Environment), "gpus": GenericAlias(list, _GPU), "pretrained": dict[str, str] | None,
    "machine_choices": list[dict[str, str]] | None, "command": dict[str, str | int | None] | None,
    "data": _checked({**_DATA, "by_option": GenericAlias(dict, (str, _checked(_DATA))) | None}) | None,
    "lanes": int | None,
})  # fmt: skip
"""With the keys that only some runs have; `lanes`: into how many equal parts the machine was divided."""


def read_environment(path: Path) -> dict[str, Any]:
    """environment.json. Raises UserError where a value does not fit."""
    content = read_json(path)
    with reading(path):
        msgspec.convert(content, _WHOLE)
    return content


def collect_environment(
    suite_folder: Path | None,
    interpreters: Mapping[str, str] | None = None,
    taken: Sequence[Gpu] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """The keys of `Environment`; `taken`: the run's GPUs, None: all. Raises UserError for an interpreter."""
    visible = gpus() if taken is None else list(taken)
    # A repository that git refuses to read counts as none.
    revision = _git_output(suite_folder, "rev-parse", "--verify", "HEAD") if suite_folder else None
    changes = ("status", "--porcelain", "--untracked-files=no")  # of tracked files
    status = _git_output(suite_folder, *changes) if suite_folder and revision is not None else None
    environment = Environment(
        selectbench_version=selectbench.__version__,
        code_sha256=code_sha256(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.machine()}",
        kernel=platform.release(),
        libc=" ".join(platform.libc_ver()).strip(),
        cpu_model=machine.cpu_model(),
        cpu_features=machine.cpu_features(),
        cpu_count=os.cpu_count(),
        cores_by_affinity=len(machine.schedulable_cores()),
        cores_by_cgroup=machine.cgroup_cpu_quota(),
        memory_total_bytes=machine.memory_total_bytes(),
        memory_limit_bytes=machine.cgroup_memory_limit_bytes(),
        gpus=[{key: getattr(gpu, key) for key in GPU_FACTS} for gpu in visible],
        driver_version=visible[0].driver_version if visible else None,
        cuda_driver_version=visible[0].cuda_driver_version if visible else None,
        gpu_topology=topology(visible),
        torch_cuda_version=machine.torch_cuda_version(),
        allocator=_present_variables(ALLOCATOR_VARIABLES),
        threads=_present_variables(THREAD_VARIABLES) | machine.short_wait(os.environ, device),
        switches=_present_variables(SWITCH_VARIABLES),
        libraries={name: machine.installed_version(name) for name in machine.LIBRARIES},
        interpreters={
            option: InterpreterFacts(
                python=(facts := machine.inspect_interpreter(path)).python,
                libraries={name: facts.packages.get(name) for name in machine.LIBRARIES},
                torch_cuda_version=facts.torch_cuda_version,
            )
            for option, path in (interpreters or {}).items()
        },
        git_revision=revision,
        git_dirty=None if status is None else bool(status),
    )
    return cast("dict[str, Any]", msgspec.json.decode(msgspec.json.encode(environment)))  # without tuples


@cache
def code_sha256(package: Path = PACKAGE) -> str:
    """Hash of the package's code that a trial executes: names and content of its files."""
    digest = hashlib.sha256()
    for path in trial_files(package):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def trial_files(package: Path = PACKAGE) -> list[Path]:
    """The worker and all that it imports of the package at any depth."""
    return sorted(path for pattern in _OF_TRIALS for path in package.glob(pattern))


def _present_variables(names: tuple[str, ...]) -> dict[str, str]:
    return {name: without_folders(os.environ[name]) for name in names if name in os.environ}


def without_folders(value: str) -> str:
    """Every path in a variable's value cut to its last part, as folders hold user and project names."""
    return re.sub(r"[^\s:=,;]*/", "", value)


def _git_output(folder: Path, *arguments: str) -> str | None:
    """What git prints in the folder; None where it fails or is missing."""
    # Without the optional lock a status never blocks a commit of the user's.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    # GIT_DIR and the like, as a hook sets them, would name another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True, env=variables
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


# How fast large matrix products ran on each GPU of this machine, kept for later runs.


class Rate(Recorded, frozen=True, kw_only=True):
    """The best rate of several sizes of matrices."""

    flops_per_second: Annotated[float, msgspec.Meta(gt=0)]
    """The rate, with 2 x size^3 FLOPs a product."""
    size: int
    """Rows of the square matrices."""


class Calibration(Recorded, frozen=True, kw_only=True):
    """The measured rates of one device."""

    name: str
    """As the driver calls it."""
    rates: dict[str, Rate]
    """Rates by dtype (`float32`, `tf32`, `bfloat16`, `float16`), with the settings that trials have."""
    torch_version: str
    """The torch whose kernels were measured; a rate counts for runs with another one too."""
    measured_at: str
    """When it was measured, UTC, ISO 8601."""


def _calibration_file(uuid: str) -> Path:
    """A GPU's calibration file; each GPU has one, so that concurrent writers need no lock."""
    return cache_root() / f"calibration-{uuid.replace('/', '_')}.json"


def read_calibration(uuid: str) -> Calibration | None:
    """A GPU's calibration; None: it was never calibrated here. Raises UserError where the file is damaged."""
    try:
        return msgspec.convert(unsealed(_calibration_file(uuid).read_bytes()), Calibration)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is damaged"
        remedy = "`selectbench doctor --calibrate` writes it anew"
        raise UserError(f"{_calibration_file(uuid)}: cannot read: {problem}; {remedy}") from None


def stored_rates(uuid: str) -> dict[str, float]:
    """A GPU's rates in FLOP/s by dtype; empty where it was never calibrated or the file can't be read."""
    try:
        calibration = read_calibration(uuid)
    except UserError:  # `doctor` reports it
        return {}
    return {dtype: rate.flops_per_second for dtype, rate in calibration.rates.items()} if calibration else {}


def write_calibration(uuid: str, calibration: Calibration) -> None:
    """Write a GPU's calibration over its last one. Raises UserError."""
    file = _calibration_file(uuid)
    with writing(file, ""):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, sealed(msgspec.to_builtins(calibration)))
