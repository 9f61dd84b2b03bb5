"""The cache folder: where it lies, and how a folder of files appears in it all at once or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from selectbench.errors import UserError

ABANDONED_SECONDS = 86_400
"""A half-written folder older than this was left by a run that was killed."""


def cache_root() -> Path:
    """SELECTBENCH_CACHE, else selectbench/ in the XDG cache folder, which is ~/.cache by default.

    Raises UserError where none of them names a folder: no variable set, and no home folder known.
    """
    if named := os.environ.get("SELECTBENCH_CACHE"):
        return Path(named).expanduser().absolute()
    # The XDG specification says that a relative path is to be ignored.
    if (xdg := os.environ.get("XDG_CACHE_HOME")) and Path(xdg).is_absolute():
        return Path(xdg) / "selectbench"
    try:
        return Path.home() / ".cache" / "selectbench"
    except RuntimeError:
        raise UserError("cache: this user has no home folder: set SELECTBENCH_CACHE to a writable folder") from None


def publish(final: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill an empty folder beside `final` and renames it to `final` when it is whole.

    Where another run published the same folder first, that one stays: the name is a hash of what made
    it, so both hold the same. Raises UserError where the folder cannot be written or the disk is full.
    """
    # Made by mkdir, not by mkdtemp, so that other users of a shared cache may read it as the umask says.
    unfinished = final.with_name(f".unfinished-{uuid4().hex}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final.parent)
        unfinished.mkdir()
        write(unfinished)
        _flush(unfinished)
        _rename(unfinished, final)
    except OSError as error:
        raise UserError(
            f"cache: cannot write {final.parent}: {error.strerror or error}: "
            "set SELECTBENCH_CACHE to a folder that is writable and has room"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove(folder: Path) -> None:
    """Takes a damaged folder out of the cache; it is gone under its name before its files go."""
    aside = folder.with_name(f".unfinished-{uuid4().hex}")
    with suppress(OSError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _rename(unfinished: Path, final: Path) -> None:
    try:
        unfinished.rename(final)
    except OSError:
        # Renaming onto a folder that has files fails: another run was first.
        if not final.is_dir():
            raise


def _flush(folder: Path) -> None:
    """Brings the files to the disk before their folder gets its name, so that a power cut leaves no torn one."""
    for path in folder.iterdir():
        with path.open("r+b") as file:  # Windows flushes no file that is open for reading alone
            os.fsync(file.fileno())


def _sweep(parent: Path) -> None:
    """Removes what killed runs left behind."""
    for left in parent.glob(".unfinished-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
