"""A document as Markdown. Everything is escaped here, and here alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from selectbench.report.document import (
    Block,
    Cards,
    Cell,
    Code,
    Document,
    Figure,
    Listing,
    Literally,
    Paragraph,
    Stack,
    Table,
    Text,
    spread,
    value_text,
)
from selectbench.text import clean, one_line

_SPECIAL = re.compile(r"([\\`*\[\]<>|#~&$]|(?<![^\W_])_|_(?![^\W_]))")


def render(document: Document) -> str:
    """The whole document. The same arguments give the same bytes."""
    parts = [f"# {escape(document.title)}"]
    parts += [f"Question: {escape(document.question)}"] if document.question else []
    parts += [f"**{escape(document.answer)}**"] if document.answer else []
    parts += _blocks(document.opening)
    for section in document.sections:
        blocks = list(_blocks(section.blocks))
        parts += [f"## {section.heading}", *blocks] if blocks else []
    return "\n\n".join(parts) + "\n"


def render_blocks(blocks: Sequence[Block]) -> str:
    """Blocks by themselves."""
    return "\n\n".join(_blocks(blocks))


def _blocks(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Paragraph():
                yield f"**{prose(block.text)}**" if block.is_strong else prose(block.text)
            case Listing(items=items) if items:
                yield "\n".join(f"- {prose(item)}" for item in items)
            case Table():
                yield from [prose(block.caption)] if block.is_titled else []
                yield table(block)
            case Code():
                yield from [prose(block.caption)] if block.caption else []
                lines = clean(block.text).strip("\n").split("\n")
                yield "\n".join(f"    {line}".rstrip() for line in lines)  # indented: nothing inside can end it
            case Cards():
                rows = [[escape(text) for text in (c.title, c.sentence, c.confidence)] for c in block.cards]
                yield _table(["asked for", "take", "how sure"], ["---"] * 3, rows)


def table(block: Table) -> str:
    """A table by itself."""
    rules = ["---:" if column.align == "right" else "---" for column in block.columns]
    heads = [escape(column.heading).replace(r"\#", "#") for column in block.columns]  # no heading within a cell
    return _table(heads, rules, [[_cell(cell) for cell in row] for row in block.rows])


def _table(heads: Sequence[str], rules: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rules, *rows))


def _cell(cell: Cell) -> str:
    if isinstance(cell, Stack):
        return escape(" ".join(filter(None, (value_text(cell.value), cell.remark))))
    if isinstance(cell, Figure):
        return " ".join(filter(None, (value_text(cell), spread(cell))))
    return escape(cell) if isinstance(cell, str) else value_text(cell)


def prose(text: Text) -> str:
    """A sentence on one line in which nothing of a name is read as Markdown or HTML."""
    if isinstance(text, str):
        return escape(text)
    parts = []
    for part in text:
        if isinstance(part, Literally):
            parts.append(f"`{one_line(part.text)}`")
        else:  # it keeps the spaces at its ends
            before, after = (" " if end.isspace() else "" for end in (part[:1], part[-1:]))
            parts.append(f"{before}{escape(part)}{after}")
    return "".join(parts)


def escape(text: str) -> str:
    """One line in which nothing is read as Markdown or HTML; underscores within words stay bare."""
    return _SPECIAL.sub(r"\\\1", one_line(text))
