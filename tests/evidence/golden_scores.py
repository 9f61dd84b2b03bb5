"""Sentences that are wrong in places, and their scores by their definitions: no package computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from made_sentences import WORDS

from selectbench.record.record import Sentences


def sentences(count: int, wrong: int) -> tuple[list[str], list[str]]:
    """References, and the same with every so-many-th word another one or left out; 0: not one is right."""
    truth = [[WORDS[(3 * n + k * (1 + n % 3)) % len(WORDS)] for k in range(4 + n % 5)] for n in range(count)]
    said, word = [], 0
    for line in truth:
        kept = []
        for own in line:
            word += 1
            if not wrong:
                kept.append("qq")
            elif word % wrong:
                kept.append(own)
            elif word % 2:
                kept.append(WORDS[(WORDS.index(own) + 1) % len(WORDS)])
        said.append(kept)
    return [" ".join(line) for line in truth], [" ".join(line) for line in said]


def parts_of(sequence: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """Every stretch of so many members."""
    return [tuple(sequence[n : n + length]) for n in range(len(sequence) - length + 1)]


def matching(ours: Sequence[str], theirs: Sequence[str], length: int) -> int:
    """Stretches that both have, each as often as the one has it that has it less often."""
    mine, other = parts_of(ours, length), parts_of(theirs, length)
    return sum(min(mine.count(one), other.count(one)) for one in set(mine))


def scored(count: int, wrong: int, own: float = 40.0) -> dict[str, Any]:
    """A measurement's fields, worked out here: sacrebleu's counts, and scores as their definitions have them."""
    truth, said = sentences(count, wrong)
    pairs = [(ours.split(), theirs.split()) for ours, theirs in zip(said, truth, strict=True)]
    bleu = [
        [len(ours), len(theirs), *(matching(ours, theirs, n) for n in range(1, 5)),
         *(len(parts_of(ours, n)) for n in range(1, 5))]
        for ours, theirs in pairs
    ]  # fmt: skip
    letters = [(list("".join(ours)), list("".join(theirs))) for ours, theirs in pairs]
    chrf = [
        [part for n in range(1, 7) for part in (
            len(parts_of(ours, n)) if len(theirs) >= n else 0, len(parts_of(theirs, n)), matching(ours, theirs, n)
        )]
        for ours, theirs in letters
    ]  # fmt: skip
    exact = [int(ours == theirs) for ours, theirs in pairs]
    common = [matching(ours, theirs, 1) for ours, theirs in pairs]
    f1 = [2 * found / (len(ours) + len(theirs)) for found, (ours, theirs) in zip(common, pairs, strict=True)]
    values = {
        "bleu": bleu_of([sum(column) for column in zip(*bleu, strict=True)]),
        "chrf": chrf_of([sum(column) for column in zip(*chrf, strict=True)]),
        "exact_match": 100 * sum(exact) / count, "token_f1": 100 * sum(f1) / count, "own_score": own,
    }  # fmt: skip
    return {
        "scores": values, "copy_scores": {"bleu": 1.5, "chrf": 12.0, "exact_match": 0.0, "token_f1": 8.0},
        "score_signatures": {"bleu": "nrefs:1|case:mixed|tok:13a", "chrf": "nrefs:1|nc:6|nw:0"},
        "sentences": Sentences(
            references_sha256=f"{count:064d}", counts={"bleu": bleu, "chrf": chrf},
            shares={"exact_match": exact, "token_f1": f1},
        ),
    }  # fmt: skip


def bleu_of(sums: Sequence[int]) -> float:
    """Papineni et al. 2002; a precision of 0 is half of a half ... of one match, as sacrebleu smooths it."""
    if not any(sums[2:6]):
        return 0.0
    product, smoothed = 1.0, 1.0
    for matched, of in zip(sums[2:6], sums[6:10], strict=True):
        smoothed = smoothed if matched else smoothed / 2
        product *= (matched or smoothed) / of
    brevity = 1.0 if sums[0] >= sums[1] else math.exp(1 - sums[1] / sums[0])
    return 100 * brevity * product**0.25


def chrf_of(sums: Sequence[int]) -> float:
    """Popovic 2015, recall weighing twice as much as precision."""
    orders = [sums[n : n + 3] for n in range(0, len(sums), 3)]
    precision = sum(found / ours for ours, _, found in orders) / len(orders)
    recall = sum(found / theirs for _, theirs, found in orders) / len(orders)
    if not precision + recall:
        return 0.0
    return 100 * 5 * precision * recall / (4 * precision + recall)
