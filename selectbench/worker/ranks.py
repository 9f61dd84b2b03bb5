"""The ranks of a trial: child processes that the trial's process starts, listens to and ends.

A rank ends with its parent, and all ranks end when one fails. The ranks' clocks decide which one failed first;
a rank that died without a message counts before those that only lost the connection to it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
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

STACK_SECONDS = 2.0
"""Time for all ranks to write their stacks; the bench waits a little longer."""
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""Timeout of the rendezvous. Later hangs are ended by the bench's limits, which know which rank hangs."""
LATER_FAILURE_SECONDS = 0.3
"""How long after a failure to wait for those of other ranks, to see which came first."""

DONE = b"done"
"""A rank's last message after a successful end."""

RunRank = Callable[[wire.Order, runtime.World, Emit, runtime.Whereabouts, float], None]


class StackRequestedError(Exception):
    """SIGTERM arrived: the bench gives the trial up and wants to know which rank is behind."""


@dataclass
class Rank:
    """One rank as the trial's process sees it."""

    process: BaseProcess
    messages: Connection
    listening: bool = True
    done: bool = False
    """Whether the rank reported its successful end."""


def run_ranks(order: wire.Order, emit: Emit, run_rank: RunRank, began: float) -> None:
    """Run the order's ranks of this node; `emit` gets the first rank's events, Finished or GaveUp last.

    On a node without the first rank nothing is emitted after a successful end.

    `began`: time at which the trial began, by `time.perf_counter`, which is one clock for all processes.
    """
    context: Any = multiprocessing.get_context("fork" if is_fork_safe() else "spawn")
    text, place = wire.ORDERS.write(order), place_of(order)
    cells = context.RawArray("q", place.ranks * wire.CELLS_PER_RANK)
    faulthandler.unregister(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _raise_stack_requested)
    ranks: list[Rank] = []
    try:
        if order.place is None and (reason := loopback_problem()) is not None:
            emit(wire.GaveUp(kind="crashed", detail=reason))
            return
        family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
        # Where the first rank will listen; None on a node without the first rank.
        socket_of_first = socket.create_server((place.address, 0), family=family) if not place.first_rank else None
        with socket_of_first or contextlib.nullcontext() as listener:
            if order.place is not None and listener is not None:
                emit(wire.Listening(port=listener.getsockname()[1]))
            for number in range(place.first_rank, place.first_rank + place.ranks):
                receiver, sender = context.Pipe(duplex=False)
                arguments = (text, number, listener, sender, cells, run_rank, began, os.getpid())
                ranks.append(Rank(context.Process(target=_rank_main, args=arguments), receiver))
                ranks[-1].process.start()
                sender.close()
        outcome = _outcome(ranks, emit, place.first_rank)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the last event must not be interrupted
        if outcome is not None:
            emit(outcome)
    except StackRequestedError:
        # Which rank is behind; each writes its stack into its log first.
        slowest, sentence = wire.describe_stages(cells, place.first_rank)
        for rank in ranks:
            if rank.process.is_alive():
                rank.process.terminate()
        deadline = time.monotonic() + STACK_SECONDS
        for rank in ranks:
            rank.process.join(max(0.0, deadline - time.monotonic()))
        emit(wire.GaveUp(kind="timeout", detail=sentence, rank=slowest, cells=list(cells)))
    finally:
        for rank in ranks:
            rank.process.kill()
        for rank in ranks:
            rank.process.join()


def place_of(order: wire.Order) -> wire.Place:
    """The place of this node's ranks; on a single node they meet at the loopback interface."""
    only_node = wire.Place(node=0, first_rank=0, ranks=order.world_size, address="127.0.0.1", interface="lo")
    return order.place or only_node


def loopback_problem() -> str | None:
    """Why ranks cannot meet on this machine; None: they can."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 10):
            return None
    except OSError as error:
        return (
            f"ranks meet at 127.0.0.1, which cannot be reached here ({error.strerror or error}): the machine or "
            "container needs its loopback interface (`ip link set lo up`)"
        )


def _raise_stack_requested(*_: object) -> None:
    raise StackRequestedError


def _outcome(ranks: list[Rank], emit: Emit, first_rank: int) -> wire.Finished | wire.GaveUp | None:
    """Handle the ranks' messages until all have ended, or a little beyond the first failure."""
    finished: wire.Finished | None = None
    failures: list[wire.GaveUp] = []
    deadline: float | None = None
    while any(rank.listening for rank in ranks) and (deadline is None or time.monotonic() < deadline):
        # A rank's children may hold its pipe open, so its end is noticed by pipe or by process.
        sources = [source for rank in ranks if rank.listening for source in (rank.messages, rank.process.sentinel)]
        ready = wait(sources, None if deadline is None else max(0.0, deadline - time.monotonic()))
        for number, rank in enumerate(ranks, first_rank):
            if rank.listening and (rank.messages in ready or rank.process.sentinel in ready):
                event = _next_event(number, rank, failures)
                if isinstance(event, wire.Finished):
                    finished = event
                elif event is not None:
                    emit(event)
        if failures and deadline is None:
            deadline = time.monotonic() + LATER_FAILURE_SECONDS
    if failures:
        return min(failures, key=lambda failure: (failure.may_be_victim, failure.at))
    assert first_rank or finished is not None, "the first rank ended well without a result"
    return finished


def _next_event(number: int, rank: Rank, failures: list[wire.GaveUp]) -> Any:
    """The rank's next event; None where it ended, failed or reported its end."""
    try:
        if not rank.messages.poll():
            raise EOFError  # it has ended, and all its messages are read
        text = rank.messages.recv_bytes()
    except (EOFError, OSError):  # OSError where it was killed while sending
        rank.listening = False
        rank.process.join()
        status = rank.process.exitcode
        has_reason = any(failure.rank == number for failure in failures)
        if not has_reason and (status or not rank.done):
            # A victim of another rank's end raises and reports that; a library that exits reports nothing.
            may_be_victim, at = status not in (1, -signal.SIGKILL), time.perf_counter()
            ending: dict[str, Any] = {"exit_status": status, "may_be_victim": may_be_victim, "at": at}
            failures.append(wire.GaveUp(kind="crashed", detail="", rank=number, **ending))
        return None
    if text == DONE:
        rank.done = True
        return None
    event = wire.EVENTS.read(text)
    if isinstance(event, wire.GaveUp):
        failures.append(event)
        return None
    return event


def _rank_main(
    text: bytes, number: int, listener: socket.socket | None, messages: Connection, cells: Any, run_rank: RunRank,
    began: float, parent: int,
) -> None:  # fmt: skip
    """Run a rank's process from start to end. Its last message is GaveUp where it failed."""
    die_with_parent(parent)
    order = wire.ORDERS.read(text)
    assert isinstance(order, wire.Order)
    redirect(str(Path(order.trial_folder) / f"rank{number}.log"))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.register(signal.SIGTERM, file=2, chain=True)

    def emit(event: Any) -> None:
        if isinstance(event, wire.GaveUp):
            event = msgspec.structs.replace(event, rank=number, at=time.perf_counter())
        elif number:
            return
        messages.send_bytes(wire.EVENTS.write(event))

    try:
        add_to_path(order.code)  # the process may be a new one
        with _process_group(order, number, listener) as world:
            run_rank(order, world, emit, runtime.Whereabouts(cells, number - place_of(order).first_rank), began)
        messages.send_bytes(DONE)
    except BaseException as error:
        # Also for failures of the process group, before and after the training.
        oom = runtime.is_out_of_memory(error)
        emit(wire.GaveUp(kind="oom", detail=str(error)) if oom else wire.GaveUp(kind="crashed", detail=""))
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


@contextlib.contextmanager
def _process_group(order: wire.Order, number: int, listener: socket.socket | None) -> Any:
    """A process group of all ranks, which meet at a port that the first rank's trial process already holds."""
    place = place_of(order)
    port, local_rank = place.port if listener is None else listener.getsockname()[1], number - place.first_rank
    device = order.device if order.device == "cpu" else f"cuda:{local_rank}"
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(order.world_size),
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
        place.address, port, order.world_size, is_master=number == 0, timeout=RENDEZVOUS_TIMEOUT,
        master_listen_fd=os.dup(listener.fileno()) if number == 0 and listener is not None else None,
    )  # fmt: skip
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl", store=store, rank=number, world_size=order.world_size,
        timeout=RENDEZVOUS_TIMEOUT, device_id=None if device == "cpu" else torch.device(device),
    )  # fmt: skip
    store.set_timeout(runtime.PATIENCE)
    runtime.set_patience()
    yield runtime.World(number, order.world_size, device)
    dist.destroy_process_group()
