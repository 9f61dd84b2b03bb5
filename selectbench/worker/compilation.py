"""torch.compile's caches, private to a trial, and its count of compiled graphs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
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


def compilation_counter(mode: str | None) -> Callable[[], int]:
    """A function that says how many graphs this process has compiled; 0 for ever without a mode."""
    if mode is None:
        return lambda: 0
    # Importing the compiler takes seconds: only trials that compile pay for it.
    from torch._dynamo.utils import counters

    return lambda: int(counters["stats"]["unique_graphs"])
