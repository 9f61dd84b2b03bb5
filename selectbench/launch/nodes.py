"""A run over several nodes: the bench on the first, and on each other an agent, which runs that node's ranks.

Every node is started with the same line but for its number. Agents connect to the first node, as torch's ranks do;
each side proves that it knows the run's secret, and the bench takes a node only where software, machine, suite and
data are as its own. An agent ends with the bench, and the run with the first agent that is lost.

Bench and agent talk over a `channel.Channel` in messages of `record.wire`, in this order:

1. once, as an agent joins (`join`, `Nodes.gather`): the bench sends Challenge, the agent Proof, the bench Welcome,
   the agent Hello, the bench Ready;
2. before each trial (`Team.prepare`, `Team.wait_until_ready`): Prepare, answered by Ready, then Clock both ways;
3. once the first node's first rank listens (`Team.invite_ranks`): Begin, with the order for that node's ranks;
4. at the trial's end (`Team.wait_for_end`): the agent sends Observed of a command, then Ended; the bench sends End
   before that to an agent whose ranks must not go on;
5. after the trial: Clock both ways, then Measure, answered by Measured (`Team.all_meters`);
6. Bye, by whichever side ends first.
"""

from __future__ import annotations

import hmac
import json
import secrets
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from selectbench import __version__
from selectbench.analysis.gate import differing, differing_words
from selectbench.errors import ExitCode, UserError
from selectbench.gpu.meters import ON_THE_CPU, GpuWatch, Ready, Watching
from selectbench.launch.channel import (
    Channel,
    GoneError,
    ProtocolError,
    address_of,
    interface_of,
    proof,
    take_secret,
)
from selectbench.launch.command import localized_order
from selectbench.launch.gpus import Notify
from selectbench.launch.preparation import Preparation
from selectbench.launch.trial import (
    END_SECONDS,
    TERM_GRACE_SECONDS,
    PeerNodes,
    ServerDiedError,
    StopRequest,
    TrialRunner,
    TrialServers,
)
from selectbench.record import wire
from selectbench.record.environment import code_sha256
from selectbench.record.record import Completed, Failed, Meters, OtherNode
from selectbench.record.run_folder import MODEL, TRIALS, WEIGHTS, fingerprint_part, weights_folder, writing
from selectbench.record.wire import AnyMessage, CommandOrder, Ended, Finished, GaveUp, Hello, Order, Prepare, Proof
from selectbench.suite.suite import Limits
from selectbench.text import one_line

JOIN_SECONDS = 600.0
"""Time for all nodes to join, and for an agent to find the bench: what torchrun gives a rendezvous."""
HANDSHAKE_SECONDS = 10.0
"""Time in which whoever connects must prove that it is a node of this run."""
MOST_NEWCOMERS = 64
"""Connections that the bench listens to at a time while it waits for nodes."""
MOST_REFUSALS_REPORTED = 5
"""Lines for the user on connections that were no node of this run."""
READY_SECONDS = 300.0
"""Time for a node's server to import what it needs, in addition to the time for its GPUs to settle."""
SETTLING_SECONDS = 1.0
"""After a node's failure the bench listens to the other nodes for this long, to see which failed first."""
ANSWER_SECONDS = 30.0
ROUND_TRIPS = 8
"""Messages of which the fastest tells the offset between two nodes' clocks."""
AnyAnswer = TypeVar("AnyAnswer", bound=AnyMessage)
AnyOrder = Order | CommandOrder


class NodeRequest(NamedTuple):
    """What the command line says of several nodes; `node` 0 is the bench's, `rdzv` the first node's HOST:PORT."""

    nodes: int
    node: int
    rdzv: str


def node_request(nodes: int, node: int | None, rdzv: str | None) -> NodeRequest | None:
    """What the options of the command line ask for; None: a run of one node. Raises UserError."""
    if nodes == 1 and not node:
        return None
    if node is None or rdzv is None or not 0 <= node < nodes:
        raise UserError(
            "several nodes: each is started with --nnodes N --node-rank R --rdzv HOST:PORT, R from 0 to N - 1"
        )
    address_of(rdzv)
    return NodeRequest(nodes, node, rdzv)


GROWS = ("seeds", "looks")
"""Keys of a suite in which a run that is extended differs from what it was."""


def facts_of(preparation: Preparation) -> dict[str, Any]:
    """What must be the same on all nodes of a run, of this node, as JSON has it."""
    facts = {
        "suite": {key: value for key, value in preparation.suite.resolved.items() if key not in GROWS},
        "environment": fingerprint_part(preparation.environment), "own_code": preparation.plan.own_code_sha256,
        "data": {prepared.key: prepared.digests for prepared in preparation.prepared.values()},
    }  # fmt: skip
    return dict(json.loads(json.dumps(facts, default=str)))


def difference(first: dict[str, Any], this: dict[str, Any]) -> str | None:
    """Why a node can't take part in a run, by its facts and the first node's, as a sentence; None: it can."""
    differences = differing(this, first)
    words = differing_words(differences, "on the first", "on this one")
    return f"all nodes of a run must be alike: {words}" if differences else None


# The bench's end.


@dataclass(eq=False)
class Member:
    """The bench's side of one agent: the connection to it, and what it has said of the trial at hand.

    `Nodes` makes one for each agent that it takes, and `Team` uses it in each trial. It is lost once its connection
    closes, breaks the protocol or does not answer in time: nothing is sent to it any more, and the run ends.
    """

    node: int
    host: str
    channel: Channel
    on_lost: Callable[[Member, str], None]
    """Called once with the reason, when the node is lost."""
    is_lost: bool = False
    ended: Ended | None = None
    """How its ranks ended in the trial at hand; None: they have not."""
    observed: Path | None = None
    """Folder for what that node observes of a command; None: the job is no command."""
    was_told_to_end: bool = False
    """Whether it was told to end the trial before it said that its ranks had ended."""
    clock_offset: float = 0.0
    """By which its clock is ahead of the bench's before the trial, seconds."""
    round_trip: float = 0.0
    """Seconds of the message by which the offset was measured: the offset is at most so far off."""
    clock_drift: float | None = None
    """By which the offset grew during the trial, seconds; None: it was not measured again."""

    def fileno(self) -> int:
        """The connection, for selectors."""
        return self.channel.fileno()

    def lose(self, why: str) -> None:
        """Give the node up, which is gone or as good as gone."""
        if not self.is_lost:
            self.is_lost = True
            self.channel.close()
            self.on_lost(self, one_line(why))

    def send(self, message: AnyMessage) -> None:
        """Send the message, unless the node is lost, which it also is where it can't be sent."""
        try:
            if not self.is_lost:
                self.channel.send(message)
        except GoneError as error:
            self.lose(str(error))

    def hear(self) -> None:
        """Take what the node says during a trial; its channel must be readable."""
        try:
            for message in self.channel.receive():
                if isinstance(message, wire.Observed) and self.observed is not None:
                    self._append(self.observed / message.name, message.lines)
                    continue
                self._check_kind(message, Ended)
                assert isinstance(message, Ended)
                self.ended = message
                if self.observed is not None and message.failed is None:
                    self._append(self.observed / wire.WHOLE, "")
        except (GoneError, ProtocolError) as error:
            self.lose(str(error))

    def _append(self, path: Path, text: str) -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)

    def wait_for(self, kind: type[AnyAnswer], seconds: float, stop: StopRequest) -> AnyAnswer | None:
        """Its answer; None: the run is to stop, or the node is lost, as it is where no answer comes in time."""
        until = time.monotonic() + seconds
        try:
            while not self.is_lost and not stop:
                if (message := self.channel.next(0.2)) is None:
                    if time.monotonic() > until:
                        raise GoneError(f"it did not answer within {seconds:g} s")
                elif isinstance(message, kind):
                    return message
                else:
                    self._check_kind(message, kind)
        except (GoneError, ProtocolError) as error:
            self.lose(str(error))
        return None

    def _check_kind(self, message: AnyMessage, kind: type[Any]) -> None:
        """Raises GoneError for a Bye, ProtocolError for any other message that is not of this kind."""
        if isinstance(message, wire.Bye):
            raise GoneError(message.reason)
        if not isinstance(message, kind):
            raise ProtocolError(f"a {type(message).__name__} out of turn")

    def measure_clock(self, stop: StopRequest) -> tuple[float, float] | None:
        """Its clock's offset and the round trip that shows it, in seconds; None: the node is lost."""
        trips = []
        for _ in range(ROUND_TRIPS):
            before = time.perf_counter()
            self.send(wire.Clock(now=before))
            answer, after = self.wait_for(wire.Clock, ANSWER_SECONDS, stop), time.perf_counter()
            if answer is None:
                return None
            trips.append((after - before, answer.now - (before + after) / 2))
        round_trip, offset = min(trips)
        return offset, round_trip


class Nodes:
    """The bench's side of all other nodes, from before the first trial until the run is over.

    `cli.run` makes it, and `launch.run.run` has it `gather` the agents before the run's folder is chosen. Each
    trial uses its members through a `Team`. It stops the run when a node is lost, as the other ranks wait for that
    one's. At the end it tells every agent the run's exit status, with which the agent's process then ends.
    """

    def __init__(self, request: NodeRequest, notify: Notify) -> None:
        """Takes the address at once. Raises UserError where it is not this machine's, or there is no secret."""
        self.request, self._notify, self._secret = request, notify, take_secret()
        host, port = address_of(request.rdzv)
        try:
            family, *_, socket_address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._listener = socket.socket(family, socket.SOCK_STREAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(socket_address)
        except OSError as error:
            if hasattr(self, "_listener"):
                self._listener.close()
            raise UserError(
                f"--rdzv {one_line(request.rdzv)}: cannot listen there: {error.strerror or error}; it must be an "
                "address of the first node, which is this one, and a port that is free"
            ) from None
        self.address = str(socket_address[0])
        if self.address.startswith("127.") and host not in ("localhost", self.address):
            notify(f"warning: {one_line(host)} is {self.address} here, which other machines can't reach")
        self.members: list[Member] = []
        self._turn, self._refusals = Lock(), 0
        """Held by the one newcomer that is taken or refused at a time; how many were refused."""
        self.loss_reason: str | None = None
        """Why the run ends, if a node was lost."""
        self.lost_at = 0.0
        """When that was, by `time.perf_counter`."""
        self._stop: StopRequest | None = None
        """What ends the run; None: no trial is to come yet."""
        self.status = ExitCode.USER_ERROR
        """The run's, for the agents; this one until the run has gone to its end."""

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        """The agents are told how the run ended, and end."""
        self._listener.close()
        for member in self.members:
            member.send(wire.Bye(reason="the run is over", status=self.status))
            member.channel.close()

    def gather(self, preparation: Preparation) -> None:
        """Wait until every node has joined; no later connection is taken. Raises UserError where one is late."""
        bench_facts, until = facts_of(preparation), time.monotonic() + JOIN_SECONDS
        missing, threads = self.request.nodes - 1, list[Thread]()
        self._listener.listen(MOST_NEWCOMERS)
        self._listener.settimeout(0.2)
        self._notify(f"waiting for {missing} other node{'s' * (missing > 1)} at {one_line(self.request.rdzv)}")
        while len(self.members) < missing:
            threads = [thread for thread in threads if thread.is_alive()]
            with suppress(OSError):  # nobody has come, or is gone again
                if len(threads) < MOST_NEWCOMERS:
                    connection, (peer, *_) = self._listener.accept()
                    arguments = (connection, peer, bench_facts)
                    threads.append(Thread(target=self._admit, args=arguments, daemon=True))
                    threads[-1].start()
                else:
                    threads[0].join(0.2)
            if time.monotonic() > until:
                here = {0, *(member.node for member in self.members)}
                others = ", ".join(str(node) for node in range(self.request.nodes) if node not in here)
                raise UserError(f"node {others} did not come to {self.request.rdzv} within {JOIN_SECONDS:g} s")
        self._listener.close()

    def _admit(self, connection: socket.socket, peer: str, bench_facts: dict[str, Any]) -> None:
        """Find out who has connected, in a thread, and take a node of this run, or report why `peer` is none."""
        try:
            channel = Channel(connection)
        except OSError:
            connection.close()
            return
        try:
            nonce = secrets.token_hex(16)
            channel.send(wire.Challenge(nonce=nonce))
            claim = receive(channel, Proof)
            self._check_claim(nonce, claim)
            bench_proof = proof(self._secret, "bench", nonce, claim, __version__, code_sha256())
            channel.send(wire.Welcome(proof=bench_proof))
            channel.trust(self._secret, nonce, claim, as_bench=True)
            hello = receive(channel, Hello)
            if (why := difference(bench_facts, hello.facts)) is not None:
                raise UserError(f"node {claim.node}: {why}")
            with self._turn:
                if any(member.node == claim.node for member in self.members):
                    raise UserError(f"there is a node {claim.node} already: give each its own --node-rank")
                channel.send(wire.Ready())
                self._notify(f"node {claim.node} has come: {one_line(hello.host)}")
                member = Member(claim.node, hello.host, channel, self._on_lost)
                self.members = sorted([*self.members, member], key=lambda member: member.node)
        except UserError as error:
            refuse(channel, str(error))
            self._report_refusal(f"{peer} was refused: {error}")
        except (GoneError, ProtocolError) as error:
            channel.close()
            self._report_refusal(f"a connection from {peer} was closed: {one_line(str(error))}")

    def _report_refusal(self, line: str) -> None:
        """Tell the user of one of the first connections that were no node, as long as nodes are waited for."""
        with self._turn:
            self._refusals += 1
            if self._refusals <= MOST_REFUSALS_REPORTED and len(self.members) < self.request.nodes - 1:
                self._notify(line)

    def _check_claim(self, nonce: str, claim: Proof) -> None:
        """Raises UserError where the other end is no node of this run."""
        right_proof = proof(self._secret, "agent", nonce, claim, claim.version, claim.code_sha256)
        if not hmac.compare_digest(claim.proof.encode(), right_proof.encode()):
            raise UserError("its secret is not that of this run")
        if claim.version != __version__:
            raise UserError(f"node {claim.node} has selectbench {one_line(claim.version)}, the first {__version__}")
        if claim.code_sha256 != code_sha256():
            raise UserError(f"node {claim.node} has other code of selectbench than the first: install the same")
        if claim.nodes != self.request.nodes or claim.node >= claim.nodes:
            raise UserError(f"node {claim.node} was told of {claim.nodes} nodes, the first of {self.request.nodes}")

    def begin_trials(self, stop: StopRequest, notify: Notify) -> None:
        """Have a node that is lost from now on stop the run, as trials are to come."""
        self._stop, self._notify = stop, notify

    def _on_lost(self, member: Member, why: str) -> None:
        """Stop the run; a later one resumes it."""
        if self._stop is None:  # nothing is to be run
            return
        self.lost_at = time.perf_counter()
        self.loss_reason = self.loss_reason or f"node {member.node} was lost: {why}"
        self._stop.ask(self.loss_reason)
        self._notify(
            f"node {member.node} ({one_line(member.host)}) was lost: {why}; the run ends here: start the same line "
            "on every node again, and it goes on"
        )


def refuse(channel: Channel, why: str) -> None:
    """Tell the other end why it is no node of this run, and close the connection."""
    with suppress(GoneError):
        channel.send(wire.Bye(reason=why, status=ExitCode.USER_ERROR))
    channel.close()


def receive(channel: Channel, kind: type[AnyAnswer], seconds: float | None = None) -> AnyAnswer:
    """The next message. Raises UserError for a refusal, GoneError or ProtocolError for all but this kind."""
    message = channel.next(HANDSHAKE_SECONDS if seconds is None else seconds)
    if isinstance(message, wire.Bye):
        raise UserError(f"the bench refuses this node: {one_line(message.reason)}")
    if not isinstance(message, kind):
        raise ProtocolError("silence" if message is None else f"a {type(message).__name__} out of turn")
    return message


class Team(PeerNodes):
    """The bench's side of one trial that may run over several nodes: what it says to the agents, and when.

    `launch.run.Bench` makes one for each trial. Before the trial it calls `prepare` and `wait_until_ready`, and
    then `first_order` for the order of the first node's ranks. While these run, the `TrialRunner` calls the methods
    of `PeerNodes`: `invite_ranks` once the first rank listens, upon which the agents begin, `requested_end` at each
    turn, and `wait_for_end`, which waits for all agents and decides which node failed first. Then `all_meters` asks
    every agent for its GPUs' figures. A trial with one rank, or of a run on one node, has no members.
    """

    def __init__(
        self, nodes: Nodes | None, preparation: Preparation, ranks: int, stop: StopRequest,
        make_order: Callable[[wire.Place | None], AnyOrder],
    ) -> None:  # fmt: skip
        """`make_order` makes the order of the trial for any node's ranks."""
        self._preparation, self._stop, self._make_order = preparation, stop, make_order
        self._here = preparation.machine.ranks_per_node(ranks)
        self._nodes = nodes if ranks > 1 else None
        self.members = self._nodes.members if self._nodes else []
        self.node = 0 if self.members else None
        self._has_begun = False
        """Whether the agents were told to begin."""
        self._failed_at: float | None = None
        """When the bench heard of ranks that failed elsewhere, by the monotonic clock."""
        for member in self.members:
            member.ended, member.was_told_to_end, member.clock_drift = None, False, None

    def prepare(self, run: str, python: str | None) -> None:
        """Have every node start its trial server and let its GPUs settle; returns at once."""
        for member in self.members:
            member.send(Prepare(run=run, python=python, ranks=self._here))

    def wait_until_ready(self) -> list[str]:
        """Wait for every node, and measure its clock. Returns sentences on what holds memory of their GPUs."""
        sentences, seconds = [], self._preparation.suite.meters.settle_seconds + READY_SECONDS
        for member in self.members:
            if (answer := member.wait_for(wire.Ready, seconds, self._stop)) is not None:
                sentences += [f"node {member.node}: {sentence}" for sentence in answer.held]
                member.clock_offset, member.round_trip = member.measure_clock(self._stop) or (0.0, 0.0)
        return sentences

    def first_order(self) -> AnyOrder:
        """The order for the first node's ranks."""
        order = self._make_order(None if self._nodes is None else self._place(0, 0))
        observed = Path(order.trial_folder) / wire.OBSERVED if isinstance(order, CommandOrder) else None
        for member in self.members:
            member.observed = observed and observed / str(member.node)
        return order

    def _place(self, node: int, port: int) -> wire.Place:
        assert self._nodes is not None
        address, here = self._nodes.address, self._here
        return wire.Place(
            node=node, first_rank=node * here, ranks=here, address=address, port=port,
            interface=interface_of(address),
        )  # fmt: skip

    def sources(self) -> Sequence[Any]:
        """The nodes that are not lost."""
        return [member for member in self.members if not member.is_lost]

    def hear(self, source: Any) -> None:
        """Take a node's word that its ranks have ended, or that it is gone."""
        source.hear()

    def invite_ranks(self, port: int) -> None:
        """Have the agents start their ranks, which connect to the first rank at this port."""
        self._has_begun = True
        for member in self.members:
            order = self._make_order(self._place(member.node, port))
            data = self._preparation.prepared.get(order.trial.option)
            member.send(wire.Begin(order=order, data_key=None if data is None else data.key))

    def ask_whereabouts(self) -> None:
        """Have the ranks of all other nodes say where they are, and end."""
        self._tell_to_end(asks=True)

    def _tell_to_end(self, *, asks: bool) -> None:
        for member in self.members if self._has_begun else []:
            if member.ended is None:
                member.send(wire.End(asks=asks))

    def requested_end(self) -> Literal["ask", "kill"] | None:
        """`kill` a while after ranks elsewhere have failed: those here may wait for them for ever."""
        if self._failed_at is None and any(m.ended and m.ended.failed for m in self.members):
            self._failed_at = time.monotonic()
        is_due = self._failed_at is not None and time.monotonic() > self._failed_at + SETTLING_SECONDS
        return "kill" if is_due else None

    def wait_for_end(
        self, outcome: Completed | Failed, last_word: GaveUp | None, *, killed: bool
    ) -> Completed | Failed:
        """The trial's outcome; waits until all nodes have ended, and tells them to where the first one failed."""
        at, is_timeout = time.perf_counter(), isinstance(outcome, Failed) and outcome.kind == "timeout"
        if self._has_begun:
            if isinstance(outcome, Failed):
                self._wait(TERM_GRACE_SECONDS * is_timeout + SETTLING_SECONDS * (not killed))
                for member in self.members:
                    member.was_told_to_end = member.ended is None
                self._tell_to_end(asks=False)
            self._wait(END_SECONDS)
            for member in self.members:
                if member.ended is None:
                    member.lose(f"it did not tell of its ranks' end for {END_SECONDS:g} s")
        for member in self.members:
            if (clock := member.measure_clock(self._stop)) is not None:
                member.clock_drift = clock[0] - member.clock_offset
        if self._nodes is None or (self._stop and self._nodes.loss_reason is None and isinstance(outcome, Failed)):
            return outcome
        return self._first_failure(outcome, last_word, at, killed=killed)

    def _wait(self, seconds: float) -> None:
        """Wait until the ranks of all nodes have ended, at most so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and any(member.ended is None for member in self.sources()):
            for member in select.select(self.sources(), [], [], left)[0]:
                member.hear()

    def _first_failure(
        self, outcome: Completed | Failed, last_word: GaveUp | None, at: float, *, killed: bool
    ) -> Completed | Failed:
        """The first failure of those that no other node's can have caused, else of all; without one, `outcome`."""
        failures: list[tuple[bool, float, Failed]] = []
        if self._nodes is not None and (reason := self._nodes.loss_reason) is not None:
            failures.append((False, self._nodes.lost_at, Failed(kind="interrupted", detail=reason)))
        elif isinstance(outcome, Failed) and outcome.kind == "timeout":
            return self._name_hanging_rank(outcome, last_word)
        if isinstance(outcome, Failed) and not killed:
            failures.append((*_failure_time(last_word, at), outcome))
        for member in self.members:
            if (end := member.ended) is not None and end.failed is not None and not member.was_told_to_end:
                may_be_victim, when = _failure_time(end.said, end.at)
                failures.append((may_be_victim, when - member.clock_offset, end.failed))
        return min(failures, key=lambda failure: failure[:2])[2] if failures else outcome

    def _name_hanging_rank(self, outcome: Failed, last_word: GaveUp | None) -> Failed:
        """The failure of a trial whose time is up: which of all ranks is behind, with the stacks of its node."""
        words = [last_word, *(member.ended.said if member.ended else None for member in self.members)]
        if any(word is None or not word.cells for word in words):
            return outcome
        rank, sentence = wire.describe_stages([cell for word in words if word is not None for cell in word.cells])
        node = (rank or 0) // self._here
        ended = self.members[node - 1].ended if node else None
        stacks = (ended.failed if ended and ended.failed else outcome).detail.partition("\n")[2]
        detail = f"{outcome.detail.partition(';')[0]}; {sentence}{f', on node {node}' * (rank is not None)}"
        return msgspec.structs.replace(outcome, detail=f"{detail}\n{stacks}".strip())

    def other_nodes(self) -> list[OtherNode]:
        """What the trial's record says of the agents' nodes and clocks."""
        return [
            OtherNode(
                node=member.node, ranks=self._here, clock_offset_seconds=member.clock_offset,
                round_trip_seconds=member.round_trip, clock_drift_seconds=member.clock_drift,
            )
            for member in self.members
        ]  # fmt: skip

    def with_bench_gpus(self, finished: Finished | None) -> Finished | None:
        """What was measured, with the GPUs of the first node alone."""
        return finished and msgspec.structs.replace(finished, devices=finished.devices[: self._here])

    def all_meters(self, bench_meters: Meters, finished: Finished | None) -> Meters:
        """The meters of all nodes, GPUs in the order of ranks; asks every agent for those of its node."""
        if not self.members or bench_meters.problem == ON_THE_CPU:
            return bench_meters
        gpus, problem, settled = list(bench_meters.gpus), bench_meters.problem, bench_meters.settled
        for member in self.members:
            first = member.node * self._here
            shift = member.clock_offset + (member.clock_drift or 0.0) / 2  # in the trial's middle
            windows = [*finished.timed_windows, finished.training_window] if finished else [None]
            *timed, training = [None if w is None else (w[0] + shift, w[1] + shift) for w in windows]
            devices = finished.devices[first : first + self._here] if finished else []
            measure = wire.Measure(timed_windows=[w for w in timed if w], training_window=training, devices=devices)
            member.send(measure)
            answer = member.wait_for(wire.Measured, ANSWER_SECONDS, self._stop)
            meters = Meters(problem="it was lost") if answer is None else answer.meters
            gpus += meters.gpus
            problem = problem or (meters.problem and f"node {member.node}: {meters.problem}")
            settled = None if settled is None or meters.settled is None else settled and meters.settled
        if problem:
            return Meters(problem=problem)
        return msgspec.structs.replace(bench_meters, gpus=gpus, settled=settled)


def _failure_time(last_word: GaveUp | None, at: float) -> tuple[bool, float]:
    """Whether another node's failure may have caused this one, and when it was, by its node's clock.

    `at`: when the trial ended, for a trial that said nothing of its ranks.
    """
    return (False, at) if last_word is None or last_word.at is None else (last_word.may_be_victim, last_word.at)


# The agent's end.


def join(
    request: NodeRequest, preparation: Preparation, secret: bytes, stop: StopRequest, notify: Notify
) -> Channel:
    """Find the bench and become one of its nodes. Raises UserError where it is not there, or refuses."""
    rdzv, until, is_reported = f"--rdzv {one_line(request.rdzv)}", time.monotonic() + JOIN_SECONDS, False
    while True:
        try:
            channel = Channel(socket.create_connection(address_of(request.rdzv), timeout=5.0))
            break
        except OSError as error:
            if time.monotonic() > until or stop:
                raise UserError(f"{rdzv}: no bench there: {error.strerror or error}") from None
            if not is_reported:
                notify(f"waiting for the bench at {one_line(request.rdzv)}")
            is_reported = True
            stop.wait(0.5)
    try:
        patience = max(HANDSHAKE_SECONDS, until - time.monotonic())  # others may stand before the bench's door
        nonce, version, code = receive(channel, wire.Challenge, patience).nonce, __version__, code_sha256()
        claim = Proof(
            nonce=secrets.token_hex(16), node=request.node, nodes=request.nodes, version=version, code_sha256=code,
            proof="",
        )  # fmt: skip
        agent_proof = proof(secret, "agent", nonce, claim, version, code)
        channel.send(msgspec.structs.replace(claim, proof=agent_proof))
        bench_proof = receive(channel, wire.Welcome).proof
        if not hmac.compare_digest(
            bench_proof.encode(), proof(secret, "bench", nonce, claim, version, code).encode()
        ):
            raise ProtocolError("it does not know the secret")
        channel.trust(secret, nonce, claim, as_bench=False)
        channel.send(Hello(host=socket.gethostname(), facts=facts_of(preparation)))
        receive(channel, wire.Ready)
        return channel
    except (GoneError, ProtocolError) as error:
        channel.close()
        raise UserError(f"{rdzv}: what is there is no bench of this run: {error}") from None


@dataclass(eq=False)
class Agent(PeerNodes):
    """The process of every node but the first: runs this node's ranks in every trial, as the bench says.

    `launch.run.run_agent` makes it once the bench has taken this node. It decides nothing: it waits for the bench's
    next message and does what that asks for. `Prepare` has it start a trial server and let its GPUs settle; `Begin`
    has it run its ranks, then send how they ended, and what was observed of a command's; `Measure` has it send its
    GPUs' figures. It ends with the bench's `Bye`, when the connection is gone, or when its user stops it.

    While its ranks run it is the only peer of their `TrialRunner`, and just listens: the bench sends `End` where
    ranks here are not to go on, and where the connection breaks the agent stops, and with it the ranks.
    """

    request: NodeRequest
    preparation: Preparation
    runs: Path
    """The folder of the suite's runs on this node."""
    channel: Channel
    watch: GpuWatch
    make_servers: Callable[[Path], TrialServers]
    stop: StopRequest
    notify: Notify
    _folder: Path | None = field(default=None, init=False)
    """What this node writes of the run; None: the bench has not named the run yet."""
    _until_its_end: ExitStack = field(default_factory=ExitStack, init=False)
    _servers: TrialServers | None = field(default=None, init=False)
    _prepared: Prepare | None = field(default=None, init=False)
    """The last one that the bench sent."""
    _watching: Watching | None = field(default=None, init=False)
    """The GPUs during the last trial."""
    _ready: Ready | None = field(default=None, init=False)
    """The GPUs right before it."""
    _requested_end: Literal["ask", "kill"] | None = field(default=None, init=False)
    """How the bench wants the running trial to end; None: it is to go on."""

    def __post_init__(self) -> None:
        self.node = self.request.node

    def serve(self) -> ExitCode:
        """Do what the bench says until the run is over, it is gone, or the user stops this; the exit status."""
        with self._until_its_end:
            try:
                while not self.stop:
                    message = self.channel.next(3600.0, self.stop.descriptor)
                    if isinstance(message, wire.Bye):
                        self.notify(f"node {self.node}: {one_line(message.reason)}")
                        return message.status
                    if message is not None:
                        self._handle(message)
                self.channel.send(wire.Bye(reason=f"{self.stop.why} on that node", status=ExitCode.INTERRUPTED))
            except (GoneError, ProtocolError) as error:
                self.stop.ask(f"the bench is gone: {error}")
        again = "start the same line on every node again, and the run goes on"
        self.notify(f"node {self.node}: {self.stop.why}; {again}")
        return ExitCode.INTERRUPTED

    def _handle(self, message: AnyMessage) -> None:
        """Raises ProtocolError for a message that the bench sends at no such time."""
        if isinstance(message, Prepare):
            self._prepare(message)
        elif isinstance(message, wire.Clock):
            self.channel.send(wire.Clock(now=time.perf_counter()))
        elif isinstance(message, wire.Begin):
            self._run_ranks(message)
        elif isinstance(message, wire.Measure) and self._watching is not None:
            self.channel.send(wire.Measured(meters=self._watching.meters(message)))
        elif not isinstance(message, wire.End):  # which crossed with the word that the trial has ended
            raise ProtocolError(f"a {type(message).__name__} out of turn")

    def _prepare(self, message: Prepare) -> None:
        """Have the server started and the GPUs idle; before the first trial also the run's folder made."""
        if self._servers is None:
            if Path(message.run).name != message.run or message.run.startswith("."):
                raise ProtocolError("a run's name that is a path")
            self._folder = self.runs / message.run / "nodes" / str(self.node)
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            self._until_its_end.enter_context(weights_folder(self._folder))
            self._servers = self._until_its_end.enter_context(self.make_servers(self._folder))
        self._prepared = message
        server = self._servers.of(message.python)
        if not server.is_running:
            server.start()
            with suppress(ServerDiedError):  # which the trial will tell
                while not self.stop and "ready" not in server.wait_for_reply(0.2):
                    pass
        self._ready = self.watch.settle(message.ranks)
        self.channel.send(wire.Ready(held=self._ready.held if self._ready else []))

    def _run_ranks(self, message: wire.Begin) -> None:
        """Run this node's ranks of a trial, by the bench's order with this node's folders; send how they ended."""
        place, order = message.order.place, message.order
        folders = {prepared.key: prepared.folder for prepared in self.preparation.prepared.values()}
        is_command = isinstance(order, CommandOrder)
        if place is None or self._prepared is None or (message.data_key not in folders) != is_command:
            raise ProtocolError("an order that does not fit what went before")
        assert self._folder is not None
        assert self._servers is not None
        folder = self._folder / TRIALS / Path(order.trial.trial_id).name
        place = msgspec.structs.replace(place, node=self.node, interface=self.channel.interface)
        order = msgspec.structs.replace(order, trial_folder=str(folder.resolve()), place=place)
        if isinstance(order, Order):
            order = msgspec.structs.replace(
                order, data_folder=str(folders[str(message.data_key)]), code=self.preparation.suite.code,
                weights_folder=str((self._folder / WEIGHTS).resolve()),
                model_folder=order.model_folder and str(folder.resolve() / MODEL),
            )  # fmt: skip
        else:
            order = localized_order(order, self.preparation.suite)
        runner = TrialRunner(
            self._servers.of(self._prepared.python), Limits.model_construct(trial_seconds=None, stall_seconds=1e9),
            self.stop, lambda _: None, self,
        )  # fmt: skip
        self._requested_end = None
        with self.watch.during(self._ready, folder) as self._watching:
            end = runner.run(order)
        failed = end.outcome if isinstance(end.outcome, Failed) and not runner.did_its_part else None
        if self.stop:
            return
        if is_command and failed is None:
            for file in sorted((folder / wire.OBSERVED).glob("*.jsonl")):
                with file.open(encoding="utf-8") as stream:
                    while lines := stream.read(1 << 20):
                        self.channel.send(wire.Observed(name=file.name, lines=lines))
        self.channel.send(Ended(failed=failed, said=runner.gave_up, at=time.perf_counter()))

    def sources(self) -> Sequence[Any]:
        """The bench's channel."""
        return [self.channel]

    def hear(self, source: Any) -> None:
        """Take the bench's word that the trial is to end, or that the bench is gone."""
        try:
            self._take(source.receive())
        except (GoneError, ProtocolError) as error:
            self.stop.ask(f"the bench is gone: {error}")

    def requested_end(self) -> Literal["ask", "kill"] | None:
        """What the bench asked for last, which may have come together with the order."""
        self._take(self.channel.waiting())
        return self._requested_end

    def _take(self, messages: Sequence[AnyMessage]) -> None:
        for message in messages:
            if not isinstance(message, wire.End):
                raise ProtocolError(f"a {type(message).__name__} out of turn")
            self._requested_end = "ask" if message.asks else "kill"
