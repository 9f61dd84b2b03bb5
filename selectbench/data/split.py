"""Blocks of text, and which of them are held out.

The side of a block is a function of its own text alone, so that the same text twice, in one file or in
two, lies on one side; what still occurs on both sides, line by line, is taken out of the held-out side.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

HELDOUT_FRACTION = 0.05
"""Share of the blocks that is held out."""
BLOCK_CHARACTERS = 2_000
"""Paragraphs are grouped until a block has so many characters."""
SHORTEST_LEAK_CHARACTERS = 20
"""A line that occurs on both sides counts as a leak from this length on; shorter ones are mere formulas."""

Documents = Callable[[], Iterator[str]]


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
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def side_hash(text: str) -> int:
    """A number below 2**64, evenly spread, that normalised text alone decides."""
    return int.from_bytes(hashlib.blake2b(normalised(text).encode(), digest_size=8).digest())


@dataclass(frozen=True)
class Split:
    """Which blocks are held out, and what of them occurs in training and is taken out."""

    heldout: frozenset[int]
    """side_hash of the held-out blocks."""
    leaked: frozenset[int]
    """side_hash of lines that occur on both sides."""

    def training(self, documents: Documents) -> Iterator[str]:
        """The documents to train on."""
        return (text for text in documents() if side_hash(text) not in self.heldout)

    def heldout_documents(self, documents: Documents) -> Iterator[str]:
        """The held-out documents, leaks and all."""
        return (text for text in documents() if side_hash(text) in self.heldout)

    def leaks(self, text: str) -> int:
        """How many lines of a held-out document occur in training."""
        return sum(leak_hash(line) in self.leaked for line in text.split("\n"))

    def without_leaks(self, text: str) -> str:
        """A held-out document without the lines that occur in training; '' where nothing is left."""
        cleaned = "\n".join(line for line in text.split("\n") if leak_hash(line) not in self.leaked).strip("\n")
        return cleaned if cleaned.strip() else ""


def leak_hash(line: str) -> int | None:
    """What a line is recognised by on the other side; None where it is too short to count as a leak."""
    form = normalised(line)
    if len(form) < SHORTEST_LEAK_CHARACTERS:
        return None
    return int.from_bytes(hashlib.blake2b(form.encode(), digest_size=8).digest())


def split(documents: Documents) -> Split:
    """Holds out the blocks whose hash falls under HELDOUT_FRACTION.

    Where that leaves nothing to evaluate on, the 1, 2, 4, ... blocks of the lowest hashes are held out
    instead, up to half of them. A text that occurs only once in several copies gives no held-out side.
    """
    hashes = sorted({side_hash(text) for text in documents()})
    below = [value for value in hashes if value < HELDOUT_FRACTION * 2**64]
    sizes = [len(below), *(2**power for power in range(len(hashes).bit_length()))]
    for size in sizes:
        if 0 < size <= max(1, len(hashes) // 2) and size < len(hashes):
            result = _decontaminated(documents, frozenset(hashes[:size]))
            if any(map(result.without_leaks, result.heldout_documents(documents))):
                return result
    return Split(frozenset(), frozenset())


def _decontaminated(documents: Documents, heldout: frozenset[int]) -> Split:
    """Only held-out lines are kept in memory, a twentieth of the text, whatever its size."""
    bare = Split(heldout, frozenset())
    asked = {leak_hash(line) for text in bare.heldout_documents(documents) for line in text.split("\n")} - {None}
    met = {leak_hash(line) for text in bare.training(documents) for line in text.split("\n")} & asked
    return Split(heldout, frozenset(value for value in met if value is not None))
