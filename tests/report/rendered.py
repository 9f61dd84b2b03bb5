"""A report as Markdown and as a page, from what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selectbench.analysis.result import Ranking
from selectbench.record.record import Record
from selectbench.report.files import render_html, render_markdown
from selectbench.report.sections import option_report, report
from selectbench.suite.suite import Suite


def render(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any], command: str
) -> str:
    """report.md."""
    return render_markdown(report(suite, ranking, records, environment, command, "markdown"))


def render_page(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any], command: str
) -> str:
    """report.html."""
    return render_html(report(suite, ranking, records, environment, command, "page"))


def render_option(suite: Suite, ranking: Ranking, records: Sequence[Record], name: str) -> str:
    """One option in detail, in Markdown."""
    return render_markdown(option_report(suite, ranking, records, name))
