"""One document, three renderers: what one of them says the others say too, and no name is read as markup in any."""

from __future__ import annotations

import html as entities
import io
import re
from collections.abc import Sequence

import pytest
from evidence.readme_table import kept_run
from made_records import make_failure, make_record, make_suite, speed
from rich.console import Console

from selectbench.analysis.ranking import rank
from selectbench.launch.publish import COMMAND, read_run
from selectbench.report.document import (
    UNCLEAN_MARK,
    Amount,
    Block,
    Cell,
    Column,
    Document,
    Figure,
    Listing,
    Literally,
    Paragraph,
    Ratio,
    Section,
    Stack,
    Table,
    Text,
    joined,
    value_text,
)
from selectbench.report.files import markdown_table, render_html, render_markdown
from selectbench.report.sections import report
from selectbench.report.terminal import print_document
from selectbench.text import one_line
from selectbench.units import size

EVIL = "<b>*x*</b> `y` [z](javascript:1) | #"
PAIRS: list[tuple[Cell, str]] = [
    (Figure("tokens_per_second", 11_420.3, 12.0), "11,420 ±12"), (Figure("mfu", None), "-"),
    (Figure("peak_memory_bytes", 2**30, mark=UNCLEAN_MARK), "1.00 GiB †"),
    (Ratio(1.25, 1.2, 1.31), "1.25x (1.20x to 1.31x)"), (Ratio(None), "-"),
    (Amount(2048, size), "2.00 KiB"), (joined((1024, 2048), size), "1.00 KiB to 2.00 KiB"),
    (joined((), size), "-"), (joined((1024, None), size, " / "), "1.00 KiB / -"),
    (Amount(2, lambda done: f"{done} of 3"), "2 of 3"),
    (Stack("state", "remark"), "state remark"),
]  # fmt: skip


def words(page: str) -> str:
    """All that a reader of the page sees."""
    text = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(entities.unescape(re.sub("<[^>]*>", " ", text)).split())


def plain(text: Text) -> str:
    parts = [text] if isinstance(text, str) else [part if isinstance(part, str) else part.text for part in text]
    return " ".join(one_line(" ".join(parts)).split())


def sentences(block: Block) -> Sequence[Text]:
    if isinstance(block, Listing):
        return block.items
    return [block.text] if isinstance(block, Paragraph) else []


@pytest.mark.parametrize(("cell", "text"), PAIRS)
def test_a_cell_in_markdown(cell: Cell, text: str) -> None:
    assert markdown_table(Table([Column("x")], [[cell]], "")).splitlines()[-1] == f"| {text} |"


@pytest.mark.parametrize(("cell", "text"), PAIRS)
def test_the_page_shows_the_same_and_sorts_by_the_value(cell: Cell, text: str) -> None:
    table = Table([Column("name"), Column("x", "right")], [["row", cell]], "caption", is_sortable=True)
    page = render_html(Document("t", [Section("s", "S", [table])]))
    assert f"row {text}" in words(page)
    if isinstance(cell, (Figure, Ratio, Amount)) and cell.value is not None:
        assert f'data-value="{cell.value!r}"' in page


@pytest.mark.parametrize("suite", ["precision", "framework", "scaling"])
def test_what_the_markdown_says_stands_on_the_page(suite: str) -> None:
    stored = read_run(kept_run(suite))
    parts = (stored.suite, stored.ranking(), stored.counted, stored.environment, COMMAND)
    seen = words(render_html(report(*parts, "page")))
    for section in report(*parts, "markdown").sections:
        assert section.heading in seen or section.name == "warnings"
        for block in section.blocks:
            for text in sentences(block):
                assert re.sub(r"\s", "", plain(text)) in re.sub(r"\s", "", seen)
            if isinstance(block, Table) and section.name != "ranking":
                cells = [cell for row in block.rows for cell in row if not isinstance(cell, Stack)]
                assert all(one_line(value_text(cell), 300) in seen for cell in cells)


def test_failures_and_their_logs_stand_on_the_page() -> None:
    suite = make_suite("fp32", ("bf16", {"precision": {"name": "bf16_mixed"}}))
    records = [make_record("fp32", s, **speed(100 + s)) for s in range(3)]
    records += [make_failure("bf16", s, "crashed", "exit status 1\nRuntimeError: boom") for s in range(3)]
    seen = words(render_html(report(suite, rank(suite, records), records, {}, COMMAND, "page")))
    assert "bf16 0, 1, 2 crashed exit status 1" in seen
    assert "In full: bf16, seed 0; bf16, seed 1; bf16, seed 2 exit status 1 RuntimeError: boom" in seen


def evil_document() -> Document:
    table = Table([Column(EVIL)], [[EVIL], [Stack(EVIL, EVIL)]], EVIL, is_titled=True, kinds=["first", "failed"])
    blocks = [Paragraph(EVIL), Paragraph((EVIL, Literally("code")), is_strong=True), Listing([EVIL]), table]
    return Document(EVIL, [Section("s", "S", blocks)], EVIL, EVIL, opening=blocks)


def test_no_name_is_markup_in_markdown() -> None:
    text = render_markdown(evil_document())
    escaped = r"\<b\>\*x\*\</b\> \`y\` \[z\](javascript:1) \|"
    assert text.count("x") == text.count(escaped)


def test_no_name_is_markup_on_the_page() -> None:
    page = render_html(evil_document())
    assert "<b>" not in page
    seen, in_prose = words(page), EVIL.replace("`", "")  # there backticks make code, and nothing else
    assert seen.count(EVIL) + seen.count(in_prose) == seen.count("javascript:1") == 4 + 2 * 8


def test_a_terminal_shows_the_opening_and_the_answer_last() -> None:
    file = io.StringIO()
    print_document(Console(file=file, width=200), evil_document())
    lines = file.getvalue().splitlines()
    assert lines[0] == f"{EVIL}: {EVIL}"
    assert lines[-1] == EVIL
    assert EVIL in lines[1:-1]
