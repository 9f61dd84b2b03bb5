"""Every option's scores of generated text against the baseline's, over the choice of the test sentences. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from selectbench.analysis.comparison import ScoreDifference
from selectbench.analysis.corpus_score import Table, corpus_score, table_of
from selectbench.analysis.paired_bootstrap import Scores, paired, resampled
from selectbench.analysis.row import Row
from selectbench.analysis.summary import Summary
from selectbench.suite.evaluate import SCORES

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
    found: list[ScoreDifference] = []
    for name in SCORES:
        texts = {row.option: _texts(name, by_name[row.option]) for row in others}
        if any(texts.values()):
            theirs = _texts(name, baseline)
            drawn = {seed: resampled(name, text.table) for seed, text in theirs.items()}
            found += [_difference(name, baseline.name, row, texts[row.option], theirs, drawn) for row in others]
    return found


def _texts(name: str, summary: Summary) -> dict[int, _Text]:
    """By seed, of the completed trials whose sentences are known."""
    found = {}
    for seed, measured in summary.measurements.items():
        kept = measured.sentences
        if kept is not None and (table := table_of(name, kept)) is not None:
            found[seed] = _Text(kept.references_sha256, measured.scores[name], table)
    return found


def _difference(
    name: str, baseline: str, row: Row, ours: Mapping[int, _Text], theirs: Mapping[int, _Text],
    drawn: Mapping[int, Scores],
) -> ScoreDifference:  # fmt: skip
    seeds = [seed for seed in ours if seed in theirs]
    said = ScoreDifference(score=name, option=row.option, against=baseline, seeds=len(seeds))
    texts = [text[seed] for seed in seeds for text in (ours, theirs)]
    if reason := "it did another job" if row.identity.violations else _refused(name, texts):
        return said.model_copy(update={"not_compared": reason})
    found = paired([resampled(name, ours[seed].table) for seed in seeds], [drawn[seed] for seed in seeds])
    return said.model_copy(update={"sentences": len(ours[seeds[0]].table), **found._asdict()})


def _refused(name: str, texts: Sequence[_Text]) -> str:
    """Why these, of both options with all common seeds, are not to be compared; '' where they are."""
    if not texts:
        return "no seed with which both completed and kept what the score is made of"
    if len({text.references_sha256 for text in texts}) > 1:
        return "the references differ"
    if len(texts[0].table) < FEWEST_SENTENCES:
        return f"{len(texts[0].table)} test sentences; at least {FEWEST_SENTENCES} are needed"
    if any(abs(corpus_score(name, text.table) - text.recorded) > _SAME for text in texts):
        return "the sentences do not give the score that was recorded"
    return ""
