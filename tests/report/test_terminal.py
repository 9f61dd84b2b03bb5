import io

import pytest
from made_records import make_failure, make_record, make_suite, speed
from rich.console import Console

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking
from selectbench.report.terminal import print_ranking

BF16 = ("bf16", {"precision": {"name": "bf16_mixed"}})
TF32 = ("tf32", {"precision": {"name": "tf32"}})


def printed(ranking: Ranking, width: int, colour: bool = False) -> str:
    file = io.StringIO()
    print_ranking(Console(file=file, width=width, force_terminal=colour), ranking)
    return file.getvalue()


def three_options(name: str = "bf16") -> Ranking:
    suite = make_suite("fp32", (name, BF16[1]), TF32)
    records = [make_record("fp32", s, **speed(11_420 + s)) for s in range(3)]
    records += [make_record(name, s, final_loss=5.6, **speed(15_000 + s)) for s in range(3)]
    records += [make_failure("tf32", s, "unsupported", "needs a cuda device") for s in range(3)]
    return rank(suite, records, ["a warning"])


def test_what_an_80_column_terminal_shows() -> None:
    text = printed(three_options(), 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("tokens/s", "vs base", "perplexity", "memory", "11,421", "1.31x", "unsupported", "fails"):
        assert word in text
    assert "tf32: unsupported: needs a cuda device" in text
    assert text.count("needs a cuda device") == 1
    assert "warning: a warning" in text
    assert " ".join(text.split()).endswith("Not ranked: tf32 (unsupported).")


def test_more_columns_where_there_is_room() -> None:
    assert "bits/byte" in printed(three_options(), 160)
    assert "bits/byte" not in printed(three_options(), 80)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = printed(three_options("a_very_long_name" * 8), width).splitlines()
    assert all(len(line) <= width for line in lines)


def test_the_objective_is_a_column_even_where_nothing_is_known() -> None:
    records = [make_failure("fp32", s, "oom", "CUDA out of memory") for s in range(3)]
    text = printed(rank(make_suite("fp32"), records), 80)
    assert "tokens/s" in text
    assert "oom" in text
    assert "nan" not in text
    assert "None" not in text


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", "a\x1b[31mb", "x\ny", "\x07bell"])
def test_markup_in_a_name_is_text(name: str) -> None:
    ranking = three_options(name)
    assert "\x1b[31mb" not in printed(ranking, 160, colour=True)
    plain = printed(ranking, 160)
    assert "\x07" not in plain
    if name.isprintable():
        assert name in plain
