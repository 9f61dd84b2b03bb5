"""Ranks as every report shows them: ties are not transitive, so a row has a range."""

from __future__ import annotations

import io
import re

import pytest
from made_records import make_record, make_suite, speed
from report.rendered import render, render_page
from rich.console import Console

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking
from selectbench.launch.publish import COMMAND
from selectbench.record.record import Record
from selectbench.report.ranking import rank_text, ties_note
from selectbench.report.sections import summary
from selectbench.report.terminal import print_document
from selectbench.suite.suite import Suite

LR = {name: (name, {"optimizer": {"name": "adamw", "lr": lr}}) for name, lr in (("noisy", 2e-3), ("fast", 3e-3))}
NOTE = "1-2: tied; its rank may be any from 1 to 2"


@pytest.fixture(scope="module")
def noisy_between() -> tuple[Suite, list[Record], Ranking]:
    """The fast one is shown to be better than the baseline, and what lies between is told from neither."""
    speeds = {"base": [100, 101, 99, 100, 102], "noisy": [80, 150, 95, 130, 88], "fast": [120, 122, 119, 121, 123]}
    suite = make_suite("base", LR["noisy"], LR["fast"], seeds=list(range(5)), decide={"constraints": []})
    records = [make_record(name, s, **speed(v)) for name, found in speeds.items() for s, v in enumerate(found)]
    return suite, records, rank(suite, records)


def test_a_row_has_every_rank_that_it_may_have(noisy_between: tuple[Suite, list[Record], Ranking]) -> None:
    _, _, ranking = noisy_between
    assert {row.option: rank_text(row) for row in ranking.rows} == {
        "fast": "1-2",
        "noisy": "1-3",
        "base": "2-3",
    }
    rows = {row.option: row for row in ranking.rows}
    (told,) = ties_note(ranking.model_copy(update={"rows": [rows["base"]]}))
    assert told == "2-3: tied; its rank may be any from 2 to 3"


def test_a_row_that_is_told_from_all_has_one_rank(noisy_between: tuple[Suite, list[Record], Ranking]) -> None:
    suite, records, _ = noisy_between
    two = make_suite("base", LR["fast"], seeds=suite.seeds, decide={"constraints": []})
    ranking = rank(two, [record for record in records if record.trial.option != "noisy"])
    assert [rank_text(row) for row in ranking.rows] == ["1", "2"]
    assert ties_note(ranking) == []
    assert "its rank may be any" not in render(two, ranking, records[:5], {}, COMMAND)


def test_every_report_shows_the_ranges_and_says_what_they_mean(
    noisy_between: tuple[Suite, list[Record], Ranking],
) -> None:
    suite, records, ranking = noisy_between
    terminal = io.StringIO()
    print_document(Console(file=terminal, width=200), summary(ranking))
    page = render_page(suite, ranking, records, {}, COMMAND)
    for text in (terminal.getvalue(), render(suite, ranking, records, {}, COMMAND), page):
        assert NOTE in text
        assert "2-3" in text
        assert not re.search(r"\b[123]=(?!\")", text)
    assert re.findall(r'<td data-value="(\d)">(\d-\d)</td><th scope="row">', page) == [
        ("1", "1-2"), ("2", "1-3"), ("3", "2-3"),
    ]  # fmt: skip
