"""A document in a terminal: a table that drops columns where there is no room, then notes, the answer last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from selectbench import units
from selectbench.analysis.result import Ranking
from selectbench.report.document import (
    Cell,
    Column,
    Document,
    Listing,
    Ratio,
    RowKind,
    Stack,
    Table,
    one_line,
    shown,
)
from selectbench.report.sections import summary

_NAME_MOST = 40
_INTERVAL_FROM = 100
"""Columns of a terminal from which a ratio has its interval, and names and remarks have more room."""
_FIRST = 4
"""Room for two digits of rank and a space to each side: ten rows show the columns that nine show."""
_STYLES: Mapping[RowKind, str] = {
    "first": "bold green", "failed": "red", "barred": "yellow",
    "better": "green", "worse": "bold red", "undecided": "yellow",
}  # fmt: skip


def print_ranking(console: Console, ranking: Ranking) -> None:
    """The ranking, causes of what was not ranked, warnings, and the answer last, where the eye ends."""
    print_document(console, summary(ranking))


def print_document(console: Console, document: Document) -> None:
    """Title, tables and lists before the first section, and the answer."""
    title = [document.title, document.question] if document.question else [document.title]
    console.print(RichText(": ".join(map(one_line, title)), style="bold"))
    for block in document.opening:
        if isinstance(block, Table):
            console.print(_table(block, console.width))
        elif isinstance(block, Listing):
            opening, style = ("warning: ", "yellow") if block.is_warning else ("", "dim")
            for item in block.items:
                parts = [item] if isinstance(item, str) else [p if isinstance(p, str) else p.text for p in item]
                console.print(RichText(f"{opening}{one_line(''.join(parts))}", style=style))
    console.print()
    console.print(RichText(one_line(document.answer), style="bold"))


def _table(table: Table, width: int) -> RichTable:
    cells = [[_cell(cell, column, width) for cell, column in zip(row, table.columns, strict=True)]
             for row in table.rows]  # fmt: skip
    places = _columns_that_fit(table.columns, cells, width)
    rich = _frame()
    for column in (table.columns[place] for place in places):
        is_number = column.align == "right"
        rich.add_column(
            column.heading, justify=column.align, no_wrap=is_number, overflow="ellipsis" if is_number else "fold",
            min_width=6 if column.names_row else None,
        )  # fmt: skip
    for row, kind in zip(cells, table.kinds, strict=True):
        rich.add_row(*(RichText(row[place]) for place in places), style=_STYLES.get(kind, ""))
    return rich


def rich_table(table: Table) -> RichTable:
    """A table whose every cell wraps where there is no room."""
    rich = _frame()
    for column in table.columns:
        rich.add_column(column.heading, justify=column.align, overflow="fold")
    for row, kind in zip(table.rows, table.kinds, strict=True):
        cells = (cell.value if isinstance(cell, Stack) else cell for cell in row)
        rich.add_row(*(RichText(shown(cell)) for cell in cells), style=_STYLES.get(kind, ""))
    return rich


def _frame() -> RichTable:
    return RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _cell(cell: Cell, column: Column, width: int) -> str:
    value = cell.value if isinstance(cell, Stack) else cell
    if isinstance(value, Ratio) and width < _INTERVAL_FROM:
        return units.ratio(value.value)
    return one_line(shown(value), _NAME_MOST) if column.names_row else shown(value)


def _columns_that_fit(columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Places of the columns to show: of those that may be dropped as many as there is room for, in their order."""
    wide = width >= _INTERVAL_FROM
    needs = [_width(column, [row[place] for row in cells], wide) for place, column in enumerate(columns)]
    needs[0] = max(needs[0], _FIRST)
    left = width - sum(need for need, column in zip(needs, columns, strict=True) if not column.droppable)
    places, has_room = [], True
    for place, column in enumerate(columns):
        if column.droppable:
            left -= needs[place]
            has_room = has_room and left >= 0
        if has_room or not column.droppable:
            places.append(place)
    return places


def _width(column: Column, cells: Sequence[str], wide: bool) -> int:
    """Of a column with the space beside it; long names and remarks wrap, so that they need no more than a part."""
    longest = max(map(len, (column.heading, *cells)))
    if column.names_row:
        return max(8, 2 + min(24 if wide else 18, longest))
    if column.align == "left":
        return 2 + min(24 if wide else 10, longest)
    return longest + 2
