"""The held-out split: which blocks of text are held out, by hashes, without text that occurs in training.

The side of a block depends on its text alone, so that copies of a text, in one file or in several, lie on one side;
lines that still occur on both sides are taken out of the held-out side.
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
"""Share of the blocks that are held out."""
BLOCK_CHARACTERS = 2_000
"""Least characters of a block of grouped paragraphs."""
SHORTEST_LEAK_CHARACTERS = 20
"""Least length at which a line that occurs on both sides counts as a leak; shorter ones are set phrases."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pieces:
    """How a document is cut into pieces, each of which may leak into the other side."""

    of: Callable[[str], Iterable[str]]
    without: Callable[[str, Callable[[str], bool]], str]
    """Returns the document without the pieces for which the predicate holds; '' where nothing is left to score."""


def _without_lines(text: str, leaked: Callable[[str], bool]) -> str:
    cleaned = "\n".join(line for line in text.split("\n") if not leaked(line)).strip("\n")
    return cleaned if cleaned.strip() else ""


def _answers(conversation: str) -> list[str]:
    return [content for role, content in json.loads(conversation) if role == "assistant"]


LINES = Pieces(lambda text: text.split("\n"), _without_lines)
"""The pieces of running text: its lines."""
ANSWERS = Pieces(_answers, lambda text, leaked: "" if any(map(leaked, _answers(text))) else text)
"""The pieces of a conversation: its answers; one that leaks removes the whole conversation."""


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
    """The text without differences that could hide a copy: compatibility forms, case, white space."""
    if text.isascii():  # the same, several times as fast
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def side_hash(text: str) -> int:
    """A hash of the normalised text, evenly spread below 2**64."""
    return int.from_bytes(hashlib.blake2b(normalised(text).encode(), digest_size=8).digest())


@dataclass(frozen=True)
class Sides:
    """Which documents are trained on, which are held out, and the pieces that are taken out of the latter."""

    training: Mask
    heldout: Mask
    leaked: frozenset[int | None]
    """`leak_hash` of the pieces that occur on both sides."""
    pieces: Pieces = LINES

    def leaks(self, text: str) -> int:
        """Number of pieces of a held-out document that occur in training."""
        return sum(map(self._is_leaked, self.pieces.of(text))) if self.leaked else 0

    def without_leaks(self, text: str) -> str:
        """A held-out document without the pieces that occur in training; '' where nothing is left."""
        return self.pieces.without(text, self._is_leaked)

    def _is_leaked(self, piece: str) -> bool:
        return bool(self.leaked) and leak_hash(piece) in self.leaked


def leak_hash(line: str) -> int | None:
    """A hash by which a line is found on the other side; None where it is too short to count as a leak."""
    normal_form = normalised(line)
    if len(normal_form) < SHORTEST_LEAK_CHARACTERS:
        return None
    return int.from_bytes(hashlib.blake2b(normal_form.encode(), digest_size=8).digest())


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
    """The sides with the pieces that leak. In memory are only hashes of held-out pieces."""
    heldout, training = used & heldout, used & ~heldout
    hashes = {h for text in spool.documents(heldout) for piece in pieces.of(text) if (h := leak_hash(piece))}
    trained = (leak_hash(p) for text in spool.documents(training) for p in pieces.of(text)) if hashes else ()
    return Sides(training, heldout, frozenset(h for h in trained if h in hashes), pieces)


READ_BYTES = 1 << 20


class Spool:
    """Documents on disk that are read as often as needed; each takes 16 bytes of memory, a hash and a length."""

    def __init__(self, path: Path, hashed_text: Callable[[str], str] = lambda document: document) -> None:
        """`path`: a file that does not exist yet. `hashed_text`: returns the text of a document to hash."""
        self.path = path
        self._hashed_text = hashed_text
        self._lengths = array("q")
        self._hashes = array("Q")
        self.bytes = 0
        """UTF-8 bytes of all documents."""

    def fill(self, documents: Iterable[str], report: Callable[[int], None]) -> None:
        """Append documents; after each, `report` is called with the bytes of all so far."""
        with self.path.open("ab") as file:
            for text in documents:
                raw = text.encode()
                file.write(raw)
                self._lengths.append(len(raw))
                self._hashes.append(side_hash(self._hashed_text(text)))
                self.bytes += len(raw)
                report(self.bytes)

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
        """The chosen documents, in order."""
        with self.path.open("rb", buffering=READ_BYTES) as file:
            for length, is_chosen in zip(self._lengths, chosen.tolist(), strict=True):
                if is_chosen:
                    yield file.read(length).decode()
                else:
                    file.seek(length, 1)

    def first_of_equals(self) -> Mask:
        """Mask of the first document of each set that is equal but for case, form and white space."""
        first = np.zeros(len(self), bool)
        first[np.unique(self.hashes, return_index=True)[1]] = True
        return first
