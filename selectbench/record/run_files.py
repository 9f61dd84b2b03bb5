"""The files of a run's folder besides its records and its trials: their names, how they are read and written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from selectbench.errors import UserError

SUITE = "suite.yaml"
ENVIRONMENT = "environment.json"
RANKING = "ranking.json"
REPORT = "report.md"
PAGE = "report.html"
TABLE = "ranking.csv"
BENCHMARK = "benchmark.json"


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old text or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")  # the same bytes on every system
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping of a run folder. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON mapping was expected")
    return content
