"""A grid's main effects and interactions in words and as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench import units
from selectbench.analysis.comparison import FactorView, Interaction, Share
from selectbench.analysis.row import Ranking
from selectbench.report.escape import markdown, one_line, table

_NOTE = (
    "Each factor's effect is on the objective, against the baseline's level, averaged over the other factors' "
    "levels "
    "within every seed; an interaction is what two levels do together beyond their effects. Intervals are 95 % "
    "each by "
    "itself, over seeds; no claim is made of them."
)


def factor_lines(ranking: Ranking) -> list[str]:
    """The gain of the first row taken apart, or nothing where the options are no grid."""
    view = ranking.factors
    if view is None or view.best is None or not view.shares:
        return []
    parts = [
        f"{units.ratio(share.ratio)} from {_named(share.factor, share.level)}{_doubt(view, share)}"
        for share in view.shares
    ]
    more = view.together
    rest = f", and {units.ratio(more)} from what they do together" if more is not None and len(parts) > 1 else ""
    return [f"{one_line(view.best)} is {units.ratio(view.best_ratio)} the baseline: {', '.join(parts)}{rest}"]


def _named(factor: str, level: str) -> str:
    """`precision bf16_mixed`; of factors that always change together the first, with the others beside it."""
    first, *others = factor.split(" = ")
    beside = f" (with {one_line(', '.join(others))})" if others else ""
    return f"{one_line(first)} {one_line(level)}{beside}"


def _doubt(view: FactorView, share: Share) -> str:
    """Said where the effect's own interval does not leave 1 out."""
    found = next(e for e in view.effects if (e.factor, e.level) == (share.factor, share.level))
    told = found.low is not None and found.high is not None and not found.low <= 1 <= found.high
    return "" if told else " (not told from none)"


def factor_section(ranking: Ranking) -> list[str]:
    """The section in Markdown, or nothing."""
    view = ranking.factors
    if view is None:
        return []
    parts = [f"{markdown(line)}." for line in factor_lines(ranking)]
    return ["## Factors", *parts, _effects(view), *_interactions(view), _NOTE]


def _effects(view: FactorView) -> str:
    rows = [
        [markdown(effect.factor), markdown(effect.level), markdown(effect.against),
         with_ends(effect.ratio, effect.low, effect.high)]
        for effect in view.effects
    ]  # fmt: skip
    return table(["factor", "level", "against", "objective"], rows, right=3)


def _interactions(view: FactorView) -> Sequence[str]:
    if not view.interactions:
        return []
    rows = [
        [markdown(together(found)), with_ends(found.ratio, found.low, found.high)]
        for found in view.interactions
    ]  # fmt: skip
    return [table(["strongest interactions", "beyond their effects"], rows, right=1)]


def together(found: Interaction) -> str:
    """`precision=bf16_mixed and compile=default`."""
    return " and ".join(f"{f}={level}" for f, level in zip(found.factors, found.levels, strict=True))


def with_ends(ratio: float, low: float | None, high: float | None) -> str:
    """`1.25x (1.20x to 1.31x)`."""
    return units.ratio_with_range(ratio, low, high)
