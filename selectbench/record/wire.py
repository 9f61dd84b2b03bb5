"""What passes between the bench and a worker: one order in, events out, each one line of JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from selectbench.choices import Choices
from selectbench.record.inside import Inside
from selectbench.record.record import EvaluationPoint, FailureKind, Identity, Measurement, Trial
from selectbench.record.stored import Stored
from selectbench.suite.job import Job


class Order(Stored):
    """Everything a worker needs to run one trial; it reads nothing else of the suite."""

    trial: Trial
    """What is run."""
    job: Job
    """The work."""
    choices: Choices
    """How it is done."""
    device: Literal["cpu", "cuda"]
    """Where."""
    threads: int
    """Threads of torch's CPU operations, of each rank."""
    world_size: int
    """Ranks."""
    data_folder: str
    """The prepared data: token files and tokenizer."""
    trial_folder: str
    """Where the full series and the ranks' logs go."""
    weights_folder: str
    """Where initial weights are kept: drawn once per model and seed, mapped by every rank that needs them."""
    code: list[str] = Field(default_factory=list)
    """Folders of own code, put on the worker's path in this order."""
    min_timed_seconds: float
    """Steps are added until so many seconds are timed."""


class Started(Stored):
    """The worker's first sign of life."""

    event: Literal["started"] = "started"
    software: dict[str, str | None] = Field(default_factory=dict)
    """Versions by name, as in the record."""


class Phase(Stored):
    """The trial goes over to another kind of work."""

    event: Literal["phase"] = "phase"
    phase: Literal["setup", "train", "evaluate", "extra"]
    """`extra`: steps after the final evaluation, for timing only."""


class Progress(Stored):
    """Steps done, at most a few times a second."""

    event: Literal["progress"] = "progress"
    step: int
    """Optimizer steps done."""
    of: int
    """Optimizer steps of the job."""
    loss: float | None
    """Latest training loss known without waiting for the device; nats per token."""
    tokens_per_second: float | None
    """Over the steps since the last such event."""


class RankDevice(Stored):
    """The GPU that a rank trained on, as torch knows it; None: this torch does not say."""

    uuid: str | None
    """Without `GPU-`."""
    pci_bus_id: str | None
    """`00000000:3B:00.0`."""


class Finished(Stored):
    """The trial ran to its end: what the record holds besides what the bench itself knows.

    Moments are by `time.perf_counter`, which on Linux is one clock for all processes.
    """

    event: Literal["finished"] = "finished"
    measurement: Measurement
    identity: Identity
    evaluation_curve: list[EvaluationPoint]
    loss_curve: list[tuple[int, float]]
    inside: Inside | None = None
    resolved_config: dict[str, Any] | None = None
    timed_windows: list[tuple[float, float]] = Field(default_factory=list)
    """Begin and end of the timed windows on the first rank, those that follow each other closely as one."""
    training_window: tuple[float, float] | None = None
    """Training up to the first evaluation, in which memory counts; None: an own loop that did not say."""
    devices: list[RankDevice] = Field(default_factory=list)
    """Of each rank; empty on a CPU."""


class GaveUp(Stored):
    """The worker itself knows why the trial failed."""

    event: Literal["gave_up"] = "gave_up"
    kind: FailureKind
    detail: str
    """What it knows; '' where the log says it."""
    rank: int | None = None
    """The rank that failed first; its log is `rank<N>.log` in the trial's folder. None: there are no ranks."""
    exit_status: int | None = None
    """How that rank's process ended, negative for a signal; None: it reported its failure itself."""


Event = Annotated[Started | Phase | Progress | Finished | GaveUp, Field(discriminator="event")]
EVENT: TypeAdapter[Started | Phase | Progress | Finished | GaveUp] = TypeAdapter(Event)
