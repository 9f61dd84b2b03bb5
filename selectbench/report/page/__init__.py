"""report.html: one file that asks nothing of the network, works without scripts, follows light, dark and print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from selectbench.analysis.row import Ranking
from selectbench.record.record import Record
from selectbench.report.page.content import content
from selectbench.suite.suite import Suite


def render_page(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any], command: str
) -> str:
    """The whole page. `records`: those that count.

    The same arguments give the same bytes; every string of a suite or a log is escaped.
    """
    from jinja2 import Environment, StrictUndefined  # slow to import, and needed here alone

    own = files(__package__)
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(own.joinpath("page.html.j2").read_text(encoding="utf-8"))
    style, script = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        template.render(style=style, script=script, **content(suite, ranking, records, environment, command)) + "\n"
    )
