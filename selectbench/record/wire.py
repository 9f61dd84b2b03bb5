"""What passes between the bench and a worker: one order in, events out, each one line of JSON."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from selectbench.choices import Choices
from selectbench.record.record import (
    AsJson,
    EvaluationPoint,
    FailureKind,
    Identity,
    Inside,
    Lines,
    Measurement,
    Recorded,
    Script,
    Trial,
    Watched,
)
from selectbench.suite.job import Job


class CommandOrder(Recorded, frozen=True, kw_only=True, tag_field="kind", tag="command"):
    """Everything that is needed to run a training command once."""

    trial: Trial
    """What is run."""
    arguments: list[str]
    """The command's words."""
    directory: str
    """Where it runs."""
    environment: dict[str, str]
    """Variables over those of the bench."""
    world_size: int
    """Ranks that it is to start."""
    max_steps: int
    """Optimizer steps after which the held-out loss is measured."""
    stop: Literal["at_max_steps", "natural_end"]
    """Whether it is stopped then."""
    warmup_steps: int
    """First steps that enter no figure of speed."""
    heldout: str | None
    """File of the held-out tokens, little-endian int64; None: none."""
    heldout_sha256: str | None
    """Of that file."""
    heldout_tokens: int
    """How many of them are scored."""
    seq_len: int | None
    """Tokens of a sequence that is scored; None: as in the first training row."""
    trial_folder: str
    """Where logs and what is observed go."""


class Order(Recorded, frozen=True, kw_only=True, tag_field="kind", tag="built"):
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
    code: list[str] = msgspec.field(default_factory=list)
    """Folders of own code, put on the worker's path in this order."""
    min_timed_seconds: float
    """Steps are added until so many seconds are timed."""
    model_folder: str | None = None
    """Where the trained model is kept; None: it is not."""


class Started(Recorded, frozen=True, kw_only=True, tag_field="event", tag="started"):
    """The worker's first sign of life."""

    software: dict[str, str | None] = msgspec.field(default_factory=dict)
    """Versions by name, as in the record."""


class Phase(Recorded, frozen=True, kw_only=True, tag_field="event", tag="phase"):
    """The trial goes over to another kind of work."""

    phase: Literal["setup", "train", "evaluate", "save", "extra"]
    """`extra`: steps after the final evaluation, for timing only."""


class Progress(Recorded, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """Steps done, at most a few times a second."""

    step: int
    """Optimizer steps done."""
    of: int
    """Optimizer steps of the job."""
    loss: float | None
    """Latest training loss known without waiting for the device; nats per token."""
    tokens_per_second: float | None
    """Over the steps since the last such event."""


class Evaluating(Recorded, frozen=True, kw_only=True, tag_field="event", tag="evaluating"):
    """How far an evaluation is, at most a few times a second."""

    done: int
    of: int
    what: Literal["sequences", "texts"]
    """Held-out sequences that are scored, or texts that are generated."""


class RankDevice(Recorded, frozen=True, kw_only=True):
    """The GPU that a rank trained on, as torch knows it; None: this torch does not say."""

    uuid: str | None
    """Without `GPU-`."""
    pci_bus_id: str | None
    """`00000000:3B:00.0`."""


class Finished(Recorded, frozen=True, kw_only=True, tag_field="event", tag="finished"):
    """The trial ran to its end: what the record holds besides what the bench itself knows.

    Moments are by `time.perf_counter`, which on Linux is one clock for all processes.
    """

    measurement: Measurement
    identity: Identity
    evaluation_curve: list[EvaluationPoint]
    loss_curve: AsJson
    inside: Inside | None = None
    watched: Watched | None = None
    script: Script | None = None
    software: dict[str, str | None] | None = None
    """Versions that a script ran with, which are known at its end alone; None: as in `started`."""
    resolved_config: dict[str, Any] | None = None
    timed_windows: list[tuple[float, float]] = msgspec.field(default_factory=list)
    """Begin and end of the timed windows on the first rank, those that follow each other closely as one."""
    training_window: tuple[float, float] | None = None
    """Training up to the first evaluation, in which memory counts; None: an own loop that did not say."""
    devices: list[RankDevice] = msgspec.field(default_factory=list)
    """Of each rank; empty on a CPU."""


class GaveUp(Recorded, frozen=True, kw_only=True, tag_field="event", tag="gave_up"):
    """The worker itself knows why the trial failed."""

    kind: FailureKind
    detail: str
    """What it knows; '' where the log says it."""
    rank: int | None = None
    """The rank that failed first; its log is `rank<N>.log` in the trial's folder. None: there are no ranks."""
    exit_status: int | None = None
    """How that rank's process ended, negative for a signal; None: it reported its failure itself."""


Event = Started | Phase | Progress | Evaluating | Finished | GaveUp

ORDERS: Lines[Order | CommandOrder] = Lines(Order | CommandOrder)
EVENTS: Lines[Event] = Lines(Event)
