"""Scores of generated text, and whether other test sentences would have shown the same order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec.structs import asdict

from selectbench.analysis.result import Reference, ReferenceScore, Row, ScoreDifference
from selectbench.analysis.summary import Summary
from selectbench.record.record import ApiAnswers, Sentences
from selectbench.suite.job import OWN_SCORE, SCORES

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


def of_sums(name: str, sums: Sequence[int], sentences: int) -> float:
    """From 0 to 100, from the sums of a table's columns over so many sentences."""
    return _OF_COUNTS[name](sums) if name in _OF_COUNTS else 100 * (sums[0] / _UNIT) / sentences


def corpus_score(name: str, table: Table) -> float:
    """Of all its sentences."""
    return of_sums(name, table.sum(axis=0).tolist(), len(table))


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


# Whether other test sentences would have shown the same order: the paired bootstrap of Koehn (2004).
#
# "Statistical significance tests for machine translation evaluation", EMNLP 2004: sentences are drawn anew with
# replacement, the same ones for both options, and both are scored on what was drawn. p is twice the share of draws
# in which the order is not the observed one, so that it is at most 0.05 just where the 95 % percentile interval
# (Efron & Tibshirani 1993, chapter 13) leaves 0 out.
#
# The draws are those of `sacrebleu --paired-bs`. Its own p is about half as large: how often the absolute
# difference of a draw exceeds the mean of these by the observed one looks at one side only. Without any difference
# that p is at most 0.05 in more than a tenth of cases, and of an option against itself it is the smallest there can
# be.

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


FEWEST_SENTENCES = 20
"""Of fewer, the draws are too alike: at 0.05 a mean without any difference is rejected in 7 % of cases with 20
sentences, in 10 % with 10, in 16 % with 5 (2,000 simulations of normal values each)."""
_SAME = 1e-6
"""Between the score that was recorded and the one that its sentences give."""


class _Text(NamedTuple):
    """What a trial generated, as one score sees it."""

    references_sha256: str
    recorded: float
    table: Table


def score_differences(
    baseline: Summary, rows: Sequence[Row], by_name: Mapping[str, Summary]
) -> list[ScoreDifference]:
    """By score, then by option in the order of rows; empty where no option's sentences are known."""
    others = [row for row in rows if row.option != baseline.name and row.n]
    differences: list[ScoreDifference] = []
    for name in SCORES:
        texts = {row.option: _texts(name, by_name[row.option]) for row in others}
        if not any(texts.values()):
            continue
        theirs = _texts(name, baseline)
        drawn = {seed: resampled(name, text.table) for seed, text in theirs.items()}
        for row in others:
            ours = {seed: text for seed, text in texts[row.option].items() if seed in theirs}
            said = ScoreDifference(score=name, option=row.option, against=baseline.name, seeds=len(ours))
            both = [text for seed in ours for text in (ours[seed], theirs[seed])]
            reason = "it did another job" if row.identity.violations else _refused(name, both)
            told: dict[str, object] = {"not_compared": reason}
            if not reason:
                own = [resampled(name, text.table) for text in ours.values()]
                told = {"sentences": len(both[0].table), **paired(own, [drawn[seed] for seed in ours])._asdict()}
            differences.append(said.model_copy(update=told))
    return differences


def references(asked: Mapping[str, ApiAnswers]) -> list[Reference]:
    """What is shown of models behind an API, those without all answers without scores."""
    found = []
    for name, one in asked.items():
        known = (*SCORES, OWN_SCORE) if one.incomplete is None else ()
        scores = {score: _with_interval(score, one) for score in known if score in one.scores}
        bits = one.bits_per_byte if one.incomplete is None else None
        same = {key: getattr(one, key) for key in Reference.model_fields if key in ApiAnswers.__struct_fields__}
        shown = {
            "name": name, "scores": scores, "bits_per_byte": bits,
            "byte_perplexity": None if bits is None or bits > 1000 else 2**bits,
            "samples": [asdict(sample) for sample in one.samples],
        }  # fmt: skip
        found.append(Reference.model_validate(same | shown))
    return found


def _with_interval(score: str, one: ApiAnswers) -> ReferenceScore:
    table, low, high = None if one.kept is None else table_of(score, one.kept), None, None
    if table is not None and len(table) >= FEWEST_SENTENCES:
        drawn = sorted(resampled(score, table).drawn)
        low, high = drawn[_TAIL - 1], drawn[-_TAIL]
    return ReferenceScore(value=one.scores[score], low=low, high=high)


def _texts(name: str, summary: Summary) -> dict[int, _Text]:
    """By seed, of the completed trials whose sentences are known."""
    found = {}
    for seed, measured in summary.measurements.items():
        kept = measured.sentences
        if kept is not None and (table := table_of(name, kept)) is not None:
            found[seed] = _Text(kept.references_sha256, measured.scores[name], table)
    return found


def _refused(name: str, texts: Sequence[_Text]) -> str:
    """Why these, of both options with all common seeds, are not to be compared; '' where they are."""
    if not texts:
        return "no seed that both completed with their sentences kept"
    if len({text.references_sha256 for text in texts}) > 1:
        return "the references differ"
    if len(texts[0].table) < FEWEST_SENTENCES:
        return f"{len(texts[0].table)} test sentences; at least {FEWEST_SENTENCES} are needed"
    if any(abs(corpus_score(name, text.table) - text.recorded) > _SAME for text in texts):
        return "the sentences do not give the score that was recorded"
    return ""
