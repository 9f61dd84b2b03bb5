"""Scores of a text from what its sentences add to them, as `record/sentences.py` stores it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from selectbench.record.sentences import Sentences

Table = npt.NDArray[np.int64]
"""What each sentence adds to a score's sums, shape (sentences, columns): its counts, or its share in units of
2^-40. Integers, so that a sum is the same in every order and on every processor."""
_UNIT = 1 << 40
_BETA = 2
"""chrF2: recall weighs twice as much as precision."""


def table_of(name: str, kept: Sentences) -> Table | None:
    """None where the trial has no such score."""
    if name in kept.counts:
        return np.array(kept.counts[name], dtype=np.int64)
    shares = kept.shares.get(name)
    return None if shares is None else np.array([[round(share * _UNIT)] for share in shares], dtype=np.int64)


def corpus_score(name: str, table: Table) -> float:
    """Of all its sentences, from 0 to 100."""
    return of_sums(name, table.sum(axis=0).tolist(), len(table))


def of_sums(name: str, sums: Sequence[int], sentences: int) -> float:
    """From the sums of a table's columns over so many sentences."""
    if name in _OF_COUNTS:
        return _OF_COUNTS[name](sums)
    return 100 * (sums[0] / _UNIT) / sentences


def bleu(counts: Sequence[int]) -> float:
    """Papineni et al. 2002 with sacrebleu's exponential smoothing (Post 2018, arXiv:1804.08771).

    `counts`: words of the hypotheses, of the references, matching n-grams of 1 to 4 words, and all of them.
    """
    ours, theirs, matching, every = counts[0], counts[1], counts[2:6], counts[6:10]
    if not any(matching) or not all(every):
        return 0.0
    smoothed, logs = 1.0, []
    for matched, of in zip(matching, every, strict=True):
        if matched == 0:
            smoothed /= 2
        logs.append(math.log((matched or smoothed) / of))
    return 100 * math.exp(min(0.0, 1 - theirs / ours) + math.fsum(logs) / 4)


def chrf(counts: Sequence[int]) -> float:
    """Popovic 2015 (doi:10.18653/v1/W15-3049) as sacrebleu has it: precision and recall averaged over orders first.

    `counts`: for every order the n-grams of the hypotheses, of the references, and those that match.
    """
    orders = [counts[i : i + 3] for i in range(0, len(counts), 3)]
    known = [order for order in orders if order[0] and order[1]]
    precision = math.fsum(matched / ours for ours, _, matched in known)
    recall = math.fsum(matched / theirs for _, theirs, matched in known)
    if precision + recall == 0:
        return 0.0
    return 100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall) / len(known)


_OF_COUNTS: dict[str, Callable[[Sequence[int]], float]] = {"bleu": bleu, "chrf": chrf}
