"""The summary of a CI job: Markdown appended to the file that GITHUB_STEP_SUMMARY names."""

from __future__ import annotations

import os
from pathlib import Path

MOST_BYTES = 1_000_000
"""GitHub takes no more than 1 MiB a step: docs.github.com, "Workflow commands", adding a job summary."""
VARIABLE = "GITHUB_STEP_SUMMARY"


def is_asked_for() -> bool:
    """Whether the variable is set."""
    return bool(os.environ.get(VARIABLE))


def add_to_job_summary(text: str) -> str | None:
    """Appends where the variable is set. Returns why it could not, as that must fail no run; else None."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        path = Path(name)
        room = MOST_BYTES - (path.stat().st_size if path.exists() else 0)
        told = text.encode()
        if len(told) > room:
            told = told[: max(0, room - 100)].rsplit(b"\n", 1)[0] + b"\n\n(cut: the summary is full)\n"
        with path.open("ab") as stream:
            stream.write(told if len(told) <= max(0, room) else b"")
    except OSError as error:
        return f"{VARIABLE}: cannot write {name}: {error.strerror}"
    return None
