"""A repository in a hub's cache on disk, as huggingface_hub lays it out; what it holds, a test says."""

from __future__ import annotations

import shutil
from pathlib import Path

NAME = "org/thing"
FIRST, SECOND = "a" * 40, "b" * 40


def commit(cache: Path, number: str, content: Path, kind: str = "models") -> None:
    """Files of a folder as a commit of NAME, which main means from now on; `kind`: models or datasets."""
    repository = cache / f"{kind}--{NAME.replace('/', '--')}"
    shutil.copytree(content, repository / "snapshots" / number)
    moved(cache, number, kind)


def moved(cache: Path, number: str, kind: str = "models") -> None:
    """What main means."""
    refs = cache / f"{kind}--{NAME.replace('/', '--')}" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(number)
