"""records.jsonl: appended to and flushed to disk record by record; read without losing or hiding a line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from selectbench.errors import UserError
from selectbench.record.record import SCHEMA_VERSION, Lines, Record

FILE_NAME = "records.jsonl"
RECORDS: Lines[Record] = Lines(Record)
MOST_NOTES = 10
"""Lines that `read_records` tells of one by one."""


def append_record(path: Path, record: Record) -> None:
    """Add one line and wait until it is on the disk.

    A line that an earlier crash tore is closed first, so that it stays visible and spoils no other. Where
    the disk is full nothing of the new line stays. Raises UserError, and ValueError as `Lines.write` does.
    """
    line = RECORDS.write(record) + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        _write_whole(descriptor, line)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        os.close(descriptor)


def _write_whole(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    if size and _last_byte(descriptor) != b"\n":
        line = b"\n" + line
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _last_byte(descriptor: int) -> bytes:
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot write: {error.strerror}; every record before this one is kept: "
        "make room or choose another --results folder, and run the same command again"
    )


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """The file's records in order, and a note on each line that could not be used as it stands.

    Of many such lines all but the first MOST_NOTES have one note together. A missing file has no records. Raises
    UserError where the file can't be read at all.
    """
    records: list[Record] = []
    notes: list[str] = []
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from None
    for number, (line, is_ended) in enumerate(_lines(content), start=1):
        record, note = _parse(line, is_ended=is_ended)
        records += [record] if record else []
        notes += [f"{path.name}:{number}: {note}"] if note else []
    return records, _first(notes, path.name)


def _first(notes: list[str], name: str) -> list[str]:
    more = len(notes) - MOST_NOTES
    return notes if more <= 1 else [*notes[:MOST_NOTES], f"{name}: and {more:,} more lines that do not fit"]


def require_records(folder: Path) -> None:
    """Raises UserError where a run's folder has no records: a report made of none would replace that of them."""
    if not (folder / FILE_NAME).is_file():
        raise UserError(
            f"{folder}: it has no {FILE_NAME}, so there is nothing to report, and nothing was written: "
            "put the file back if it was moved, else run the suite again"
        )


def _lines(content: bytes) -> Iterator[tuple[memoryview, bool]]:
    """Without their ends, and whether they have one.

    Without a copy: what is kept of a line as its JSON is a part of the whole.
    """
    whole, start = memoryview(content), 0
    while start < len(content):
        end = content.find(b"\n", start)
        is_ended, end = end >= 0, len(content) if end < 0 else end
        yield whole[start:end], is_ended
        start = end + 1


def _parse(line: memoryview, *, is_ended: bool) -> tuple[Record | None, str | None]:
    try:
        record = RECORDS.read(line)
    except ValueError as error:
        return None, _why_not(bytes(line), error, is_ended=is_ended)
    if record.schema_version > SCHEMA_VERSION:
        return None, (
            f"left out: schema version {record.schema_version} is newer than this selectbench's {SCHEMA_VERSION}: "
            "read it with the selectbench that wrote it"
        )
    if record.schema_version != SCHEMA_VERSION:
        return record, f"schema version {record.schema_version}, read as version {SCHEMA_VERSION}"
    return record, None


def _why_not(line: bytes, error: ValueError, *, is_ended: bool) -> str | None:
    if not line.strip():
        return None
    try:
        content = json.loads(line)
    except ValueError:
        stopped = " (the process that wrote it was stopped while writing)"
        return "left out: not JSON" if is_ended else f"left out: not a whole line of JSON{stopped}"
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version is None:
        return "left out: not a record of selectbench"
    return f"left out: a record of schema version {version} that does not fit: {error}"


def last_attempts(records: list[Record]) -> dict[str, Record]:
    """The record that counts for each trial_id: the last attempt, whatever the order of the records.

    Of attempts of one number the one that began last, as two runs of a copied folder have them; then the last in
    the file.
    """
    last: dict[str, Record] = {}
    for record in records:
        rival = last.setdefault(record.trial.trial_id, record)
        if (record.attempt, record.started_at) >= (rival.attempt, rival.started_at):
            last[record.trial.trial_id] = record
    return last
