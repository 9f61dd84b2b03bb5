"""Lines of text files, gzip or not: bounded in length, decoded one by one, faults told with file and line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from selectbench.errors import UserError

LONGEST_LINE_BYTES = 64 << 20
"""A longer line is no line of text; it would have to be held in memory as a whole."""
_GZIP = b"\x1f\x8b"
Fault = Callable[[str], None]
"""Is told of something unreadable: raises, or counts it and lets the reading go on."""


@dataclass(frozen=True)
class Line:
    """One line, decoded; where it stood for messages."""

    path: Path
    number: int
    """From 1."""
    text: str
    """With its line feed, where it has one."""

    @property
    def place(self) -> str:
        """`corpus.jsonl, line 3`."""
        return f"{self.path}, line {self.number}"


def read_lines(path: Path, setting: str, fault: Fault) -> Iterator[Line]:
    """Every line that is UTF-8; a byte order mark goes, CR LF and CR become LF. Raises UserError.

    `setting`: the suite's key that named the file, for messages. `fault` gets lines that are no text.
    """
    number = offset = 0
    with _opened(path, setting) as stream:
        while raw := _next(stream, path, setting, number + 1):
            number += 1
            text = _decoded(raw, path, number, offset, setting, fault)
            offset += len(raw)
            if text is not None:
                yield Line(path, number, text)


@contextmanager
def _opened(path: Path, setting: str) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == _GZIP
            plain.seek(0)
            if not packed:
                yield plain
                return
            with gzip.open(plain) as stream:
                yield stream  # type: ignore[misc]
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror or error}") from error


def _next(stream: IO[bytes], path: Path, setting: str, number: int) -> bytes:
    try:
        raw = stream.readline(LONGEST_LINE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{setting}: {path}, line {number}: the gzip file is damaged: {error}") from error
    if len(raw) > LONGEST_LINE_BYTES:
        raise UserError(
            f"{setting}: {path}, line {number} is longer than {LONGEST_LINE_BYTES >> 20} MiB: is it a text file "
            "with line ends?"
        )
    return raw


def _decoded(raw: bytes, path: Path, number: int, offset: int, setting: str, fault: Fault) -> str | None:
    """None where it is no text and `fault` let that pass."""
    body = raw[3:] if number == 1 and raw.startswith(b"\xef\xbb\xbf") else raw
    nul = raw.find(0)
    try:
        text = body.decode("utf-8")
        position, what = nul, "a NUL byte (a binary file, or UTF-16)"
    except UnicodeDecodeError as error:
        at = error.start + len(raw) - len(body)
        position, what = (nul, "a NUL byte (a binary file, or UTF-16)") if 0 <= nul < at else (at, _NOT_UTF8)
    if position >= 0:
        fault(f"{setting}: {path} is not a text file: {what} at byte offset {offset + position}, line {number}")
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


_NOT_UTF8 = "bytes that are not UTF-8"
