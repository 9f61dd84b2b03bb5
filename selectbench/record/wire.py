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
    """The node's number, from 0, which is the bench's."""
    first_rank: int
    """Number of this node's first rank."""
    ranks: int
    """How many ranks run on this node."""
    address: str
    """IP address of the first node, as the others reach it."""
    port: int = 0
    """Where the first rank listens; 0: a free one, which the first node tells of."""
    interface: str | None = None
    """This node's network interface for what ranks exchange; None: as the libraries find it."""


LOG_NAME = "log.txt"
"""File of a trial's output, in its folder."""
OBSERVED, WHOLE = "observed", "whole"
"""Folder of the observer's files; each other node's are in a folder below it, complete once that has `WHOLE`."""


class _TrialOrder(record.Recorded, frozen=True, kw_only=True):
    """What every order has: the trial, how many ranks it has, and where this node's part of it is."""

    trial: record.Trial
    """The trial that is run."""
    world_size: int
    """How many ranks train; a command starts them itself."""
    trial_folder: str
    """Folder of the full series, of logs and of the observer's files."""
    place: Place | None = None
    """This node's share of a trial over several; None: one node runs all of it."""


class CommandOrder(_TrialOrder, frozen=True, kw_only=True, tag_field="kind", tag="command"):
    """Everything that is needed to run a training command once."""

    arguments: list[str]
    """The command's words."""
    directory: str
    """The command's working directory."""
    environment: dict[str, str]
    """Variables that are set over those of the bench."""
    max_steps: int
    """Optimizer steps after which the held-out loss is measured."""
    stop: Literal["at_max_steps", "natural_end"]
    """Whether the command is stopped after these steps."""
    warmup_steps: int
    """First steps that enter no figure of speed."""
    heldout: str | None
    """File of the held-out tokens, little-endian int64; None: no held-out loss is measured."""
    heldout_sha256: str | None
    """Digest of that file."""
    heldout_tokens: int
    """How many held-out tokens are scored."""
    seq_len: int | None
    """Tokens of a sequence that is scored; None: as in the first training row."""


class Order(_TrialOrder, frozen=True, kw_only=True, tag_field="kind", tag="built"):
    """Everything a worker needs to run one trial; it reads nothing else of the suite."""

    job: Job
    """The job that it trains."""
    choices: Choices
    """The option's choices."""
    device: Literal["cpu", "cuda"]
    """The device that ranks train on."""
    threads: int
    """Threads of torch's CPU operations, of each rank."""
    data_folder: str
    """The prepared data: token files and tokenizer."""
    weights_folder: str
    """Folder of initial weights: drawn once per model and seed, mapped by every rank that needs them."""
    code: list[str] = msgspec.field(default_factory=list)
    """Folders of own code, put on the worker's path in this order."""
    min_timed_seconds: float
    """Steps are added until so many seconds are timed."""
    model_folder: str | None = None
    """Folder for the trained model; None: it is not kept."""


class Started(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="started"):
    """The worker's first sign of life."""

    software: dict[str, str | None] = msgspec.field(default_factory=dict)
    """Versions by name, as in the record."""


class Listening(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="met"):
    """The first rank listens, so ranks of other nodes can connect; only in trials over several nodes."""

    port: int
    """The port that it listens at; 0: a command's first rank, which was given its port."""


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
    """Speed over the steps since the last such event."""


class Evaluating(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="evaluating"):
    """How much of an evaluation is done, at most a few times a second."""

    done: int
    of: int
    what: Literal["sequences", "texts"]
    """Held-out sequences that are scored, or texts that are generated."""


class MeteredWindows(record.Recorded, frozen=True, kw_only=True):
    """What meters need of a completed trial; times by `time.perf_counter`, one clock for all on Linux."""

    timed_windows: list[tuple[record.Number, record.Number]] = msgspec.field(default_factory=list)
    """Begin and end of the timed windows on the first rank, those that follow each other closely as one."""
    training_window: tuple[record.Number, record.Number] | None = None
    """Begin and end of training up to the first evaluation, in which memory counts; None: own code did not say."""
    devices: list[TorchDevice] = msgspec.field(default_factory=list)
    """Each rank's device; empty on a CPU."""


class Finished(MeteredWindows, frozen=True, kw_only=True, tag_field="event", tag="finished"):
    """Parts of a record that only the worker knows."""

    measurement: record.Measurement
    identity: record.Identity
    evaluation_curve: list[record.EvaluationPoint]
    loss_curve: record.AsJson
    inside: record.Inspection | None = None
    watched: record.Watched | None = None
    script: record.Script | None = None
    software: dict[str, str | None] | None = None
    """Versions that a script ran with, which are known only at its end; None: as in `started`."""
    resolved_config: dict[str, Any] | None = None


class GaveUp(record.Recorded, frozen=True, kw_only=True, tag_field="event", tag="gave_up"):
    """The worker itself knows why the trial failed."""

    kind: record.FailureKind
    detail: str
    """What the worker knows of the failure; '' where the log says it."""
    rank: int | None = None
    """The rank that failed first; its log is `rank<N>.log` in the trial's folder. None: there are no ranks."""
    exit_status: int | None = None
    """How that rank's process ended, negative for a signal; None: it reported its failure itself."""
    may_be_victim: bool = True
    """Whether the end of a rank on another node may have caused it."""
    at: record.Number | None = None
    """When that rank failed, by `time.perf_counter`; None: there are no ranks, or it was asked to end."""
    cells: list[int] = msgspec.field(default_factory=list)
    """How far each rank here came, as `describe_stages` reads it; empty unless the bench asked."""


Event = Started | Listening | Phase | Progress | Evaluating | Finished | GaveUp

ORDERS: record.Lines[Order | CommandOrder] = record.Lines(Order | CommandOrder)
EVENTS: record.Lines[Event] = record.Lines(Event)


# The stage of each rank of a trial, readable from outside while a rank hangs.


Stage = Literal["set-up", "forward pass", "backward pass", "update", "reading of results", "evaluation", "saving"]
STAGES: tuple[Stage, ...] = get_args(Stage)
CELLS_PER_RANK = 3
"""Stages entered so far, the optimizer step, the number of the stage."""


def describe_stages(cells: MutableSequence[int], first: int = 0) -> tuple[int | None, str]:
    """The rank that is furthest behind (None: several) and a sentence; `first`: number of the first cells' rank."""
    counts = list(cells[::CELLS_PER_RANK])
    behind = [rank for rank, count in enumerate(counts) if count == min(counts)]
    if len(counts) == 1:
        return first, f"rank {first} is in the {_stage(cells, 0)}"
    if len(behind) == len(counts):
        return None, f"no rank is behind the others: all are in the {_stage(cells, 0)}"
    ahead = counts.index(max(counts))
    numbers = ", ".join(str(rank + first) for rank in behind)
    subject = f"rank {numbers} is" if len(behind) == 1 else f"ranks {numbers} are"
    stage, other_stage = _stage(cells, behind[0]), _stage(cells, ahead)
    sentence = f"{subject} in the {stage}, rank {ahead + first} waits in the {other_stage}"
    return (behind[0] + first if len(behind) == 1 else None), sentence


def _stage(cells: MutableSequence[int], rank: int) -> str:
    step, stage = cells[rank * CELLS_PER_RANK + 1 : rank * CELLS_PER_RANK + 3]
    return STAGES[stage] if stage == 0 else f"{STAGES[stage]} of step {step}"


# Between the bench and the agents of its other nodes. The first three are exchanged before either side trusts the
# other, and are short; all later ones carry a code that only who knows the run's secret can make.


class Message(record.Recorded, frozen=True, kw_only=True, tag_field="message", forbid_unknown_fields=True):
    """A message between the bench and an agent."""


class Challenge(Message, frozen=True, kw_only=True, tag="challenge"):
    """The bench's first message: the agent is to prove that it knows the secret."""

    nonce: str


class Proof(Message, frozen=True, kw_only=True, tag="proof"):
    """The agent's answer: its node's number of how many, its version of selectbench and of the trials' code."""

    nonce: str
    node: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    nodes: Annotated[int, msgspec.Meta(ge=2, le=1 << 16)]
    version: str
    code_sha256: str
    proof: str


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """The bench's proof that it knows the secret too."""

    proof: str


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """What must be the same on all nodes, and the host's name, which no record has."""

    host: str
    facts: dict[str, Any]
    """The suite as that node resolved it, its environment, own code and data: see `launch.nodes.facts_of`."""


class Bye(Message, frozen=True, kw_only=True, tag="bye"):
    """The last message of either side: a node is not taken, the run is over, or the agent was asked to end."""

    reason: str
    status: ExitCode
    """Exit code of the run."""


class Prepare(Message, frozen=True, kw_only=True, tag="prepare"):
    """Get ready for a trial of the run of this name: start its interpreter's server, wait for idle GPUs."""

    run: str
    python: str | None
    ranks: Annotated[int, msgspec.Meta(ge=1)]


class Ready(Message, frozen=True, kw_only=True, tag="ready"):
    """The server is ready and GPUs are idle but for what is `held`; from the bench it says that a node is taken."""

    held: list[str] = msgspec.field(default_factory=list)


class Clock(Message, frozen=True, kw_only=True, tag="clock"):
    """The sender's time by `time.perf_counter`; the other side answers with its own."""

    now: record.Number


class Begin(Message, frozen=True, kw_only=True, tag="begin"):
    """Run this node's ranks of a trial; the order's folders are the bench's, the data are named by their key."""

    order: Order | CommandOrder
    data_key: str | None
    """Key of the prepared data; None: a command brings its data."""


class End(Message, frozen=True, kw_only=True, tag="end"):
    """End the trial; `asks`: its ranks are to report their stages first, as their time is up."""

    asks: bool


class Observed(Message, frozen=True, kw_only=True, tag="observed"):
    """The next lines of the observer's file of one rank on that node; all are sent before `Ended`."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+-[0-9]+\.jsonl\Z")]
    """The file's name, as the observer named it."""
    lines: str


class Ended(Message, frozen=True, kw_only=True, tag="ended"):
    """All ranks of this node have ended."""

    failed: record.Failed | None
    """Why they failed; None: they completed."""
    said: GaveUp | None
    """The trial's last event, where it knew why it failed."""
    at: record.Number
    """When they ended, by this node's `time.perf_counter`."""


class Measure(Message, MeteredWindows, frozen=True, kw_only=True, tag="measure"):
    """Send this node's meters of the trial; the windows are by this node's clock, the devices its ranks'."""


class Measured(Message, frozen=True, kw_only=True, tag="measured"):
    """The answer to `Measure`."""

    meters: record.Meters


AnyMessage = (
    Challenge | Proof | Welcome | Bye | Hello | Prepare | Ready | Clock | Begin | End | Observed | Ended
    | Measure | Measured
)  # fmt: skip
MESSAGES: record.Lines[AnyMessage] = record.Lines(AnyMessage)
