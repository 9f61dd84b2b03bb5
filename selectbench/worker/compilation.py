"""torch.compile's caches, private to a trial, and its count of compiled graphs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@contextmanager
def private_caches(folder: Path) -> Iterator[None]:
    """Empty caches in `folder` inside, so that every trial pays for its own compilation; gone afterwards."""
    before = {name: os.environ.get(name) for name in CACHES}
    try:
        for name in CACHES:
            os.environ[name] = str((folder / name.lower()).absolute())
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
            shutil.rmtree(folder / name.lower(), ignore_errors=True)


def compilations() -> int:
    """Graphs that this process has compiled so far, whoever asked for it; the compiler is not imported for that."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0
