"""Digests of large files that do not change between runs, kept in the cache so that they are read once."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from selectbench.data.cache import cache_root

SETTLED_NS = 2_000_000_000
"""A file that was changed more lately than this may change again within one tick of its clock: nothing is kept."""


def kept_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits. Raises OSError where it can't be read.

    It is known again by path, inode, size and both times, of which no program sets the second (ctime): a file that
    was written to, replaced or given another's time is read anew. A cache that can't be used keeps nothing.
    """
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        place = _place(path, found)
        with suppress(OSError, ValueError):
            digest = place.read_text(encoding="ascii")
            if len(digest) == 64:
                return digest
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if _place(path, after) == place and time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > SETTLED_NS:
        with suppress(OSError):
            _keep(place, digest)
    return digest


def _place(path: Path, found: os.stat_result) -> Path:
    mark = (
        str(path.resolve()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )  # fmt: skip
    return cache_root() / "digests" / hashlib.sha256(repr(mark).encode()).hexdigest()


def _keep(place: Path, digest: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".unfinished-{uuid4().hex}")
    unfinished.write_text(digest, encoding="ascii")
    unfinished.replace(place)
