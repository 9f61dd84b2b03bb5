"""The paths of a suite file, made absolute.

They are relative to the suite's folder, those of the command line to the working directory; `~` is the home
folder.
"""

from __future__ import annotations

import glob
import os
import posixpath
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


GLOBS = ("text", "jsonl", "parquet", "chat", "pairs")
"""Keys of a source that hold paths or globs."""
FILES = ("tokens", "source_text", "target_text")
"""Keys of a source that hold one path."""


def _job_with_absolute_paths(job: Node, folder: Path) -> Node:
    data = job.mapping.get("data")
    if data is not None and isinstance(data.value, dict):
        job = job.with_entries(data=_data_with_absolute_paths(data, folder))
    return with_model_paths(job, folder)


def _data_with_absolute_paths(data: Node, folder: Path) -> Node:
    entries: dict[str, Node] = {}
    for key, node in data.mapping.items():
        if key in GLOBS and not data.mapping.keys() & {"family"}:
            entries[key] = _each(node, lambda item: _absolute(item, folder, pattern=True))
            if isinstance(node.value, str):
                entries[key] = _absolute(node, folder, pattern=True)
        elif key in FILES:
            entries[key] = _absolute(node, folder)
        elif key == "dataset":
            entries[key] = _absolute_if_there(node, folder)
        elif key in ("train", "heldout") and isinstance(node.value, dict):
            entries[key] = _data_with_absolute_paths(node, folder)
    return data.with_entries(**entries)


def with_model_paths(holder: Node, folder: Path) -> Node:
    """A job, or a mapping of choices, with the paths of its model and its tokenizer absolute."""
    model, tokenizer = holder.mapping.get("model"), holder.mapping.get("tokenizer")
    if model is not None and "pretrained" in model.mapping:
        named = _absolute_if_there(model.mapping["pretrained"], folder)
        holder = holder.with_entries(model=model.with_entries(pretrained=named))
    if model is not None and "config" in model.mapping:
        config = _absolute(model.mapping["config"], folder)
        holder = holder.with_entries(model=model.with_entries(config=config))
    if tokenizer is not None and "pretrained" in tokenizer.mapping:
        named = _absolute_if_there(tokenizer.mapping["pretrained"], folder)
        holder = holder.with_entries(tokenizer=tokenizer.with_entries(pretrained=named))
    return holder


def _absolute_if_there(node: Node, folder: Path) -> Node:
    """A folder's path; a hub id, which looks alike, where there is no such folder."""
    found = _absolute(node, folder)
    is_path = isinstance(node.value, str) and (
        node.value.startswith((".", "~", "/")) or Path(str(found.value)).exists()
    )
    return found if is_path else node


def with_interpreter(choices: Node, folder: Path) -> Node:
    """A mapping of choices with the paths of its interpreter, model and tokenizer absolute."""
    choices = with_model_paths(choices, folder)
    python = choices.mapping.get("python")
    return choices if python is None else choices.with_entries(python=_absolute(python, folder))


def _each(node: Node, change: Callable[[Node], Node]) -> Node:
    """A list with every item changed; anything else as it is."""
    return replace(node, value=[change(item) for item in node.items]) if isinstance(node.value, list) else node


def _absolute(node: Node, folder: Path, *, pattern: bool = False) -> Node:
    if not isinstance(node.value, str) or not node.value:
        return node
    if node.value.startswith("/"):  # on Windows too, where it is no absolute path: a run from Linux reads the same
        return replace(node, value=posixpath.normpath(node.value))
    # What the command line says, it says from where the user stands.
    base = str(folder if node.place.line else Path.cwd())
    # The folder is no pattern, even where its name holds a bracket. Not Path: a pattern's `..` must be resolved
    # as text, before any glob.
    joined = os.path.join(glob.escape(base) if pattern else base, os.path.expanduser(node.value))  # noqa: PTH111, PTH118
    return replace(node, value=os.path.normpath(joined))
