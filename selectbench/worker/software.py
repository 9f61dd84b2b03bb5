"""Versions of what a worker runs with."""

from __future__ import annotations

import platform
from importlib import metadata

from selectbench.machine import LIBRARIES


def versions() -> dict[str, str | None]:
    """Of this interpreter and its libraries by distribution name; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
