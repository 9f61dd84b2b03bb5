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

# One lock for each GPU, between the runs of this tool on one machine, whoever's they are.
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
    named = os.environ.get("SELECTBENCH_LOCKS")
    return Path(named) if named else DEFAULT_FOLDER


class Lock:
    """A lock that this process holds."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let go of it; a second time does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def my_turn() -> Iterator[None]:
    """Alone among all runs while inside: choosing and locking take milliseconds. Raises UserError."""
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
    """Whether a run has the GPU now; leaves no file behind. Raises UserError."""
    if not _path(uuid).exists():
        return False
    with my_turn():  # nobody fails to get the lock because it is looked at
        free = try_lock(uuid)
    if free is not None:
        free.release()
    return free is None


def holder_pid(uuid: str) -> int | None:
    """The process that last took the lock; None: unknown."""
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
                is_there = os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
            except FileNotFoundError:
                is_there = False
            if is_there:  # else it was tidied away in between, and the next run would make a new one
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                undo.pop_all()
                return Lock(descriptor)


def _open(path: Path) -> int:
    """The file, made where it is not there. Raises OSError.

    Opened without O_CREAT first: a kernel with fs.protected_regular refuses O_CREAT on another user's file.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    umask = os.umask(0)  # every user may: modes are as stated
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


TELL_AGAIN_SECONDS = 600.0
"""Between two lines of what is still waited for."""
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
    """A GPU that something holds."""

    candidate: Candidate
    use: Use
    locked: bool
    """By another run of this tool."""

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
        """Who holds it, without figures that change all the time."""
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
        """Let go of all beyond the first `count`."""
        for held in self._locks[count:]:
            held.release()
        self.gpus, self._locks = self.gpus[:count], self._locks[:count]

    def release(self) -> None:
        """Let go of all; a second time does nothing. `gpus` stays as it is, for reading."""
        for held in self._locks:
            held.release()


@dataclass(frozen=True)
class Lane:
    """A part of the machine that runs one trial at a time."""

    number: int
    """From 0."""
    gpus: Sequence[Gpu]
    """In the order of ranks; none on a CPU."""
    cores: Sequence[int] = ()
    """That its trials are kept to; empty: to none."""

    def enter(self) -> None:
        """Keeps the calling thread, and every process that it starts, to the lane's cores."""
        os.sched_setaffinity(0, self.cores)


def lanes_in(machine: Machine, taken: Sequence[Gpu]) -> list[Lane]:
    """Those of a run that has these GPUs."""
    if machine.lanes == 1:
        return [Lane(0, taken)]
    each = len(taken) // machine.lanes
    return [Lane(n, taken[n * each : (n + 1) * each], cores) for n, cores in enumerate(machine.lane_cores)]


Blocked = tuple[object, str, list[str]]
"""Why nothing was taken: who has it, how that is told to who waits, and the problem with its fix."""


def _taken(
    take: Callable[[], Claim | Blocked], notify: Notify, pause: Callable[[], object], *, wait: bool
) -> Claim:
    """What `take` takes; with `wait` it is called until it does. Raises UserError."""
    began, reported = time.monotonic(), None
    while not isinstance(found := take(), Claim):
        holders, told, problems = found
        if not wait:
            raise UserError(*problems)
        lasted = time.monotonic() - began
        if reported != (reported := (holders, lasted // TELL_AGAIN_SECONDS)):
            since = f", since {units.duration(lasted)}," if lasted >= TELL_AGAIN_SECONDS else ""
            notify(f"waiting{since}{told}")
        pause()
    return found


def claim_cores(*, wait: bool, notify: Notify, pause: Callable[[], object] = _pause) -> Claim:
    """Take all cores that this process may use, for trials on them: two that run at once slow each other down.

    Raises UserError where another run has one of them; with `wait` it comes back once all are free. Ctrl-C ends the
    waiting as KeyboardInterrupt, with nothing taken.
    """

    def take() -> Claim | Blocked:
        with ExitStack() as undo, my_turn():
            locks: list[Lock] = []
            for core in sorted(os.sched_getaffinity(0)):
                if (taken := try_lock(name := f"core-{core}")) is None:
                    break
                undo.callback(taken.release)
                locks.append(taken)
            else:
                undo.pop_all()
                return Claim(locks=locks)
            holder = holder_pid(name)
        has_it = "another selectbench run measures on this CPU" + (f" (pid {holder})" if holder else "")
        fix = "fix: wait with --wait, or give each run cores of its own (taskset)"
        return holder, f": {has_it}", [f"{has_it}, and each would slow the other down", fix]

    return _taken(take, notify, pause, wait=wait)


def candidates(asked: str | None) -> list[Candidate]:
    """The visible GPUs, or those of them that `--gpus` names, in its order. Raises UserError.

    `asked`: numbers among the visible ones (nvidia-smi's where CUDA_VISIBLE_DEVICES is not set), UUIDs, or
    beginnings of UUIDs, by commas.
    """
    visible = [Candidate(number, gpu) for number, gpu in enumerate(gpus())]
    if asked is None:
        return visible
    chosen = [_chosen(entry.strip(), visible) for entry in asked.split(",")]
    for number, candidate in enumerate(chosen):
        if candidate in chosen[:number]:
            raise UserError(f"--gpus {asked}: {candidate} is named twice")
    return chosen


def _chosen(entry: str, visible: list[Candidate]) -> Candidate:
    if entry.isdecimal():
        fitting = [candidate for candidate in visible if candidate.number == int(entry)]
    else:
        fitting = [candidate for candidate in visible if entry and candidate.gpu.uuid.startswith(entry)]
    if len(fitting) == 1:
        return fitting[0]
    problem = "fits several GPUs" if fitting else "is no visible GPU"
    there = ", ".join(f"{candidate.number} {candidate.gpu.uuid} ({candidate.gpu.name})" for candidate in visible)
    raise UserError(f"--gpus: {quoted(entry)} {problem}; there are {there or 'none'}")


def claim_gpus(
    asked: str | None, need: GpuNeed, *, wait: bool, notify: Notify, pause: Callable[[], object] = _pause
) -> Claim:
    """Take the first idle GPUs, or all of those that `--gpus` names, whether in use or not.

    Raises UserError where there are too few, or another run has one that is named; with `wait` it comes back once
    there are enough. Ctrl-C ends the waiting as KeyboardInterrupt, with nothing taken.
    """
    offered, named = candidates(asked), asked is not None

    def take() -> Claim | Blocked:
        claim, busy = _attempt(offered, need, named=named)
        if claim is None:
            told = f" for {_wanted(offered, busy, need, named=named)}: {'; '.join(map(str, busy))}"
            return [each.holders for each in busy], told, _shortage(offered, busy, need, named=named)
        for each in busy if named else []:
            notify(f"{each}; used anyway, as --gpus names it: its trials may be marked shared")
        return claim

    return _taken(take, notify, pause, wait=wait)


def _attempt(offered: list[Candidate], need: GpuNeed, *, named: bool) -> tuple[Claim | None, list[Busy]]:
    """The claim, or None with nothing taken; and what something else is on."""
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


def idle_now(asked: str | None, need: GpuNeed) -> tuple[list[Gpu], list[str]]:
    """What a run would get at this moment, and notes on what is in use; nothing is taken. Raises UserError.

    All candidates where `--gpus` names them, or where a run would not start.
    """
    offered = candidates(asked)
    states = [Busy(c, use, locked=is_locked(c.gpu.uuid)) for c, use in zip(offered, _uses(offered), strict=True)]
    busy = [state for state in states if state.locked or not state.use.is_idle]
    notes = [f"{len(offered) - len(busy)} of {len(offered)} GPUs are idle now", *map(str, busy)]
    free = [state.candidate.gpu for state in states if state not in busy]
    if asked is not None or len(free) < need.least:
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
    """What is wrong, what holds each GPU, and what to do."""
    if named:
        locked = [f"--gpus: {each}" for each in busy if each.locked]
        return [*locked, "wait for it with --wait, or name another GPU"]
    idle = [candidate for candidate in offered if candidate not in [each.candidate for each in busy]]
    free = [*idle, *(each.candidate for each in busy if not each.locked)][: need.least]
    fixes = ["wait with --wait"]
    if len(free) == need.least:
        taken = ",".join(str(number) for number in sorted(candidate.number for candidate in free))
        fixes.append(f"use busy GPUs anyway with --gpus {taken} (their trials are then marked shared)")
    if need.least > 1:
        fixes.append("ask for fewer ranks")
    head = f"this suite needs {_wanted(offered, busy, need, named=False)}"
    return [head, *(f"  {each}" for each in busy), f"fix: {', or '.join(fixes)}"]
