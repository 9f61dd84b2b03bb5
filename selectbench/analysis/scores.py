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


def table_of(name: str, sentences: Sentences) -> Table | None:
    """What each sentence adds to a score's sums; None where the trial has no such score."""
    if name in sentences.counts:
        return np.array(sentences.counts[name], dtype=np.int64)
    shares = sentences.shares.get(name)
    return None if shares is None else np.array([[round(share * _UNIT)] for share in shares], dtype=np.int64)


def score_of_sums(name: str, sums: Sequence[int], sentences: int) -> float:
    """The score, from 0 to 100, from the sums of a table's columns over `sentences` sentences."""
    return _SCORES_OF_COUNTS[name](sums) if name in _SCORES_OF_COUNTS else 100 * (sums[0] / _UNIT) / sentences


def corpus_score(name: str, table: Table) -> float:
    """The score of all sentences of a table, from 0 to 100."""
    return score_of_sums(name, table.sum(axis=0).tolist(), len(table))


def bleu(counts: Sequence[int]) -> float:
    """Papineni et al. 2002 with sacrebleu's exponential smoothing (Post 2018, arXiv:1804.08771).

    `counts`: words of the hypotheses, of the references, matching n-grams of 1 to 4 words, and all of them.
    """
    hypothesis, reference, matching, possible = counts[0], counts[1], counts[2:6], counts[6:10]
    if not any(matching) or not all(possible):
        return 0.0
    smoothed, logs = 1.0, []
    for matched, of in zip(matching, possible, strict=True):
        if matched == 0:
            smoothed /= 2
        logs.append(math.log((matched or smoothed) / of))
    return 100 * math.exp(min(0.0, 1 - reference / hypothesis) + math.fsum(logs) / 4)


def chrf(counts: Sequence[int]) -> float:
    """Popovic 2015 (doi:10.18653/v1/W15-3049) as sacrebleu has it: precision and recall averaged over orders first.

    `counts`: for every order the n-grams of the hypotheses, of the references, and those that match.
    """
    orders = [counts[i : i + 3] for i in range(0, len(counts), 3)]
    known = [order for order in orders if order[0] and order[1]]
    precision = math.fsum(matched / hypothesis for hypothesis, _, matched in known)
    recall = math.fsum(matched / reference for _, reference, matched in known)
    if precision + recall == 0:
        return 0.0
    return 100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall) / len(known)


_SCORES_OF_COUNTS: dict[str, Callable[[Sequence[int]], float]] = {"bleu": bleu, "chrf": chrf}


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
"""Most numbers in a block of draws."""
_DECIMALS = 9
"""Scores that differ by less are the same: what remains is rounding."""


class Paired(NamedTuple):
    """The difference of two options' scores, the option's less the baseline's."""

    difference: float
    low: float
    """Ends of the 95 % percentile interval."""
    high: float
    p: float
    """Two-sided."""


class Scores(NamedTuple):
    """One trial's scores: of the text itself, and of every draw from its sentences."""

    whole: float
    drawn: list[float]


def resampled(name: str, table: Table) -> Scores:
    """Scores of one trial's text and of its draws; tables of as many sentences are given the same draws."""
    sentences = len(table)
    sums = (row for counts in _draws(sentences) for row in (counts @ table).tolist())
    return Scores(corpus_score(name, table), [score_of_sums(name, row, sentences) for row in sums])


def _draws(sentences: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each sentence is drawn, shape (draws, sentences), in blocks that fit into memory."""
    draw = np.random.default_rng(SEED)
    at_once = max(1, _MOST_NUMBERS // sentences)
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        chosen = draw.integers(sentences, size=(rows, sentences)) + sentences * np.arange(rows)[:, None]
        yield np.bincount(chosen.ravel(), minlength=rows * sentences).reshape(rows, sentences)


def paired(option: Sequence[Scores], baseline: Sequence[Scores]) -> Paired:
    """The difference of the mean scores over seeds; `option` and `baseline` in the same order of seeds."""
    difference = _mean_difference([s.whole for s in option], [s.whole for s in baseline])
    by_draw = zip(*(s.drawn for s in option), strict=True), zip(*(s.drawn for s in baseline), strict=True)
    drawn = sorted(_mean_difference(a, b) for a, b in zip(*by_draw, strict=True))
    other_order = min(sum(d <= 0 for d in drawn), sum(d >= 0 for d in drawn))
    p = min(1.0, 2 * (other_order + 1) / (len(drawn) + 1))
    return Paired(difference, drawn[_TAIL - 1], drawn[-_TAIL], p)


def _mean_difference(option: Sequence[float], baseline: Sequence[float]) -> float:
    """Mean of the differences by seed, both in the same order of seeds."""
    differences = (a - b for a, b in zip(option, baseline, strict=True))
    return round(math.fsum(differences) / len(option), _DECIMALS) + 0.0  # never -0.0


FEWEST_SENTENCES = 20
"""With fewer, the draws are too alike: at 0.05 a mean without any difference is rejected in 7 % of cases with 20
sentences, in 10 % with 10, in 16 % with 5 (2,000 simulations of normal values each)."""
_SCORE_TOLERANCE = 1e-6
"""Largest difference of the recorded score from the one that its sentences give."""


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
        texts = {row.option: _texts_by_seed(name, by_name[row.option]) for row in others}
        if not any(texts.values()):
            continue
        of_baseline = _texts_by_seed(name, baseline)
        drawn = {seed: resampled(name, text.table) for seed, text in of_baseline.items()}
        for row in others:
            of_option = {seed: text for seed, text in texts[row.option].items() if seed in of_baseline}
            compared = ScoreDifference(score=name, option=row.option, against=baseline.name, seeds=len(of_option))
            both = [text for seed in of_option for text in (of_option[seed], of_baseline[seed])]
            reason = "it did another job" if row.identity.violations else _why_not_compared(name, both)
            fields: dict[str, object] = {"not_compared": reason}
            if not reason:
                own_drawn = [resampled(name, text.table) for text in of_option.values()]
                result = paired(own_drawn, [drawn[seed] for seed in of_option])
                fields = {"sentences": len(both[0].table), **result._asdict()}
            differences.append(compared.model_copy(update=fields))
    return differences


def references(answers: Mapping[str, ApiAnswers]) -> list[Reference]:
    """What is shown of models behind an API; those without all answers have no scores."""
    described = []
    for name, a in answers.items():
        known = (*SCORES, OWN_SCORE) if a.incomplete is None else ()
        scores = {score: _score_with_interval(score, a) for score in known if score in a.scores}
        bits = a.bits_per_byte if a.incomplete is None else None
        copied = {key: getattr(a, key) for key in Reference.model_fields if key in ApiAnswers.__struct_fields__}
        derived = {
            "name": name, "scores": scores, "bits_per_byte": bits,
            "byte_perplexity": None if bits is None or bits > 1000 else 2**bits,
            "samples": [asdict(sample) for sample in a.samples],
        }  # fmt: skip
        described.append(Reference.model_validate(copied | derived))
    return described


def _score_with_interval(score: str, answers: ApiAnswers) -> ReferenceScore:
    table, low, high = None if answers.kept is None else table_of(score, answers.kept), None, None
    if table is not None and len(table) >= FEWEST_SENTENCES:
        drawn = sorted(resampled(score, table).drawn)
        low, high = drawn[_TAIL - 1], drawn[-_TAIL]
    return ReferenceScore(value=answers.scores[score], low=low, high=high)


def _texts_by_seed(name: str, summary: Summary) -> dict[int, _Text]:
    """Generated text by seed, of the completed trials whose sentences are known."""
    texts = {}
    for seed, measured in summary.measurements.items():
        sentences = measured.sentences
        if sentences is not None and (table := table_of(name, sentences)) is not None:
            texts[seed] = _Text(sentences.references_sha256, measured.scores[name], table)
    return texts


def _why_not_compared(name: str, texts: Sequence[_Text]) -> str:
    """Why these texts, of both options with all common seeds, cannot be compared; '' where they can."""
    if not texts:
        return "no seed that both completed with their sentences kept"
    if len({text.references_sha256 for text in texts}) > 1:
        return "the references differ"
    if len(texts[0].table) < FEWEST_SENTENCES:
        return f"{len(texts[0].table)} test sentences; at least {FEWEST_SENTENCES} are needed"
    if any(abs(corpus_score(name, text.table) - text.recorded) > _SCORE_TOLERANCE for text in texts):
        return "the sentences do not give the score that was recorded"
    return ""
