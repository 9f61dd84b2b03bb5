"""Which GPUs or cores a run takes, and the locks that keep other runs of this tool from taking them too."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pynvml

from selectbench import units
from selectbench.errors import UserError
from selectbench.gpu.devices import Gpu, Use, gpus, started, use_of
from selectbench.gpu.meters import tenant_text
from selectbench.machine import Machine, lock
from selectbench.planning.plan import GpuNeed
from selectbench.text import quoted

# One lock for each GPU, between the runs of this tool on one machine, whichever user started them.
#
# A lock is a file named after the GPU's UUID, held by flock: the kernel lets go of it when the process ends,
# however it ends. Containers that share a GPU but no folder do not see each other's locks; SELECTBENCH_LOCKS names
# one that they share.


DEFAULT_FOLDER = Path("/tmp/selectbench-locks")
FOLDER_MODE = 0o1777
"""As /tmp: every user makes files, none removes another's."""
FILE_MODE = 0o666
"""Every user may hold every lock."""
TURN = "claiming"
"""The lock that is held while GPUs are chosen, so that two runs do not each take half of what both need."""


def lock_folder() -> Path:
    """$SELECTBENCH_LOCKS, else one for all users of the machine."""
    folder = os.environ.get("SELECTBENCH_LOCKS")
    return Path(folder) if folder else DEFAULT_FOLDER


class Lock:
    """A lock that this process holds until it releases it or ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let go of the lock; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def my_turn() -> Iterator[None]:
    """Keep all other runs from choosing GPUs or folders while inside, for milliseconds. Raises UserError."""
    turn = _lock(TURN, wait=True)
    assert turn is not None
    try:
        yield
    finally:
        turn.release()


def try_lock(uuid: str) -> Lock | None:
    """The GPU's lock, or None where another run has it. Raises UserError where the folder can't be used."""
    return _lock(uuid, wait=False)


def is_locked(uuid: str) -> bool:
    """Whether a run has the GPU now; makes no file. Raises UserError."""
    if not _path(uuid).exists():
        return False
    with my_turn():  # so that no other run fails to get the lock because this one tries it
        gpu_lock = try_lock(uuid)
    if gpu_lock is not None:
        gpu_lock.release()
    return gpu_lock is None


def holder_pid(uuid: str) -> int | None:
    """The id of the process that last took the lock; None: unknown."""
    try:
        return int(_path(uuid).read_text())
    except (OSError, ValueError):
        return None


def _path(name: str) -> Path:
    return lock_folder() / f"{name.replace('/', '_')}.lock"


def _lock(name: str, *, wait: bool) -> Lock | None:
    path = _path(name)
    while True:
        try:
            descriptor = _open(path)
        except OSError as error:
            fix = "set SELECTBENCH_LOCKS to a folder that every user may write to"
            raise UserError(f"{path}: cannot lock: {error.strerror}; {fix}") from None
        with ExitStack() as undo:
            undo.callback(os.close, descriptor)
            if not lock(descriptor, wait=wait):
                return None
            try:
                is_same_file = os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
            except FileNotFoundError:
                is_same_file = False
            if is_same_file:  # else it was removed in between, and the next run would make and lock a new one
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                undo.pop_all()
                return Lock(descriptor)


def _open(path: Path) -> int:
    """Open the lock's file, or make it. Raises OSError.

    Opened without O_CREAT first: a kernel with fs.protected_regular refuses O_CREAT on another user's file.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    umask = os.umask(0)  # so that the modes are as stated, for every user
    try:
        path.parent.mkdir(FOLDER_MODE, exist_ok=True)
        while True:
            try:
                descriptor = os.open(path, flags)
            except FileNotFoundError:
                try:
                    return os.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
                except FileExistsError:
                    continue  # another run was faster
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
            raise OSError(0, "it is not a file")
    finally:
        os.umask(umask)


# Which GPUs a run takes, and that no other run of this tool takes them too.


REPORT_AGAIN_SECONDS = 600.0
"""Time between two lines that say what is still waited for."""
POLL_SECONDS = 1.0
_pause = partial(time.sleep, POLL_SECONDS)
Notify = Callable[[str], None]
"""Takes a line for the user."""


@dataclass(frozen=True)
class Candidate:
    """A GPU that may be taken."""

    number: int
    """What `--gpus` calls it: its place among the visible ones."""
    gpu: Gpu

    def __str__(self) -> str:
        return f"GPU {self.number} ({self.gpu.name})"


@dataclass(frozen=True)
class Busy:
    """A GPU that something uses."""

    candidate: Candidate
    use: Use
    locked: bool
    """Whether another run of this tool has it."""

    def __str__(self) -> str:
        if self.locked:
            pid = holder_pid(self.candidate.gpu.uuid)
            return f"{self.candidate}: another selectbench run has it" + (f" (pid {pid})" if pid else "")
        use = self.use
        uses = [tenant_text(tenant) for tenant in use.tenants]
        if use.problem is not None:
            uses.append(f"does not answer: {use.problem}")
        if use.holds_memory and not use.tenants:
            size = units.size(use.memory_used_bytes)
            uses.append(f"{size} of its memory in use by processes that are not visible from here")
        if use.computes and use.utilization is not None:
            uses.append(f"utilization {use.utilization:.0%}")
        return f"{self.candidate}: {', '.join(uses)}"

    @property
    def holders(self) -> tuple[str, bool, frozenset[int]]:
        """Who uses it, without figures that change all the time."""
        return self.candidate.gpu.uuid, self.locked, frozenset(tenant.pid for tenant in self.use.tenants)


class Claim:
    """The GPUs of a run, in the order of ranks, or its cores, held until it is released or the process ends."""

    def __init__(self, claimed: Sequence[Gpu] = (), locks: Sequence[Lock] = ()) -> None:
        """`locks`: one for each GPU; of a run on the CPU, which has no GPUs, one for each core."""
        self.gpus = list(claimed)
        self._locks = list(locks)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def keep(self, count: int) -> None:
        """Let go of all but the first `count`."""
        for held_lock in self._locks[count:]:
            held_lock.release()
        self.gpus, self._locks = self.gpus[:count], self._locks[:count]

    def release(self) -> None:
        """Let go of all; a second call does nothing. `gpus` stays as it is, for reading."""
        for held_lock in self._locks:
            held_lock.release()


@dataclass(frozen=True)
class Lane:
    """A part of the machine that runs one trial at a time."""

    number: int
    """The lane's number, from 0."""
    gpus: Sequence[Gpu]
    """Its GPUs in the order of ranks; empty on a CPU."""
    cores: Sequence[int] = ()
    """The cores that its trials are kept to; empty: they may use all."""

    def enter(self) -> None:
        """Keep the calling thread, and every process that it starts, to the lane's cores."""
        os.sched_setaffinity(0, self.cores)


def lanes_in(machine: Machine, taken: Sequence[Gpu]) -> list[Lane]:
    """The lanes of a run that has taken these GPUs."""
    if machine.lanes == 1:
        return [Lane(0, taken)]
    count = len(taken) // machine.lanes
    return [Lane(n, taken[n * count : (n + 1) * count], cores) for n, cores in enumerate(machine.lane_cores)]


Blocked = tuple[object, str, list[str]]
"""Why nothing was taken: who has it, what a user who waits is told, and the problem with its fix."""


def _claim(
    take: Callable[[], Claim | Blocked], notify: Notify, pause: Callable[[], object], *, wait: bool
) -> Claim:
    """What `take` takes; with `wait` it is called until it takes something. Raises UserError."""
    began, reported = time.monotonic(), None
    while not isinstance(claim := take(), Claim):
        holders, reason, problems = claim
        if not wait:
            raise UserError(*problems)
        lasted = time.monotonic() - began
        if reported != (reported := (holders, lasted // REPORT_AGAIN_SECONDS)):
            since = f", since {units.duration(lasted)}," if lasted >= REPORT_AGAIN_SECONDS else ""
            notify(f"waiting{since}{reason}")
        pause()
    return claim


def claim_cores(*, wait: bool, notify: Notify, pause: Callable[[], object] = _pause) -> Claim:
    """Take all cores that this process may use, for trials on them: runs that share cores slow each other down.

    Raises UserError where another run has one of them; with `wait` it comes back once all are free. Ctrl-C ends the
    waiting as KeyboardInterrupt, with nothing taken.
    """

    def take() -> Claim | Blocked:
        with ExitStack() as undo, my_turn():
            locks: list[Lock] = []
            for core in sorted(os.sched_getaffinity(0)):
                if (core_lock := try_lock(name := f"core-{core}")) is None:
                    break
                undo.callback(core_lock.release)
                locks.append(core_lock)
            else:
                undo.pop_all()
                return Claim(locks=locks)
            holder = holder_pid(name)
        reason = "another selectbench run measures on this CPU" + (f" (pid {holder})" if holder else "")
        fix = "fix: wait with --wait, or give each run cores of its own (taskset)"
        return holder, f": {reason}", [f"{reason}, and each would slow the other down", fix]

    return _claim(take, notify, pause, wait=wait)


def candidates(requested: str | None) -> list[Candidate]:
    """The visible GPUs, or those of them that `--gpus` names, in its order. Raises UserError.

    `requested`: numbers among the visible ones (nvidia-smi's where CUDA_VISIBLE_DEVICES is not set), UUIDs, or
    beginnings of UUIDs, by commas.
    """
    visible = [Candidate(number, gpu) for number, gpu in enumerate(gpus())]
    if requested is None:
        return visible
    chosen = [_find(entry.strip(), visible) for entry in requested.split(",")]
    for number, candidate in enumerate(chosen):
        if candidate in chosen[:number]:
            raise UserError(f"--gpus {requested}: {candidate} is named twice")
    return chosen


def _find(entry: str, visible: list[Candidate]) -> Candidate:
    if entry.isdecimal():
        matches = [candidate for candidate in visible if candidate.number == int(entry)]
    else:
        matches = [candidate for candidate in visible if entry and candidate.gpu.uuid.startswith(entry)]
    if len(matches) == 1:
        return matches[0]
    problem = "fits several GPUs" if matches else "is no visible GPU"
    names = ", ".join(f"{candidate.number} {candidate.gpu.uuid} ({candidate.gpu.name})" for candidate in visible)
    raise UserError(f"--gpus: {quoted(entry)} {problem}; there are {names or 'none'}")


def claim_gpus(
    requested: str | None, need: GpuNeed, *, wait: bool, notify: Notify, pause: Callable[[], object] = _pause
) -> Claim:
    """Take the first idle GPUs, or all of those that `--gpus` names, whether in use or not.

    Raises UserError where there are too few, or another run has one that is named; with `wait` it comes back once
    there are enough. Ctrl-C ends the waiting as KeyboardInterrupt, with nothing taken.
    """
    offered, named = candidates(requested), requested is not None

    def take() -> Claim | Blocked:
        claim, busy = _try_claim(offered, need, named=named)
        if claim is None:
            reason = f" for {_wanted(offered, busy, need, named=named)}: {'; '.join(map(str, busy))}"
            return [gpu.holders for gpu in busy], reason, _shortage(offered, busy, need, named=named)
        for gpu in busy if named else []:
            notify(f"{gpu}; used anyway, as --gpus names it: its trials may be marked shared")
        return claim

    return _claim(take, notify, pause, wait=wait)


def _try_claim(offered: list[Candidate], need: GpuNeed, *, named: bool) -> tuple[Claim | None, list[Busy]]:
    """The claim, or None with nothing taken; and the GPUs that something else uses."""
    uses = _uses(offered)
    taken: list[tuple[Candidate, Lock]] = []
    busy: list[Busy] = []
    with ExitStack() as undo, my_turn():
        for candidate, use in zip(offered, uses, strict=True):
            if len(taken) == need.most and not named:
                break
            lock = try_lock(candidate.gpu.uuid)
            if lock is None or not use.is_idle:
                busy.append(Busy(candidate, use, locked=lock is None))
            if lock is not None and (use.is_idle or named):
                undo.callback(lock.release)
                taken.append((candidate, lock))
            elif lock is not None:
                lock.release()
        if len(taken) < (len(offered) if named else need.least):
            return None, busy
        undo.pop_all()
    return Claim([candidate.gpu for candidate, _ in taken], [lock for _, lock in taken]), busy


def idle_now(requested: str | None, need: GpuNeed) -> tuple[list[Gpu], list[str]]:
    """The GPUs that a run would get at this moment, and notes on GPUs in use; takes nothing. Raises UserError.

    Returns all candidates where `--gpus` names them, or where a run would not start.
    """
    offered = candidates(requested)
    states = [Busy(c, use, locked=is_locked(c.gpu.uuid)) for c, use in zip(offered, _uses(offered), strict=True)]
    busy = [state for state in states if state.locked or not state.use.is_idle]
    notes = [f"{len(offered) - len(busy)} of {len(offered)} GPUs are idle now", *map(str, busy)]
    free = [state.candidate.gpu for state in states if state not in busy]
    if requested is not None or len(free) < need.least:
        return [candidate.gpu for candidate in offered], notes
    return free[: need.most], notes


def _uses(offered: list[Candidate]) -> list[Use]:
    try:
        with started():  # once for all: without persistence mode each start takes the driver a second
            return [use_of(candidate.gpu) for candidate in offered]
    except pynvml.NVMLError as error:
        return [Use(problem=str(error)) for _ in offered]


def _wanted(offered: list[Candidate], busy: list[Busy], need: GpuNeed, *, named: bool) -> str:
    if named:
        return "the GPUs that --gpus names"
    idle = len(offered) - len(busy)
    plural = "s" if need.least != 1 else ""
    return f"{need.least} idle GPU{plural}, {idle} of {len(offered)} {'is' if idle == 1 else 'are'} idle"


def _shortage(offered: list[Candidate], busy: list[Busy], need: GpuNeed, *, named: bool) -> list[str]:
    """The problem, what uses each GPU, and what to do."""
    if named:
        locked = [f"--gpus: {gpu}" for gpu in busy if gpu.locked]
        return [*locked, "wait for it with --wait, or name another GPU"]
    idle = [candidate for candidate in offered if candidate not in [gpu.candidate for gpu in busy]]
    free = [*idle, *(gpu.candidate for gpu in busy if not gpu.locked)][: need.least]
    fixes = ["wait with --wait"]
    if len(free) == need.least:
        numbers = ",".join(str(number) for number in sorted(candidate.number for candidate in free))
        fixes.append(f"use busy GPUs anyway with --gpus {numbers} (their trials are then marked shared)")
    if need.least > 1:
        fixes.append("ask for fewer ranks")
    head = f"this suite needs {_wanted(offered, busy, need, named=False)}"
    return [head, *(f"  {gpu}" for gpu in busy), f"fix: {', or '.join(fixes)}"]
