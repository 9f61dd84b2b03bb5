"""The software stack: the interpreter that runs the worker, so that two virtual environments can be compared."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field

Interpreter = Annotated[str, Field(min_length=1)]


def interpreter_problem(path: str) -> str | None:
    """Why this absolute path can't be run as an interpreter, with the nearest fix, or None."""
    found = Path(path)
    if found.is_dir():
        inside = next((p for p in (found / "bin" / "python", found / "python") if p.is_file()), None)
        return f"{path} is a folder, expected an interpreter{_meant(inside)}"
    if not found.is_file():
        on_path = shutil.which(found.name)
        return f"there is no interpreter {path}{_meant(Path(on_path) if on_path else None)}"
    return None if os.access(path, os.X_OK) else f"{path} is not executable"


def _meant(path: Path | None) -> str:
    return f" (did you mean '{path}'?)" if path else ""
