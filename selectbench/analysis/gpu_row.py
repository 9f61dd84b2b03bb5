"""What ranking.json says of an option's GPUs. Every key is documented here."""

from __future__ import annotations

from selectbench.analysis.energy import Method
from selectbench.analysis.gpu_state import Verdict
from selectbench.analysis.shown import Shown


class TrialState(Shown):
    """The verdict on the GPUs of one trial, by the rule of `analysis/gpu_state.py`."""

    seed: int
    verdict: Verdict
    detail: str
    """What was found; '' where they were clean."""


class Unknown(Shown):
    """Why a figure is not known."""

    reason: str
    seeds: list[int]
    """Of the trials that it is true of."""


class DeviceMemory(Shown):
    """Memory by the devices' own account, of the GPU with the largest figure.

    Means over the completed seeds that were not shared and tell it, or over all that tell it where each was.
    """

    peak_bytes: float | None
    """The most in use while training, what was in use before among it: what must fit."""
    peak_over_idle_bytes: float | None
    """The most in use less what was in use right before the trial."""
    idle_bytes: float | None
    """In use right before the trial."""
    total_bytes: float | None
    """Of the smallest of the GPUs."""
    driver_reserved_bytes: float | None
    """Kept by the driver itself, in no other figure."""


class GpuRow(Shown):
    """The GPUs of one option.

    Means are over its completed seeds that were neither throttled nor shared, or over all where there is none;
    over a trial's GPUs too, where nothing else is said.
    """

    names: list[str]
    """As the driver calls them, each once."""
    states: dict[Verdict, int]
    """Trials by verdict, failed ones among them."""
    by_seed: list[TrialState]
    """The same, each with what was found."""
    energy_method: Method | None
    """The least direct way in which a seed's energy was found; None: no seed's is known."""
    energy_unknown: list[Unknown]
    """Why a seed's energy is not known."""
    memory: DeviceMemory
    mean_utilization: float | None
    """Share of time that something ran, inside the timed windows."""
    mean_sm_clock_hertz: float | None
    """Inside the timed windows."""
    mean_memory_clock_hertz: float | None
    """Inside the timed windows."""
    highest_temperature_celsius: float | None
    """Of any GPU and seed."""
    clock_limit_shares: dict[str, float] | None
    """By reason that held the clocks down, the share of readings in which it did; None: not known."""
