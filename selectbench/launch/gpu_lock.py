"""One lock for each GPU, between the runs of this tool on one machine, whoever's they are.

A lock is a file named after the GPU's UUID, held by flock: the kernel lets go of it when the process ends, however
it ends. Containers that share a GPU but no folder do not see each other's locks; SELECTBENCH_LOCKS names one that
they share.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selectbench.errors import UserError
from selectbench.file_lock import lock

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


class GpuLock:
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


def try_lock(uuid: str) -> GpuLock | None:
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


def _lock(name: str, *, wait: bool) -> GpuLock | None:
    path = _path(name)
    while True:
        try:
            descriptor = _open(path)
        except OSError as error:
            fix = "set SELECTBENCH_LOCKS to a folder that every user may write to"
            raise UserError(f"{path}: cannot lock: {error.strerror}; {fix}") from None
        if not _flock(descriptor, wait=wait):
            return None
        if _is_at(descriptor, path):  # else it was tidied away in between, and the next run would make a new one
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return GpuLock(descriptor)
        os.close(descriptor)


def _flock(descriptor: int, *, wait: bool) -> bool:
    """Whether it is locked; closed where it is not."""
    is_ours = False
    try:
        is_ours = lock(descriptor, wait=wait)
    finally:
        if not is_ours:
            os.close(descriptor)
    return is_ours


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _open(path: Path) -> int:
    """The file, made where it is not there. Raises OSError.

    Opened without O_CREAT first: a kernel with fs.protected_regular refuses O_CREAT on another user's file.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    with _every_user_may():
        path.parent.mkdir(FOLDER_MODE, exist_ok=True)
        while True:
            try:
                return _regular(os.open(path, flags))
            except FileNotFoundError:
                try:
                    return os.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
                except FileExistsError:
                    continue  # another run was faster


def _regular(descriptor: int) -> int:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(0, "it is not a file")


@contextmanager
def _every_user_may() -> Iterator[None]:
    """Modes are as stated, not cut by the user's umask."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)
