"""What passes between the bench and a worker: one order in, events out, each one line of JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from selectbench.choices import Choices
from selectbench.record.record import EvaluationPoint, FailureKind, Identity, Measurement, Stored, Trial
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
    """Threads of torch's CPU operations."""
    data_folder: str
    """The prepared data: token files and tokenizer."""
    trial_folder: str
    """Where the full series go."""
    min_timed_seconds: float
    """Steps are added until so many seconds are timed."""


class Started(Stored):
    """The worker's first sign of life."""

    event: Literal["started"] = "started"


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


class Finished(Stored):
    """The trial ran to its end: what the record holds besides what the bench itself knows."""

    event: Literal["finished"] = "finished"
    measurement: Measurement
    identity: Identity
    evaluation_curve: list[EvaluationPoint]
    loss_curve: list[tuple[int, float]]


class GaveUp(Stored):
    """The worker itself knows why the trial failed."""

    event: Literal["gave_up"] = "gave_up"
    kind: FailureKind
    detail: str


Event = Annotated[Started | Phase | Progress | Finished | GaveUp, Field(discriminator="event")]
EVENT: TypeAdapter[Started | Phase | Progress | Finished | GaveUp] = TypeAdapter(Event)
