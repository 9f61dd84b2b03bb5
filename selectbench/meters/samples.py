"""All that was read of one GPU over one trial, in columns, and the file that keeps it."""

from __future__ import annotations

import gzip
import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selectbench.meters.tenancy import Tenancy
from selectbench.nvml import Gpu
from selectbench.nvml.reading import MemoryReading, StateReading

FILE_NAME = "meters.json.gz"
Floats = NDArray[np.float64]


class Columns:
    """Readings with their times by `time.perf_counter`; eight bytes a value, so that a day fits in memory."""

    def __init__(self, names: Sequence[str]) -> None:
        self._times = array("d")
        self._values = {name: array("d") for name in names}

    def __len__(self) -> int:
        return len(self._times)

    def add(self, at: float, reading: MemoryReading | StateReading) -> None:
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
        times: dict[str, list[float | None]] = {"seconds": [round(at - since, 4) for at in self._times]}
        told = {name: _plain(values) for name, values in self._values.items()}
        return {**times, **{name: values for name, values in told.items() if any(v is not None for v in values)}}


def _plain(values: array[float]) -> list[float | None]:
    """Whole numbers without their `.0`: a fifth of the file."""
    return [None if math.isnan(v) else int(v) if v.is_integer() else round(v, 4) for v in values]


@dataclass
class GpuSamples:
    """One GPU over one trial."""

    gpu: Gpu
    memory: Columns = field(default_factory=lambda: Columns(MemoryReading.names()))
    state: Columns = field(default_factory=lambda: Columns(StateReading.names()))
    tenancy: Tenancy = field(default_factory=Tenancy)
    problem: str | None = None
    """What ended or spoiled the readings."""


def write_samples(folder: Path, samples: Sequence[GpuSamples], launched: float) -> None:
    """All readings into the trial's folder; times in seconds since the launch, units as the names say."""
    folder.mkdir(parents=True, exist_ok=True)  # a trial whose server could not start has none
    with gzip.open(folder / FILE_NAME, "wt", encoding="utf-8") as stream:
        json.dump([_as_json(each, launched) for each in samples], stream, allow_nan=False)


def _as_json(samples: GpuSamples, launched: float) -> dict[str, Any]:
    return {
        "uuid": samples.gpu.uuid, "name": samples.gpu.name, "problem": samples.problem,
        "memory": samples.memory.as_json(launched), "state": samples.state.as_json(launched),
    }  # fmt: skip
