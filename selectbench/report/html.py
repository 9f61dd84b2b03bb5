"""A document as one HTML file that asks nothing of the network and works without scripts."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from selectbench.report.charts import interval_bars
from selectbench.report.document import (
    Cell,
    Column,
    Document,
    Figure,
    Listing,
    NotReached,
    Ratio,
    Section,
    Stack,
    Table,
    sort_key,
    spread,
    value_text,
)
from selectbench.text import clean, one_line

_NAME_MOST, _CELL_MOST = 120, 300
"""Characters of a cell."""


def render(document: Document) -> str:
    """The whole page. The same arguments give the same bytes; the template escapes every string."""
    from jinja2 import Environment, StrictUndefined  # slow to import, and needed here alone

    own = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "kind": lambda block: type(block).__name__,
        "rows": _rows,
        "line": one_line,
        "clean": clean,
    }
    template = environment.from_string(own.joinpath("page.html.j2").read_text(encoding="utf-8"))
    style, script = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    warnings = [section for section in document.sections if _warns(section)]
    others = [section for section in document.sections if not _warns(section)]
    page = template.render(style=style, script=script, document=document, warnings=warnings, sections=others)
    return page + "\n"


def _warns(section: Section) -> bool:
    return any(isinstance(block, Listing) and block.is_warning for block in section.blocks)


def _rows(table: Table) -> list[list[dict[str, Any]]]:
    """Rows of cells by the template's names, each ratio of a column with bars with its own."""
    bars: list[list[str]] = []
    for place, column in enumerate(table.columns):
        ratios = [row[place] for row in table.rows] if column.has_bars else []
        bars.append(interval_bars([cell for cell in ratios if isinstance(cell, Ratio)]))
    names = {place for place, column in enumerate(table.columns) if column.names_row} or {0}
    return [
        [
            {**_cell(cell, column, place in names), "bar": bars[place][number] if bars[place] else ""}
            for place, (cell, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        for number, row in enumerate(table.rows)
    ]


def _cell(cell: Cell, column: Column, names_row: bool) -> dict[str, Any]:
    """A ratio's interval has a line of its own: on one line the two are the widest of all columns."""
    value, remark = (cell.value, cell.remark) if isinstance(cell, Stack) else (cell, "")
    text, below = one_line(value_text(value), _NAME_MOST if names_row else _CELL_MOST), one_line(remark, _CELL_MOST)
    if isinstance(value, Ratio) and column.has_bars:
        text, below = value.texts()
    if isinstance(value, Figure):
        below = spread(value)
    key = sort_key(value)
    wraps = "words" if column.align == "left" else "reach" if isinstance(value, NotReached) else ""
    return {
        "text": text, "below": below, "names_row": names_row, "class": wraps,
        "key": "" if key is None else repr(key), "sorts_by_text": isinstance(value, str),
    }  # fmt: skip
