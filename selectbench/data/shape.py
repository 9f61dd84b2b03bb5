"""What a kind of document is made of: running text, a conversation, a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from selectbench.data.encode import Parts, conversation, whole
from selectbench.data.pairs import TARGETS, pair_of, source_of
from selectbench.data.split import ANSWERS, LINES, Pieces
from selectbench.suite.data import Kind


def _itself(document: str) -> str:
    return document


def _alone(document: str) -> Iterable[str]:
    return [document]


def _both(document: str) -> Iterable[str]:
    pair = pair_of(document)
    return [pair.source, pair.target]


@dataclass(frozen=True)
class Shape:
    """How documents of a kind are split, cleaned and encoded."""

    pieces: Pieces
    """What of a document may not stand on both sides of the split."""
    named_by: Callable[[str], str]
    """What of a document decides on which side it lies."""
    by_message: bool
    """Whether a document is JSON, a list of roles with their text."""
    texts: Callable[[str], Iterable[str]]
    """What of it is encoded with an end-of-text token after it."""
    parts: Parts
    """What of such a text is encoded by itself."""


SHAPES: dict[Kind, Shape] = {
    "text": Shape(LINES, _itself, False, _alone, whole),
    "chat": Shape(ANSWERS, _itself, True, _alone, conversation),
    "pairs": Shape(TARGETS, source_of, True, _both, whole),
}
