"""What the reports say of scores over the choice of the test sentences."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import pytest
from made_records import make_record, make_suite
from made_sentences import hypotheses, measured, references
from report.rendered import render, render_page
from rich.console import Console

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking
from selectbench.record.record import Record
from selectbench.report.sections import summary
from selectbench.report.terminal import print_document

EVIL = "[red]|<b>`x`"
TRUTH = references(40)
SAYS = ("other test sentences would have shown the same order", "nothing about other seeds", "not adjusted")


@cache
def said(wrong: float, seed: int, end: int = 40) -> dict[str, Any]:
    truth = TRUTH[:end]
    return measured(hypotheses(truth, wrong, seed), truth, ["bleu", "token_f1"])


def made(name: str = "new", **changes: Any) -> tuple[Any, Ranking, list[Record]]:
    suite = make_suite("base", name, "few", seeds=[0, 1])
    records = [make_record("base", seed, **said(0.5, seed)) for seed in range(2)]
    records += [make_record(name, seed, **{**said(0.1, seed), **changes}) for seed in range(2)]
    records += [make_record("few", seed, **said(0.1, seed, 9)) for seed in range(2)]
    return suite, rank(suite, records), records


def markdown_of(*run: Any) -> str:
    return render(*run, {}, "x")


def test_markdown_holds_the_table_and_what_it_says() -> None:
    suite, ranking, records = made()
    text = markdown_of(suite, ranking, records)
    found = next(one for one in ranking.score_differences if (one.option, one.score) == ("new", "bleu"))
    row = f"| new | BLEU | {found.difference:+.2f} | {found.low:+.2f} to {found.high:+.2f} | 0.0020 | 40 | 2 |"
    assert text.index("## Scores of what was generated") < text.index(row) < text.index("## How it was measured")
    assert "| few | BLEU | - | - | - | - | 2 |" in text
    assert "few is not compared: the references differ." in text
    assert text.count("few is not compared") == 1
    assert "Differences are from the baseline base." in text
    assert all(part in text for part in SAYS)
    assert "1,000 draws" in text
    assert "copying the source | BLEU" not in text


def test_the_page_holds_them_too() -> None:
    suite, ranking, records = made()
    text = render_page(suite, ranking, records, {}, "x")
    found = next(one for one in ranking.score_differences if (one.option, one.score) == ("new", "token_f1"))
    assert f"<td>{found.difference:+.2f}</td><td>{found.low:+.2f} to {found.high:+.2f}</td><td>0.0020</td>" in text
    assert all(part in text for part in SAYS)
    assert "few is not compared: the references differ." in text


def test_the_terminal_has_a_line_for_each_score() -> None:
    _, ranking, _ = made()
    file = io.StringIO()
    print_document(Console(file=file, width=400), summary(ranking))
    found = next(one for one in ranking.score_differences if (one.option, one.score) == ("new", "bleu"))
    line = next(line for line in file.getvalue().splitlines() if line.startswith("BLEU against base"))
    assert f": new {found.difference:+.2f} ({found.low:+.2f} to {found.high:+.2f})" in line
    assert "not over seeds" in line
    assert "few" not in line


def test_an_equal_score_is_none_and_p_1() -> None:
    text = measured(hypotheses(TRUTH, 0.5, 0), TRUTH, ["bleu"])
    suite = make_suite("base", "same")
    records = [make_record(option, 0, **text) for option in ("base", "same")]
    assert "| same | BLEU | 0 | 0 to 0 | 1.0 | 40 | 1 |" in markdown_of(suite, rank(suite, records), records)


@pytest.mark.parametrize("changes", [{}, {"sentences": None}], ids=["compared", "not compared"])
@pytest.mark.parametrize("report", ["markdown", "page"])
def test_names_are_harmless(report: str, changes: dict[str, Any]) -> None:
    run = made(EVIL, **changes)
    text = markdown_of(*run) if report == "markdown" else render_page(*run, {}, "x")
    told = (
        r"| \[red\]\|\<b\>\`x\` | BLEU |"
        if report == "markdown"
        else '[red]|&lt;b&gt;`x`</th><td class="words">BLEU'
    )
    assert told in text
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert EVIL not in prose


def test_a_score_of_own_code_is_said_to_be_known_as_a_whole() -> None:
    own = {"scores": {"own_score": 3.0, **measured(TRUTH, TRUTH, ["bleu", "token_f1"])["scores"]}}
    assert "A score of own code has no value for each sentence" not in markdown_of(*made())
    suite, ranking, records = made(sentences=measured(TRUTH, TRUTH, ["bleu", "token_f1"])["sentences"], **own)
    assert "A score of own code has no value for each sentence" in markdown_of(suite, ranking, records)


def test_records_without_sentences_have_no_section() -> None:
    suite = make_suite("base", "new")
    records = [make_record(option, 0, scores={"bleu": 20.0}) for option in ("base", "new")]
    ranking = rank(suite, records)
    text = markdown_of(suite, ranking, records)
    assert "## Scores of what was generated" in text
    assert "Paired bootstrap" not in text
    assert "95 % interval |" not in text
    assert "Differences of scores" not in render_page(suite, ranking, records, {}, "x")
