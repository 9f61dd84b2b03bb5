"""The paths of a suite file, made absolute.

They are relative to the suite's folder, those of the command line to the working directory; `~` is the home
folder.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from selectbench.suite.document import Node


def with_absolute_paths(document: Node, folder: Path) -> Node:
    """The document with every path of it absolute, but the interpreters of rows; `folder`: the suite's."""
    job, code = document.mapping.get("job"), document.mapping.get("code")
    if job is not None and isinstance(job.value, dict):
        document = document.with_entries(job=_job_with_absolute_paths(job, folder))
    if code is not None:
        document = document.with_entries(code=_each(code, lambda node: _absolute(node, folder)))
    if "exclude" in document.mapping:
        # Compared with rows, whose interpreters are absolute by then; an axis keeps its labels as written.
        patterns = _each(document.mapping["exclude"], lambda node: with_interpreter(node, folder))
        document = document.with_entries(exclude=patterns)
    return document


def _job_with_absolute_paths(job: Node, folder: Path) -> Node:
    data, model = job.mapping.get("data"), job.mapping.get("model")
    if data is not None and "text" in data.mapping:
        patterns = _each(data.mapping["text"], lambda node: _absolute(node, folder, pattern=True))
        job = job.with_entries(data=data.with_entries(text=patterns))
    if model is not None and "config" in model.mapping:
        config = _absolute(model.mapping["config"], folder)
        job = job.with_entries(model=model.with_entries(config=config))
    return job


def with_interpreter(choices: Node, folder: Path) -> Node:
    """A mapping of choices with the path of its interpreter absolute."""
    python = choices.mapping.get("python")
    return choices if python is None else choices.with_entries(python=_absolute(python, folder))


def _each(node: Node, change: Callable[[Node], Node]) -> Node:
    """A list with every item changed; anything else as it is."""
    return replace(node, value=[change(item) for item in node.items]) if isinstance(node.value, list) else node


def _absolute(node: Node, folder: Path, *, pattern: bool = False) -> Node:
    if not isinstance(node.value, str) or not node.value:
        return node
    # What the command line says, it says from where the user stands.
    base = str(folder if node.place.line else Path.cwd())
    # The folder is no pattern, even where its name holds a bracket. Not Path: a pattern's `..` must be resolved
    # as text, before any glob.
    joined = os.path.join(glob.escape(base) if pattern else base, os.path.expanduser(node.value))  # noqa: PTH111, PTH118
    return replace(node, value=os.path.normpath(joined))
