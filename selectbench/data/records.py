"""Documents out of records: a field of JSON lines or parquet rows, and whole conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selectbench.data.failures import first_line
from selectbench.data.lines import Fault, read_lines
from selectbench.errors import UserError

ROLES = ("system", "user", "assistant")
ROWS_AT_ONCE = 1024


def json_documents(files: Sequence[Path], field: str, fault: Fault) -> Iterator[str]:
    """The field of every line's object, in order; what has none goes to `fault`. Blank lines are passed over."""
    for place, value in _fields(files, "data.jsonl", field, fault):
        if isinstance(value, str):
            yield value
        else:
            fault(f"data.jsonl: {place}: {found_instead(field, value)}, text was expected")


def chat_documents(files: Sequence[Path], field: str, fault: Fault) -> Iterator[str]:
    """Every line's conversation as JSON: a list of [role, content] pairs, with an answer in it."""
    for place, value in _fields(files, "data.chat", field, fault):
        problem, messages = _conversation(value)
        if problem:
            fault(f"data.chat: {place}: {field}: {problem}")
        else:
            yield json.dumps(messages, ensure_ascii=False)


def _conversation(value: object) -> tuple[str | None, list[tuple[str, str]]]:
    """What is wrong with it, and its messages."""
    if not isinstance(value, list) or not value:
        return f"{_kind(value)} was found, a list of messages was expected", []
    messages: list[tuple[str, str]] = []
    for number, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES:
            return f"message {number} has the role {role!r}, expected one of {', '.join(ROLES)}", []
        if not isinstance(content, str):
            return f"message {number} has {_kind(content)} as its content, text was expected", []
        messages.append((str(role), content))
    if not any(role == "assistant" and content.strip() for role, content in messages):
        return "no message of the assistant: there would be nothing to learn", []
    return None, messages


def _fields(files: Sequence[Path], setting: str, field: str, fault: Fault) -> Iterator[tuple[str, object]]:
    names = field.split(".")
    for path in files:
        for line in read_lines(path, setting, fault):
            if line.text.isspace():
                continue
            try:
                value: Any = json.loads(line.text)
            except (ValueError, RecursionError) as error:
                fault(f"{setting}: {line.place} is not JSON: {error}")
                continue
            if not isinstance(value, dict):
                fault(f"{setting}: {line.place}: {_kind(value)} was found, an object was expected")
                continue
            yield line.place, below(value, names)


def below(value: Any, names: Sequence[str]) -> object:
    """What the names lead to, each a key of the object before; a stand-in for nothing where one is not there."""
    for name in names:
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


class _Missing:
    """Stands for a field that is not there."""


_MISSING = _Missing()


def found_instead(field: str, value: object) -> str:
    """What was met where the text of a field was expected, for messages."""
    return f"there is no field {field!r}" if value is _MISSING else f"the field {field!r} is {_kind(value)}"


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a truth value", int: "a number", float: "a number", str: "text",
             list: "a list", dict: "an object", _Missing: "nothing"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def parquet_documents(files: Sequence[Path], field: str, fault: Fault) -> Iterator[str]:
    """The column of every row, in order; a few rows at a time are in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = field.split(".")[0]
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                if first not in file.schema_arrow.names:
                    known = ", ".join(file.schema_arrow.names[:8])
                    raise UserError(f"data.parquet: {path} has no column {first!r} (it has {known})")
                yield from _rows(file, path, field, fault)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"data.parquet: {path} cannot be read: {first_line(error)}") from error


def _rows(file: Any, path: Path, field: str, fault: Fault) -> Iterator[str]:
    first, *names = field.split(".")
    number = 0
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[first]):
        for value in batch.column(0).to_pylist():
            found = below(value, names)
            if isinstance(found, str):
                yield found
            else:
                fault(f"data.parquet: {path}, row {number}: {found_instead(field, found)}, text was expected")
            number += 1
