"""Differences of scores of generated text over the choice of the test sentences, for every report. Pure."""

from __future__ import annotations

from selectbench import units
from selectbench.analysis.comparison import ScoreDifference
from selectbench.analysis.paired_bootstrap import RESAMPLES, SEED
from selectbench.analysis.row import Ranking
from selectbench.report.escape import markdown, one_line, table
from selectbench.suite.evaluate import OWN_SCORE
from selectbench.suite.metrics import METRICS

HEADS = ["option", "score", "difference", "95 % interval", "p", "sentences", "seeds"]
_MEANING = (
    "They say whether other test sentences would have shown the same order; they say nothing of other seeds, which "
    "the ranking's own intervals do."
)
_METHOD = (
    f"Paired bootstrap (Koehn 2004): {RESAMPLES:,} draws of the test sentences with replacement, the same for all "
    f"options and seeds (generator's seed {SEED}), each scored as a whole; mean over the seeds that both "
    "completed. Interval and two-sided p are of each comparison by itself, not adjusted for the others; "
    "nothing is claimed with them."
)


def difference_rows(ranking: Ranking) -> list[list[str]]:
    """Under HEADS, raw; empty where no score was drawn anew."""
    return [
        [found.option, METRICS[found.score].title, *_figures(found),
         units.count(found.sentences), str(found.seeds)]
        for found in ranking.score_differences
    ]  # fmt: skip


def _figures(found: ScoreDifference) -> list[str]:
    if found.difference is None:
        return [units.DASH] * 3
    return [_signed(found.difference), _interval(found), units.significant(found.p, 2)]


def _interval(found: ScoreDifference) -> str:
    return f"{_signed(found.low)} to {_signed(found.high)}"


def _signed(value: float | None) -> str:
    """`+1.23`: scores lie between 0 and 100, and a hundredth is as fine as they are read; just none is `0`."""
    if value is None:
        return units.DASH
    return f"{value:+.2f}" if value else "0"


def difference_notes(ranking: Ranking) -> list[str]:
    """What the figures of a table say and what they do not, and why some are missing; raw."""
    from_baseline = f"Differences are from the baseline {one_line(ranking.baseline)}. {_MEANING}"
    return [from_baseline, _METHOD, *_missing(ranking)]


def _missing(ranking: Ranking) -> list[str]:
    reasons = {(one_line(found.option), found.not_compared): None for found in ranking.score_differences}
    told = [f"{option} is not compared: {reason}." for option, reason in reasons if reason]
    own = any(row.metrics[OWN_SCORE].value is not None for row in ranking.rows)
    return [*told, *(["A score of own code is known as a whole only: it is not drawn anew."] if own else [])]


def difference_section(ranking: Ranking) -> list[str]:
    """A table in Markdown and what it says, or nothing."""
    rows = [[markdown(cell) for cell in row] for row in difference_rows(ranking)]
    if not rows:
        return []
    return [table(HEADS, rows, right=2), "\n".join(f"- {markdown(note)}" for note in difference_notes(ranking))]


def difference_lines(ranking: Ranking) -> list[str]:
    """A line of a terminal for each score."""
    told: dict[str, list[str]] = {}
    for found in ranking.score_differences:
        if found.difference is not None:
            said = f"{one_line(found.option)} {_signed(found.difference)} ({_interval(found)})"
            told.setdefault(METRICS[found.score].title, []).append(said)
    against = f"against {one_line(ranking.baseline)}, 95 % over other test sentences, not over seeds"
    return [f"{title} {against}: {', '.join(lines)}" for title, lines in told.items()]
