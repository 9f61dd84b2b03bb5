"""The ranks of a trial: processes that the trial's own process starts, hears and ends.

A rank ends with its parent, and the others with the first that fails. Which one failed first is decided by
the ranks' own clocks, and a rank that died without a word comes before those that only lost touch with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from selectbench.choices.choice import add_to_path
from selectbench.cores import die_with_parent, is_fork_safe, redirect
from selectbench.record import wire
from selectbench.worker import runtime
from selectbench.worker.recorder import Emit

DUMPING_SECONDS = 2.0
"""For all ranks to write their stacks; the bench waits a little longer."""
MEETING_PATIENCE = timedelta(minutes=5)
"""For ranks to find each other. What hangs later is ended by the bench's limits, which know which rank it is."""
SETTLING_SECONDS = 0.3
"""How long after a rank's failure the others' are heard, to see which came first."""

DONE = "done"
"""A rank's last word where all went well."""

RunRank = Callable[[wire.Order, runtime.World, Emit, runtime.Whereabouts, float], None]


class AskedWhereItIsError(Exception):
    """SIGTERM: the bench gives the trial up and wants to know which rank held it up."""


@dataclass
class Rank:
    """One rank as the trial's process sees it."""

    process: BaseProcess
    messages: Connection
    listening: bool = True
    done: bool = False
    """Whether it said that it came to its end."""


@dataclass(order=True)
class Failure:
    """The end of a rank that failed; the least is the first."""

    may_be_victim: bool
    """Whether another rank's end may have caused it; a rank that something killed can't be one."""
    at: float
    """Monotonic seconds."""
    gave_up: wire.GaveUp = field(compare=False)


def run_ranks(order: wire.Order, emit: Emit, run_rank: RunRank, began: float) -> None:
    """Runs the order's ranks of this node; `emit` gets the first rank's events, Finished or GaveUp last.

    On a node without the first rank nothing is emitted where all went well.

    `began`: when the trial did, by `time.perf_counter`, which is one clock for all processes.
    """
    context: Any = multiprocessing.get_context("fork" if is_fork_safe() else "spawn")
    text, place = wire.ORDERS.write(order), place_of(order)
    cells = context.RawArray("q", place.ranks * wire.CELLS_PER_RANK)
    faulthandler.unregister(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _raise_asked)
    ranks: list[Rank] = []
    try:
        if order.place is None and (reason := loopback_problem()) is not None:
            emit(wire.GaveUp(kind="crashed", detail=reason))
            return
        family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
        # Where the first rank will listen; None on a node that has it not.
        here = socket.create_server((place.address, 0), family=family) if not place.first_rank else None
        with here or contextlib.nullcontext() as meeting:
            if order.place is not None and meeting is not None:
                emit(wire.Listening(port=meeting.getsockname()[1]))
            for number in range(place.first_rank, place.first_rank + place.ranks):
                ours, theirs = context.Pipe(duplex=False)
                arguments = (text, number, meeting, theirs, cells, run_rank, began, os.getpid())
                ranks.append(Rank(context.Process(target=_rank_main, args=arguments), ours))
                ranks[-1].process.start()
                theirs.close()
        outcome = _outcome(ranks, emit, place.first_rank)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the last word is not to be torn
        if outcome is not None:
            emit(outcome)
    except AskedWhereItIsError:
        # Which rank is behind; each writes its stack into its log first.
        rank, sentence = wire.describe_stages(cells, place.first_rank)
        for each in ranks:
            if each.process.is_alive():
                each.process.terminate()
        until = time.monotonic() + DUMPING_SECONDS
        for each in ranks:
            each.process.join(max(0.0, until - time.monotonic()))
        emit(wire.GaveUp(kind="timeout", detail=sentence, rank=rank, cells=list(cells)))
    finally:
        for each in ranks:
            each.process.kill()
        for each in ranks:
            each.process.join()


def place_of(order: wire.Order) -> wire.Place:
    """Of this node's ranks; where one node runs all, they meet at the loopback interface."""
    alone = wire.Place(node=0, first_rank=0, ranks=order.world_size, address="127.0.0.1", interface="lo")
    return order.place or alone


def loopback_problem() -> str | None:
    """Why ranks cannot meet on this machine; None: they can."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as there, socket.create_connection(there.getsockname(), 10):
            return None
    except OSError as error:
        return (
            f"ranks meet at 127.0.0.1, which cannot be reached here ({error.strerror or error}): the machine or "
            "container needs its loopback interface (`ip link set lo up`)"
        )


def _raise_asked(*_: object) -> None:
    raise AskedWhereItIsError


def _outcome(ranks: list[Rank], emit: Emit, first: int) -> wire.Finished | wire.GaveUp | None:
    """Hears the ranks, `first` the first of them, to the end of all, or a little beyond the first failure."""
    finished: wire.Finished | None = None
    failures: list[Failure] = []
    until: float | None = None
    while any(rank.listening for rank in ranks) and (until is None or time.monotonic() < until):
        # A rank's own children may hold its pipe open: its end is heard of in two ways.
        sources = [source for rank in ranks if rank.listening for source in (rank.messages, rank.process.sentinel)]
        ready = wait(sources, None if until is None else max(0.0, until - time.monotonic()))
        for number, rank in enumerate(ranks, first):
            if rank.listening and (rank.messages in ready or rank.process.sentinel in ready):
                event = _heard(number, rank, failures)
                if isinstance(event, wire.Finished):
                    finished = event
                elif event is not None:
                    emit(event)
        if failures and until is None:
            until = time.monotonic() + SETTLING_SECONDS
    if failures:
        worst = min(failures)
        return msgspec.structs.replace(worst.gave_up, may_be_victim=worst.may_be_victim, at=worst.at)
    assert first or finished is not None, "the first rank ended well without a result"
    return finished


def _heard(number: int, rank: Rank, failures: list[Failure]) -> Any:
    """The rank's next event, None where it told or met its end."""
    try:
        if not rank.messages.poll():
            raise EOFError  # it has ended and said all
        at, text = json.loads(rank.messages.recv_bytes())
    except (EOFError, OSError):  # the latter where it was killed in the middle of a word
        rank.listening = False
        rank.process.join()
        status = rank.process.exitcode
        said_why = any(failure.gave_up.rank == number for failure in failures)
        if not said_why and (status or not rank.done):
            gone = wire.GaveUp(kind="crashed", detail="", rank=number, exit_status=status)
            # A victim of another rank's end raises, and says so; a library's own exit says nothing.
            failures.append(Failure(status not in (1, -signal.SIGKILL), time.monotonic(), gone))
        return None
    if text == DONE:
        rank.done = True
        return None
    event = wire.EVENTS.read(text)
    if isinstance(event, wire.GaveUp):
        failures.append(Failure(may_be_victim=True, at=at, gave_up=event))
        return None
    return event


def _rank_main(
    text: bytes, number: int, meeting: socket.socket | None, messages: Connection, cells: Any, run_rank: RunRank,
    began: float, parent: int,
) -> None:  # fmt: skip
    """A rank's whole life. Its last word is GaveUp where it failed."""
    die_with_parent(parent)
    order = wire.ORDERS.read(text)
    assert isinstance(order, wire.Order)
    redirect(str(Path(order.trial_folder) / f"rank{number}.log"))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.register(signal.SIGTERM, file=2, chain=True)

    def emit(event: Any) -> None:
        if isinstance(event, wire.GaveUp):
            event = msgspec.structs.replace(event, rank=number)
        elif number:
            return
        messages.send_bytes(json.dumps([time.monotonic(), wire.EVENTS.write(event).decode()]).encode())

    try:
        add_to_path(order.code)  # the process may be a new one
        with _process_group(order, number, meeting) as world:
            run_rank(order, world, emit, runtime.Whereabouts(cells, number - place_of(order).first_rank), began)
        messages.send_bytes(json.dumps([time.monotonic(), DONE]).encode())
    except BaseException as error:
        # Also what the process group needs, before and after the training.
        oom = runtime.is_out_of_memory(error)
        emit(wire.GaveUp(kind="oom", detail=str(error)) if oom else wire.GaveUp(kind="crashed", detail=""))
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


@contextlib.contextmanager
def _process_group(order: wire.Order, number: int, meeting: socket.socket | None) -> Any:
    """All ranks in one group, met at a port that the first one's trial process holds already."""
    place = place_of(order)
    port, here = place.port if meeting is None else meeting.getsockname()[1], number - place.first_rank
    device = order.device if order.device == "cpu" else f"cuda:{here}"
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(here), "WORLD_SIZE": str(order.world_size),
        "LOCAL_WORLD_SIZE": str(place.ranks), "MASTER_ADDR": place.address, "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(order.threads),
    }  # fmt: skip
    if place.interface is not None:  # a host's name need not resolve in a container
        os.environ.setdefault("GLOO_SOCKET_IFNAME", place.interface)
        if order.place is not None:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", place.interface)
    if device != "cpu":
        torch.cuda.set_device(device)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        place.address, port, order.world_size, is_master=number == 0, timeout=MEETING_PATIENCE,
        master_listen_fd=os.dup(meeting.fileno()) if number == 0 and meeting is not None else None,
    )  # fmt: skip
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl", store=store, rank=number, world_size=order.world_size,
        timeout=MEETING_PATIENCE, device_id=None if device == "cpu" else torch.device(device),
    )  # fmt: skip
    store.set_timeout(runtime.PATIENCE)
    runtime.set_patience()
    yield runtime.World(number, order.world_size, device)
    dist.destroy_process_group()
