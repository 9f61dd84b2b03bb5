"""How each option came to its own best: what was tried and chosen, how much that matters, what it cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench import units
from selectbench.analysis.result import OwnBest, Ranking, Search, Tried
from selectbench.analysis.tuning import EQUAL_SPEED_RULE, FLAT
from selectbench.report.document import Block, Column, Paragraph, Section, Table
from selectbench.suite.metrics import METRICS

SEARCH_NOTE = (
    "Every option had as many trials and tokens as the others, on a seed that the contest does not use; each trial "
    "completed a schedule of its own. Where the best of a grid lay on its edge the grid was extended, and the "
    f"other options got one more value beside their best. The width is that of the values within {FLAT:.0%} of the "
    "best, straight lines between those tried: the wider, the less it matters to hit the best."
)
_SIZES, _TUNING = "The fastest micro-batch size:", "The best settings:"


def own_best_section(ranking: Ranking) -> list[Section]:
    """The section, or nothing where nothing was searched."""
    found = ranking.search
    if found is None:
        return []
    notes = map(Paragraph, search_notes(found))
    blocks: list[Block] = [Paragraph(search_cost(found)), *search_tables(found), *notes]
    return [Section("own-best", "Each option at its own best", blocks)]


def search_notes(found: Search) -> list[str]:
    """What the tables' words mean, of what there is."""
    tells = any(tried.as_fast for own in found.sizes for tried in own.tried)
    return [*([EQUAL_SPEED_RULE] if tells else []), *([SEARCH_NOTE] if found.tuning else [])]


def search_cost(found: Search) -> str:
    """What the trials before the contest took, apart from the contest's."""
    trials = sum(own.trials for own in (*found.sizes, *found.tuning))
    seed = f", seed {found.seed}" if found.seed is not None else ""
    return (
        f"Before the contest: {trials} trials in {units.duration(found.wall_seconds)}{seed}. "
        f"The contest itself: {units.duration(found.contest_wall_seconds)}."
    )


def search_tables(found: Search) -> list[Table]:
    """A table of each search that there was."""
    tables = []
    if found.sizes:
        rows = [[own.option, _chosen(own), _all_tried(own), _edge_words(own, "fast")] for own in found.sizes]
        tables.append(_table(_SIZES, ["option", "chosen", "tokens/s of each", ""], rows))
    if found.tuning:
        heads = ["option", "chosen", f"{METRICS[found.tuning[0].metric].title} of each", "width", ""]
        rows = [[o.option, _chosen(o), _all_tried(o), width(o), _edge_words(o, "good")] for o in found.tuning]
        tables.append(_table(_TUNING, heads, rows))
    return tables


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table([Column(head) for head in heads], rows, caption, is_titled=True)


def _chosen(own: OwnBest) -> str:
    if own.chosen is None:
        return "nothing worked: the suite's own"
    return ", ".join(f"{path.rpartition('.')[2]} {value:g}" for path, value in own.chosen.items())


def _all_tried(own: OwnBest) -> str:
    return "; ".join(f"{_values(tried)}: {told(own, tried)}" for tried in own.tried)


def _values(tried: Tried) -> str:
    return ", ".join(f"{value:g}" for value in tried.values.values())


def told(own: OwnBest, tried: Tried) -> str:
    """The figure, or how it failed."""
    shown = tried.outcome if tried.value is None else METRICS[own.metric].show(tried.value)
    return f"{shown} (chosen)" if tried.chosen else f"{shown} (as fast)" if tried.as_fast else shown


def width(own: OwnBest) -> str:
    """`7.4x (0.0011 to 0.0081)`; a dash for several settings at once."""
    low, high = own.flat_low, own.flat_high
    if low is None or high is None:
        return units.DASH
    at_least = "at least " if own.flat_is_open else ""
    span = f"{high / low:.2g}x" if low > 0 else f"{high - low:.2g}"
    return f"{at_least}{span} ({low:g} to {high:g})"


def _edge_words(own: OwnBest, how: str) -> str:
    if own.chosen is None:
        return ""
    if own.edges:
        return f"the best lies on {_edges(own)}{_beyond(own, how)}"
    return f"{own.extensions} more than planned, as a best lay on an edge" if own.extensions else ""


def _edges(own: OwnBest) -> str:
    """`the high edge of what was tried`; which setting's, where there are several."""
    of = {path: path.rpartition(".")[2] if own.together else "what was tried" for path in own.edges}
    return " and ".join(f"the {side} edge of {of[path]}" for path, side in own.edges.items())


def _beyond(own: OwnBest, how: str) -> str:
    if own.together:
        return "; not extended: several settings are tuned together; widen the range"
    (side,) = own.edges.values()
    return f": {'smaller' if side == 'low' else 'larger'} values may be as {how} or better"


def search_lines(ranking: Ranking) -> Sequence[str]:
    """For the terminal: a line for each option."""
    found = ranking.search
    if found is None:
        return []
    lines = [f"{own.option}: {_chosen(own)}" for own in (*found.sizes, *found.tuning)]
    return [search_cost(found), *lines]
