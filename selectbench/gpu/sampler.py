"""Reading the GPUs while a trial runs: by whom they are used, what was read, and the thread that reads."""

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

# Who computed on a GPU while a trial ran: the trial's own processes and others.


MOST_NAMED = 8
"""Other processes that a record names."""


class Tenancy:
    """The processes that were seen on one GPU, reading by reading."""

    def __init__(self) -> None:
        self._seen: dict[int, OtherProcess] = {}
        self._own: set[int] = set()
        self._before: frozenset[int] = frozenset()

    def began_with(self, tenants: Iterable[devices.Tenant]) -> None:
        """Who was on it right before the trial."""
        self._before = frozenset(tenant.pid for tenant in tenants)

    def note(self, listed: Iterable[devices.Tenant] | None, own: Iterable[int]) -> None:
        """`listed`: by the driver, None where it does not say; `own`: those of them that are ours."""
        self._own.update(own)
        for process in listed or ():
            seen = self._seen.get(process.pid)
            name = devices.command_name(process.pid) if seen is None else seen.name
            held = [each.memory_bytes for each in (seen, process) if each and each.memory_bytes is not None]
            self._seen[process.pid] = OtherProcess(pid=process.pid, name=name, memory_bytes=max(held, default=None))

    def others(self) -> list[OtherProcess] | None:
        """Processes that are none of the trial's; None: nothing was listed, so that others would not be either.

        Where the driver numbers processes as the host does and this is a container, none of ours can be told by
        its number. Then one of those that came during the trial, that with the most memory, is taken for the
        trial's rank: a rank has a GPU to itself.
        """
        if not self._seen:
            return None
        foreign = {pid: seen for pid, seen in self._seen.items() if pid not in self._own}
        newcomers = [pid for pid in foreign if pid not in self._before]
        if len(foreign) == len(self._seen) and newcomers:
            del foreign[max(newcomers, key=lambda pid: foreign[pid].memory_bytes or 0)]
        return list(foreign.values())[:MOST_NAMED]


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether the process is the ancestor or anywhere below it; False where it is gone or not to be seen."""
    while pid and pid != ancestor:  # 0 is above the first one
        try:
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return False
        # pid (command) state ppid; a command may hold anything (proc(5)).
        pid = int(text.rpartition(")")[2].split()[1])
    return pid == ancestor


# All that was read of one GPU over one trial, in columns, and the file that keeps it.


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
        """One reading; what it does not know stays unknown."""
        self._times.append(at)
        for name, values in self._values.items():
            value = getattr(reading, name)
            values.append(math.nan if value is None else float(value))

    def times(self) -> Floats:
        """Of all readings, shape (readings,)."""
        return np.array(self._times)

    def known(self, name: str) -> tuple[Floats, Floats]:
        """Times and values, both of shape (readings that know it,)."""
        times, values = np.array(self._times), np.array(self._values[name])
        there = ~np.isnan(values)
        return times[there], values[there]

    def as_json(self, since: float) -> dict[str, list[float | None]]:
        """Times in seconds since `since`, and each column that knows anything; null: unknown."""
        columns: dict[str, list[float | None]] = {"seconds": [round(at - since, 4) for at in self._times]}
        for name, values in self._values.items():
            # Whole numbers without their `.0`: a fifth of the file.
            plain = [None if math.isnan(v) else int(v) if v.is_integer() else round(v, 4) for v in values]
            if any(value is not None for value in plain):
                columns[name] = plain
        return columns


@dataclass
class GpuSamples:
    """One GPU over one trial."""

    gpu: devices.Gpu
    memory: Columns = field(default_factory=lambda: Columns(devices.MemoryReading))
    state: Columns = field(default_factory=lambda: Columns(devices.StateReading))
    tenancy: Tenancy = field(default_factory=Tenancy)
    problem: str | None = None
    """What ended or spoiled the readings."""


def write_samples(folder: Path, samples: Sequence[GpuSamples], launched: float) -> None:
    """All readings into the trial's folder; times in seconds since the launch, units as the names say."""
    folder.mkdir(parents=True, exist_ok=True)  # a trial whose server could not start has none
    content = [
        {"uuid": each.gpu.uuid, "name": each.gpu.name, "problem": each.problem,
         "memory": each.memory.as_json(launched), "state": each.state.as_json(launched)}
        for each in samples
    ]  # fmt: skip
    with gzip.open(folder / FILE_NAME, "wt", encoding="utf-8") as stream:
        json.dump(content, stream, allow_nan=False)


# Reads the GPUs while a trial runs, in a thread of the bench: the worker pays nothing, and may die meanwhile.


PROCESSES_SECONDS = 1.0
"""Between two lists of processes, which the driver takes milliseconds to make."""
STOPPED = "the GPU stopped answering"
PATIENCE_SECONDS = 10.0
"""For the driver's last answer when a trial has ended; one that hangs is given up."""


class Sampler:
    """Reads from `start` to `stop`; one trial's."""

    def __init__(self, gpus: Sequence[devices.Gpu], settings: MeterSettings) -> None:
        self.samples = [GpuSamples(gpu) for gpu in gpus]
        self._settings = settings
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="selectbench-sampler", daemon=True)

    def start(self, before: Sequence[devices.Use]) -> None:
        """Begin; `before`: what went on on each GPU right before the trial."""
        for samples, use in zip(self.samples, before, strict=True):
            samples.tenancy.began_with(use.tenants)
        self._thread.start()

    def stop(self) -> list[GpuSamples]:
        """Read once more and end. A driver that does not answer any more is left behind."""
        self._ending.set()
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self.spoil(f"the driver did not answer for {PATIENCE_SECONDS:g} s")
        return self.samples

    def _run(self) -> None:
        try:
            with devices.started():
                self._read_until_told([_handle(samples) for samples in self.samples])
        except Exception as error:  # told in the record: a trial's outcome does not hang on its meters
            self.spoil(f"reading the GPU failed: {error}")

    def spoil(self, problem: str) -> None:
        """Say of each GPU what is wrong with its readings, but of one where something was before."""
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
                    # On the beat; beats that were missed are left out.
                    due[number] = began + interval * (math.floor((now - began) / interval) + 1)
        for read, _ in rounds[:2]:
            read(handles)

    def _read_memory(self, handles: list[Any]) -> None:
        for samples, handle in self._there(handles):
            at, reading = time.perf_counter(), devices.read_memory(handle)
            if reading is not None:
                samples.memory.add(at, reading)
            elif (lost := devices.problem_of(handle)) is not None:
                samples.problem = f"{STOPPED}: {lost}"

    def _read_state(self, handles: list[Any]) -> None:
        for samples, handle in self._there(handles):
            at = time.perf_counter()
            samples.state.add(at, devices.read_state(handle))

    def _read_processes(self, handles: list[Any]) -> None:
        for samples, handle in self._there(handles):
            listed = devices.read_processes(handle)
            own = [process.pid for process in listed or () if descends_from(process.pid, os.getpid())]
            samples.tenancy.note(listed, own)

    def _there(self, handles: list[Any]) -> list[tuple[GpuSamples, Any]]:
        pairs = zip(self.samples, handles, strict=True)
        return [(samples, handle) for samples, handle in pairs if samples.problem is None]


def _handle(samples: GpuSamples) -> Any | None:
    """None, and the reason among the samples, where the GPU is not there any more."""
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(samples.gpu.uuid)
    except pynvml.NVMLError as error:
        samples.problem = f"{STOPPED}: {error}"
        return None
