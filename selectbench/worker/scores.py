"""Scores of generated text against references, each by its library, and what each sentence adds to them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from selectbench.choices import is_own
from selectbench.suite.evaluate import OWN_SCORE
from selectbench.worker.own_code import OwnCodeError, load

Texts = Sequence[str]
_MOST_CHARACTERS = 6


class Scored(NamedTuple):
    """One score of a text."""

    name: str
    """In the record."""
    value: float
    signature: str
    """How it was computed."""
    counts: list[list[int]] | None = None
    """By sentence, as `record.sentences` has them."""
    shares: list[int | float] | None = None


def score(name: str, hypotheses: Texts, references: Texts, sources: Texts) -> Scored:
    """Raises OwnCodeError for own code that fails."""
    if is_own(name):
        return Scored(OWN_SCORE, _own(name, hypotheses, references, sources), name)
    return _SCORES[name](hypotheses, references)


def _bleu(hypotheses: Texts, references: Texts) -> Scored:
    """Corpus BLEU as sacrebleu computes it (Post 2018, arXiv:1804.08771)."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    found = metric.corpus_score(list(hypotheses), [list(references)])
    # Counts do not depend on it, and of sentences without it the library warns.
    of_one = BLEU(effective_order=True).sentence_score
    each = [of_one(h, [r]) for h, r in zip(hypotheses, references, strict=True)]
    counts = [[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in each]
    return Scored("bleu", float(found.score), str(metric.get_signature()), counts)


def _chrf(hypotheses: Texts, references: Texts) -> Scored:
    """chrF2 as sacrebleu computes it (Popovic 2015)."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    found = metric.corpus_score(list(hypotheses), [list(references)])
    counts = [_character_counts(h, r) for h, r in zip(hypotheses, references, strict=True)]
    return Scored("chrf", float(found.score), str(metric.get_signature()), counts)


def _character_counts(hypothesis: str, reference: str) -> list[int]:
    """N-grams of 1 to 6 characters without white space; sacrebleu has no public name for them."""
    ours, theirs = ("".join(text.split()) for text in (hypothesis, reference))
    found = []
    for n in range(1, _MOST_CHARACTERS + 1):
        own, other = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (ours, theirs))
        found += [own.total() if other else 0, other.total(), (own & other).total()]
    return found


def _rouge_l(hypotheses: Texts, references: Texts) -> Scored:
    """Mean F-measure of ROUGE-L with stemming, as the package rouge-score computes it (Lin 2004)."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    found = [scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(hypotheses, references, strict=True)]
    return _mean("rouge_l", found, "rouge-score rougeL, stemmer, mean f-measure")


def _exact_match(hypotheses: Texts, references: Texts) -> Scored:
    """Share of answers equal to the reference but for case, punctuation, articles and white space.

    As SQuAD's evaluation has it (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    same = [int(_plain(h) == _plain(r)) for h, r in zip(hypotheses, references, strict=True)]
    return _mean("exact_match", same, "SQuAD 1.1")


def _token_f1(hypotheses: Texts, references: Texts) -> Scored:
    """Mean F1 of words, normalised as for the exact match (Rajpurkar et al. 2016)."""
    found = [_overlap(_plain(h).split(), _plain(r).split()) for h, r in zip(hypotheses, references, strict=True)]
    return _mean("token_f1", found, "SQuAD 1.1")


def _mean(name: str, shares: Sequence[float], signature: str) -> Scored:
    return Scored(name, 100 * sum(shares) / len(shares), signature, shares=list(shares))


def _overlap(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def _plain(text: str) -> str:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _own(name: str, hypotheses: Texts, references: Texts, sources: Texts) -> float:
    value = load(name, "eval.scores")(list(hypotheses), list(references), list(sources))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OwnCodeError(f"score {name}: expected a number, it returned a {type(value).__name__}")
    return float(value)


_SCORES: dict[str, Callable[[Texts, Texts], Scored]] = {
    "bleu": _bleu, "chrf": _chrf, "rouge_l": _rouge_l, "exact_match": _exact_match, "token_f1": _token_f1,
}  # fmt: skip
