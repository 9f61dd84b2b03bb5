"""What ranking.json says of an option's GPUs. Every key is documented here."""

from __future__ import annotations

from collections.abc import Mapping

from selectbench.analysis.energy import Method
from selectbench.analysis.gpu_state import Verdict
from selectbench.analysis.mfu import Share
from selectbench.analysis.shown import Number, Shown
from selectbench.plan.peaks import MatmulDtype


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

    @classmethod
    def by_reason(cls, reasons: Mapping[int, str | None]) -> list[Unknown]:
        """One for each reason that some seed has; seeds without one are left out."""
        seeds: dict[str, list[int]] = {}
        for seed, reason in reasons.items():
            if reason:
                seeds.setdefault(reason, []).append(seed)
        return [cls(reason=reason, seeds=found) for reason, found in seeds.items()]


class DeviceMemory(Shown):
    """Memory by the devices' own account, of the GPU with the largest figure.

    Means over the completed seeds that were not shared and tell it, or over all that tell it where each was.
    """

    peak_bytes: Number | None
    """The most in use while training, what was in use before among it: what must fit."""
    peak_over_idle_bytes: Number | None
    """The most in use less what was in use right before the trial."""
    idle_bytes: Number | None
    """In use right before the trial."""
    total_bytes: Number | None
    """Of the smallest of the GPUs."""
    driver_reserved_bytes: Number | None
    """Kept by the driver itself, in no other figure."""


class Arithmetic(Shown):
    """What the matrix products of one option's training take, and what its GPUs could do.

    The shares themselves are the metrics `mfu`, `hfu` and `matmul_rate_share`.
    """

    dtype: MatmulDtype
    """That the matrix products run in."""
    model_flops_per_token: Number | None
    """Forward and backward pass; None: the model's work does not follow from its shape."""
    hardware_flops_per_token: Number | None
    """The same with what activation checkpointing computes again."""
    peak_flops_per_second: Number | None
    """By data sheet, dense, in this dtype, of a trial's GPUs together; None: not known of each."""
    matmul_flops_per_second: Number | None
    """The same, as measured on them by `doctor --calibrate`."""
    unknown: dict[Share, list[Unknown]]
    """Why a seed's share is not known, by metric; those that are known throughout are left out."""


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
    arithmetic: Arithmetic
    mean_utilization: Number | None
    """Share of time that something ran, inside the timed windows."""
    mean_sm_clock_hertz: Number | None
    """Inside the timed windows."""
    mean_memory_clock_hertz: Number | None
    """Inside the timed windows."""
    highest_temperature_celsius: Number | None
    """Of any GPU and seed."""
    clock_limit_shares: dict[str, Number] | None
    """By reason that held the clocks down, the share of readings in which it did; None: not known."""
