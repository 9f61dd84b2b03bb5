"""The held-out split: which blocks of text are held out, by hashes, and what training text is taken out of them.

The side of a block is a function of its own text alone, so that the same text twice, in one file or in two, lies on
one side; what still occurs on both sides, line by line, is taken out of the held-out side.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

HELDOUT_FRACTION = 0.05
"""Share of the blocks that is held out."""
BLOCK_CHARACTERS = 2_000
"""Paragraphs are grouped until a block has so many characters."""
SHORTEST_LEAK_CHARACTERS = 20
"""A line that occurs on both sides counts as a leak from this length on; shorter ones are mere formulas."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pieces:
    """The parts of a document that may occur on the other side by themselves."""

    of: Callable[[str], Iterable[str]]
    without: Callable[[str, Callable[[str], bool]], str]
    """The document without the parts of which the second argument is true; '' where nothing is left to score."""


def _without_lines(text: str, leaked: Callable[[str], bool]) -> str:
    cleaned = "\n".join(line for line in text.split("\n") if not leaked(line)).strip("\n")
    return cleaned if cleaned.strip() else ""


def _answers(conversation: str) -> list[str]:
    return [content for role, content in json.loads(conversation) if role == "assistant"]


LINES = Pieces(lambda text: text.split("\n"), _without_lines)
"""Of running text: its lines."""
ANSWERS = Pieces(_answers, lambda text, leaked: "" if any(map(leaked, _answers(text))) else text)
"""Of a conversation: the answers; one that leaks takes the whole conversation with it."""


def blocks(lines: Iterable[str]) -> Iterator[str]:
    """Groups the paragraphs of a text into blocks of at least BLOCK_CHARACTERS characters.

    A paragraph ends at a blank line; a text without any such is cut at the end of any line. Only blank
    lines around a block are lost. The last block may be shorter.
    """
    block: list[str] = []
    size = 0
    for line in lines:
        # Without blank lines a block could be as long as its file: from twice the size on, any line ends it.
        if size >= 2 * BLOCK_CHARACTERS or (size >= BLOCK_CHARACTERS and not line.strip()):
            yield "".join(block).strip("\n")
            block, size = [], 0
        if block or line.strip():
            block.append(line)
            size += len(line)
    if text := "".join(block).strip("\n"):
        yield text


def normalised(text: str) -> str:
    """The text without differences that hide a copy: compatibility forms, case, white space."""
    if text.isascii():  # the same, several times as fast
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def side_hash(text: str) -> int:
    """A number below 2**64, evenly spread, that normalised text alone decides."""
    return int.from_bytes(hashlib.blake2b(normalised(text).encode(), digest_size=8).digest())


@dataclass(frozen=True)
class Sides:
    """Which documents are trained on, which are scored, and what of the latter is taken out."""

    training: Mask
    heldout: Mask
    leaked: frozenset[int | None]
    """leak_hash of pieces that occur on both sides."""
    pieces: Pieces = LINES

    def leaks(self, text: str) -> int:
        """How many pieces of a held-out document occur in training."""
        return sum(map(self._is_leaked, self.pieces.of(text))) if self.leaked else 0

    def without_leaks(self, text: str) -> str:
        """A held-out document without the pieces that occur in training; '' where nothing is left."""
        return self.pieces.without(text, self._is_leaked)

    def _is_leaked(self, piece: str) -> bool:
        return bool(self.leaked) and leak_hash(piece) in self.leaked


def leak_hash(line: str) -> int | None:
    """What a line is recognised by on the other side; None where it is too short to count as a leak."""
    form = normalised(line)
    if len(form) < SHORTEST_LEAK_CHARACTERS:
        return None
    return int.from_bytes(hashlib.blake2b(form.encode(), digest_size=8).digest())


def split(spool: Spool, pieces: Pieces, used: Mask) -> Sides:
    """Holds out the documents whose hash falls under HELDOUT_FRACTION, of those that are `used`.

    Where that leaves nothing to evaluate on, the 1, 2, 4, ... documents of the lowest hashes are held out
    instead, up to half of them. A text that occurs only once in several copies gives no held-out side.
    """
    hashes = np.unique(spool.hashes[used])
    below = int(np.searchsorted(hashes, np.uint64(HELDOUT_FRACTION * 2**64)))
    sizes = [below, *(2**power for power in range(len(hashes).bit_length()))]
    for size in sizes:
        if 0 < size <= max(1, len(hashes) // 2) and size < len(hashes):
            sides = decontaminated(spool, pieces, used, used & (spool.hashes < hashes[size]))
            if any(map(sides.without_leaks, spool.documents(sides.heldout))):
                return sides
    return Sides(used, np.zeros(len(used), bool), frozenset(), pieces)


def decontaminated(spool: Spool, pieces: Pieces, used: Mask, heldout: Mask) -> Sides:
    """With what occurs on both sides. Only held-out lines are kept in memory, a twentieth of the text."""
    heldout, training = used & heldout, used & ~heldout
    asked = {value for text in spool.documents(heldout) for piece in pieces.of(text) if (value := leak_hash(piece))}
    found = (leak_hash(piece) for text in spool.documents(training) for piece in pieces.of(text)) if asked else ()
    return Sides(training, heldout, frozenset(value for value in found if value in asked), pieces)


READ_BYTES = 1 << 20


class Spool:
    """Documents on disk, to be read as often as needed; in memory are 16 bytes of each, a hash and a length."""

    def __init__(self, path: Path, named_by: Callable[[str], str] = lambda document: document) -> None:
        """`path`: of the file to be written; it must not exist. `named_by`: what of a document is hashed."""
        self.path = path
        self._named_by = named_by
        self._lengths = array("q")
        self._hashes = array("Q")
        self.bytes = 0
        """UTF-8 bytes of all documents."""

    def fill(self, documents: Iterable[str], written: Callable[[int], None]) -> None:
        """Writes documents as they come; `written` is called with the bytes so far after each."""
        with self.path.open("ab") as file:
            for text in documents:
                raw = text.encode()
                file.write(raw)
                self._lengths.append(len(raw))
                self._hashes.append(side_hash(self._named_by(text)))
                self.bytes += len(raw)
                written(self.bytes)

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """`side_hash` of each document."""
        return np.frombuffer(self._hashes, dtype=np.uint64) if self._hashes else np.zeros(0, np.uint64)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each document."""
        return np.frombuffer(self._lengths, dtype=np.int64) if self._lengths else np.zeros(0, np.int64)

    def documents(self, chosen: Mask) -> Iterator[str]:
        """Those that are chosen, in order."""
        with self.path.open("rb", buffering=READ_BYTES) as file:
            for length, wanted in zip(self._lengths, chosen.tolist(), strict=True):
                if wanted:
                    yield file.read(length).decode()
                else:
                    file.seek(length, 1)

    def first_of_equals(self) -> Mask:
        """Which documents are the first of those that are equal but for case, form and white space."""
        first = np.zeros(len(self), bool)
        first[np.unique(self.hashes, return_index=True)[1]] = True
        return first
