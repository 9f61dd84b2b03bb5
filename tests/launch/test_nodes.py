"""A run over several nodes: who is let in, what two nodes train, and what is left where one of them is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import processes
import pytest
from launch.harness import Workplace, all_pids, output_of, until
from made_records import make_meters

from selectbench.cores import descendants
from selectbench.errors import UserError
from selectbench.launch import channel, nodes
from selectbench.launch.channel import Channel, GoneError, ProtocolError, proof
from selectbench.launch.command import meeting_place
from selectbench.launch.nodes import NodeRequest, Nodes, Team, node_request
from selectbench.launch.trial import StopRequest
from selectbench.record.record import Failed
from selectbench.record.wire import Bye, Challenge, Clock, Ended, GaveUp, Hello, Measure, Measured, Proof, Welcome
from selectbench.worker.command import _only_lost_touch

SECRET = "a secret of this test"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


# Who is let in; nothing is trained.


FACTS = {"suite": {"job": {"max_steps": 6}}, "environment": {"kernel": "6.1"}, "data": {"k": {"f": "ab"}}}
PLAIN: Any = None
"""In place of a preparation."""


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> Iterator[Nodes]:
    """Of two nodes, at a free port."""
    monkeypatch.setattr(nodes, "facts_of", lambda _: FACTS)
    monkeypatch.setattr(nodes, "HANDSHAKE_SECONDS", 2.0)
    monkeypatch.setenv("SELECTBENCH_SECRET", SECRET)
    with Nodes(NodeRequest(2, 1, f"127.0.0.1:{free_port()}"), told.append) as made:
        yield made


def connected(request: NodeRequest) -> socket.socket:
    end = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(channel.address_of(request.rdzv), timeout=5)
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.02)


def answered(connection: socket.socket, **changed: Any) -> Channel:
    """One that proves itself but for what is changed."""
    there = Channel(connection)
    challenge = there.next(5)
    assert isinstance(challenge, Challenge)
    claim = Proof(
        nonce="n" * 32, node=1, nodes=2, version=nodes.__version__, code_sha256=nodes.code_sha256(), proof=""
    )
    secret = changed.pop("secret", SECRET).encode()
    claim = msgspec.structs.replace(claim, **changed)
    agent_proof = proof(secret, "agent", challenge.nonce, claim, claim.version, claim.code_sha256)
    there.send(msgspec.structs.replace(claim, proof=agent_proof))
    if isinstance(answer := there.next(5), Bye):
        raise UserError(answer.reason)
    assert isinstance(answer, Welcome)
    there.trust(secret, challenge.nonce, claim, as_bench=False)
    return there


def sends(content: bytes) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        connection.sendall(content)
        with suppress(OSError):
            while connection.recv(4096):  # until the bench hangs up
                pass

    return send


def framed(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def refused(words: str, **changed: Any) -> Callable[[socket.socket], None]:
    def tried(connection: socket.socket) -> None:
        with pytest.raises(UserError, match=words):
            answered(connection, **changed)

    return tried


def other_suite(connection: socket.socket) -> None:
    there = answered(connection)
    there.send(Hello(host="h", facts={**FACTS, "suite": {"job": {"max_steps": 7}}}))
    refusal = there.next(5)
    assert isinstance(refusal, Bye)
    assert "job.max_steps: 6 on the first, 7 on this one" in refusal.reason


def changed_on_the_way(connection: socket.socket) -> None:
    there = answered(connection)
    there._key = b"another key"
    there.send(Hello(host="h", facts=FACTS))
    with pytest.raises(GoneError):
        there.next(5)


STRANGERS = {
    "no secret": refused("its secret is not that of this run", secret="another secret"),
    "another version": refused("has selectbench 0.0.1, the first", version="0.0.1"),
    "other code": refused("other code of selectbench", code_sha256="0" * 64),
    "told of other nodes": refused("was told of 3 nodes, the first of 2", nodes=3),
    "another suite": other_suite,
    "a code that does not fit": changed_on_the_way,
    "a web browser": sends(b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n"),
    "too long": sends(struct.pack(">I", 5000) + b"{" * 5000),
    "longer than memory": sends(struct.pack(">I", 0xFFFFFFFF)),
    "no message": sends(framed(b'{"message":"proof"}')),
    "no JSON": sends(framed(bytes(range(256)))),
    "another message": sends(framed(b'{"message":"clock","now":1.0}')),
    "an unknown one": sends(framed(b'{"message":"run","code":"import os"}')),
    "silence": lambda connection: time.sleep(0.1),
}


def test_a_bench_refuses_strangers_undisturbed_and_then_takes_its_node(bench: Nodes, told: list[str]) -> None:
    failures: list[BaseException] = []

    def come() -> None:
        try:
            for stranger in STRANGERS.values():
                with connected(bench.request) as connection:
                    stranger(connection)
            assert bench.members == []
            held.append(nodes.join(bench.request, PLAIN, SECRET.encode(), stop, told.append))
        except BaseException as error:
            failures.append(error)
            bench.request = bench.request._replace(nodes=1)
            raise

    held: list[Channel] = []
    with StopRequest() as stop:
        visitor = threading.Thread(target=come)
        visitor.start()
        bench.gather(PLAIN)
        visitor.join()
    assert not failures
    assert [member.node for member in bench.members] == [1]
    assert sum("was refused" in line or "was closed" in line for line in told) == nodes.MOST_REFUSALS_REPORTED
    with pytest.raises(ConnectionRefusedError):  # nobody else is listened to
        socket.create_connection(channel.address_of(bench.request.rdzv))
    bench.members[0].channel.send(Clock(now=1.0))
    assert held[0].next(5) == Clock(now=1.0)
    held[0].close()


def test_nodes_with_other_own_code_are_not_alike() -> None:
    refusal = nodes.difference({**FACTS, "own_code": "ab"}, {**FACTS, "own_code": "cd"})
    assert refusal == "all nodes of a run must be alike: own_code: ab on the first, cd on this one"
    assert nodes.difference(FACTS, {**FACTS}) is None


def test_a_node_comes_through_a_crowd_of_connections_that_say_nothing(
    bench: Nodes, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a port scanner leaves them: more than the bench listens to at a time, and before the node comes."""
    held: list[Any] = []
    monkeypatch.setattr(nodes, "JOIN_SECONDS", 30.0)

    def come() -> None:
        crowd = [connected(bench.request) for _ in range(2 * nodes.MOST_NEWCOMERS)]
        held.extend(crowd)
        try:
            held.append(nodes.join(bench.request, PLAIN, SECRET.encode(), stop, told.append))
        except UserError:
            bench.request = bench.request._replace(nodes=1)  # which ends its waiting
            raise

    with StopRequest() as stop:
        visitor = threading.Thread(target=come)
        visitor.start()
        bench.gather(PLAIN)
        visitor.join()
    assert [member.node for member in bench.members] == [1]
    for one in held:
        one.close()


@pytest.mark.parametrize("kind", ["wrong secret", "garbage", "too long", "hangs up"])
def test_an_agent_refuses_what_is_not_its_bench(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(nodes, "facts_of", lambda _: pytest.fail("it told of itself"))

    def pretend() -> None:
        with listener.accept()[0] as connection, suppress(GoneError, OSError):
            if kind == "wrong secret":
                there = Channel(connection)
                there.send(Challenge(nonce="n"))
                claim = there.next(5)
                assert isinstance(claim, Proof)
                guessed = proof(b"guessed", "bench", "n", claim, claim.version, claim.code_sha256)
                there.send(Welcome(proof=guessed))
                there.next(5)
            elif kind != "hangs up":
                connection.sendall(b"SSH-2.0-x\r\n" if kind == "garbage" else struct.pack(">I", 1 << 30))
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener, StopRequest() as stop:
        server = threading.Thread(target=pretend)
        server.start()
        request = NodeRequest(2, 1, f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UserError, match="no bench of this run"):
            nodes.join(request, PLAIN, SECRET.encode(), stop, lambda _: None)
        server.join()


def test_a_frame_is_taken_once_and_in_its_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, theirs = Channel(socket.create_connection(listener.getsockname())), Channel(listener.accept()[0])
        between: list[bytes] = []
        claim = Proof(nonce="n", node=1, nodes=2, version="", code_sha256="", proof="")
        for end, as_bench in ((ours, True), (theirs, False)):
            end.trust(b"secret", "c", claim, as_bench=as_bench)
        ours.send(Clock(now=1.0))
        between.append(theirs.socket.recv(1 << 16))
        ours.socket.sendall(between[0] + between[0])
        with pytest.raises(ProtocolError, match="wrong code"):
            theirs.next(5)
        for end in (ours, theirs):
            end.close()


def test_what_the_command_line_may_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_request(1, None, None) is None
    assert node_request(1, 0, "n1:29500") is None
    assert node_request(4, 3, "n1:29500") == NodeRequest(4, 3, "n1:29500")
    for wrong in ((2, None, "n1:1"), (2, 0, None), (2, 2, "n1:1"), (1, 1, "n1:1"), (0, 0, "n1:1"), (2, 1, "n1"),
                  (2, 1, ":1"), (2, 1, "n1:0"), (2, 1, "n1:70000")):  # fmt: skip
        with pytest.raises(UserError):
            node_request(*wrong)
    monkeypatch.delenv("SELECTBENCH_SECRET", raising=False)
    with pytest.raises(UserError, match="set SELECTBENCH_SECRET to the same"):
        channel.take_secret()
    monkeypatch.setenv("SELECTBENCH_SECRET", "short")
    with pytest.raises(UserError, match="16 characters"):
        channel.take_secret()
    monkeypatch.setenv("SELECTBENCH_SECRET", SECRET)
    assert channel.take_secret() == SECRET.encode()
    assert "SELECTBENCH_SECRET" not in os.environ  # which trials inherit
    monkeypatch.setenv("SELECTBENCH_SECRET", SECRET)
    with pytest.raises(UserError, match="an address of the first node"):
        Nodes(NodeRequest(2, 0, "192.0.2.1:29500"), lambda _: None)


def said(*, may_be_victim: bool, at: float) -> GaveUp:
    return GaveUp(kind="crashed", detail="", may_be_victim=may_be_victim, at=at)


@pytest.mark.parametrize(
    ("ours", "theirs", "first"),
    [
        (said(may_be_victim=True, at=1.0), said(may_be_victim=False, at=102.0), "there"),
        (said(may_be_victim=False, at=2.0), said(may_be_victim=True, at=101.0), "here"),
        (said(may_be_victim=True, at=1.0), said(may_be_victim=True, at=100.5), "there"),
        (said(may_be_victim=False, at=1.0), said(may_be_victim=False, at=101.5), "here"),
        (None, said(may_be_victim=True, at=100.1), "here"),
    ],
)
def test_the_first_to_fail_is_named_whatever_the_clocks_show(
    ours: GaveUp | None, theirs: GaveUp, first: str, bench: Nodes
) -> None:
    """The other node's clock is 100 s ahead."""
    with StopRequest() as stop:
        team = Team.__new__(Team)
        here, there = Failed(kind="crashed", detail="here"), Failed(kind="crashed", detail="there")
        member = nodes.Member(
            1, "h", PLAIN, lambda *_: None, clock_offset=100.0, ended=Ended(failed=there, said=theirs, at=0.0)
        )
        team.members, team._stop, team._nodes = [member], stop, bench
        assert team._first_failure(here, ours, 1.5, killed=False) == (here if first == "here" else there)
        bench.lost_at, bench.loss_reason = 0.5, "node 1 was lost"
        assert team._first_failure(here, ours, 1.5, killed=False).detail == "node 1 was lost"


def test_a_hanging_rank_is_named_though_each_node_knows_of_its_own_alone() -> None:
    team, late = Team.__new__(Team), GaveUp(kind="timeout", detail="", cells=[5, 3, 1])
    there = Failed(kind="timeout", detail="rank 1 is in the forward pass of step 3\nits stack")
    ended = Ended(failed=there, said=late, at=0.0)
    team.members, team._here = [nodes.Member(1, "h", PLAIN, lambda *_: None, ended=ended)], 1
    own = GaveUp(kind="timeout", detail="", rank=0, cells=[7, 3, 2])
    limit = Failed(
        kind="timeout", detail="no sign of life for 2 s; rank 0 is in the backward pass of step 3\na stack"
    )
    assert team._name_hanging_rank(limit, own).detail == (
        "no sign of life for 2 s; rank 1 is in the forward pass of step 3, rank 0 waits in the backward pass of "
        "step 3, on node 1\nits stack"
    )


def test_gpus_of_all_nodes_are_metered_in_the_order_of_ranks_each_by_its_own_clock() -> None:
    """The other node's clock is 100 s ahead at first and 102 s at the end."""
    own, there = make_meters(), msgspec.structs.replace(make_meters(), settled=False)
    done: Any = SimpleNamespace(timed_windows=[(1.0, 2.0)], training_window=(0.5, 4.0), devices=[])
    with socket.create_server(("127.0.0.1", 0)) as listener, StopRequest() as stop:
        agent, bench = Channel(socket.create_connection(listener.getsockname())), Channel(listener.accept()[0])
        team = Team.__new__(Team)
        member = nodes.Member(1, "h", bench, lambda *_: None, clock_offset=100.0, clock_drift=2.0)
        team.members, team._here, team._stop = [member], len(own.gpus), stop
        heard: list[Any] = []

        def answer() -> None:
            heard.append(agent.next(5))
            agent.send(Measured(meters=there))

        other = threading.Thread(target=answer)
        other.start()
        found = team.all_meters(own, done)
        other.join()
        assert found.gpus == [*own.gpus, *there.gpus]
        assert (found.problem, found.settled) == (None, False)
        assert heard == [Measure(timed_windows=[(102.0, 103.0)], training_window=(101.5, 105.0), devices=[])]
        agent.close()
        assert team.all_meters(own, None).problem == "node 1: it was lost"
        bench.close()


# Two nodes on this machine: two processes with caches, locks and results of their own.


SUITE = """\
name: tiny
question: Do two nodes train what one trains?
job:
  model: {family: gpt2, n_layer: 1, n_embd: 32, n_head: 2}
  data: {text: [corpus.txt]}
  tokenizer: {bpe: 300}
  seq_len: 16
  global_batch_size: 4
  max_steps: 6
  lr_schedule: {name: cosine, warmup_steps: 2}
  eval: {tokens: 512, every_steps: 3}
choices:
  optimizer: {name: adamw, lr: 1e-3}
  micro_batch_size: 2
  world_size: auto
  strategy: ddp
baseline: ddp
options:
  ddp: {}
  fsdp: {strategy: fsdp}
seeds: [0]
"""


class Cluster(Workplace):
    """Every node's processes write below the folder."""

    port = 0

    def node(self, number: int, *more: str) -> processes.Process:
        folder = self.folder
        return self.start(
            "run", "tiny.yaml", "--nnodes", "2", "--node-rank", str(number), "--rdzv", f"127.0.0.1:{self.port}",
            "--results", "results" if number == 0 else f"results{number}", *more,
            SELECTBENCH_SECRET=SECRET, SELECTBENCH_CACHE=str(folder / f"cache{number}"),
            SELECTBENCH_LOCKS=str(folder / f"locks{number}"),
        )  # fmt: skip

    def both(self, *more: str) -> list[processes.Process]:
        self.port = free_port()
        return [self.node(number, *more) for number in (0, 1)]

    def completed(self) -> list[tuple[str, int]]:
        done = [r for r in self.records() if r["outcome"]["status"] == "completed"]
        return [(r["trial"]["option"], r["trial"]["seed"]) for r in done]

    def ranks(self, node: int) -> list[int]:
        """Processes of a node's ranks."""
        top = f"results{node}" if node else "results"
        return [p for p in self.trial_pids() if f"/{top}/" in output_of(p) and "/rank" in output_of(p)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    place = Cluster(tmp_path)
    place.write(SUITE)
    yield place
    until(lambda: not place.trial_pids(), 15)


def ended(process: processes.Process) -> tuple[int, str]:
    _, err = process.communicate(timeout=200)
    return process.returncode, err


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def series(place: Workplace) -> dict[str, Any]:
    """Losses of every step, by option."""
    (run,) = place.run_folders()
    found = {}
    for record in place.records():
        content = (run / "trials" / record["trial"]["trial_id"] / "series.json").read_bytes()
        found[record["trial"]["option"]] = msgspec.json.decode(content)["loss_nats_per_token"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_nodes_train_step_by_step_what_one_node_trains(cluster: Cluster, tmp_path: Path) -> None:
    bench, agent = cluster.both()
    assert ended(bench)[0] == 0, ended(bench)
    status, err = ended(agent)
    assert (status, "node 1: the run is over" in err) == (0, True), err
    alone = Workplace(tmp_path / "alone")
    alone.folder.mkdir()
    alone.write(SUITE.replace("auto", "2"))
    assert alone.call("run", "tiny.yaml", SELECTBENCH_LOCKS=str(tmp_path / "locks")).returncode == 0
    assert series(cluster) == series(alone)
    by_option = [sorted(place.records(), key=lambda r: str(r["trial"]["option"])) for place in (cluster, alone)]
    for ours, theirs in zip(*by_option, strict=True):
        assert ours["identity"] == theirs["identity"]
        assert ours["identity"]["world_size"] == 2
        assert [m["rank"] for m in ours["outcome"]["measurement"]["memory_by_rank"]] == [0, 1]
        (node,) = ours["nodes"]
        assert (node["node"], node["ranks"], theirs["nodes"]) == (1, 1, [])
        assert abs(node["clock_offset_seconds"]) <= node["round_trip_seconds"] < 1  # it is one clock here
        assert abs(node["clock_drift_seconds"]) < 1


COMMAND = """\
name: tiny
job:
  command: "torchrun --nnodes {nnodes} --node-rank {node_rank} --rdzv-endpoint {rdzv}
    --nproc-per-node {ranks_per_node} behaves.py --seed {seed} --max-steps {max_steps} {args}"
  max_steps: 12
  timing: {warmup_steps: 2}
  eval: {heldout: heldout.npy, tokens: 256}
choices: {world_size: auto}
options:
  plain: {args: "--does leaves_a_daemon"}
  killed: {args: "--does is_killed --who 1"}
baseline: plain
seeds: [0]
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_command_runs_its_part_on_each_node_and_is_observed_on_all(cluster: Cluster) -> None:
    """Its launcher tells of the rank that was killed; what ranks left behind is gone on both nodes."""
    shutil.copy(Path(__file__).parent / "scripts" / "behaves.py", cluster.folder)
    np.save(cluster.folder / "heldout.npy", np.arange(600, dtype="uint16") % 64)
    cluster.write(COMMAND.replace("{rdzv}", "n1:29500"))
    refused = cluster.call("plan", "tiny.yaml", "--nnodes", "2")
    assert refused.returncode == 2
    assert "it has no" not in refused.stderr
    assert "has no {rdzv} to be told so: torchrun --nnodes {nnodes} --node-rank {node_rank}" in refused.stderr
    cluster.write(COMMAND)
    planned = json.loads(cluster.call("plan", "tiny.yaml", "--nnodes", "2", "--json").stdout)
    assert (planned["nodes"], planned["lanes"]) == (2, 1)
    assert (
        "--nnodes 2 --node-rank 0 --rdzv-endpoint HOST:PORT --nproc-per-node 1"
        in planned["options"][0]["arguments"]
    )
    bench, agent = cluster.both()
    assert [ended(process)[0] for process in (bench, agent)] == [3, 3]
    *_, killed, plain = sorted(cluster.records(), key=lambda r: (r["phase"] == "contest", r["trial"]["option"]))
    assert killed["outcome"]["detail"].startswith("node 1: traceback : Signal 9 (SIGKILL) received by PID")
    assert "the command exited with status 1" in killed["outcome"]["detail"]
    assert not [pid for pid in all_pids() if "time.sleep(600)" in command_line(pid)]
    measured, identity = plain["outcome"]["measurement"], plain["identity"]
    assert [m["rank"] for m in measured["memory_by_rank"]] == [0, 1]
    assert (identity["world_size"], measured["tokens_per_step"], measured["heldout_tokens"]) == (2, 4 * 16, 15 * 16)
    assert identity["token_stream_sha256"] is not None
    (told,) = {w for w in plain["script"]["arguments"] if w.startswith("127.0.0.1:")}
    assert told != f"127.0.0.1:{cluster.port}"


def test_a_commands_port_is_kept_for_whoever_is_told_of_it() -> None:
    with meeting_place("127.0.0.1") as rdzv:
        address = channel.address_of(rdzv)
        for _ in range(200):
            assert free_port() != address[1]
        with socket.create_server(address), socket.create_connection(address, timeout=5):
            pass
        with socket.create_server(address):  # and again
            pass


LOST = b"[rank0]: RuntimeError: [pair.cc:547] Connection closed by peer [127.0.0.1]:4\n"
REPORT = b"torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n  exitcode  : %d (pid: 7)\n"


@pytest.mark.parametrize(
    ("log", "is_victim"),
    [
        (LOST + REPORT % 1, True),
        (LOST + REPORT % -15, True),
        (LOST + REPORT % -9, False),
        (REPORT % -11 + LOST, False),
        (b"[rank1]: ValueError: the data are broken\n" + LOST + REPORT % 1, False),
        (b"torch.distributed.DistBackendError: NCCL communicator was aborted\n", True),
        (b"ModuleNotFoundError: No module named 'nothing'\n", False),
    ],
)
def test_a_command_that_only_lost_touch_with_other_nodes_is_no_cause(
    log: bytes, is_victim: bool, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_bytes(log)
    assert _only_lost_touch(tmp_path / "log.txt") == is_victim


def listening(pids: Iterable[int]) -> set[int]:
    """Ports at which these processes listen."""
    own = set[str]()
    for pid in pids:
        with suppress(OSError):
            own |= {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(line[1].partition(":")[2], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_port_scanner_does_not_disturb_a_run(cluster: Cluster) -> None:
    """It comes at every port of bench, agent and ranks, as soon as there is one, and stays."""
    cluster.write(SUITE.replace("  fsdp: {strategy: fsdp}\n", ""))
    words = [b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n", random.Random(0).randbytes(999), b"", b"\0" * 64, b"\xff" * 8]
    bench, agent = cluster.both()
    held, visited = list[socket.socket](), set[int]()
    while bench.poll() is None:
        for port in listening([bench.pid, agent.pid, *descendants(bench.pid), *descendants(agent.pid)]):
            visited.add(port)
            for word in words if len(held) < 300 else []:
                with suppress(OSError):
                    held.append(socket.create_connection(("127.0.0.1", port), timeout=1))
                    held[-1].sendall(word)
        time.sleep(0.1)
    assert [ended(process)[0] for process in (bench, agent)] == [0, 0]
    assert cluster.port in visited
    assert len(visited) > 2  # the ranks' too
    assert cluster.completed() == [("ddp", 0)]
    for one in held:
        one.close()


def reached(bench: processes.Process, what: Callable[[], object]) -> bool:
    """Whether it has come to something, or its end."""
    return bool(what()) or bench.poll() is not None


def in_steps(place: Cluster) -> bool:
    """Whether ranks of both nodes are at work."""
    return bool(place.ranks(0) and place.ranks(1))


def resumed(place: Cluster, expected: list[tuple[str, int]], *more: str) -> None:
    """The same lines complete the run, no trial twice."""
    before = place.completed()
    bench, agent = place.both(*more)
    assert ended(bench)[0] == 0, ended(bench)
    assert ended(agent)[0] == 0
    assert len(place.run_folders()) == 1
    assert sorted(place.completed()) == sorted(expected)
    assert place.completed()[: len(before)] == before


SLOWER = (
    SUITE.replace("max_steps: 6", "max_steps: 150")
    .replace("512", "256")
    .replace("every_steps: 3", "every_steps: 75")
)
TRIALS = [("ddp", 0), ("fsdp", 0)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_rank_is_named_with_its_node_and_a_lost_node_ends_the_run_which_then_goes_on(
    cluster: Cluster,
) -> None:
    cluster.hold(at="train.bin")
    bench, agent = started = cluster.both()
    until(partial(in_steps, cluster))
    os.kill(cluster.ranks(1)[0], signal.SIGKILL)
    until(lambda: len(cluster.records()) == 1 and in_steps(cluster))
    agent.kill()
    told = [ended(process)[1] for process in started]
    cluster.let_go()
    assert bench.returncode == 130
    assert "the run ends here: start the same line on every node again" in told[0]
    crashed, interrupted = (record["outcome"] for record in cluster.records())
    assert crashed["kind"] == "crashed"
    assert crashed["detail"].startswith("rank 1 on node 1: ended by SIGKILL, which selectbench did not send")
    assert (interrupted["kind"], interrupted["detail"][:15]) == ("interrupted", "node 1 was lost")
    until(lambda: not cluster.trial_pids(), 15)
    resumed(cluster, TRIALS, "--retry-failed")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("who", ["bench", "agent", "rank 0", "rank 1"])
def test_kills_at_any_moment_lose_nothing(cluster: Cluster, who: str) -> None:
    """Five each, at moments from the first server's start to the report."""
    cluster.write(SLOWER)
    draw, node, is_rank, kills = random.Random(who), int(who[-1] == "1"), who.startswith("rank"), 0
    while kills < 5:
        before = cluster.records()
        how = signal.SIGKILL if is_rank else draw.choice([signal.SIGKILL, signal.SIGTERM])
        bench, agent = started = cluster.both()
        until(partial(reached, bench, cluster.trial_pids))
        time.sleep(draw.uniform(0.0, 25.0))
        if is_rank:
            until(partial(reached, bench, partial(cluster.ranks, node)))
        if bench.poll() is None:
            kills += 1
            with suppress(ProcessLookupError, IndexError):
                os.kill({"bench": bench.pid, "agent": agent.pid}.get(who) or cluster.ranks(node)[0], how)
        told = [ended(process)[1] for process in started]
        until(lambda: not cluster.trial_pids(), 15)
        assert not any("Traceback" in text for text in told), told
        assert cluster.records()[: len(before)] == before, told
        failed = [r["outcome"] for r in cluster.records()[len(before) :] if r["outcome"]["status"] == "failed"]
        for outcome in failed:
            assert outcome["kind"] == ("crashed" if is_rank else "interrupted"), (outcome, told)
            assert not is_rank or outcome["detail"].startswith(f"rank {node} on node {node}: ended by SIGKILL")
        assert len(set(cluster.completed())) == len(cluster.completed())
        firsts = [(outcome["kind"], outcome["detail"].splitlines()[0]) for outcome in failed]
        print(who, how.name, bench.returncode, agent.returncode, firsts, len(cluster.completed()), "of 2 completed")
        assert not is_rank or agent.returncode == bench.returncode
        if is_rank:  # whose trial has an outcome, and the run goes on without it
            resumed(cluster, TRIALS, "--retry-failed")
        if len(cluster.completed()) == 2:
            shutil.rmtree(cluster.folder / "results")
    resumed(cluster, TRIALS)
