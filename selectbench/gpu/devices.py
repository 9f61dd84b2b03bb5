"""The GPUs that this process may use, as the driver (NVML), torch and their data sheets describe them.

NVML creates no CUDA context, so asking it is free and leaves a process fit to fork. What a GPU or an older driver
does not answer is None. Torch is asked in another process: nothing here imports it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, takewhile, zip_longest
from pathlib import Path
from typing import Any, Literal

import msgspec
import pynvml

MatmulDtype = Literal["float32", "tf32", "bfloat16", "float16"]
_NO_ANSWER: tuple[type[Exception], ...] = (
    pynvml.NVMLError,
    # Newer bindings' way to say that the driver is too old for a call's current version.
    getattr(pynvml, "NVMLLibraryMismatchError", pynvml.NVMLError),
)


@contextmanager
def started() -> Iterator[None]:
    """Inside, NVML is loaded. Raises pynvml.NVMLError where there is no driver."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def problem() -> str | None:
    """Why NVML cannot be asked, in the driver's words, or None where it can."""
    try:
        with started():
            return None
    except pynvml.NVMLError as error:
        return str(error)


def board_of(handle: Any) -> Any:
    """The handle of the GPU that a MIG slice is on; the handle itself where it is no slice."""
    parent = ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle)
    return handle if parent is None else parent


def ask(call: Callable[..., Any], *arguments: Any) -> Any | None:
    """The call's answer, or None where this GPU or this driver has none."""
    try:
        answer = call(*arguments)
    except _NO_ANSWER:
        return None
    return tuple(answer) if isinstance(answer, list) else answer


# Torch's CUDA devices, which another process asks torch for: this one stays without torch and CUDA.
#
# CUDA numbers boards by speed, or by bus under CUDA_DEVICE_ORDER=PCI_BUS_ID; NVML always by bus. Where a number
# alone does not say which board is meant, UUID and bus id do.


PROBE = """\
import json
import torch
def facts(found):
    place = [getattr(found, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    uuid = getattr(found, "uuid", None)
    return [None if uuid is None else str(uuid), None if None in place else "{:08X}:{:02X}:{:02X}.0".format(*place)]
there = torch.cuda.is_available()
devices = [facts(torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())] if there else []
print("\\n" + json.dumps(devices))
"""
"""Prints, on its last line, UUID and bus id of each device; runs under any Python that holds torch."""
FOR_CUDA_ONLY = """\
import runpy, sys
from importlib.util import find_spec
from pathlib import Path
torch = find_spec("torch")
if torch is None or not runpy.run_path(str(Path(torch.origin).with_name("version.py"))).get("cuda"):
    sys.exit("torch is not built for CUDA")
"""
"""Ends the probe before it spends seconds on importing a torch without CUDA."""
PROBE_SECONDS = 120


class TorchDevice(msgspec.Struct, frozen=True):
    """One of torch's CUDA devices, as trials report them too; None: this torch does not report it."""

    uuid: str | None
    """UUID without `GPU-`; that of the slice or of its board where MIG is on."""
    pci_bus_id: str | None
    """`00000000:3B:00.0`."""

    def __str__(self) -> str:
        return " at ".join(filter(None, (self.uuid, self.pci_bus_id))) or "a device that torch does not name"


def read_probe(output: str) -> list[TorchDevice] | None:
    """The devices that the probe printed, in torch's order; None: it did not run to its end."""
    try:
        return [TorchDevice(*facts) for facts in json.loads(output.rstrip().rpartition("\n")[2])]
    except (ValueError, TypeError):
        return None


def devices_of_torch() -> list[TorchDevice] | None:
    """The CUDA devices of this interpreter's torch, in its order; None: no torch built for CUDA, or it fails."""
    return _ask(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"))


@cache
def _ask(_visible: str | None, _order: str | None) -> list[TorchDevice] | None:
    """`devices_of_torch`, cached by the two variables, as torch takes seconds to start."""
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-c", FOR_CUDA_ONLY + PROBE], capture_output=True, text=True, check=False,
            timeout=PROBE_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_probe(process.stdout) or None if process.returncode == 0 else None


def same_uuid(device: TorchDevice, uuids: Sequence[str]) -> bool:
    """Whether torch's device has one of these UUIDs of NVML's; torch leaves out the `GPU-` or `MIG-` before it."""
    return device.uuid is not None and device.uuid.lower() in {u.partition("-")[2].lower() for u in uuids}


def same_bus_id(device: TorchDevice, bus_id: str | None) -> bool:
    """Whether torch's device has NVML's bus id."""
    if device.pci_bus_id is None or bus_id is None:
        return False
    domain, _, rest = bus_id.upper().partition(":")
    return device.pci_bus_id.upper() == f"{domain:0>8}:{rest}"  # older drivers report four digits of the domain


# Which of NVML's devices CUDA would show this process, and in which order.
#
# By CUDA's programming guide (CUDA_VISIBLE_DEVICES) and the MIG user guide (CUDA device enumeration): a board with
# MIG on is not usable itself, only its slices are. Drivers before 570 show a process one slice and no other device
# beside it; later ones show a slice of every GPU instance.


SEVERAL_SLICES_DRIVER = 570
"""The first driver that shows a process more than one slice."""


def visible_handles() -> list[Any]:
    """Handles of boards without MIG and of slices. Call while NVML is started; raises pynvml.NVMLError.

    CUDA_VISIBLE_DEVICES is honoured as a list of indices, UUIDs or beginnings of UUIDs; as CUDA does, everything
    from the first unknown entry on is hidden, and everything where a device is named twice. Numbers are CUDA's
    own: where they may differ from NVML's, torch is asked; where that fails they are taken for NVML's. A number,
    or a whole board's UUID, stands for the board's first slice where it has MIG on.
    """
    # By NVML's index; None for a board that has fallen off the bus.
    boards = [ask(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(pynvml.nvmlDeviceGetCount())]
    devices = [device for board in boards for device in devices_on(board)]
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return _shown_together(devices)
    entries = [entry.strip() for entry in variable.split(",") if entry.strip()]
    if _numbers_are_unsure(entries, boards) and (shown := devices_of_torch()):
        ordered = in_torch_order(shown, devices)
        if ordered is not None:
            return ordered
    named_handles = list(takewhile(lambda handle: handle is not None, (_find(entry, boards) for entry in entries)))
    uuids = {pynvml.nvmlDeviceGetUUID(handle) for handle in named_handles}
    return _shown_together(named_handles if len(uuids) == len(named_handles) else [])


def devices_on(board: Any | None) -> list[Any]:
    """The board, or its slices where it has MIG on; empty where it does not answer."""
    if board is None or ask(pynvml.nvmlDeviceGetUUID, board) is None:
        return []
    if not has_mig_on(board):
        return [board]
    most = ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, board) or 0
    slices = [ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, board, index) for index in range(most)]
    return [handle for handle in slices if handle is not None]


def has_mig_on(board: Any) -> bool:
    """Whether MIG is on now; a mode that waits for a reset does not count."""
    mode = ask(pynvml.nvmlDeviceGetMigMode, board)
    return mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def is_slice(handle: Any) -> bool:
    """Whether the handle is a MIG slice's."""
    return ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) is not None


def _find(entry: str, boards: list[Any | None]) -> Any | None:
    """The device that an entry of CUDA_VISIBLE_DEVICES names; for a board with MIG on, its first slice."""
    if entry.isdecimal():
        return next(iter(devices_on(boards[int(entry)])), None) if int(entry) < len(boards) else None
    slices = [device for board in boards for device in devices_on(board) if is_slice(device)]
    if (slice_ := _by_beginning(entry, slices)) is not None:
        return slice_
    return next(iter(devices_on(_by_beginning(entry, boards))), None)


def _by_beginning(entry: str, handles: list[Any | None]) -> Any | None:
    """The one device whose UUID begins with the entry; None: no device, or several."""
    present = [handle for handle in handles if handle is not None]
    matching = [handle for handle in present if (ask(pynvml.nvmlDeviceGetUUID, handle) or "").startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def _shown_together(devices: list[Any]) -> list[Any]:
    """Those of these devices that the driver shows to one process."""
    slices = [device for device in devices if is_slice(device)]
    if not slices:
        return devices
    version = ask(pynvml.nvmlSystemGetDriverVersion) or ""
    major = version.partition(".")[0]
    if not (major.isdecimal() and int(major) >= SEVERAL_SLICES_DRIVER):
        return slices[:1]
    first = {_instance(device): device for device in reversed(devices)}  # the first of each instance stays
    return [device for device in devices if first[_instance(device)] is device]


def _instance(device: Any) -> tuple[str, int | str | None]:
    """A key of a slice's GPU instance: the board's UUID and its number; the device's UUID where there is none."""
    uuid = pynvml.nvmlDeviceGetUUID(device)
    number = ask(pynvml.nvmlDeviceGetGpuInstanceId, device) if is_slice(device) else None
    return (uuid, None) if number is None else (pynvml.nvmlDeviceGetUUID(board_of(device)), number)


def _numbers_are_unsure(entries: list[str], boards: list[Any | None]) -> bool:
    if not any(entry.isdecimal() for entry in entries):
        return False
    present = [board for board in boards if board is not None]
    kinds = {ask(pynvml.nvmlDeviceGetName, board) for board in present}
    by_speed = os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
    return (len(kinds) > 1 and by_speed) or any(map(has_mig_on, present))


def in_torch_order(shown: list[TorchDevice], devices: list[Any]) -> list[Any] | None:
    """NVML's handle of each of torch's devices; None: not all could be matched."""
    unmatched = list(devices)
    handles = []
    for device in shown:
        # Slices of one board share its bus id, so a UUID that fits goes first.
        matches = [handle for handle in unmatched if same_uuid(device, uuids_of(handle))]
        matches += [handle for handle in unmatched if same_bus_id(device, bus_id_of(handle))]
        if not matches:
            return None
        handles.append(matches[0])
        unmatched.remove(matches[0])
    return handles


def uuids_of(handle: Any) -> list[str]:
    """The device's own UUID and its board's, which differ where it is a slice."""
    uuids = [ask(pynvml.nvmlDeviceGetUUID, device) for device in (handle, board_of(handle))]
    return [uuid for uuid in uuids if uuid is not None]


def bus_id_of(handle: Any) -> str | None:
    """The bus id of the device's board, `00000000:3B:00.0`."""
    pci = ask(pynvml.nvmlDeviceGetPciInfo, board_of(handle))
    bus_id = pci.busId if pci else None
    return bus_id.decode() if isinstance(bus_id, bytes) else bus_id


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of a GPU."""

    name: str
    """The driver's name of it, `NVIDIA H200`."""
    uuid: str
    """`GPU-...` or `MIG-...`."""
    index: int | None
    """The board's number in NVML and nvidia-smi."""
    is_mig: bool
    """Whether it is a slice of a board."""
    pci_bus_id: str | None
    """The board's bus id, `00000000:3B:00.0`."""
    memory_total_bytes: int | None
    """Memory of the board, or of the slice."""
    compute_capability: tuple[int, int] | None
    """Compute capability, (9, 0) for Hopper."""
    power_limit_watts: float | None
    """The board's power limit as it is set now."""
    ecc_enabled: bool | None
    """Whether memory errors are corrected, which costs bandwidth on some boards."""
    max_sm_clock_hertz: float | None
    """The highest clock of the streaming multiprocessors."""
    cores: int | None
    """CUDA cores of the whole GPU."""
    driver_version: str | None
    """Version of the driver, `570.124.06`."""
    cuda_driver_version: tuple[int, int] | None
    """The newest CUDA that the driver runs, (12, 8)."""


def gpus() -> list[Gpu]:
    """The GPUs that CUDA would show this process, by `visible_handles`; empty without a driver.

    In NVML's order (by PCI bus, as nvidia-smi) unless CUDA_VISIBLE_DEVICES names them in another.
    """
    try:
        with started():
            return [_describe(handle) for handle in visible_handles()]
    except pynvml.NVMLError:
        return []


def _describe(handle: Any) -> Gpu:
    board = board_of(handle)
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    clock_megahertz = ask(pynvml.nvmlDeviceGetMaxClockInfo, board, pynvml.NVML_CLOCK_SM)
    power_milliwatts = ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, board)
    ecc = ask(pynvml.nvmlDeviceGetEccMode, board)
    cuda = ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)  # 12080 is 12.8
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        index=ask(pynvml.nvmlDeviceGetIndex, board),
        is_mig=is_slice(handle),
        pci_bus_id=bus_id_of(handle),
        memory_total_bytes=memory.total if memory else None,
        compute_capability=ask(pynvml.nvmlDeviceGetCudaComputeCapability, board),
        power_limit_watts=None if power_milliwatts is None else power_milliwatts / 1e3,
        ecc_enabled=None if ecc is None else ecc[0] == pynvml.NVML_FEATURE_ENABLED,
        max_sm_clock_hertz=None if clock_megahertz is None else clock_megahertz * 1e6,
        cores=ask(pynvml.nvmlDeviceGetNumGpuCores, board),
        driver_version=ask(pynvml.nvmlSystemGetDriverVersion),
        cuda_driver_version=None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
    )


def first_difference(shown: Sequence[TorchDevice], gpus: Sequence[Gpu]) -> str | None:
    """The first place where torch shows another device than NVML's GPU, naming both; None: there is none.

    A device without a UUID and a bus id by torch is only counted.
    """
    for number, (device, gpu) in enumerate(zip_longest(shown, gpus)):
        if device is None or gpu is None or not _same(device, gpu):
            taken = "no GPU was taken" if gpu is None else f"{gpu.name}, {gpu.uuid} at {gpu.pci_bus_id}, was taken"
            return f"its cuda:{number} is {'not there' if device is None else device}, and {taken}"
    return None


def _same(device: TorchDevice, gpu: Gpu) -> bool:
    if device.uuid is None and (device.pci_bus_id is None or gpu.pci_bus_id is None):
        return True
    uuids = [gpu.uuid]
    with suppress(pynvml.NVMLError), started():  # with the board's UUID of a slice, where NVML still knows it
        uuids += uuids_of(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
    return same_uuid(device, uuids) or same_bus_id(device, gpu.pci_bus_id)


TOPOLOGY_LEVELS = {
    pynvml.NVML_TOPOLOGY_INTERNAL: "PIX",
    pynvml.NVML_TOPOLOGY_SINGLE: "PIX",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "PXB",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB",
    pynvml.NVML_TOPOLOGY_NODE: "NODE",
    pynvml.NVML_TOPOLOGY_SYSTEM: "SYS",
}
"""How two GPUs reach each other over PCIe, in the words of `nvidia-smi topo -m`."""


def topology(gpus: list[Gpu]) -> list[list[str | None]]:
    """How each GPU reaches each other: `NVL`, `PIX`, `PXB`, `PHB`, `NODE`, `SYS`, `X` for itself, None unknown.

    Shape (GPUs, GPUs). The words are those of `nvidia-smi topo -m`, from near to far.
    """
    ways: list[list[str | None]] = [["X" if a is b else None for b in gpus] for a in gpus]
    with suppress(pynvml.NVMLError), started():
        handles = [board_of(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)) for gpu in gpus]
        for row, column in permutations(range(len(gpus)), 2):
            pair = handles[row], handles[column]
            linked = ask(pynvml.nvmlDeviceGetP2PStatus, *pair, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            by_pcie = TOPOLOGY_LEVELS.get(ask(pynvml.nvmlDeviceGetTopologyCommonAncestor, *pair))
            ways[row][column] = "NVL" if linked == pynvml.NVML_P2P_STATUS_OK else by_pcie
    return ways


# Readings of a GPU at one moment.


CLOCK_LIMITS = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clocks_setting": 0x100,
}
"""Bits of the clock event reasons (nvml.h, nvmlClocksEventReasons), by nvidia-smi's names."""
AVERAGE_POWER, INSTANT_POWER = 185, 186
"""Field ids of nvml.h, which older bindings do not name; milliwatts."""


@dataclass(frozen=True)
class MemoryReading:
    """A device's memory."""

    used_bytes: int
    """Memory used by any process; the driver's own part is in it only where `reserved_bytes` is None."""
    total_bytes: int
    reserved_bytes: int | None
    """Memory that the driver keeps for itself; None: it does not report that apart."""


@dataclass(frozen=True)
class StateReading:
    """A device's load, power, clocks and temperature."""

    utilization: float | None
    """Share of the driver's last sampling period, at most a second, in which something ran, 0 to 1."""
    instant_power_watts: float | None
    average_power_watts: float | None
    """Average over about a second; instant power on boards before Ampere, and on A100."""
    energy_joules: float | None
    """Energy by the board's counter, since the driver was loaded."""
    temperature_celsius: float | None
    sm_clock_hertz: float | None
    memory_clock_hertz: float | None
    clock_limits: int | None
    """Reasons that hold the clocks down: bits of CLOCK_LIMITS."""


@dataclass(frozen=True)
class Tenant:
    """A process that computes on a GPU."""

    pid: int
    """The driver's number of it, which is not the container's."""
    memory_bytes: int | None
    """Memory that it holds; None: the driver does not report it."""
    name: str | None = None
    """Its command's name; None: not looked up, or it can't be seen from here."""


def read_memory(handle: Any) -> MemoryReading | None:
    """The memory of a device or slice; the call that reports the driver's own part apart is tried first."""
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if memory is not None:
        return MemoryReading(memory.used, memory.total, memory.reserved)
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return None if memory is None else MemoryReading(memory.used, memory.total, None)


def read_state(handle: Any) -> StateReading:
    """The state of a device, or of the board that a slice is on."""
    board = board_of(handle)
    rates = ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    instant, average = _fields(board, INSTANT_POWER, AVERAGE_POWER)
    average = ask(pynvml.nvmlDeviceGetPowerUsage, board) if average is None else average
    limits = ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, board)
    if limits is None:  # the call's name before driver 535
        limits = ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, board)
    return StateReading(
        utilization=None if rates is None else rates.gpu / 100,
        instant_power_watts=_scaled(instant, 1e-3),
        average_power_watts=_scaled(average, 1e-3),
        energy_joules=_scaled(ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, board), 1e-3),
        temperature_celsius=_scaled(ask(pynvml.nvmlDeviceGetTemperature, board, pynvml.NVML_TEMPERATURE_GPU), 1.0),
        sm_clock_hertz=_scaled(ask(pynvml.nvmlDeviceGetClockInfo, board, pynvml.NVML_CLOCK_SM), 1e6),
        memory_clock_hertz=_scaled(ask(pynvml.nvmlDeviceGetClockInfo, board, pynvml.NVML_CLOCK_MEM), 1e6),
        clock_limits=limits,
    )


def read_processes(handle: Any) -> list[Tenant] | None:
    """Processes that compute on a device, MPS clients among them; None: the driver does not list them.

    In most containers the list is empty, whoever is there.
    """
    listed = ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    clients = ask(pynvml.nvmlDeviceGetMPSComputeRunningProcesses, handle) or ()
    if listed is None:
        return None
    tenants = {process.pid: Tenant(process.pid, process.usedGpuMemory) for process in (*listed, *clients)}
    return list(tenants.values())


def problem_of(handle: Any) -> str | None:
    """Why the device does not answer at all, in the driver's words; None: it answers."""
    try:
        pynvml.nvmlDeviceGetName(handle)  # every board that is there has one
    except pynvml.NVMLError as error:
        return str(error)
    return None


def _fields(board: Any, *numbers: int) -> list[int | None]:
    """Unsigned values of a board's fields, by their ids; None: not answered."""
    # Without a scope of its own, zero: the GPU's, not the module's.
    answers = ask(pynvml.nvmlDeviceGetFieldValues, board, list(numbers))
    if answers is None:
        return [None] * len(numbers)
    return [a.value.uiVal if a.nvmlReturn == pynvml.NVML_SUCCESS else None for a in answers]


def _scaled(value: int | None, unit: float) -> float | None:
    return None if value is None else value * unit


# Whether anything else uses a GPU right now.


IDLE_UTILIZATION = 0.05
"""Highest share of time that something may have run; a desktop that redraws its clock stays below it."""
IDLE_MEMORY_BYTES = 1 << 30
"""Most memory in use, or the next figure where that is more: what a desktop takes."""
IDLE_MEMORY_SHARE = 0.02
"""Of the device's memory: contexts and reserves grow with the board."""


@dataclass(frozen=True)
class Use:
    """How a GPU is used right now; None where the board or the driver does not report it."""

    memory_used_bytes: int | None = None
    """Memory used by any process, without the driver's own part where that is reported apart."""
    memory_total_bytes: int | None = None
    """Memory of the board, or of the slice."""
    utilization: float | None = None
    """Share of the last second or less in which something ran, 0 to 1; a slice has none."""
    tenants: tuple[Tenant, ...] = ()
    """Processes that compute on it; empty in most containers, whoever is there."""
    problem: str | None = None
    """Why the GPU does not answer at all."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing uses the GPU, as far as it reports."""
        return not (self.problem or self.tenants or self.computes or self.holds_memory)

    @property
    def computes(self) -> bool:
        """Whether something ran on it for more than `IDLE_UTILIZATION` of the time."""
        return self.utilization is not None and self.utilization > IDLE_UTILIZATION

    @property
    def holds_memory(self) -> bool:
        """Whether more than `IDLE_MEMORY_BYTES` and `IDLE_MEMORY_SHARE` of the memory is in use."""
        most = max(IDLE_MEMORY_BYTES, IDLE_MEMORY_SHARE * (self.memory_total_bytes or 0))
        return self.memory_used_bytes is not None and self.memory_used_bytes > most


def use_of(gpu: Gpu) -> Use:
    """How the GPU is used right now."""
    try:
        with started():
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            pynvml.nvmlDeviceGetName(handle)  # every board that answers has one
            memory, rates = read_memory(handle), ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
            tenants = [replace(tenant, name=command_name(tenant.pid)) for tenant in read_processes(handle) or ()]
    except pynvml.NVMLError as error:
        return Use(problem=str(error))
    return Use(
        memory_used_bytes=memory.used_bytes if memory else None,
        memory_total_bytes=memory.total_bytes if memory else None,
        utilization=rates.gpu / 100 if rates else None,
        tenants=tuple(tenants),
    )


def command_name(pid: int) -> str | None:
    """The process's command as the kernel names it; None: it has ended, or can't be seen from here."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() or None
    except OSError:
        return None


# How fast matrix products could be by a GPU's data sheet, by the name that the driver gives it.
#
# Dense figures only: where a sheet counts structured sparsity in, half of it stands here. Tensor cores that add up
# in fp32, as torch has them do; float32 is without tensor cores. SXM, PCIe and NVL boards of one chip differ, and
# so do their names. A figure that could not be confirmed is left out, and so is every GPU whose sheet is not known.


@dataclass(frozen=True)
class Sheet:
    """Peak rates of one board, in TFLOP/s; None: it has no such units, or the figure is not confirmed."""

    source: str
    float32: float | None
    tf32: float | None
    bfloat16: float | None
    float16: float | None


_HOPPER = "https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper"
_V100 = "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
_GA102 = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_ADA_PRO = (
    "https://images.nvidia.com/aem-dam/en-zz/Solutions/technologies/"
    "NVIDIA-ADA-GPU-PROVIZ-Architecture-Whitepaper_1.1.pdf"
)
_RTX_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_A10 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf"
_A10G = "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf"
_A30 = "https://www.nvidia.com/content/dam/en-zz/Solutions/data-center/products/a30-gpu/pdf/a30-datasheet.pdf"
_A40 = "https://images.nvidia.cn/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
_T4 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"
_PRODUCT = "https://www.nvidia.com/en-us/data-center"

_SHEETS = {
    "Tesla V100-SXM2-16GB": Sheet(_V100, 15.7, None, None, 125),
    "Tesla V100-SXM2-32GB": Sheet(_V100, 15.7, None, None, 125),
    "Tesla V100-PCIE-16GB": Sheet(_V100, 14, None, None, 112),
    "Tesla V100-PCIE-32GB": Sheet(_V100, 14, None, None, 112),
    "Tesla T4": Sheet(_T4, 8.1, None, None, 65),
    "A100-SXM4-40GB": Sheet(_A100, 19.5, 156, 312, 312),
    "A100-SXM4-80GB": Sheet(_A100, 19.5, 156, 312, 312),
    "A100-PCIE-40GB": Sheet(_A100, 19.5, 156, 312, 312),
    "A100 80GB PCIe": Sheet(_A100, 19.5, 156, 312, 312),
    "A10": Sheet(_A10, 31.2, 62.5, 125, 125),
    "A10G": Sheet(_A10G, None, 35, 70, 70),
    "A30": Sheet(_A30, 10.3, 82, 165, 165),
    "A40": Sheet(_A40, 37.4, 74.8, 149.7, 149.7),
    "RTX A6000": Sheet(_GA102, 38.7, 77.4, 154.8, 154.8),
    "GeForce RTX 3090": Sheet(_GA102, 35.6, 35.6, 71, 71),
    "L4": Sheet(f"{_PRODUCT}/l4/", 30.3, 60, 121, 121),
    "L40": Sheet(f"{_PRODUCT}/l40/", 90.5, 90.5, 181.05, 181.05),
    "L40S": Sheet(f"{_PRODUCT}/l40s/", 91.6, 183, 362.05, 362.05),
    "RTX 6000 Ada Generation": Sheet(_ADA_PRO, 91.1, 182.1, 364.2, 364.2),
    "GeForce RTX 4090": Sheet(_ADA, 82.6, 82.6, 165.2, 165.2),
    "GeForce RTX 5090": Sheet(_RTX_BLACKWELL, 104.8, 104.8, 209.5, 209.5),
    "H100 80GB HBM3": Sheet(_HOPPER, 66.9, 494.7, 989.4, 989.4),
    "H100 PCIe": Sheet(_HOPPER, 51.2, 378, 756, 756),
    "H100 NVL": Sheet(f"{_PRODUCT}/h100/", 60, 417.5, 835.5, 835.5),
    "H200": Sheet(f"{_PRODUCT}/h200/", 67, 494.5, 989.5, 989.5),
    "H200 NVL": Sheet(f"{_PRODUCT}/h200/", 60, 417.5, 835.5, 835.5),
    "B200": Sheet(f"{_PRODUCT}/hgx/", None, None, 2250, 2250),
}
"""By the driver's name; drivers before 470 leave `NVIDIA` out of it, and Tesla boards never had it."""


def peak_flops_per_second(gpu_name: str, dtype: MatmulDtype) -> float | None:
    """Peak rate of dense matrix products in this dtype, for the whole board; None: not known."""
    sheet = _SHEETS.get(gpu_name.removeprefix("NVIDIA "))
    tera = None if sheet is None else getattr(sheet, dtype)
    return None if tera is None else tera * 1e12


def sheet_name(words: str) -> str:
    """The driver's name of the one GPU that words such as `H100-SXM-80GB` fit; the words unless one fits."""
    wanted = words.lower().replace("-", " ").split()
    matches = [
        name for name in _SHEETS
        if all(
            any(word.startswith(part) or (part.startswith("sxm") and word == "hbm3") for word in name_parts)
            for name_parts in [name.lower().replace("-", " ").split()] for part in wanted
        )
    ]  # fmt: skip
    return f"NVIDIA {matches[0]}" if len(matches) == 1 else words


def source(gpu_name: str) -> str | None:
    """The source of the GPU's figures; None: its sheet is not known."""
    sheet = _SHEETS.get(gpu_name.removeprefix("NVIDIA "))
    return sheet.source if sheet else None
