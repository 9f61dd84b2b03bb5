"""Reading documents: from files, lines, records, data sets of the hub, own code; and their cleaning."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import re
import sys
import traceback
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from selectbench.choices.choice import OwnCodeError, add_to_path, import_roots, load
from selectbench.choices.model import HUB_FIX, LIBRARY_MESSAGE_LENGTH
from selectbench.errors import UnreachableError, UserError
from selectbench.suite.sources import Cleaning, Dataset, OwnDocuments
from selectbench.text import first_line, one_line, quoted, visible


def error_with_place(error: BaseException) -> str:
    """The error's type and message, with the file and line that raised it."""
    message = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError):
        return f"{message} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{message} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else message


def find_files(
    patterns: Sequence[str], notify: Callable[[str], None], setting: str = "job.data.text"
) -> list[Path]:
    """The files, each once, sorted within a glob, in the order of the patterns.

    An empty file that a path names is an error; one that only a glob matches is left out, and `notify` is told.
    `setting`: the suite's key, for messages. Raises UserError with a line for each pattern without a readable file.
    """
    files: dict[Path, None] = {}
    problems: list[str] = []
    for pattern in patterns:
        try:
            files.update(dict.fromkeys(_matches(pattern, notify, setting)))
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{setting}: {pattern} cannot be read: {error.strerror}")
    if problems:
        raise UserError(*problems)
    return list(files)


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
    """Return the path of a file that is not empty. Raises UserError for anything else."""
    if path.is_dir() and setting == "job.data.tokens":
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
    """SHA-256 over the files' contents in order; names don't count. Raises UserError."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


# Lines of text files, gzip or not: bounded in length, decoded one by one, faults reported with file and line.


LONGEST_LINE_BYTES = 64 << 20
"""A longer line is a fault: it would have to be held in memory."""
_GZIP, _CHUNK_BYTES = b"\x1f\x8b", 1 << 20
_BEFORE_ITEM = re.compile(r"[ \t\r\n]*(,?)[ \t\r\n]*")
_NO_UTF8 = re.compile("[\udc80-\udcff]")
Fault = Callable[[str], None]
"""Gets a message about something unreadable, and raises, or counts it and lets the reading go on."""


def read_lines(path: Path, setting: str, fault: Fault, *, at_cr: bool = False) -> Iterator[tuple[str, str]]:
    """The place, for messages, and the text of every line that is UTF-8. Raises UserError.

    A byte order mark goes, CR LF and CR become LF. `setting`: the suite's key that named the file. `fault` gets
    lines that are no text or too long. `at_cr`: a CR alone ends a line, as it does where a file begins without LF.
    """
    number = offset = 0
    with _open_text(path, setting) as stream:
        head = stream.read(_CHUNK_BYTES)
        stream.seek(0)
        ends = ("\n", "\r") if at_cr or (b"\r" in head and b"\n" not in head) else ("\n",)
        # A character for each byte.
        lines = io.TextIOWrapper(stream, "latin-1", newline="" if "\r" in ends else "\n")
        while line := lines.readline(LONGEST_LINE_BYTES + 1):
            number, begin, offset = number + 1, offset, offset + len(line)
            if len(line) > LONGEST_LINE_BYTES:
                problem = f"longer than {LONGEST_LINE_BYTES >> 20} MiB: is it a text file with line ends?"
                fault(f"{setting}: {path}, line {number} is {problem}")
                while line and not line.endswith(ends):
                    offset += len(line := lines.readline(LONGEST_LINE_BYTES))
                continue
            try:
                text, problem = line.encode("latin-1").decode(), "a NUL byte (a binary file, or UTF-16)"
                position = line.find("\0")
            except UnicodeDecodeError as error:
                position, problem = error.start, "bytes that are not UTF-8"
            if position >= 0:
                place = f"at byte offset {begin + position}, line {number}"
                fault(f"{setting}: {path} is not a text file: {problem} {place}")
            else:
                text = text.removeprefix("\ufeff") if number == 1 else text
                yield f"{setting}: {path}, line {number}", text.replace("\r\n", "\n").replace("\r", "\n")


def json_values(path: Path, setting: str, fault: Fault) -> Iterator[tuple[str, Any]]:
    """Place and value of each line, or of each item where the file is one array. Raises UserError."""
    for place, text in _json_texts(path, setting, fault):
        try:
            value = json.loads(text, object_pairs_hook=_object_of)
        except (ValueError, RecursionError) as error:
            fault(f"{place} is not JSON: {error}")
        else:
            yield place, value


def _json_texts(path: Path, setting: str, fault: Fault) -> Iterator[tuple[str, str]]:
    """Place and text of each line that is not blank, or of each item where the file is one array."""
    with _open_text(path, setting) as stream:
        if stream.read(_CHUNK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            stream.seek(0)
            whole = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape")  # which a name keeps open
            yield from _array_items(whole, f"{setting}: {path}", fault)
            return
    yield from (line for line in read_lines(path, setting, fault, at_cr=True) if not line[1].isspace())


def _array_items(text: IO[str], path: str, fault: Fault) -> Iterator[tuple[str, str]]:
    """Place and text of each item of an array, read one at a time. Raises UserError where the array is damaged."""
    decode, buffer, number = json.JSONDecoder().raw_decode, text.read(_CHUNK_BYTES), 1
    end = buffer.index("[") + 1
    while (before := _BEFORE_ITEM.match(buffer, end)) and (before[1] or not buffer.startswith("]", before.end())):
        item, begin, end_before, problem = f"{path}, item {number}", before.end(), end, "it breaks off"
        try:
            if bool(before[1]) != (number > 1):
                raise ValueError("the comma before it is missing or too many")
            end = decode(buffer, begin)[1]
        except (ValueError, RecursionError) as error:
            problem, end = str(error).partition(":")[0] if begin < len(buffer) else problem, len(buffer)
        if end == len(buffer):  # it may go on
            if end - begin > LONGEST_LINE_BYTES:
                raise UserError(
                    f"{item} of a JSON array: {problem}, or it is longer than {LONGEST_LINE_BYTES >> 20} MiB"
                )
            if not (more := text.read(max(_CHUNK_BYTES, end - begin))):
                raise UserError(f"{item} of a JSON array: {problem}")
            buffer, end = buffer[end_before:] + more, 0
            continue
        if _NO_UTF8.search(buffer, begin, end):
            fault(f"{item} holds bytes that are not UTF-8")
        else:
            yield item, buffer[begin:end]
        number += 1
    if (buffer[end:].lstrip()[1:] + text.read(_CHUNK_BYTES)).strip():
        raise UserError(f"{path} goes on after the end of a JSON array")


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError for a key that stands twice, as either value may be meant."""
    if len(value := dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {quoted(next(key for key in keys if keys.count(key) > 1))} twice")
    return value


@contextmanager
def _open_text(path: Path, setting: str) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where it is gzip. Raises UserError where it can't be read."""
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == _GZIP
            plain.seek(0)
            if not packed:
                yield plain
                return
            with gzip.open(plain) as stream:
                yield stream  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{setting}: {path}: the gzip file is damaged: {error}") from error
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror or error}") from error


# Repositories of the Hugging Face hub: which commit a name means now, and where that commit's files lie.


Kind = Literal["model", "dataset"]


def snapshot(
    name: str, revision: str | None, files: Sequence[str], *, fetch: bool = True, kind: Kind = "model"
) -> Path:
    """The folder of the hub's cache that holds one commit, and is named after it.

    `files`: patterns of the files to fetch where they are missing. Without a network, or where `fetch` is
    False, the commit is the last one that was resolved. Raises what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download

    # Subfolders are ignored: they hold, for instance, the same weights in other formats.
    folder = snapshot_download(
        name, revision=revision or "main", allow_patterns=list(files), ignore_patterns=["*/*"],
        local_files_only=not fetch, repo_type=kind,
    )  # fmt: skip
    return Path(folder)


def fetch_snapshot(setting: str, name: str, revision: str | None, files: Sequence[str]) -> Path:
    """Fetch a commit's files and return its folder. Raises UnreachableError with the setting and the fix."""
    try:
        return snapshot(name, revision, files)
    except Exception as error:  # the network's, and a dozen of the hub's own
        reason = one_line(f"{type(error).__name__}: {first_line(error)}", LIBRARY_MESSAGE_LENGTH).rstrip(".")
        raise UnreachableError(f"{setting}: {visible(name)} cannot be loaded: {reason} ({HUB_FIX})") from None


def cached_folder(name: str, revision: str | None) -> Path | None:
    """The folder, named after it, of the commit that transformers loads without a network; None: none is cached."""
    try:
        return snapshot(name, revision, ["config.json"], fetch=False)
    except (ImportError, OSError, ValueError):
        return None


# Documents from records: a field of JSON lines or parquet rows, and whole conversations.


ROLES = ("system", "user", "assistant")
_SHARE_GPT = {"human": "user", "gpt": "assistant"}
CHAT_FIELDS = ("messages", "conversations")
ROWS_AT_ONCE = 1024


def json_documents(files: Sequence[Path], field: str, fault: Fault) -> Iterator[str]:
    """The field of each line's object, in order; objects without it go to `fault`. Blank lines are skipped."""
    yield from field_texts(_objects(files, "job.data.jsonl", fault), field, fault)


def field_texts(records: Iterable[tuple[str, object]], field: str, fault: Fault) -> Iterator[str]:
    """The field of each record as text, in order; other values go to `fault`. `records`: place and record."""
    names, described = field.split("."), f"field {quoted(field)}"
    for place, record in records:
        value, has = _nested_value(record, names)
        if isinstance(value, str):
            yield value
        elif value is _MISSING:
            fault(f"{place}: there is no {described}, text was expected{has}")
        else:
            fault(f"{place}: the {described} is {_json_type(value)}, text was expected")


def chat_documents(files: Sequence[Path], field: str | None, fault: Fault) -> Iterator[str]:
    """Each conversation as JSON: a list of [role, content] pairs, with an answer among them."""
    fields = [field] if field else CHAT_FIELDS
    for place, record in _objects(files, "job.data.chat", fault):
        candidates = [(name, *_nested_value(record, name.split("."))) for name in fields]
        name, value, has = next((c for c in candidates if c[1] is not _MISSING), candidates[0])
        if value is _MISSING:
            fault(f"{place}: there is no field {' or '.join(map(quoted, fields))}{has}")
            continue
        unread = next((key for key in ("system", "tools") if "." not in name and record.get(key)), None)
        try:
            if unread is not None:
                raise ValueError(f"the {quoted(unread)} beside it is not read: make it a message")
            if not isinstance(value, list) or not value:
                content = "an empty list" if value == [] else _json_type(value)
                raise ValueError(f"{content} was found, a list of messages was expected")
            messages = [_message(number, message) for number, message in enumerate(value)]
            answers = [content for role, content in messages if role == "assistant"]
            if not any(map(str.strip, answers)):
                problem = "the assistant says nothing" if answers else "no message of the assistant"
                raise ValueError(f"{problem}: there would be nothing to learn")
        except ValueError as error:
            fault(f"{place}: {name}: {error}")
        else:
            yield json.dumps(messages, ensure_ascii=False)


_MEANS_MORE = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Keys that other tools train on besides a message's content."""


def _message(number: int, message: object) -> tuple[str, str]:
    """The message's role and content. Raises ValueError with what is wrong with it."""
    fields = message if isinstance(message, dict) else {}
    role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
    role = _SHARE_GPT.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"message {number} has the role {quoted(role)}, expected one of {', '.join(ROLES)}")
    if unread := next((key for key in _MEANS_MORE if fields.get(key)), None):
        raise ValueError(f"message {number} has {quoted(unread)}, which is not read: write it into the content")
    if role == "assistant" and fields.get("weight", 1) == 0:
        raise ValueError(f"message {number} has weight 0, but every answer is trained on: end before it")
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        if not all(isinstance(part.get("text"), str) for part in content):
            raise ValueError(f"message {number} has a part that is no text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"message {number} has {_json_type(content)} as its content, text was expected")
    return str(role), content


def _objects(files: Sequence[Path], setting: str, fault: Fault) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and value of each object, in order; other values go to `fault`."""
    for path in files:
        for place, value in json_values(path, setting, fault):
            if isinstance(value, dict):
                yield place, value
            else:
                fault(f"{place}: {_json_type(value)} was found, an object was expected")


_MISSING = object()


def _nested_value(value: Any, names: Sequence[str]) -> tuple[object, str]:
    """The value under the path of keys `names`, and ''; where one is missing, _MISSING and ' (it has A, B)'."""
    for name in names:
        if not isinstance(value, dict) or name not in value:
            return _MISSING, f" (it has {_names(list(value))})" if isinstance(value, dict) and value else ""
        value = value[name]
    return value, ""


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text",
             list: "a list", dict: "an object"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def parquet_documents(files: Sequence[Path], field: str, fault: Fault) -> Iterator[str]:
    """The column of each row, in order; ROWS_AT_ONCE rows are in memory at a time."""
    yield from field_texts(_parquet_rows(files, field), field, fault)


def _parquet_rows(files: Sequence[Path], field: str) -> Iterator[tuple[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = field.split(".")[0]
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                if first not in file.schema_arrow.names:
                    has = _names(file.schema_arrow.names)
                    raise UserError(f"job.data.parquet: {path} has no column {quoted(first)} (it has {has})")
                batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[first])
                for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                    yield f"job.data.parquet: {path}, row {number}", row
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"job.data.parquet: {path} cannot be read: {first_line(error)}") from error


# Rows of a data set that the library `datasets` reads: from the hub, a folder of files, or a folder it saved.


def load_rows(data: Dataset) -> Any:
    """Load the split. Raises UserError where the folder, hub id, split or column does not exist."""
    import datasets

    datasets.disable_progress_bars()
    with _load_errors_explained(data):
        if any((Path(data.dataset) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            rows = _load_saved(data)
        else:
            revision = data.revision if data.rows is None else dataset_commit(data)
            rows = datasets.load_dataset(
                data.dataset, data.name, split=data.split, revision=revision, streaming=data.rows is not None
            )
        if data.rows is not None:
            rows = rows.take(data.rows)
            rows = rows if rows.column_names is not None else rows._resolve_features()
    first = data.field.split(".")[0]
    if first not in rows.column_names:
        raise UserError(
            f"job.data.dataset: {data.dataset} has no column {quoted(first)} (it has {_names(rows.column_names)})"
        )
    return rows


@contextmanager
def _load_errors_explained(data: Dataset) -> Iterator[None]:
    """Turns errors of loading a data set into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow's, the network's and a dozen of the library's own
        cause: BaseException = error  # `datasets` itself says only that something failed
        while cause.__cause__ is not None:
            cause = cause.__cause__
        kind = UserError if Path(data.dataset).exists() else UnreachableError
        raise kind(
            f"job.data.dataset: {data.dataset} cannot be loaded: {first_line(cause)} "
            "(a local folder needs no network; without one, a hub id must be in the hub's cache)"
        ) from None


def dataset_commit(data: Dataset) -> str | None:
    """The commit to which the hub resolves the name now, or did last; None: a folder. Raises UnreachableError."""
    if Path(data.dataset).exists():
        return None
    with _load_errors_explained(data):
        return snapshot(data.dataset, data.revision, ["README.md"], kind="dataset").name


def download_bytes(data: Dataset) -> float:
    """Estimated download size of the first rows, from a row's size in the first file. Raises UserError."""
    import datasets
    import fsspec
    import pyarrow.parquet

    assert data.rows is not None, "of a data set without `rows` all is downloaded"
    with _load_errors_explained(data):
        builder = datasets.load_dataset_builder(data.dataset, data.name, revision=data.revision)
        first = builder.config.data_files[data.split][0]
        with fsspec.open(first) as file:
            rows = pyarrow.parquet.ParquetFile(file).metadata.num_rows
            return float(data.rows * file.size / rows)


def streamed_key(data: Dataset) -> str | None:
    """A key of the first rows by the commit; None: a folder, which has no commit. Raises UnreachableError."""
    commit = dataset_commit(data)
    return commit and f"dataset {data.dataset} {commit} {data.name} {data.split} {data.rows} {data.field}"


def rows_key(rows: Any, data: Dataset) -> str | None:
    """A key of the rows from their files' digest, split, number and field; None: the rows are in memory.

    The library's own fingerprint is not used: it is saved with the rows, and stays when they are replaced.
    """
    files = [Path(file["filename"]) for file in rows.cache_files]
    if not files:
        return None
    return f"dataset {files_sha256(files, 'job.data.dataset')} {data.split} {len(rows)} {data.field}"


def dataset_rows(rows: Any, data: Dataset) -> Iterator[tuple[str, object]]:
    """Place and record of each row, in order. Raises UserError where a download breaks off while rows are read."""
    first = data.field.split(".")[0]
    with _load_errors_explained(data):
        batches = rows.select_columns([first]).iter(batch_size=ROWS_AT_ONCE)
        for number, value in enumerate(value for batch in batches for value in batch[first]):
            yield f"job.data.dataset: {data.dataset}, row {number}", {first: value}


def _load_saved(data: Dataset) -> Any:
    """Load what `save_to_disk` wrote, one split or several by name, and cut slices as the library does."""
    import datasets

    splits = datasets.load_from_disk(data.dataset)
    if isinstance(splits, datasets.Dataset):
        splits = {str(splits.split or "train"): splits}
    sizes = {name: len(rows) for name, rows in splits.items()}
    try:
        cuts = datasets.ReadInstruction.from_spec(data.split).to_absolute(sizes)
    except (ValueError, AssertionError, KeyError):
        raise UserError(
            f"job.data.dataset: {data.dataset} has no split {quoted(data.split)} (it has {_names(list(sizes))})"
        ) from None
    return datasets.concatenate_datasets([splits[c.splitname].select(range(c.from_, c.to)) for c in cuts])


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(visible, names[:8])) + (" and more" if len(names) > 8 else "")


# Documents that own code yields: `Name(**settings)`, read in this process.


def own_documents(data: OwnDocuments, code: Sequence[str]) -> Iterator[str]:
    """The strings that own code yields; `code`: its folders. Raises UserError where it fails or yields no text."""
    place, number = f"job.data.documents: {data.documents}", -1
    with _importable(code):
        documents = _start(data)
        try:
            for number, document in enumerate(documents):
                if not isinstance(document, str):
                    kind = type(document).__name__
                    raise UserError(
                        f"{place} yielded a {kind} as document {number}, text was expected: yield strings"
                    )
                yield document
        except UserError:
            raise
        except Exception as error:  # whatever own code raises is for its author to see
            raise UserError(f"{place} failed at document {number + 1}: {error_with_place(error)}") from error


def _start(data: OwnDocuments) -> Iterator[Any]:
    """Call the class or function and iterate over its documents. Raises UserError."""
    try:
        documents = load(data.documents, "job.data.documents:")(**data.settings)
        if isinstance(documents, str | bytes):
            raise TypeError(f"it gave one {type(documents).__name__}, an iterable of documents was expected")
        return iter(documents)
    except Exception as error:
        failure, problem = error.__cause__ if isinstance(error, OwnCodeError) else error, str(error)
        if failure is not None:
            problem = f"job.data.documents: {data.documents} cannot be used: {error_with_place(failure)}"
        raise UserError(
            f"{problem}: it must name a class or function in a folder of `code` or an installed package, which "
            "takes `settings` and gives an iterable of strings"
        ) from error


@contextmanager
def _importable(code: Sequence[str]) -> Iterator[None]:
    """Puts the folders on sys.path; afterwards forgets modules imported from them, as they may be edited."""
    path_before, modules_before = list(sys.path), set(sys.modules)
    add_to_path(code)
    try:
        yield
    finally:
        sys.path[:] = path_before
        roots = import_roots(code)
        for name in set(sys.modules) - modules_before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if "site-packages" not in file and any(Path(file).is_relative_to(root) for root in roots):
                del sys.modules[name]


# Cleaning: the suite's steps on each document, with counts of what they change and remove.


_NOT_ASCII_TEXT = re.compile(r"[^\t\n\x20-\x7e]")
_BLANKS = re.compile(r"[^\S\n]+")
_MANY_LINES = re.compile(r"\n{3,}")
_REMOVABLE = frozenset({"Cc", "Co", "Cn", "Cs"})
Change = Callable[[str], str]


@dataclass
class Cleaner:
    """Applies the cleaning steps to documents and counts what each did; documents in = cleaned + removed."""

    spec: Cleaning
    is_chat: bool = False
    """Documents are conversations as JSON: changes are made message by message."""
    documents_in: int = 0
    """Documents read, including unreadable ones."""
    removed: dict[str, int] = field(default_factory=dict)
    """Number of documents that each step removed, by its name."""
    changed: dict[str, int] = field(default_factory=dict)
    """Number of documents that each step changed, by its name."""

    def fault(self, message: str) -> None:
        """Count an unreadable document as removed. Raises UserError unless the suite lets it be dropped."""
        if self.spec.unreadable == "refuse":
            raise UserError(f"{message} (`job.cleaning: {{unreadable: drop}}` leaves such out and counts them)")
        self.documents_in += 1
        self.remove("unreadable")

    def cleaned(self, documents: Iterator[str]) -> Iterator[str]:
        """The documents that are not removed, after all steps."""
        steps = _steps(self.spec)
        for text in documents:
            self.documents_in += 1
            for name, step in steps.items():
                before = text
                if self.is_chat:
                    messages = [(role, step(content)) for role, content in json.loads(text)]
                    text = json.dumps(messages, ensure_ascii=False)
                else:
                    text = step(text)
                if text != before:
                    self.changed[name] = self.changed.get(name, 0) + 1
            learnable = _learnable_text(text) if self.is_chat else text
            if not learnable or learnable.isspace():
                self.remove("empty")
            elif len(learnable) < self.spec.min_characters:
                self.remove("too_short")
            elif self.spec.max_characters is not None and len(learnable) > self.spec.max_characters:
                self.remove("too_long")
            else:
                yield text

    def remove(self, step: str, documents: int = 1) -> None:
        """Count documents that a step removed."""
        if documents:
            self.removed[step] = self.removed.get(step, 0) + documents


def _learnable_text(document: str) -> str:
    """All messages' text; '' where no answer, or one side of a pair, has text left: it would teach nothing."""
    messages = json.loads(document)
    speakers = {role for role, content in messages if content.strip()}
    is_whole = "assistant" in speakers or {"source", "target"} <= speakers
    return "".join(content for _, content in messages) if is_whole else ""


def _steps(spec: Cleaning) -> dict[str, Change]:
    """The steps in order; lone surrogates, which no file can hold, are always replaced."""
    steps: dict[str, Change] = {"surrogates": _without_surrogates}
    if spec.control_characters == "remove":
        steps["control_characters"] = without_control_characters
    if spec.unicode != "none":  # after what may have stood between a letter and its accent is gone
        steps["unicode"] = partial(unicodedata.normalize, spec.unicode)
    if spec.white_space == "collapse":
        steps["white_space"] = with_single_blanks
    return steps


def _without_surrogates(text: str) -> str:
    """The text without lone surrogates, which JSON can spell but which are no characters."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def without_control_characters(text: str) -> str:
    """The text without control (but tab and line feed), private-use and unassigned characters."""
    return _NOT_ASCII_TEXT.sub(lambda match: "" if unicodedata.category(match[0]) in _REMOVABLE else match[0], text)


def with_single_blanks(text: str) -> str:
    """The text with single blanks, no blanks at line ends, and at most one blank line in a row."""
    lines = (_BLANKS.sub(" ", line).strip() for line in text.split("\n"))
    return _MANY_LINES.sub("\n\n", "\n".join(lines)).strip("\n")
