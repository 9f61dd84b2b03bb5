"""A document as Markdown. Everything is escaped here, and here alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from selectbench.report.document import (
    Block,
    Cards,
    Cell,
    Charts,
    Code,
    Details,
    Document,
    Figure,
    Listing,
    Literally,
    Paragraph,
    Section,
    Stack,
    Table,
    Text,
    clean,
    one_line,
    shown,
    spread,
)

_SPECIAL = re.compile(r"([\\`*\[\]<>|#~&$]|(?<![^\W_])_|_(?![^\W_]))")


def render(document: Document) -> str:
    """The whole document. The same arguments give the same bytes."""
    opening = [f"Question: {escape(document.question)}"] if document.question else []
    opening += [f"**{escape(document.answer)}**"] if document.answer else []
    parts = [f"# {escape(document.title)}", *opening, *_blocks(document.opening)]
    parts += [part for section in document.sections for part in _section(section)]
    return "\n\n".join(parts) + "\n"


def render_blocks(blocks: Sequence[Block]) -> str:
    """Blocks by themselves."""
    return "\n\n".join(_blocks(blocks))


def _section(section: Section) -> list[str]:
    """Nothing where nothing of it can be shown."""
    parts = list(_blocks(section.blocks))
    return [f"## {section.heading}", *parts] if parts else []


def _blocks(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Paragraph():
            yield f"**{prose(block.text)}**" if block.is_strong else prose(block.text)
        case Listing():
            yield from ["\n".join(f"- {prose(item)}" for item in block.items)] if block.items else []
        case Table():
            yield from [prose(block.caption)] if block.is_titled else []
            yield table(block)
        case Code():
            yield from [prose(block.caption)] if block.caption else []
            yield _code(block.text)
        case Cards():
            rows = [[escape(text) for text in (c.title, c.sentence, c.confidence)] for c in block.cards]
            yield _table(["asked for", "take", "how sure"], ["---"] * 3, rows)
        case Charts() | Details():
            pass


def table(block: Table) -> str:
    """A table by itself."""
    rules = ["---:" if column.align == "right" else "---" for column in block.columns]
    heads = [escape(column.heading).replace(r"\#", "#") for column in block.columns]  # no heading within a cell
    return _table(heads, rules, [[_cell(cell) for cell in row] for row in block.rows])


def _table(heads: Sequence[str], rules: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rules, *rows))


def _cell(cell: Cell) -> str:
    if isinstance(cell, Stack):
        told = " ".join(filter(None, (shown(cell.value), cell.remark)))
        return escape(told)
    if isinstance(cell, Figure):
        return " ".join(filter(None, (shown(cell), spread(cell))))
    return escape(cell) if isinstance(cell, str) else shown(cell)


def prose(text: Text) -> str:
    """A sentence on one line in which nothing of a name is read as Markdown or HTML."""
    if isinstance(text, str):
        return escape(text)
    return "".join(f"`{one_line(part.text)}`" if isinstance(part, Literally) else _part(part) for part in text)


def _part(text: str) -> str:
    """A part of a sentence keeps the spaces at its ends."""
    before, after = (" " if end.isspace() else "" for end in (text[:1], text[-1:]))
    return f"{before}{escape(text)}{after}"


def escape(text: str) -> str:
    """One line in which nothing is read as Markdown or HTML; underscores within words stay bare."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def _code(text: str) -> str:
    """An indented code block: nothing inside can end it."""
    return "\n".join(f"    {line}".rstrip() for line in clean(text).strip("\n").split("\n"))
