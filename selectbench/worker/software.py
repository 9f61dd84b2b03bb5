"""Versions of what a worker runs with."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

from selectbench.machine import LIBRARIES

_OPENMP = re.compile(r"/(lib(?:gomp|iomp5|omp)\b[^/]*)$")


def versions() -> dict[str, str | None]:
    """Of this interpreter and its libraries by distribution name, None: not installed; and its `openmp`."""
    found: dict[str, str | None] = {"python": platform.python_version(), "openmp": openmp()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def openmp(maps: Path = Path("/proc/self/maps")) -> str | None:
    """Files of the OpenMP libraries that are loaded, by commas; None: none. `maps`: as proc(5) has it."""
    found = {match[1] for line in maps.read_text().splitlines() if (match := _OPENMP.search(line))}
    return ", ".join(sorted(found)) or None
