"""What was seen of the GPUs during a trial, by the bench through NVML and of the model for counting its work.

Every key is documented here. Raw values only: energy, state and utilisation of the hardware are judged in
`analysis`. Times of series and stretches are seconds since the trial was launched.
"""

from __future__ import annotations

import msgspec

from selectbench.record.recorded import Amount, Count, Recorded

Series = list[tuple[float, float]]
"""(seconds since the launch, value), decimated; all of it in the trial's meters.json."""


class Architecture(Recorded, frozen=True, kw_only=True):
    """What of the model decides how much work a token is, counted on the live module."""

    matmul_parameters: Count
    """Parameters that are matrices multiplied with activations, the output head among them even where it is
    tied; embeddings that are only looked up, norms and biases are not."""
    block_matmul_parameters: Count
    """Those of them that activation checkpointing computes twice: of the repeated blocks, a block's last one left
    out where the backward pass does not need its output."""
    attention_width: Count
    """Sum over the layers of query heads x their width."""
    seq_len: Count
    """Tokens of a sequence."""


class OtherProcess(Recorded, frozen=True, kw_only=True):
    """A process that was on the GPU and is none of the trial's."""

    pid: int
    """As the driver numbers it."""
    name: str | None
    """Of its command; None: it can't be seen from here."""
    memory_bytes: Count | None
    """The most that the driver said it holds; None: it does not say."""


class GpuMeters(Recorded, frozen=True, kw_only=True):
    """One GPU over one trial. Unknown is None: the driver or the board has no such answer."""

    name: str
    """As the driver calls it."""
    pci_bus_id: str | None
    """Of the board."""
    is_mig: bool
    """Whether it is a slice of a board; power, energy, clocks and throttling are then the whole board's."""
    memory_total_bytes: Count | None
    """Of the slice, where it is one."""
    idle_memory_bytes: Count | None
    """In use right before the trial."""
    idle_utilization: Amount | None
    """Highest share of time, 0 to 1, that something ran on it right before the trial."""
    peak_device_memory_bytes: Count | None
    """Most in use, by whomever: while training up to the first evaluation; over the whole trial where it failed."""
    driver_reserved_bytes: Count | None
    """Kept by the driver itself, in no other figure."""
    memory_readings: Count
    """How many readings that peak was taken from."""
    readings: Count
    """Readings of all else inside the timed windows; over the whole trial where it failed."""
    metered_seconds: Amount
    """Length of the timed windows that the energies below are for; 0 where the trial failed."""
    counter_joules: Amount | None
    """By the board's energy counter."""
    instant_power_joules: Amount | None
    """Integral of instant power."""
    average_power_joules: Amount | None
    """Mean of the power that the driver averages over about a second, first second left out, times the length."""
    mean_utilization: Amount | None
    """Share of time that something ran on it, inside the timed windows."""
    mean_sm_clock_hertz: Amount | None
    """Inside the timed windows."""
    mean_memory_clock_hertz: Amount | None
    """Inside the timed windows."""
    highest_temperature_celsius: float | None
    """Over the whole trial."""
    clock_limit_shares: dict[str, Amount] | None
    """By reason that held the clocks down, the share of those readings in which it did; names as in nvidia-smi."""
    other_processes: list[OtherProcess] | None
    """Processes that computed on it besides the trial, the first eight; None: the driver shows none of ours,
    so that others would not show either."""
    problem: str | None = None
    """What went wrong with the readings."""
    matmul_flops_per_second: dict[str, float] = msgspec.field(default_factory=dict)
    """Rates of large matrix products measured on this GPU by `doctor --calibrate`, by dtype (`float32`, `tf32`,
    `bfloat16`, `float16`)."""
    memory_series: Series = msgspec.field(default_factory=list)
    """Bytes in use; the most within each piece."""
    power_series: Series = msgspec.field(default_factory=list)
    """Watts."""
    utilization_series: Series = msgspec.field(default_factory=list)
    """0 to 1."""
    temperature_series: Series = msgspec.field(default_factory=list)
    """Degrees Celsius."""
    sm_clock_series: Series = msgspec.field(default_factory=list)
    """Hertz."""


class Meters(Recorded, frozen=True, kw_only=True):
    """What the bench saw of a trial's GPUs, in the order of ranks."""

    gpus: list[GpuMeters] = msgspec.field(default_factory=list)
    """One for each rank; empty where there is a problem."""
    problem: str | None = None
    """Why there are none."""
    settled: bool | None = None
    """Whether memory had come back to what it was before the run's first trial; None: not known."""
    timed_windows: list[tuple[float, float]] = msgspec.field(default_factory=list)
    """Begin and end of the timed stretches."""
