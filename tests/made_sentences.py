"""Generated text that is wrong in places, and its scores as a trial stores them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from selectbench.record.record import Sentences
from selectbench.suite.job import SCORES
from selectbench.worker.evaluation import score

WORDS = ("nul", "een", "twee", "drie", "vier", "vijf", "zes", "zeven", "acht", "negen")


def references(count: int, seed: int = 0) -> list[str]:
    """Sentences of four to nine words."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, size=4 + int(draw.integers(6)))) for _ in range(count)]


def hypotheses(truth: Sequence[str], wrong: float, seed: int = 1) -> list[str]:
    """The references, so large a share of whose words is another one, left out or said twice."""
    draw = np.random.default_rng(seed)

    def said(word: str) -> list[str]:
        if draw.random() >= wrong:
            return [word]
        return [[], [word, word], [str(draw.choice(WORDS))]][int(draw.integers(3))]

    return [" ".join(part for word in line.split() for part in said(word)) for line in truth]


def measured(texts: Sequence[str], truth: Sequence[str], names: Sequence[str] = SCORES) -> dict[str, Any]:
    """A measurement's fields."""
    found = [score(name, texts, truth, texts) for name in names]
    return {
        "scores": {one.name: one.value for one in found},
        "score_signatures": {one.name: one.signature for one in found},
        "sentences": Sentences(
            references_sha256=hashlib.sha256(json.dumps(list(truth)).encode()).hexdigest(),
            counts={one.name: one.counts for one in found if one.counts is not None},
            shares={one.name: one.shares for one in found if one.shares is not None},
        ),
    }
