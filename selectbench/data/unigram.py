"""Training of a unigram language model over pieces of words (Kudo 2018, arXiv:1804.10959, section 3.2).

The trainer of the package `tokenizers` gives another vocabulary at each call, and weighs every word as if it stood
in the text once; this one is a function of the counted words alone.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LONGEST_PIECE = 16
"""Characters, each of which stands for a byte."""
LONGEST_WORD = 24
"""Longer ones are counted in parts."""
MOST_PARTS = 50_000
"""Words and parts of words that count, the most frequent ones: memory grows with their stretches."""
SEEDS_PER_PIECE = 10
LEAST = 1e-9
"""Probability of a byte that the text lacks: it must be possible, and 24 of them no underflow."""
KEPT = 0.75
"""Share of the pieces that a round of pruning leaves."""
STEPS = 2
"""Of expectation maximisation between two prunings."""
DECIMALS = 6
"""Of what pieces are ordered by: sums of floats differ in their last digits from machine to machine."""

Numbers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Words:
    """Distinct words, the longest first, so that those with a place at a position are the first so many."""

    texts: list[str]
    counts: Reals
    lengths: Numbers

    def reaching(self, end: int) -> int:
        """How many words are at least so long."""
        return int(np.searchsorted(-self.lengths, -end, side="right"))

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Start, length, and how many words have it, of every stretch that may be a piece."""
        for end in range(1, LONGEST_WORD + 1):
            for size in range(1, min(end, LONGEST_PIECE) + 1):
                yield end - size, size, self.reaching(end)


def train_pieces(counted: Mapping[str, int], alphabet: list[str], pieces: int) -> list[tuple[str, float]]:
    """The alphabet and at most so many pieces besides, each with its log probability, the likeliest first."""
    if not counted:
        return [(byte, round(-math.log(len(alphabet)), DECIMALS)) for byte in alphabet]
    words = _words(counted)
    found, ids = _seeds(words, alphabet, SEEDS_PER_PIECE * pieces)
    chances = np.full(len(found), 1 / len(found))
    while True:
        for _ in range(STEPS):
            chances = _maximised(words, ids, chances, len(alphabet))
        room = len(alphabet) + pieces
        if len(found) <= room:
            break
        kept = _kept(words, found, ids, chances, len(alphabet), max(room, int(len(found) * KEPT)))
        found, chances = [found[number] for number in kept], chances[kept]
        ids = _renumbered(ids, kept, len(chances))
    scored = zip(found, np.round(np.log(chances), DECIMALS).tolist(), strict=True)
    return sorted(scored, key=lambda item: (-item[1], item[0]))


def _words(counted: Mapping[str, int]) -> _Words:
    parts: Counter[str] = Counter()
    for word, count in counted.items():
        for start in range(0, len(word), LONGEST_WORD):
            parts[word[start : start + LONGEST_WORD]] += count
    chosen = heapq.nsmallest(MOST_PARTS, parts, key=lambda word: (-parts[word], word))
    texts = sorted(chosen, key=lambda word: (-len(word), word))
    counts = np.array([parts[word] for word in texts], float)
    return _Words(texts, counts, np.array([len(word) for word in texts], np.int64))


Ids = dict[tuple[int, int], Numbers]
"""By start and length: of each word that has such a stretch, the number of the piece that it is; -1: of none."""


def _seeds(words: _Words, alphabet: list[str], most: int) -> tuple[list[str], Ids]:
    """The alphabet, and the stretches that cover most of the text among those that occur more than once."""
    best: list[tuple[float, str]] = []
    for size in range(2, LONGEST_PIECE + 1):
        best = heapq.nsmallest(most, itertools.chain(best, _of_size(words, size)))
    found = [*alphabet, *(piece for _, piece in best)]
    number = {piece: place for place, piece in enumerate(found)}
    ids = {
        (start, size): np.array([number.get(text[start : start + size], -1) for text in words.texts[:having]], int)
        for start, size, having in words.spans()
        if having
    }
    return found, ids


def _of_size(words: _Words, size: int) -> Iterator[tuple[float, str]]:
    """Every stretch of a length that occurs more than once, after minus how much of the text it covers.

    A length at a time: together they would take gigabytes where words are long.
    """
    counts: Counter[str] = Counter()
    weights = words.counts.tolist()
    for start in range(LONGEST_WORD - size + 1):
        having = words.reaching(start + size)
        for text, count in zip(words.texts[:having], weights, strict=False):
            counts[text[start : start + size]] += count
    return ((-count * size, piece) for piece, count in counts.items() if count > 1)


def _maximised(words: _Words, ids: Ids, chances: Reals, alphabet: int) -> Reals:
    """Probabilities that make the text likelier: how often each piece is expected under those before."""
    known = np.append(chances, 0.0)  # -1, no piece, has none
    before = np.zeros((LONGEST_WORD + 1, len(words.texts)))
    before[0] = 1.0
    for (start, size), own in ids.items():  # by ends, from the beginning on
        before[start + size, : len(own)] += before[start, : len(own)] * known[own]
    after = np.zeros_like(before)
    after[words.lengths, np.arange(len(words.texts))] = 1.0
    for (start, size), own in sorted(ids.items(), key=lambda item: -item[0][0]):
        after[start, : len(own)] += after[start + size, : len(own)] * known[own]
    weight = words.counts / after[0]
    expected = np.zeros(len(known))
    for (start, size), own in ids.items():
        shares = before[start, : len(own)] * known[own] * after[start + size, : len(own)] * weight[: len(own)]
        expected += np.bincount(own + 1, shares, len(known))
    # Rounded away: what is expected by nothing but rounding, and differs between machines.
    found: Reals = np.round(expected[1:], DECIMALS)
    found /= found.sum()
    found[:alphabet] = np.maximum(found[:alphabet], LEAST)
    found[alphabet:] = np.maximum(found[alphabet:], LEAST * 1e-3)
    return found


def _kept(words: _Words, found: list[str], ids: Ids, chances: Reals, alphabet: int, most: int) -> Numbers:
    """The alphabet, and those without which the text would become unlikeliest."""
    number = {piece: place for place, piece in enumerate(found)}
    logs = np.log(chances).tolist()
    losses = {
        place: round(chances[place] * (logs[place] - _best_otherwise(found[place], number, logs)), DECIMALS + 6)
        for place in range(alphabet, len(found))
    }
    ranked = sorted(losses, key=lambda place: (-losses[place], found[place]))
    return np.array([*range(alphabet), *sorted(ranked[: most - alphabet])], int)


def _best_otherwise(piece: str, number: Mapping[str, int], logs: list[float]) -> float:
    """Log probability of the likeliest way to write a piece with other pieces."""
    best = [0.0] + [-np.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for start in range(1 if end == len(piece) else 0, end):
            place = number.get(piece[start:end])
            if place is not None and best[start] + logs[place] > best[end]:
                best[end] = best[start] + logs[place]
    return best[-1]


def _renumbered(ids: Ids, kept: Numbers, count: int) -> Ids:
    numbers = np.full(int(kept.max()) + 1, -1)
    numbers[kept] = np.arange(count)
    longer = np.append(numbers, -1)
    return {span: longer[np.where(own >= len(numbers), -1, own)] for span, own in ids.items()}
