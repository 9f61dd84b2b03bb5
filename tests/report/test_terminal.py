import io
import re

import pytest
from made_records import make_failure, make_record, make_suite, speed
from rich.console import Console

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking
from selectbench.report.document import labels
from selectbench.report.files import render_markdown
from selectbench.report.sections import option_report, report, summary
from selectbench.report.terminal import print_document

BF16 = ("bf16", {"precision": {"name": "bf16_mixed"}})
TF32 = ("tf32", {"precision": {"name": "tf32"}})


def printed(ranking: Ranking, width: int, colour: bool = False) -> str:
    file = io.StringIO()
    print_document(Console(file=file, width=width, force_terminal=colour), summary(ranking))
    return file.getvalue()


def test_settings_that_optimizers_choose_stand_beside_them_in_every_report():
    lion, faster = {"optimizer": {"name": "lion", "lr": 1e-4}}, {"optimizer": {"name": "adamw", "lr": 3e-3}}
    suite = make_suite("adamw", ("lion", lion), ("faster", faster))
    records = [make_record(name, seed) for name in ("adamw", "lion", "faster") for seed in range(3)]
    ranking = rank(suite, records)
    settings = "weight_decay 1 (0.1), beta2 0.99 (0.95)"
    own = {row.option: row.besides_the_rate for row in ranking.rows}
    assert own == {"adamw": [], "lion": settings.split(", "), "faster": []}
    told = " ".join(printed(ranking, 80).split())
    assert f"Besides the learning rate, optimizers differ in (the baseline's in brackets): lion: {settings}" in told
    markdown = render_markdown(report(suite, ranking, records, {}, "", "markdown"))
    assert f"| lion | optimizer; {settings} |" in markdown
    assert "Optimizers differ in more than the learning rate" in markdown
    opening = render_markdown(option_report(suite, ranking, records, "lion"))
    assert f"differs from the baseline adamw in optimizer ({settings})." in opening
    same = rank(make_suite("adamw", ("faster", faster)), [r for r in records if r.trial.option != "lion"])
    assert "differ in more than" not in render_markdown(report(suite, same, records, {}, "", "markdown"))
    assert "besides_the_rate" not in same.model_dump_json()


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
    assert " ".join(text.split()).endswith("Not ranked: bf16 (fails a constraint), tf32 (unsupported).")


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


GRID = [f"adamw lr={lr} weight_decay=0.1 + {p} + micro_batch_size={m}"
        for lr in ("0.001", "0.003") for p in ("fp32", "bf16_mixed") for m in (4, 8)]  # fmt: skip


def test_names_of_a_grid_keep_what_tells_them_apart_in_a_narrow_terminal() -> None:
    options = [(name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + i)}}) for i, name in enumerate(GRID)]
    records = [make_record(name, s, **speed(100 + 5 * i + s)) for i, name in enumerate(GRID) for s in range(3)]
    text = printed(rank(make_suite(*options), records), 80)
    rows = re.findall(r"^ +[\d-]+ +(0\.00[13] \+ (?:fp32|bf16_mixed) \+)", text, re.M)
    assert len(rows) == len(GRID)
    assert max(map(len, text.splitlines())) <= 80
    told = "Left out of the names, as all have it: adamw lr=, weight_decay=0.1, micro_batch_size=."
    assert told in " ".join(text.split())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["short", "other"], ["short", "other"]),
        (GRID[:2], ["4", "8"]),
        (["control", *GRID[::4]], ["control", "0.001", "0.003"]),
        (["x" * 40 + "1", "x" * 40 + "2"], ["x" * 10 + "...xxxxxx1", "x" * 10 + "...xxxxxx2"]),
        (["x" * 30 + c + "y" * 30 for c in "ab"], ["xxxxxxxxxxxx... #1", "xxxxxxxxxxxx... #2"]),
        (["a + b" * 9, "a + b" * 9 + "\x1b[31m!"], None),
    ],
)
def test_short_names_are_as_many_as_the_names(names: list[str], expected: list[str] | None) -> None:
    found = list(labels(names, 20)[0].values())
    assert len(set(found)) == len(names)
    assert all(len(label) <= 20 and label.isprintable() for label in found)
    if expected:
        assert [label[: len(wanted)] for label, wanted in zip(found, expected, strict=True)] == expected
