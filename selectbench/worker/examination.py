"""After the last step: what the model generates for held-out sources, and its scores."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from selectbench.choices.choice import is_own
from selectbench.data.prepared import TOKENIZER, Prepared, fitting
from selectbench.record.record import Sentences
from selectbench.suite.job import OWN_SCORE, Eval
from selectbench.worker.batches import PairHeldOut
from selectbench.worker.evaluation import Logits, generate_targets
from selectbench.worker.runtime import OwnCodeError, World, load

# Scores of generated text against references, each by its library, and what each sentence adds to them.


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
    """By sentence, as `record.record.Sentences` has them."""
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


# After the last step: what the model generates for held-out sources, scored and kept.


HYPOTHESES = "hypotheses.jsonl"
"""In a trial's folder: source, reference and hypothesis, an object a line."""


@dataclass(frozen=True)
class Scores:
    """What was found; empty where a suite asks for none."""

    scores: dict[str, float] = field(default_factory=dict)
    copy_scores: dict[str, float] = field(default_factory=dict)
    """Of the sources themselves, taken for hypotheses."""
    signatures: dict[str, str] = field(default_factory=dict)
    sentences: Sentences | None = None


@dataclass(frozen=True)
class Examination:
    """Generates and scores, with the logits of the final evaluation."""

    names: Sequence[str]
    held_out: PairHeldOut
    texts: Sequence[tuple[str, str]]
    """Source and reference of each pair to generate for."""
    tokenizer: Tokenizer
    end_id: int
    sequences_per_batch: int
    folder: Path

    @classmethod
    def of(
        cls, settings: Eval, data: Prepared, seq_len: int, at_once: int, folder: Path, start_id: int | None
    ) -> Examination | None:
        """None where no score is asked for."""
        lengths = data.heldout_lengths()
        if not settings.scores or lengths is None:
            return None
        held_out = PairHeldOut.first(data, tokens=1 << 40, seq_len=seq_len, start_id=start_id)
        chosen = fitting(lengths, seq_len)[: settings.generate]
        pairs = data.heldout_pairs()
        return cls(
            settings.scores, held_out, [pairs[number] for number in chosen.tolist()],
            Tokenizer.from_file(str(data.folder / TOKENIZER)), data.end_id, at_once, folder,
        )  # fmt: skip

    def run(self, logits: Logits, world: World) -> Scores:
        """Every rank calls it together; the first one writes the hypotheses."""
        hypotheses = self._generated(logits, world)
        sources, references = ([pair[side] for pair in self.texts] for side in (0, 1))
        if world.is_first:
            self._write(hypotheses)
        found = [score(name, hypotheses, references, sources) for name in self.names]
        copied = [score(name, sources, references, sources) for name in self.names]
        return Scores(
            {one.name: one.value for one in found}, {one.name: one.value for one in copied},
            {one.name: one.signature for one in found}, _sentences(found, references),
        )  # fmt: skip

    def _generated(self, logits: Logits, world: World) -> list[str]:
        found: list[str] = []
        for start in range(0, len(self.texts), self.sequences_per_batch):
            rows = np.arange(start, min(start + self.sequences_per_batch, len(self.texts)))
            batch = self.held_out.pairs.batch(rows).to(world.device)
            ids = generate_targets(
                logits, batch, end_id=self.end_id, start_id=self.held_out.pairs.start_id, world=world
            )
            found += [self.tokenizer.decode(row) for row in ids]
        return found

    def _write(self, hypotheses: Sequence[str]) -> None:
        with (self.folder / HYPOTHESES).open("w", encoding="utf-8") as file:
            for (source, reference), hypothesis in zip(self.texts, hypotheses, strict=True):
                line = {"source": source, "reference": reference, "hypothesis": hypothesis}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _sentences(found: Sequence[Scored], references: Sequence[str]) -> Sentences | None:
    """None where every score is known as a whole only."""
    counts = {one.name: one.counts for one in found if one.counts is not None}
    shares = {one.name: one.shares for one in found if one.shares is not None}
    if not counts and not shares:
        return None
    digest = hashlib.sha256(json.dumps(references).encode()).hexdigest()
    return Sentences(references_sha256=digest, counts=counts, shares=shares)
