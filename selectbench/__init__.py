"""selectbench: the same training job under each choice, measured on your own machine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectbench.frames import Run

__version__ = "0.1.0"


def load(run: str | Path, results: str | Path = "results") -> Run:
    """A past run for a notebook: `selectbench.load("precision@latest").to_pandas()`, or the run of a folder.

    Raises selectbench.errors.UserError where there is no such run.
    """
    frames = import_module("selectbench.frames")  # what it needs would slow every command down
    found: Run = frames.load(run, results)
    return found
