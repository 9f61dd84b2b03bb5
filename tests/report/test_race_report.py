"""What the reports say of a race."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
from made_records import make_record, make_suite, speed
from rich.console import Console

from selectbench.analysis.race import open_trials
from selectbench.analysis.ranking import Ranking, rank
from selectbench.launch.publish import ranking_text
from selectbench.record.record import Record
from selectbench.report.markdown import render
from selectbench.report.page import render_page
from selectbench.report.terminal import print_ranking
from selectbench.suite.suite import Suite

LOGS = {"base": 0.0, "<b>up|": 0.5, "twin": 0.5, "down": -0.5}


def made(rounds: int = 4, **changes: Any) -> tuple[Suite, list[Record], Ranking]:
    """A race in which two options stay tied to the end; `rounds`: after which it is cut off."""
    options = [(name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + i)}}) for i, name in enumerate(LOGS)]
    content = {"seeds": [0, 1, 2, 3], "repeat": {"min": 3, "max": 4}, "decide": {"constraints": []}}
    suite = make_suite(*options, **{**content, **changes})
    records: list[Record] = []
    while trials := [(n, s) for n, s in open_trials(suite, records) if s < rounds]:
        for name, seed in trials:
            chance = 0.02 * math.sin(7 * seed + len(records))
            own = speed(1000 * math.exp(LOGS[name] + chance))
            records.append(make_record(name, seed, identity={"compute_dtype": "float32"}, **own))
    return suite, records, rank(suite, records)


def test_markdown_says_when_and_why_each_option_stopped_and_how_the_error_is_held() -> None:
    suite, records, ranking = made()
    text = render(suite, ranking, records, {}, "x")
    part = text[text.index("## How the race went") : text.index("## Which to take")]
    assert "14 of the 16 trials (88%) that 4 rounds of every option have were run" in part
    assert r"open after the last round: \<b\>up\|, twin." in part
    assert "| down | 3 | after 3 | shown to be worse than" in part
    assert "| 4 | no | open after 4 rounds: undecided against the leader" in part
    assert "2 looks at most" in part
    assert "Means are over the rounds that each option ran, which differ" in part
    assert "Every p is multiplied by 2 at a look before the last and by 2 at the last" in part
    for source in ("Dunn 1961", "Tamhane, Xi", "doi:10.1002/sim.9128"):
        assert source in part
    assert text.index("## Ranking") < text.index("## How the race went") < text.index("## How it was measured")
    assert "adjusted for the looks of the race too" in text[text.index("## How it was measured") :]
    assert "(at most 4 seeds)" in text


def test_the_page_has_the_same() -> None:
    suite, records, ranking = made()
    page = render_page(suite, ranking, records, {}, "x")
    part = page[page.index('id="race"') : page.index('id="pictures"')]
    assert "How the race went" in part
    assert '<td class="words">after 3</td>' in part
    assert "&lt;b&gt;up|" in part
    assert "<b>up" not in page
    assert "doi:10.1002/sim.9128" in part


def test_the_terminal_has_it_in_two_lines() -> None:
    out = io.StringIO()
    print_ranking(Console(file=out, width=400), made()[2])
    lines = out.getvalue().splitlines()
    assert any(line.startswith("14 of the 16 trials (88%)") for line in lines)
    assert any(line == "stopped: base, down after 3 rounds" for line in map(str.strip, lines))


def test_ranking_json_has_it() -> None:
    race = json.loads(ranking_text(made()[2]))["race"]
    assert {key: race[key] for key in race if key != "options"} == {
        "min": 3, "max": 4, "looks": 2, "rounds": 4, "ended": True, "open": ["<b>up|", "twin"], "trials_run": 14,
        "trials_planned": 16, "trials_saved": 2,
    }  # fmt: skip
    assert [(o["option"], o["rounds"], o["stopped_after"]) for o in race["options"]] == [
        ("base", 3, 3), ("<b>up|", 4, None), ("twin", 4, None), ("down", 3, 3),
    ]  # fmt: skip


def test_a_race_that_was_cut_off_goes_on() -> None:
    suite, records, ranking = made(rounds=3)
    assert "So far 12 of the 16 trials (75%)" in render(suite, ranking, records, {}, "x")
    assert ranking.warnings == ["the run is incomplete: 2 trials have no record"]


@pytest.mark.parametrize("rounds", [0, 1])
def test_before_the_first_look_nothing_is_said_of_options(rounds: int) -> None:
    suite, records, ranking = made(rounds=rounds)
    text = render(suite, ranking, records, {}, "x")
    assert "not judged yet: the first look is after 3 rounds" in text
    assert render_page(suite, ranking, records, {}, "x")


def test_without_repeat_no_report_speaks_of_a_race() -> None:
    suite, records, _ = made()
    plain = suite.model_copy(update={"repeat": None})
    ranking = rank(plain, records)
    out = io.StringIO()
    print_ranking(Console(file=out, width=400), ranking)
    reports = (
        render(plain, ranking, records, {}, "x"),
        render_page(plain, ranking, records, {}, "x"),
        out.getvalue(),
    )
    assert not any("race" in text.lower().replace("trace", "") for text in reports)
    assert "race" not in json.loads(ranking_text(ranking))
