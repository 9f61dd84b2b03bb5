"""Reading the GPUs while a trial runs: the processes on them, the readings, and the thread that reads."""

from __future__ import annotations

import gzip
import json
import math
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
from numpy.typing import NDArray

from selectbench.gpu import devices
from selectbench.record.record import OtherProcess
from selectbench.suite.suite import MeterSettings

# The processes that computed on a GPU while a trial ran: the trial's and others.


MOST_NAMED = 8
"""How many other processes a record names at most."""


class Tenancy:
    """The processes that were seen on one GPU, reading by reading."""

    def __init__(self) -> None:
        self._seen: dict[int, OtherProcess] = {}
        self._own_pids: set[int] = set()
        self._pids_before: frozenset[int] = frozenset()

    def began_with(self, tenants: Iterable[devices.Tenant]) -> None:
        """Note the processes that used it right before the trial."""
        self._pids_before = frozenset(tenant.pid for tenant in tenants)

    def note(self, listed: Iterable[devices.Tenant] | None, own_pids: Iterable[int]) -> None:
        """Note a reading: processes `listed` by the driver (None: unknown); `own_pids`: the bench's among them."""
        self._own_pids.update(own_pids)
        for process in listed or ():
            known = self._seen.get(process.pid)
            name = devices.command_name(process.pid) if known is None else known.name
            held = [p.memory_bytes for p in (known, process) if p and p.memory_bytes is not None]
            self._seen[process.pid] = OtherProcess(pid=process.pid, name=name, memory_bytes=max(held, default=None))

    def others(self) -> list[OtherProcess] | None:
        """Processes that do not belong to the trial; None: none was listed, not even the trial's.

        In a container the driver's numbers are the host's, so that the trial's processes can't be told by theirs.
        Then the process with the most memory of those that came during the trial is taken for the trial's rank: a
        rank has a GPU to itself.
        """
        if not self._seen:
            return None
        others = {pid: process for pid, process in self._seen.items() if pid not in self._own_pids}
        newcomers = [pid for pid in others if pid not in self._pids_before]
        if len(others) == len(self._seen) and newcomers:
            del others[max(newcomers, key=lambda pid: others[pid].memory_bytes or 0)]
        return list(others.values())[:MOST_NAMED]


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether the process is the ancestor or anywhere below it; False where it has ended or can't be seen."""
    while pid and pid != ancestor:  # the first process's parent is 0
        try:
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return False
        # pid (command) state ppid; a command may hold anything (proc(5)).
        pid = int(text.rpartition(")")[2].split()[1])
    return pid == ancestor


# All readings of one GPU over one trial, in columns, and their file.


FILE_NAME = "meters.json.gz"
Floats = NDArray[np.float64]


class Columns:
    """Readings with their times by `time.perf_counter`; eight bytes a value, so that a day fits in memory."""

    def __init__(self, kind: type[devices.MemoryReading | devices.StateReading]) -> None:
        self._times = array("d")
        self._values = {field.name: array("d") for field in fields(kind)}

    def __len__(self) -> int:
        return len(self._times)

    def add(self, at: float, reading: devices.MemoryReading | devices.StateReading) -> None:
        """Add one reading; its None are stored as NaN."""
        self._times.append(at)
        for name, values in self._values.items():
            value = getattr(reading, name)
            values.append(math.nan if value is None else float(value))

    def times(self) -> Floats:
        """Times of all readings, shape (readings,)."""
        return np.array(self._times)

    def known(self, name: str) -> tuple[Floats, Floats]:
        """Times and values of the readings that have this value, both of shape (such readings,)."""
        times, values = np.array(self._times), np.array(self._values[name])
        is_known = ~np.isnan(values)
        return times[is_known], values[is_known]

    def as_json(self, since: float) -> dict[str, list[float | None]]:
        """Times in seconds since `since`, and each column that is not all unknown; null: unknown."""
        columns: dict[str, list[float | None]] = {"seconds": [round(at - since, 4) for at in self._times]}
        for name, values in self._values.items():
            # Whole numbers without their `.0`: a fifth of the file.
            plain = [None if math.isnan(v) else int(v) if v.is_integer() else round(v, 4) for v in values]
            if any(value is not None for value in plain):
                columns[name] = plain
        return columns


@dataclass
class GpuSamples:
    """The readings of one GPU over one trial."""

    gpu: devices.Gpu
    memory: Columns = field(default_factory=lambda: Columns(devices.MemoryReading))
    state: Columns = field(default_factory=lambda: Columns(devices.StateReading))
    tenancy: Tenancy = field(default_factory=Tenancy)
    problem: str | None = None
    """The failure that ended or spoiled the readings."""


def write_samples(folder: Path, samples: Sequence[GpuSamples], launched: float) -> None:
    """Write all readings into the trial's folder; times in seconds since the launch, units as the names say."""
    folder.mkdir(parents=True, exist_ok=True)  # a trial whose server could not start has no folder
    content = [
        {"uuid": s.gpu.uuid, "name": s.gpu.name, "problem": s.problem,
         "memory": s.memory.as_json(launched), "state": s.state.as_json(launched)}
        for s in samples
    ]  # fmt: skip
    with gzip.open(folder / FILE_NAME, "wt", encoding="utf-8") as stream:
        json.dump(content, stream, allow_nan=False)


# GPUs are read in a thread of the bench, so that the worker pays nothing and may die meanwhile.


PROCESSES_SECONDS = 1.0
"""Time between two lists of processes, which the driver takes milliseconds to make."""
STOPPED = "the GPU stopped answering"
PATIENCE_SECONDS = 10.0
"""Longest wait for the driver's last answer when a trial has ended; then the thread is abandoned."""


class Sampler:
    """Reads the GPUs of one trial from `start` to `stop`."""

    def __init__(self, gpus: Sequence[devices.Gpu], settings: MeterSettings) -> None:
        self.samples = [GpuSamples(gpu) for gpu in gpus]
        self._settings = settings
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="selectbench-sampler", daemon=True)

    def start(self, before: Sequence[devices.Use]) -> None:
        """Begin to read; `before`: how each GPU was used right before the trial."""
        for samples, use in zip(self.samples, before, strict=True):
            samples.tenancy.began_with(use.tenants)
        self._thread.start()

    def stop(self) -> list[GpuSamples]:
        """Read once more and end; a thread whose driver hangs is abandoned."""
        self._ending.set()
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self.spoil(f"the driver did not answer for {PATIENCE_SECONDS:g} s")
        return self.samples

    def _run(self) -> None:
        try:
            with devices.started():
                self._read_until_told([_handle(samples) for samples in self.samples])
        except Exception as error:  # reported in the record: a trial's outcome does not depend on its meters
            self.spoil(f"reading the GPU failed: {error}")

    def spoil(self, problem: str) -> None:
        """Note the problem for each GPU that has none yet."""
        for samples in self.samples:
            samples.problem = samples.problem or problem

    def _read_until_told(self, handles: list[Any]) -> None:
        settings = self._settings
        rounds: list[tuple[Callable[[list[Any]], None], float]] = [
            (self._read_memory, settings.memory_interval_seconds),
            (self._read_state, settings.interval_seconds),
            (self._read_processes, max(PROCESSES_SECONDS, settings.interval_seconds)),
        ]
        began = time.perf_counter()
        due = [began for _ in rounds]
        while not self._ending.wait(max(0.0, min(due) - time.perf_counter())):
            for number, (read, interval) in enumerate(rounds):
                if (now := time.perf_counter()) >= due[number]:
                    read(handles)
                    # At whole multiples of the interval; those that were missed are left out.
                    due[number] = began + interval * (math.floor((now - began) / interval) + 1)
        for read, _ in rounds[:2]:
            read(handles)

    def _read_memory(self, handles: list[Any]) -> None:
        for samples, handle in self._there(handles):
            at, reading = time.perf_counter(), devices.read_memory(handle)
            if reading is not None:
                samples.memory.add(at, reading)
            elif (problem := devices.problem_of(handle)) is not None:
                samples.problem = f"{STOPPED}: {problem}"

    def _read_state(self, handles: list[Any]) -> None:
        for samples, handle in self._there(handles):
            at = time.perf_counter()
            samples.state.add(at, devices.read_state(handle))

    def _read_processes(self, handles: list[Any]) -> None:
        for samples, handle in self._there(handles):
            listed = devices.read_processes(handle)
            own_pids = [process.pid for process in listed or () if descends_from(process.pid, os.getpid())]
            samples.tenancy.note(listed, own_pids)

    def _there(self, handles: list[Any]) -> list[tuple[GpuSamples, Any]]:
        pairs = zip(self.samples, handles, strict=True)
        return [(samples, handle) for samples, handle in pairs if samples.problem is None]


def _handle(samples: GpuSamples) -> Any | None:
    """The GPU's handle; None, with the problem noted in its samples, where it does not answer."""
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(samples.gpu.uuid)
    except pynvml.NVMLError as error:
        samples.problem = f"{STOPPED}: {error}"
        return None
