"""Which rows no other row beats: the Pareto set over speed, memory, energy and quality.

A row is dominated only where another is shown to be better in one of them (two-sided tests of all pairs, adjusted
by Holm for each metric, and the metric's threshold) and is worse in none: not shown to be, and by the means not by
more than the threshold. A picture of the field beside the declared family, not a claim of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from selectbench.analysis import ranks
from selectbench.analysis.contest import Contest
from selectbench.analysis.family import all_pairs
from selectbench.analysis.row import Row
from selectbench.analysis.statistics import Bools
from selectbench.analysis.summary import Summary, other_tokens
from selectbench.suite.metrics import METRICS, PER_TOKEN

_BY_DIMENSION = sorted((m for m in METRICS.values() if m.dimension), key=lambda m: m.dimension or ("speed", 0))
_DIMENSIONS = {
    dimension: [m.name for m in _BY_DIMENSION if m.dimension and m.dimension[0] == dimension]
    for dimension in ("speed", "memory", "energy", "quality")
}
"""Of each the first metric that all rows know."""


def dimensions(rows: Sequence[Row], without: frozenset[str] = frozenset()) -> list[str]:
    """The metrics that the set is over: those that every one of these rows knows; `without`: what tells nothing."""
    known = [
        next((name for name in names if name not in without and all(counts(row, name) for row in rows)), None)
        for names in _DIMENSIONS.values()
    ]
    return [name for name in known if name is not None]


def has_diverged(row: Row) -> bool:
    """Whether it did with any seed: what the other seeds learnt flatters it."""
    return any(failure.kind == "diverged" for failure in row.failures)


def counts(row: Row, metric: str) -> bool:
    """Whether its figure is known, and of clean trials."""
    found = row.metrics[metric]
    return found.value is not None and not found.unclean


def with_pareto(contest: Contest, rows: Sequence[Row], summaries: Mapping[str, Summary]) -> list[Row]:
    """The rows with `pareto` and `dominated_by` told for those that completed and did the baseline's job."""
    taking_part = [row for row in rows if row.n and row.identity.comparable and not row.control]
    apart = any(other_tokens(contest.suite, summary.option) for summary in summaries.values())
    over = dimensions(taking_part, PER_TOKEN if apart else frozenset())
    if ranks.share_main_memory(contest.suite.device, list(summaries.values())):
        over = [name for name in over if name != "peak_memory_bytes"]
    if not taking_part or not over:
        return list(rows)
    names = [row.option for row in taking_part]
    diverged = np.array([has_diverged(row) for row in taking_part])
    found = _dominates(contest, names, over, diverged)
    by = {name: [names[j] for j in np.flatnonzero(found[:, i])] for i, name in enumerate(names)}
    return [
        row.model_copy(update={"pareto": not by[row.option], "dominated_by": by[row.option]})
        if row.option in by
        else row
        for row in rows
    ]


def _dominates(contest: Contest, names: Sequence[str], over: Sequence[str], diverged: Bools) -> Bools:
    """[i, j]: whether i dominates j; one that diverged with a seed dominates none."""
    shape = (len(names), len(names))
    better_somewhere, worse_somewhere = np.zeros(shape, bool), np.zeros(shape, bool)
    for name in over:
        threshold, more = contest.suite.threshold(name), METRICS[name].better == "more"
        pairs = all_pairs(contest.blocks[name], names)
        better = pairs.better(threshold, more_is_better=more)
        better_somewhere |= better
        worse_somewhere |= better.T | pairs.ahead_by_means(more_is_better=more, by=threshold).T
    return better_somewhere & ~worse_somewhere & ~diverged[:, None]
