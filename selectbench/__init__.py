"""selectbench: the same training job under each choice, measured on your own machine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectbench.frames import Run

__version__ = "0.1.0"


def load(folder: str | Path) -> Run:
    """A past run for a notebook: `selectbench.load("results/precision/...").to_pandas()`.

    Raises selectbench.errors.UserError where the folder holds no run.
    """
    frames = import_module("selectbench.frames")  # what it needs would slow every command down
    run: Run = frames.load(folder)
    return run
