"""What the scores of generated text are made of, sentence by sentence: enough to score any choice of them anew."""

from __future__ import annotations

import msgspec

from selectbench.record.recorded import Recorded


class Sentences(Recorded, frozen=True, kw_only=True):
    """Of the sentences that a trial generated for, in their order. A score of own code is known as a whole only."""

    references_sha256: str
    """Digest of the references: with it, two trials are known to have been scored on the same sentences."""
    counts: dict[str, list[list[int]]] = msgspec.field(default_factory=dict)
    """Of each sentence what is summed over the text before the score is computed, in sacrebleu's order.

    bleu: words of the hypothesis, words of the reference, n-grams of 1 to 4 words that match, and those of the
    hypothesis. chrf: for n-grams of 1 to 6 characters each those of the hypothesis (0 where the reference is too
    short to have any), those of the reference, and those that match."""
    shares: dict[str, list[int | float]] = msgspec.field(default_factory=dict)
    """Of each sentence its own score, from 0 to 1: rouge_l, exact_match, token_f1; the whole's is their mean."""
