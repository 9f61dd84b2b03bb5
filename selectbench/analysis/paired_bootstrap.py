"""Whether other test sentences would have shown the same order: the paired bootstrap of Koehn (2004).

"Statistical significance tests for machine translation evaluation", EMNLP 2004: sentences are drawn anew with
replacement, the same ones for both options, and both are scored on what was drawn. p is twice the share of draws in
which the order is not the observed one, so that it is at most 0.05 just where the 95 % percentile interval (Efron &
Tibshirani 1993, chapter 13) leaves 0 out.

The draws are those of `sacrebleu --paired-bs`. Its own p is about half as large: how often the absolute difference
of a draw exceeds the mean of these by the observed one looks at one side only. Without any difference that p is at
most 0.05 in more than a tenth of cases, and of an option against itself it is the smallest there can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from selectbench.analysis.corpus_score import Table, corpus_score, of_sums

RESAMPLES = 1000
SEED = 12345
"""As sacrebleu has them, so that the draws are the same."""
_TAIL = (RESAMPLES + 1) * 25 // 1000
"""The interval ends at this draw from either end."""
_MOST_NUMBERS = 1 << 18
"""Of a block of draws."""
_DECIMALS = 9
"""Scores that differ by less are the same: what remains is rounding."""


class Paired(NamedTuple):
    """Of the difference of two options' scores; ours less theirs."""

    difference: float
    low: float
    """Of the 95 % percentile interval."""
    high: float
    p: float
    """Two-sided."""


class Scores(NamedTuple):
    """One trial's, of the text itself and of every draw from its sentences."""

    whole: float
    drawn: list[float]


def resampled(name: str, table: Table) -> Scores:
    """Tables of as many sentences are given the same draws."""
    sentences = len(table)
    sums = (row for often in _draws(sentences) for row in (often @ table).tolist())
    return Scores(corpus_score(name, table), [of_sums(name, row, sentences) for row in sums])


def _draws(sentences: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each sentence is drawn, shape (draws, sentences), in blocks that fit into memory."""
    draw = np.random.default_rng(SEED)
    at_once = max(1, _MOST_NUMBERS // sentences)
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        chosen = draw.integers(sentences, size=(rows, sentences)) + sentences * np.arange(rows)[:, None]
        yield np.bincount(chosen.ravel(), minlength=rows * sentences).reshape(rows, sentences)


def paired(ours: Sequence[Scores], theirs: Sequence[Scores]) -> Paired:
    """Of the mean over seeds; `ours` and `theirs` in the same order of seeds."""
    whole = _mean_difference([one.whole for one in ours], [one.whole for one in theirs])
    by_draw = zip(*(one.drawn for one in ours), strict=True), zip(*(one.drawn for one in theirs), strict=True)
    drawn = sorted(_mean_difference(our, their) for our, their in zip(*by_draw, strict=True))
    other_order = min(sum(d <= 0 for d in drawn), sum(d >= 0 for d in drawn))
    p = min(1.0, 2 * (other_order + 1) / (len(drawn) + 1))
    return Paired(whole, drawn[_TAIL - 1], drawn[-_TAIL], p)


def _mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """By seed, in the same order."""
    differences = (our - their for our, their in zip(ours, theirs, strict=True))
    return round(math.fsum(differences) / len(ours), _DECIMALS) + 0.0  # never -0.0
