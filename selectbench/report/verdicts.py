"""Which option to take by what is asked, what reaching the baseline's loss takes, and settings to copy. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from selectbench import units
from selectbench.analysis.comparison import NamedVerdict
from selectbench.analysis.row import Ranking, Row
from selectbench.analysis.to_loss import RULE
from selectbench.report.escape import block, markdown, one_line, table
from selectbench.yaml_text import choices_yaml


def verdict_section(ranking: Ranking) -> list[str]:
    """The named verdicts with their options' settings; nothing where the run has no figures for any."""
    if not ranking.verdicts:
        return []
    rows = [[markdown(v.title), markdown(v.sentence), markdown(v.confidence)] for v in ranking.verdicts]
    return ["## Which to take", table(["asked for", "take", "how sure"], rows, right=3), *_settings(ranking)]


def _settings(ranking: Ranking) -> list[str]:
    """Once for each option that some verdict names, with the command that trains it."""
    parts: list[str] = []
    for found in by_option(ranking):
        parts.append(
            f"Settings of {markdown(found.option or '')}, in `{found.file}` of the run's folder; "
            f"typed there, `{found.command}` trains it:"
        )
        parts.append(block(choices_yaml(found.choices)))
    return parts


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


def to_loss_section(ranking: Ranking) -> list[str]:
    """What the baseline's final loss takes, or nothing where no row tells."""
    rows = [row for row in ranking.rows if row.to_loss]
    if not rows:
        return []
    shown = [name for name in ("seconds", "tokens", "joules", "usd") if _known(rows, name)]
    heads = [
        "option",
        *({"seconds": "time", "tokens": "tokens", "joules": "energy", "usd": "cost"}[n] for n in shown),
    ]
    cells = [[markdown(row.option), *(to_loss_figure(row, name) for name in shown)] for row in rows]
    return ["## To the baseline's final loss", table(heads, cells, right=1), RULE] if shown else []


def _known(rows: Sequence[Row], name: str) -> bool:
    return any(getattr(row.to_loss, name) is not None for row in rows)


def to_loss_figure(row: Row, name: str) -> str:
    """A figure of `to_loss`, or with how many seeds it was not reached."""
    found = row.to_loss
    if found is None:
        return units.DASH
    if found.not_reached:
        return f"not reached with {len(found.not_reached)} of {len(found.reached) + len(found.not_reached)} seeds"
    show = {"seconds": units.seconds, "tokens": units.count, "joules": units.joules, "usd": units.usd}[name]
    return show(getattr(found, name))
