import re
from pathlib import Path
from typing import Any

import pytest
from made_records import make_failure, make_record, make_suite, speed
from report.rendered import render, render_option

from selectbench.analysis.ranking import rank
from selectbench.errors import UserError
from selectbench.launch.publish import SHORT, StoredRun, report_text
from selectbench.record.record import Record
from selectbench.record.run_folder import append_record, read_records
from selectbench.report.files import escape as markdown

EVIL = "[red]|<b>`x`"
ENVIRONMENT: dict[str, Any] = {
    "machine": {"cores": 2.0, "gpu": None}, "flags": [], "gpus": [{"name": "H|200"}],
    "libraries": {"torch": "2.13"},
}  # fmt: skip


def make_run(name: str = "bf16") -> tuple[Any, list[Record]]:
    suite = make_suite("fp32", (name, {"precision": {"name": "bf16_mixed"}}))
    records = [make_record("fp32", s, **speed(100 + s)) for s in range(3)]
    records += [make_record(name, s, **speed(200 + s)) for s in range(2)]
    long = "exit status 1\n" + "x" * 300 + "\n```\nRuntimeError: boom"
    return suite, [*records, make_failure(name, 2, "crashed", long)]


def rendered(name: str = "bf16") -> str:
    suite, records = make_run(name)
    return render(suite, rank(suite, records), records, ENVIRONMENT, "selectbench run suites/precision.yaml")


def test_less_held_out_text_than_asked_is_told_with_the_answer() -> None:
    suite, records = make_run()
    facts = {"kind": "text", "heldout_tokens": 3 * 128 + 1}
    for data, told in ((facts, True), ({**facts, "heldout_tokens": 1 << 17}, False), ({}, False)):
        stored = StoredRun("run", suite, records, {**ENVIRONMENT, "data": data}, declared=suite)
        ranking = stored.ranking()
        text = report_text(stored, ranking)
        assert (SHORT in ranking.answer) is told
        assert (f"**{markdown(ranking.answer)}**" in text) is True
        assert ("- the held-out text gives 384 tokens, job.eval.tokens asks for 65,536" in text) is told
    pairs = StoredRun("run", suite, records, {"data": {**facts, "kind": "pairs"}}, declared=suite)
    assert "the held-out text gives 16,384 tokens" in pairs.ranking().warnings[0], "as many as were scored"


def test_the_report_from_records_on_disk_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    suite, records = make_run()
    for record in records:
        append_record(tmp_path / "records.jsonl", record)
    again, notes = read_records(tmp_path / "records.jsonl")
    assert notes == []
    reread = type(suite).model_validate_json(suite.model_dump_json())
    text = render(reread, rank(reread, again), again, ENVIRONMENT, "selectbench run suites/precision.yaml")
    assert text.encode() == rendered().encode()


def test_the_answer_stands_before_the_table_and_all_parts_are_there() -> None:
    text = rendered()
    parts = ["**bf16 is the fastest", "## Ranking", "## Constraints", "## Failed trials", "## How it was measured",
             "    selectbench run suites/precision.yaml", "## Environment"]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "| 1 | bf16 | precision | 2 of 3 | 1 crashed | 200 ±0.71 | 2.00x (" in text
    assert "| machine.gpu | - |" in text
    assert "RuntimeError: boom" in text
    assert "2,048 tokens a step, 122,880 in all" in text
    assert "says nothing of GPU memory" in text


def test_every_table_keeps_its_columns_whatever_the_names() -> None:
    for block in rendered(EVIL).split("\n\n"):
        if block.startswith("| "):
            columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(columns) == 1, block


def test_markup_in_names_is_escaped_everywhere() -> None:
    prose = "\n".join(line for line in rendered(EVIL).splitlines() if not line.startswith("    "))
    assert EVIL not in prose
    assert r"\[red\]\|\<b\>\`x\`" in prose


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("bf16_mixed", "bf16_mixed"), ("_x_", r"\_x\_"), ("a\nb", "a b"), ("a*b", r"a\*b"), ("\x1b[1mx\x1b[0m", "x")],
)
def test_escape(text: str, escaped: str) -> None:
    assert markdown(text) == escaped


def test_equal_failures_of_several_seeds_are_one_line() -> None:
    suite = make_suite("fp32", seeds=[0, 1, 2])
    records = [make_failure("fp32", s, "unsupported", "no GPU") for s in range(3)]
    text = render(suite, rank(suite, records), records, {}, "x")
    assert "| fp32 | 0, 1, 2 | unsupported | no GPU |" in text


def test_a_quick_run_says_that_quality_was_not_measured() -> None:
    suite = make_suite("fp32", quick=True, job={"eval": "none"})
    blind = {"final_loss": None, "heldout_tokens": None, "heldout_bytes": None}
    records = [make_record("fp32", s, **blind) for s in range(3)]
    text = render(suite, rank(suite, records), records, {}, "x")
    assert "- Quality was not measured." in text
    assert "perplexity" not in text.split("## How")[0].split("## Ranking")[1]


def test_one_option_in_detail() -> None:
    suite, records = make_run()
    text = render_option(suite, rank(suite, records), records, "bf16")
    assert "Rank 1 of 2 ranked; differs from the baseline fp32 in precision." in text
    assert "| tokens_per_second | 200 | 201 |" in text
    assert "Seed 2, attempt 1, crashed:" in text


def test_an_option_in_detail_has_the_rank_of_the_ranking_and_the_baseline_is_no_difference() -> None:
    suite = make_suite("fp32", "alike", decide={"constraints": []})
    records = [make_record(name, s, **speed(100 + s)) for name in ("fp32", "alike") for s in range(3)]
    assert "Rank 1-2 (tied) of 2 ranked; is the baseline." in render_option(
        suite, rank(suite, records), records, "fp32"
    )


def test_an_option_that_is_not_there() -> None:
    suite, records = make_run()
    with pytest.raises(UserError, match=r"no option 'bf15'.*did you mean 'bf16'"):
        render_option(suite, rank(suite, records), records, "bf15")
