"""The files that paths and globs of a suite name."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from selectbench.errors import UserError


def find_files(patterns: Sequence[str], notify: Callable[[str], None], setting: str = "data.text") -> list[Path]:
    """The files, each once, sorted within a glob, in the order of the patterns.

    An empty file that a path names is an error; one that a glob merely met is left out, and `notify` says
    so. `setting`: the suite's key, for messages. Raises UserError with a line for every pattern that names
    nothing readable.
    """
    found: dict[Path, None] = {}
    problems: list[str] = []
    for pattern in patterns:
        try:
            found.update(dict.fromkeys(_matches(pattern, notify, setting)))
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{setting}: {pattern} cannot be read: {error.strerror}")
    if problems:
        raise UserError(*problems)
    return list(found)


def _matches(pattern: str, notify: Callable[[str], None], setting: str) -> list[Path]:
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [named_file(Path(pattern), setting)]
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = [path for path in map(Path, names) if path.is_file()]
    if not files:
        raise UserError(f"{setting}: no file matches {pattern}")
    full = [path for path in files if path.stat().st_size]
    if not full:
        raise UserError(f"{setting}: every file that matches {pattern} is empty")
    if len(full) < len(files):
        notify(f"{len(files) - len(full)} empty files that match {pattern} are left out")
    return full


def named_file(path: Path, setting: str) -> Path:
    """The path, where it is a file with something in it. Raises UserError."""
    if path.is_dir() and setting == "data.tokens":
        raise UserError(f"{setting}: {path} is a folder: name the file of token ids in it")
    if path.is_dir():
        kind = {"jsonl": "jsonl", "chat": "jsonl", "parquet": "parquet"}.get(setting.rpartition(".")[2], "txt")
        raise UserError(f"{setting}: {path} is a folder: write {path}/**/*.{kind} for the {kind} files in it")
    if not path.exists():
        raise UserError(f"{setting}: {path} does not exist")
    if not path.is_file():
        raise UserError(f"{setting}: {path} is not a regular file")
    if not path.stat().st_size:
        raise UserError(f"{setting}: {path} is empty")
    return path


def files_sha256(files: Sequence[Path], setting: str) -> str:
    """Digest of the files' contents in order, whatever their names. Raises UserError."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
