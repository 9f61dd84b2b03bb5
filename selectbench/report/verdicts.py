"""The options that verdicts name, and the comment that a file of such an option begins with. Pure."""

from __future__ import annotations

from textwrap import fill

from selectbench.analysis.comparison import NamedVerdict
from selectbench.analysis.row import Ranking
from selectbench.report.escape import one_line


def by_option(ranking: Ranking) -> list[NamedVerdict]:
    """The first verdict of each option that is named."""
    first: dict[str, NamedVerdict] = {}
    for found in ranking.verdicts:
        if found.option is not None:
            first.setdefault(found.option, found)
    return list(first.values())


def best_head(ranking: Ranking, file: str) -> str:
    """The comment that a file of a verdict's option begins with: what it answers, and how sure that is."""
    lines = ["One option of a suite by itself; `selectbench run` takes it as it is. Its run answered with it:"]
    lines += [f"{v.title}: {v.option}. {v.confidence}" for v in ranking.verdicts if v.file == file]
    return "".join(f"{_comment(line)}\n" for line in lines)


def _comment(text: str) -> str:
    """YAML's, indented where it goes on: names of options are on one line, so that none breaks out of it."""
    return fill(
        one_line(text), 110, initial_indent="# ", subsequent_indent="#   ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
