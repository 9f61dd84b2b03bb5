"""A run over several nodes: the bench on the first, and on each other an agent, which runs that node's ranks.

Every node is started with the same line but for its number. Agents connect to the first node, as torch's ranks do;
each side proves that it knows the run's secret, and the bench takes a node only where software, machine, suite and
data are as its own. An agent ends with the bench, and the run with the first agent that is lost.
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
from queue import SimpleQueue
from threading import Thread
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from selectbench import __version__
from selectbench.analysis.gate import differing, differing_words
from selectbench.errors import ExitCode, UserError
from selectbench.gpu.meters import ON_THE_CPU, GpuWatch, Watching
from selectbench.launch.channel import Channel, GoneError, ProtocolError, address_of, interface_of, proof, secret
from selectbench.launch.command import own_order
from selectbench.launch.gpus import Notify
from selectbench.launch.preparation import Preparation
from selectbench.launch.trial import (
    END_SECONDS,
    TERM_GRACE_SECONDS,
    Alone,
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
"""For all nodes to come, and for an agent to find the bench: what torchrun gives a rendezvous."""
HANDSHAKE_SECONDS = 10.0
"""For whoever connects to prove that it is a node of this run."""
MOST_NEWCOMERS = 64
"""That are listened to at a time."""
MOST_TOLD = 5
"""Lines on strangers who connected."""
READY_SECONDS = 300.0
"""For a node's server to import what it needs, beside the time for its GPUs to settle."""
SETTLING_SECONDS = 1.0
"""After a node's failure the others' are heard, to see which came first."""
ANSWER_SECONDS = 30.0
ROUND_TRIPS = 8
AnyAnswer = TypeVar("AnyAnswer", bound=AnyMessage)
AnyOrder = Order | CommandOrder


class NodeRequest(NamedTuple):
    """What the command line says of several nodes; `node` 0 is the bench's, `rdzv` the first node's HOST:PORT."""

    nodes: int
    node: int
    rdzv: str


def node_request(nodes: int, node: int | None, rdzv: str | None) -> NodeRequest | None:
    """None: one node, whatever is said of it. Raises UserError."""
    if nodes == 1 and not node:
        return None
    if node is None or rdzv is None or not 0 <= node < nodes:
        raise UserError(
            "several nodes: each is started with --nnodes N --node-rank R --rdzv HOST:PORT, R from 0 to N - 1"
        )
    address_of(rdzv)
    return NodeRequest(nodes, node, rdzv)


def facts_of(preparation: Preparation) -> Hello:
    """What must be the same on all nodes."""
    plain = json.loads(
        json.dumps([preparation.suite.resolved, fingerprint_part(preparation.environment)], default=str)
    )
    suite = {key: value for key, value in plain[0].items() if key not in ("seeds", "looks")}
    data = {one.key: one.digests for one in preparation.prepared.values()}
    return Hello(host=socket.gethostname(), suite=suite, environment=plain[1], data=data)


def difference(ours: Hello, theirs: Hello) -> str | None:
    """Of a node that wants to join; None: there is none that matters."""
    pairs = ((theirs.suite, ours.suite), (theirs.environment, ours.environment), (theirs.data, ours.data))
    found = [each for run, reference in pairs for each in differing(run, reference)]
    if not found:
        return None
    return f"nodes must be alike: {differing_words(found, 'on the first', 'on this one')}"


# The bench's end.


@dataclass(eq=False)
class Member:
    """Another node of the run; once it is lost, nothing reaches it or comes from it."""

    node: int
    host: str
    channel: Channel
    lost: Callable[[Member, str], None]
    """Called once it is, with the reason."""
    is_lost: bool = False
    ended: Ended | None = None
    """Of the trial at hand."""
    observed: Path | None = None
    """Where what that node observes of a command goes; None: it observes none."""
    was_told: bool = False
    """To end that trial, before it said that it had."""
    offset: float = 0.0
    """Of its clock against the bench's, seconds."""
    round_trip: float = 0.0
    drift: float | None = None

    def fileno(self) -> int:
        """For selectors."""
        return self.channel.fileno()

    def lose(self, why: str) -> None:
        """It is gone, or as good as gone."""
        if not self.is_lost:
            self.is_lost = True
            self.channel.close()
            self.lost(self, one_line(why))

    def send(self, message: AnyMessage) -> None:
        """Where it is there."""
        try:
            if not self.is_lost:
                self.channel.send(message)
        except GoneError as error:
            self.lose(str(error))

    def hear(self) -> None:
        """What it says during a trial; its channel must be readable."""
        try:
            for message in self.channel.receive():
                if isinstance(message, wire.Observed) and self.observed is not None:
                    self._keep(self.observed / message.name, message.lines)
                    continue
                self._fits(message, Ended)
                assert isinstance(message, Ended)
                self.ended = message
                if self.observed is not None and message.failed is None:
                    self._keep(self.observed / wire.WHOLE, "")
        except (GoneError, ProtocolError) as error:
            self.lose(str(error))

    def _keep(self, path: Path, text: str) -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)

    def answer(self, kind: type[AnyAnswer], seconds: float, stop: StopRequest) -> AnyAnswer | None:
        """To what it was asked; None: it is lost, which it is too where none comes, or the run is to stop."""
        until = time.monotonic() + seconds
        try:
            while not self.is_lost and not stop:
                if (message := self.channel.next(0.2)) is None:
                    if time.monotonic() > until:
                        raise GoneError(f"it did not answer within {seconds:g} s")
                elif isinstance(message, kind):
                    return message
                else:
                    self._fits(message, kind)
        except (GoneError, ProtocolError) as error:
            self.lose(str(error))
        return None

    def _fits(self, message: AnyMessage, kind: type[Any]) -> None:
        if isinstance(message, wire.Bye):
            raise GoneError(message.reason)
        if not isinstance(message, kind):
            raise ProtocolError(f"a {type(message).__name__} out of turn")

    def clock(self, stop: StopRequest) -> tuple[float, float] | None:
        """Its clock's offset and the round trip that it was found by; None: the node is lost."""
        found = []
        for _ in range(ROUND_TRIPS):
            before = time.perf_counter()
            self.send(wire.Clock(now=before))
            answer, after = self.answer(wire.Clock, ANSWER_SECONDS, stop), time.perf_counter()
            if answer is None:
                return None
            found.append((after - before, answer.now - (before + after) / 2))
        round_trip, offset = min(found)
        return offset, round_trip


class Nodes:
    """All other nodes of a run, held from the first trial to the last."""

    def __init__(self, request: NodeRequest, notify: Notify) -> None:
        """Takes the address at once. Raises UserError where it is not this machine's, or there is no secret."""
        self.request, self._notify, self._secret = request, notify, secret()
        host, port = address_of(request.rdzv)
        try:
            family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._listener = socket.socket(family, socket.SOCK_STREAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(place)
        except OSError as error:
            if hasattr(self, "_listener"):
                self._listener.close()
            raise UserError(
                f"--rdzv {one_line(request.rdzv)}: cannot listen there: {error.strerror or error}; it must be an "
                "address of the first node, which is this one, and a port that is free"
            ) from None
        self.address = str(place[0])
        if self.address.startswith("127.") and host not in ("localhost", self.address):
            notify(f"warning: {one_line(host)} is {self.address} here, which other machines can't reach")
        self.members: list[Member] = []
        self.lost_at = 0.0
        self.lost: str | None = None
        """Why the run ends, if a node was lost."""
        self._stop: StopRequest | None = None
        self.status = ExitCode.USER_ERROR

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        """The agents are told how the run ended, and end."""
        self._listener.close()
        for member in self.members:
            member.send(wire.Bye(reason="the run is over", status=self.status))
            member.channel.close()

    def gather(self, preparation: Preparation) -> None:
        """Wait until every node has come; nobody is listened to afterwards. Raises UserError where one does not."""
        ours, until, missing = facts_of(preparation), time.monotonic() + JOIN_SECONDS, self.request.nodes - 1
        came, threads, told = SimpleQueue[Member | str](), list[Thread](), 0
        self._listener.listen(MOST_NEWCOMERS)
        self._listener.settimeout(0.2)
        self._notify(f"waiting for {missing} other node{'s' * (missing > 1)} at {one_line(self.request.rdzv)}")
        while len(self.members) < missing:
            threads = [thread for thread in threads if thread.is_alive()]
            with suppress(OSError):  # nobody has come, or is gone again
                if len(threads) < MOST_NEWCOMERS:
                    connection, (peer, *_) = self._listener.accept()
                    threads.append(Thread(target=self._meet, args=(connection, peer, ours, came), daemon=True))
                    threads[-1].start()
                else:
                    threads[0].join(0.2)
            while not came.empty():
                one = came.get()
                if isinstance(one, str):
                    told += 1
                    if told <= MOST_TOLD:
                        self._notify(one)
                    continue
                double = any(member.node == one.node for member in self.members)
                try:
                    if double:
                        raise UserError(f"there is a node {one.node} already: give each its own --node-rank")
                    one.channel.send(wire.Ready())
                    self.members = sorted([*self.members, one], key=lambda member: member.node)
                    self._notify(f"node {one.node} has come: {one_line(one.host)}")
                except (UserError, GoneError) as error:
                    refuse(one.channel, str(error))
            if time.monotonic() > until:
                here = {0, *(member.node for member in self.members)}
                others = ", ".join(str(node) for node in range(self.request.nodes) if node not in here)
                raise UserError(f"node {others} did not come to {self.request.rdzv} within {JOIN_SECONDS:g} s")
        self._listener.close()

    def _meet(self, connection: socket.socket, peer: str, ours: Hello, came: SimpleQueue[Member | str]) -> None:
        """In a thread of its own: somebody has connected. Tells of a node, or why it is none."""
        try:
            channel = Channel(connection)
        except OSError:
            connection.close()
            return
        try:
            nonce = secrets.token_hex(16)
            channel.send(wire.Challenge(nonce=nonce))
            said = expected(channel, Proof)
            self._check(nonce, said)
            mine = proof(self._secret, "bench", nonce, said, __version__, code_sha256())
            channel.send(wire.Welcome(proof=mine))
            channel.trust(self._secret, nonce, said, as_bench=True)
            theirs = expected(channel, Hello)
            if (why := difference(ours, theirs)) is not None:
                raise UserError(f"node {said.node}: {why}")
            came.put(Member(said.node, theirs.host, channel, self._lost))
        except UserError as error:
            refuse(channel, str(error))
            came.put(f"{peer} was refused: {error}")
        except (GoneError, ProtocolError) as error:
            channel.close()
            came.put(f"a connection from {peer} was closed: {one_line(str(error))}")

    def _check(self, nonce: str, said: Proof) -> None:
        """Raises UserError where it is no node of this run."""
        mine = proof(self._secret, "agent", nonce, said, said.version, said.code_sha256)
        if not hmac.compare_digest(said.proof.encode(), mine.encode()):
            raise UserError("its secret is not that of this run")
        if said.version != __version__:
            raise UserError(f"node {said.node} has selectbench {one_line(said.version)}, the first {__version__}")
        if said.code_sha256 != code_sha256():
            raise UserError(f"node {said.node} has other code of selectbench than the first: install the same")
        if said.nodes != self.request.nodes or said.node >= said.nodes:
            raise UserError(f"node {said.node} was told of {said.nodes} nodes, the first of {self.request.nodes}")

    def begin(self, stop: StopRequest, notify: Notify) -> None:
        """Trials are to come: a node that is lost stops the run."""
        self._stop, self._notify = stop, notify

    def _lost(self, member: Member, why: str) -> None:
        """The run stops, what is left of it is resumed."""
        if self._stop is None:  # nothing is to be run
            return
        self.lost_at = time.perf_counter()
        self.lost = self.lost or f"node {member.node} was lost: {why}"
        self._stop.ask(self.lost)
        self._notify(
            f"node {member.node} ({one_line(member.host)}) was lost: {why}; the run ends here: start the same line "
            "on every node again, and it goes on"
        )


def refuse(channel: Channel, why: str) -> None:
    """Tell the other end, and close."""
    with suppress(GoneError):
        channel.send(wire.Bye(reason=why, status=ExitCode.USER_ERROR))
    channel.close()


def expected(channel: Channel, kind: type[AnyAnswer], seconds: float | None = None) -> AnyAnswer:
    """The next message. Raises UserError for a refusal, GoneError or ProtocolError for all but what is expected."""
    message = channel.next(HANDSHAKE_SECONDS if seconds is None else seconds)
    if isinstance(message, wire.Bye):
        raise UserError(f"the bench refuses this node: {one_line(message.reason)}")
    if not isinstance(message, kind):
        raise ProtocolError("silence" if message is None else f"a {type(message).__name__} out of turn")
    return message


class Team(Alone):
    """The nodes that run one trial, as the bench's runner sees them."""

    def __init__(self, nodes: Nodes | None, preparation: Preparation, ranks: int, stop: StopRequest) -> None:
        self._preparation, self._stop = preparation, stop
        self._here = preparation.machine.here(ranks)
        self._nodes = nodes if ranks > 1 else None
        self.members = self._nodes.members if self._nodes else []
        self.node = 0 if self.members else None
        self._make: Callable[[wire.Place | None], AnyOrder] | None = None
        self._began = False
        self._failed_at: float | None = None
        for member in self.members:
            member.ended, member.was_told, member.drift = None, False, None

    def prepare(self, run: str, python: str | None) -> None:
        """Have every node get ready; returns at once."""
        for member in self.members:
            member.send(Prepare(run=run, python=python, ranks=self._here))

    def ready(self) -> list[str]:
        """Wait until all are, and look at their clocks; what holds memory of their GPUs."""
        held, seconds = [], self._preparation.suite.meters.settle_seconds + READY_SECONDS
        for member in self.members:
            if (answer := member.answer(wire.Ready, seconds, self._stop)) is not None:
                held += [f"node {member.node}: {sentence}" for sentence in answer.held]
                member.offset, member.round_trip = member.clock(self._stop) or (0.0, 0.0)
        return held

    def placed(self, make: Callable[[wire.Place | None], AnyOrder]) -> AnyOrder:
        """The order for the ranks of the first node; `make` makes that of any."""
        self._make = make
        order = make(None if self._nodes is None else self._place(0, 0))
        for member in self.members:
            is_command, folder = isinstance(order, CommandOrder), Path(order.trial_folder)
            member.observed = folder / wire.OBSERVED / str(member.node) if is_command else None
        return order

    def _place(self, node: int, port: int) -> wire.Place:
        assert self._nodes is not None
        at, here = self._nodes.address, self._here
        first, interface = node * here, interface_of(at)
        return wire.Place(node=node, first_rank=first, ranks=here, address=at, port=port, interface=interface)

    def sources(self) -> Sequence[Any]:
        """Nodes that are there."""
        return [member for member in self.members if not member.is_lost]

    def hear(self, source: Any) -> None:
        """A node says that its ranks have ended, or is gone."""
        source.hear()

    def met(self, port: int) -> None:
        """Have the other nodes' ranks come."""
        assert self._make is not None
        self._began = True
        for member in self.members:
            order = self._make(self._place(member.node, port))
            data = self._preparation.prepared.get(order.trial.option)
            member.send(wire.Begin(order=order, data_key=None if data is None else data.key))

    def asked(self) -> None:
        """Ask all others, too."""
        self._end(asks=True)

    def _end(self, *, asks: bool) -> None:
        for member in self.members if self._began else []:
            if member.ended is None:
                member.send(wire.End(asks=asks))

    def wish(self) -> Literal["ask", "kill"] | None:
        """A while after ranks elsewhere have failed, those here are ended: they may wait for them for ever."""
        if self._failed_at is None and any(m.ended and m.ended.failed for m in self.members):
            self._failed_at = time.monotonic()
        is_due = self._failed_at is not None and time.monotonic() > self._failed_at + SETTLING_SECONDS
        return "kill" if is_due else None

    def ended(self, outcome: Completed | Failed, said: GaveUp | None, *, killed: bool) -> Completed | Failed:
        """Waits, not for long, until all nodes have ended."""
        at, is_timeout = time.perf_counter(), isinstance(outcome, Failed) and outcome.kind == "timeout"
        if self._began:
            if isinstance(outcome, Failed):
                self._wait(TERM_GRACE_SECONDS * is_timeout + SETTLING_SECONDS * (not killed))
                for member in self.members:
                    member.was_told = member.ended is None
                self._end(asks=False)
            self._wait(END_SECONDS)
            for member in self.members:
                if member.ended is None:
                    member.lose(f"it did not tell of its ranks' end for {END_SECONDS:g} s")
        for member in self.members:
            if (clock := member.clock(self._stop)) is not None:
                member.drift = clock[0] - member.offset
        if self._nodes is None or (self._stop and self._nodes.lost is None and isinstance(outcome, Failed)):
            return outcome
        return self._first(outcome, said, at, killed=killed)

    def _wait(self, seconds: float) -> None:
        """Until all have ended, at most so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and any(member.ended is None for member in self.sources()):
            for member in select.select(self.sources(), [], [], left)[0]:
                member.hear()

    def _first(
        self, outcome: Completed | Failed, said: GaveUp | None, at: float, *, killed: bool
    ) -> Completed | Failed:
        """The end that came first, of those that no other can have caused; else of all."""
        found: list[tuple[bool, float, Failed]] = []
        if self._nodes is not None and self._nodes.lost is not None:
            found.append((False, self._nodes.lost_at, Failed(kind="interrupted", detail=self._nodes.lost)))
        elif isinstance(outcome, Failed) and outcome.kind == "timeout":
            return self._where_all_are(outcome, said)
        if isinstance(outcome, Failed) and not killed:
            found.append((*_when(said, at), outcome))
        for member in self.members:
            if (end := member.ended) is not None and end.failed is not None and not member.was_told:
                may_be_victim, when = _when(end.said, end.at)
                found.append((may_be_victim, when - member.offset, end.failed))
        return min(found, key=lambda one: one[:2])[2] if found else outcome

    def _where_all_are(self, outcome: Failed, said: GaveUp | None) -> Failed:
        """A trial's time is up: which of all ranks is behind, with the stacks of its node."""
        words = [said, *(member.ended.said if member.ended else None for member in self.members)]
        if any(word is None or not word.cells for word in words):
            return outcome
        rank, sentence = wire.describe_stages([cell for word in words if word is not None for cell in word.cells])
        node = (rank or 0) // self._here
        theirs = self.members[node - 1].ended if node else None
        stacks = (theirs.failed if theirs and theirs.failed else outcome).detail.partition("\n")[2]
        detail = f"{outcome.detail.partition(';')[0]}; {sentence}{f', on node {node}' * (rank is not None)}"
        return msgspec.structs.replace(outcome, detail=f"{detail}\n{stacks}".strip())

    def clocks(self) -> list[OtherNode]:
        """For the record."""
        return [
            OtherNode(
                node=member.node, ranks=self._here, clock_offset_seconds=member.offset,
                round_trip_seconds=member.round_trip, clock_drift_seconds=member.drift,
            )
            for member in self.members
        ]  # fmt: skip

    def own(self, done: Finished | None) -> Finished | None:
        """What was measured, with the GPUs of this node alone."""
        return done and msgspec.structs.replace(done, devices=done.devices[: self._here])

    def meters(self, own: Meters, done: Finished | None) -> Meters:
        """Those of all nodes, in the order of ranks."""
        if not self.members or own.problem == ON_THE_CPU:
            return own
        gpus, problem, settled = list(own.gpus), own.problem, own.settled
        for member in self.members:
            first = member.node * self._here
            shift = member.offset + (member.drift or 0.0) / 2  # in the trial's middle
            windows = [*done.timed_windows, done.training_window] if done else [None]
            *timed, training = [None if w is None else (w[0] + shift, w[1] + shift) for w in windows]
            devices = done.devices[first : first + self._here] if done else []
            measure = wire.Measure(timed_windows=[w for w in timed if w], training_window=training, devices=devices)
            member.send(measure)
            answer = member.answer(wire.Measured, ANSWER_SECONDS, self._stop)
            theirs = Meters(problem="it was lost") if answer is None else answer.meters
            gpus += theirs.gpus
            problem = problem or (theirs.problem and f"node {member.node}: {theirs.problem}")
            settled = None if settled is None or theirs.settled is None else settled and theirs.settled
        return Meters(problem=problem) if problem else msgspec.structs.replace(own, gpus=gpus, settled=settled)


def _when(said: GaveUp | None, at: float) -> tuple[bool, float]:
    """Whether another node's failure may have caused this one, and its time by that node's clock.

    `at`: of the trial's end, for one that said nothing of its ranks.
    """
    return (False, at) if said is None or said.at is None else (said.may_be_victim, said.at)


# The agent's end.


def join(
    request: NodeRequest, preparation: Preparation, known: bytes, stop: StopRequest, notify: Notify
) -> Channel:
    """Find the bench and become one of its nodes. Raises UserError where it is not there, or refuses."""
    place, until, told = f"--rdzv {one_line(request.rdzv)}", time.monotonic() + JOIN_SECONDS, False
    while True:
        try:
            channel = Channel(socket.create_connection(address_of(request.rdzv), timeout=5.0))
            break
        except OSError as error:
            if time.monotonic() > until or stop:
                raise UserError(f"{place}: no bench there: {error.strerror or error}") from None
            if not told:
                notify(f"waiting for the bench at {one_line(request.rdzv)}")
            told = True
            stop.wait(0.5)
    try:
        patience = max(HANDSHAKE_SECONDS, until - time.monotonic())  # others may stand before the bench's door
        nonce, version, code = expected(channel, wire.Challenge, patience).nonce, __version__, code_sha256()
        said = Proof(
            nonce=secrets.token_hex(16), node=request.node, nodes=request.nodes, version=version, code_sha256=code,
            proof="",
        )  # fmt: skip
        mine = proof(known, "agent", nonce, said, version, code)
        channel.send(msgspec.structs.replace(said, proof=mine))
        theirs, right = expected(channel, wire.Welcome).proof, proof(known, "bench", nonce, said, version, code)
        if not hmac.compare_digest(theirs.encode(), right.encode()):
            raise ProtocolError("it does not know the secret")
        channel.trust(known, nonce, said, as_bench=False)
        channel.send(facts_of(preparation))
        expected(channel, wire.Ready)
        return channel
    except (GoneError, ProtocolError) as error:
        channel.close()
        raise UserError(f"{place}: what is there is no bench of this run: {error}") from None


class Link(Alone):
    """The bench, as the runner of a node's part of a trial sees it."""

    def __init__(self, node: int, channel: Channel, stop: StopRequest) -> None:
        self.node, self._channel, self._stop = node, channel, stop
        self._wish: Literal["ask", "kill"] | None = None

    def sources(self) -> Sequence[Any]:
        """The bench's channel."""
        return [self._channel]

    def hear(self, source: Any) -> None:
        """The bench ends the trial, or is gone."""
        try:
            self._take(source.receive())
        except (GoneError, ProtocolError) as error:
            self._stop.ask(f"the bench is gone: {error}")

    def wish(self) -> Literal["ask", "kill"] | None:
        """The bench's last, which may have come together with the order."""
        self._take(self._channel.waiting())
        return self._wish

    def _take(self, messages: Sequence[AnyMessage]) -> None:
        for message in messages:
            if not isinstance(message, wire.End):
                raise ProtocolError(f"a {type(message).__name__} out of turn")
            self._wish = "ask" if message.asks else "kill"


@dataclass(eq=False)
class Agent:
    """Runs a node's ranks of every trial, from the first to the last."""

    request: NodeRequest
    preparation: Preparation
    runs: Path
    """The folder of the suite's runs."""
    channel: Channel
    watch: GpuWatch
    make_servers: Callable[[Path], TrialServers]
    stop: StopRequest
    notify: Notify
    _folder: Path | None = field(default=None, init=False)
    _held: ExitStack = field(default_factory=ExitStack, init=False)
    _servers: TrialServers | None = field(default=None, init=False)
    _prepared: Prepare | None = field(default=None, init=False)
    _watching: Watching | None = field(default=None, init=False)
    _settled: Any = field(default=None, init=False)

    def serve(self) -> ExitCode:
        """Until the run is over, the bench is gone, or the process is asked to end; the exit status."""
        with self._held:
            try:
                while not self.stop:
                    message = self.channel.next(3600.0, self.stop.descriptor)
                    if isinstance(message, wire.Bye):
                        self.notify(f"node {self.request.node}: {one_line(message.reason)}")
                        return message.status
                    if message is not None:
                        self._do(message)
                self.channel.send(wire.Bye(reason=f"{self.stop.why} on that node", status=ExitCode.INTERRUPTED))
            except (GoneError, ProtocolError) as error:
                self.stop.ask(f"the bench is gone: {error}")
        again = "start the same line on every node again, and the run goes on"
        self.notify(f"node {self.request.node}: {self.stop.why}; {again}")
        return ExitCode.INTERRUPTED

    def _do(self, message: AnyMessage) -> None:
        if isinstance(message, Prepare):
            self._get_ready(message)
        elif isinstance(message, wire.Clock):
            self.channel.send(wire.Clock(now=time.perf_counter()))
        elif isinstance(message, wire.Begin):
            self._run(message)
        elif isinstance(message, wire.Measure) and self._watching is not None:
            self.channel.send(wire.Measured(meters=self._watching.meters(message)))
        elif not isinstance(message, wire.End):  # which a trial that had just ended did not hear
            raise ProtocolError(f"a {type(message).__name__} out of turn")

    def _get_ready(self, message: Prepare) -> None:
        if self._servers is None:
            if Path(message.run).name != message.run or message.run.startswith("."):
                raise ProtocolError("a run's name that is a path")
            self._folder = self.runs / message.run / "nodes" / str(self.request.node)
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(weights_folder(self._folder))
            self._servers = self._held.enter_context(self.make_servers(self._folder))
        self._prepared = message
        server = self._servers.of(message.python)
        if not server.is_running:
            server.start()
            with suppress(ServerDiedError):  # which the trial will tell
                while not self.stop and "ready" not in (server.heard(0.2) or {}):
                    pass
        self._settled = self.watch.settle(message.ranks)
        self.channel.send(wire.Ready(held=self._settled.held if self._settled else []))

    def _run(self, message: wire.Begin) -> None:
        place, order = message.order.place, message.order
        folders = {one.key: one.folder for one in self.preparation.prepared.values()}
        is_command = isinstance(order, CommandOrder)
        if place is None or self._prepared is None or (message.data_key not in folders) != is_command:
            raise ProtocolError("an order that does not fit what went before")
        assert self._folder is not None
        assert self._servers is not None
        folder = self._folder / TRIALS / Path(order.trial.trial_id).name
        place = msgspec.structs.replace(place, node=self.request.node, interface=self.channel.interface)
        own: AnyOrder = msgspec.structs.replace(order, trial_folder=str(folder.resolve()), place=place)
        if isinstance(own, Order):
            own = msgspec.structs.replace(
                own, data_folder=str(folders[str(message.data_key)]), code=self.preparation.suite.code,
                weights_folder=str((self._folder / WEIGHTS).resolve()),
                model_folder=own.model_folder and str(folder.resolve() / MODEL),
            )  # fmt: skip
        else:
            own = own_order(own, self.preparation.suite)
        runner = TrialRunner(
            self._servers.of(self._prepared.python), Limits.model_construct(trial_seconds=None, stall_seconds=1e9),
            self.stop, lambda _: None, Link(self.request.node, self.channel, self.stop),
        )  # fmt: skip
        with self.watch.during(self._settled, folder) as self._watching:
            end = runner.run(own)
        failed = end.outcome if isinstance(end.outcome, Failed) and not runner.did_its_part else None
        if self.stop:
            return
        if is_command and failed is None:
            for file in sorted((folder / wire.OBSERVED).glob("*.jsonl")):
                with file.open(encoding="utf-8") as stream:
                    while lines := stream.read(1 << 20):
                        self.channel.send(wire.Observed(name=file.name, lines=lines))
        self.channel.send(Ended(failed=failed, said=runner.gave_up, at=time.perf_counter()))
