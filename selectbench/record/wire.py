"""What passes between the bench and a worker, and between the nodes of a run: a line of JSON each."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Annotated, Any, Literal, get_args

import msgspec

from selectbench.choices import Choices
from selectbench.errors import ExitCode
from selectbench.gpu.devices import TorchDevice
from selectbench.record import record
from selectbench.suite.job import Job


class Place(record.Recorded, frozen=True, kw_only=True):
    """Which of a trial's ranks run on one node, and where all of them meet."""

    node: int
    """From 0, which is the bench's."""
    first_rank: int
    """Of this node."""
    ranks: int
    """On this node."""
    address: str
    """IP address of the first node, as the others reach it."""
    port: int = 0
    """Where the first rank listens; 0: a free one, which the first node tells of."""
    interface: str | None = None
    """This node's network interface for what ranks exchange; None: as the libraries find it."""


LOG_NAME = "log.txt"
"""Of a trial's output, in its folder."""
OBSERVED, WHOLE = "observed", "whole"
"""Folder of what was observed of a command; each other node has one below it, which the second marks as whole."""


class CommandOrder(record.Recorded, frozen=True, kw_only=True, tag_field="kind", tag="command"):
    """Everything that is needed to run a training command once."""

    trial: record.Trial
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
    place: Place | None = None
    """Of the node whose part of the command this is; None: one node runs all of it."""


class Order(record.Recorded, frozen=True, kw_only=True, tag_field="kind", tag="built"):
    """Everything a worker needs to run one trial; it reads nothing else of the suite."""

    trial: record.Trial
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
    place: Place | None = None
    """This node's share of a trial over several; None: one node runs all of it."""


class Started(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="started"):
    """The worker's first sign of life."""

    software: dict[str, str | None] = msgspec.field(default_factory=dict)
    """Versions by name, as in the record."""


class Met(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="met"):
    """The ranks of other nodes can come: the first one listens. Of trials over several nodes alone."""

    port: int
    """0: a command's, which was given its port."""


class Phase(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="phase"):
    """The trial goes over to another kind of work."""

    phase: Literal["setup", "train", "evaluate", "save", "extra"]
    """`extra`: steps after the final evaluation, for timing only."""


class Progress(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """Steps done, at most a few times a second."""

    step: int
    """Optimizer steps done."""
    of: int
    """Optimizer steps of the job."""
    loss: float | None
    """Latest training loss known without waiting for the device; nats per token."""
    tokens_per_second: float | None
    """Over the steps since the last such event."""


class Evaluating(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="evaluating"):
    """How far an evaluation is, at most a few times a second."""

    done: int
    of: int
    what: Literal["sequences", "texts"]
    """Held-out sequences that are scored, or texts that are generated."""


class Finished(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="finished"):
    """What only the worker knows of a record; moments by `time.perf_counter`, one clock for all on Linux."""

    measurement: record.Measurement
    identity: record.Identity
    evaluation_curve: list[record.EvaluationPoint]
    loss_curve: record.AsJson
    inside: record.Inspection | None = None
    watched: record.Watched | None = None
    script: record.Script | None = None
    software: dict[str, str | None] | None = None
    """Versions that a script ran with, which are known at its end alone; None: as in `started`."""
    resolved_config: dict[str, Any] | None = None
    timed_windows: list[tuple[float, float]] = msgspec.field(default_factory=list)
    """Begin and end of the timed windows on the first rank, those that follow each other closely as one."""
    training_window: tuple[float, float] | None = None
    """Training up to the first evaluation, in which memory counts; None: an own loop that did not say."""
    devices: list[TorchDevice] = msgspec.field(default_factory=list)
    """Of each rank; empty on a CPU."""


class GaveUp(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="gave_up"):
    """The worker itself knows why the trial failed."""

    kind: record.FailureKind
    detail: str
    """What it knows; '' where the log says it."""
    rank: int | None = None
    """The rank that failed first; its log is `rank<N>.log` in the trial's folder. None: there are no ranks."""
    exit_status: int | None = None
    """How that rank's process ended, negative for a signal; None: it reported its failure itself."""
    may_be_victim: bool = True
    """Whether the end of a rank on another node may have caused it."""
    at: record.Number | None = None
    """When that rank failed, by `time.perf_counter`; None: there are no ranks, or it was asked to end."""
    cells: list[int] = msgspec.field(default_factory=list)
    """How far each rank here came, as `describe` reads it; empty unless the bench asked."""


Event = Started | Met | Phase | Progress | Evaluating | Finished | GaveUp

ORDERS: record.Lines[Order | CommandOrder] = record.Lines(Order | CommandOrder)
EVENTS: record.Lines[Event] = record.Lines(Event)


# Where each rank of a trial is, readable from outside while a rank hangs.


Stage = Literal["set-up", "forward pass", "backward pass", "update", "reading of results", "evaluation", "saving"]
STAGES: tuple[Stage, ...] = get_args(Stage)
CELLS_PER_RANK = 3
"""Stages entered so far, the optimizer step, the number of the stage."""


def describe(cells: MutableSequence[int], first: int = 0) -> tuple[int | None, str]:
    """The rank that is furthest behind, None: several, and where all are; `first`: the rank of the first cells."""
    counts = list(cells[::CELLS_PER_RANK])
    behind = [rank for rank, count in enumerate(counts) if count == min(counts)]
    if len(counts) == 1:
        return first, f"rank {first} is in the {_stage(cells, 0)}"
    if len(behind) == len(counts):
        return None, f"no rank is behind the others: all are in the {_stage(cells, 0)}"
    ahead = counts.index(max(counts))
    names = ", ".join(str(rank + first) for rank in behind)
    named = f"rank {names} is" if len(behind) == 1 else f"ranks {names} are"
    place, theirs = _stage(cells, behind[0]), _stage(cells, ahead)
    sentence = f"{named} in the {place}, rank {ahead + first} waits in the {theirs}"
    return (behind[0] + first if len(behind) == 1 else None), sentence


def _stage(cells: MutableSequence[int], rank: int) -> str:
    step, stage = cells[rank * CELLS_PER_RANK + 1 : rank * CELLS_PER_RANK + 3]
    return STAGES[stage] if stage == 0 else f"{STAGES[stage]} of step {step}"


# Between the bench and the agents of its other nodes. The first three are exchanged before either side trusts the
# other, and are short; all later ones carry a code that only who knows the run's secret can make.


class Message(record.Recorded, frozen=True, kw_only=True, tag_field="message", forbid_unknown_fields=True):
    """One of them."""


class Challenge(Message, frozen=True, kw_only=True, tag="challenge"):
    """The bench's first word: prove that you know the secret."""

    nonce: str


class Proof(Message, frozen=True, kw_only=True, tag="proof"):
    """The agent's answer: which of how many nodes it is, of which version of selectbench and its trials' code."""

    nonce: str
    node: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    nodes: Annotated[int, msgspec.Meta(ge=2, le=1 << 16)]
    version: str
    code_sha256: str
    proof: str


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """The bench knows the secret too."""

    proof: str


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """What must be the same on all nodes, and the host's name, which no record has."""

    host: str
    suite: dict[str, Any]
    """As it was resolved there, without seeds."""
    environment: dict[str, Any]
    """What of environment.json a run's fingerprint holds."""
    data: dict[str, dict[str, str]]
    """Digests of the files, by key of the prepared data."""


class Bye(Message, frozen=True, kw_only=True, tag="bye"):
    """The last word of either side: a node is not taken, the run is over, or the agent was asked to end."""

    reason: str
    status: ExitCode
    """The run's."""


class Prepare(Message, frozen=True, kw_only=True, tag="prepare"):
    """A trial of the run of this name is to come: have its interpreter's server started and its GPUs idle."""

    run: str
    python: str | None
    ranks: Annotated[int, msgspec.Meta(ge=1)]


class Ready(Message, frozen=True, kw_only=True, tag="ready"):
    """They are, but for what holds memory of GPUs; also what a node hears that the bench takes."""

    held: list[str] = msgspec.field(default_factory=list)


class Clock(Message, frozen=True, kw_only=True, tag="clock"):
    """What time it is, by `time.perf_counter`; answered by the same of the other side."""

    now: record.Number


class Begin(Message, frozen=True, kw_only=True, tag="begin"):
    """Run this node's ranks of a trial; folders are the bench's own, the data are named by their key."""

    order: Order | CommandOrder
    data_key: str | None
    """None: the data are a command's own."""


class End(Message, frozen=True, kw_only=True, tag="end"):
    """End the trial; `asks`: its ranks are to say first where they are, as their time is up."""

    asks: bool


class Observed(Message, frozen=True, kw_only=True, tag="observed"):
    """The next part of what was observed of a command's rank on that node, sent before the one that they ended."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+-[0-9]+\.jsonl\Z")]
    """Of the file, as the observer named it."""
    lines: str


class Ended(Message, frozen=True, kw_only=True, tag="ended"):
    """All ranks of this node have ended."""

    failed: record.Failed | None
    """Why they failed; None: they did their part."""
    said: GaveUp | None
    """The trial's own last word."""
    at: record.Number
    """When, by this node's `time.perf_counter`."""


class Measure(Message, frozen=True, kw_only=True, tag="measure"):
    """Tell of this node's GPUs over the trial: as of `Finished`, by its own clock and of its own ranks."""

    timed_windows: list[tuple[record.Number, record.Number]]
    training_window: tuple[record.Number, record.Number] | None
    devices: list[TorchDevice]


class Measured(Message, frozen=True, kw_only=True, tag="measured"):
    """The answer."""

    meters: record.Meters


AnyMessage = (
    Challenge | Proof | Welcome | Bye | Hello | Prepare | Ready | Clock | Begin | End | Observed | Ended
    | Measure | Measured
)  # fmt: skip
MESSAGES: record.Lines[AnyMessage] = record.Lines(AnyMessage)
