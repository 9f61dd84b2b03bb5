import io
from typing import Any

import pytest
from made_records import make_failure, make_record, make_suite, speed
from msgspec.structs import replace
from report.rendered import render
from rich.console import Console

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking
from selectbench.record.record import RankMemory, Script
from selectbench.report.ranking import same_job_lines
from selectbench.report.sections import summary
from selectbench.report.terminal import print_document

BF16 = ("bf16", {"precision": {"name": "bf16_mixed"}})
LION = ("lion", {"optimizer": {"name": "lion", "lr": 1e-4}})
FOUND: dict[str, dict[str, Any]] = {
    "bf16": {"compute_dtype": "bfloat16"}, "lion": {"optimizer": ["Lion32bit"]}, "fp32": {},
}  # fmt: skip


def ranking_of(*options: Any, found: dict[str, dict[str, Any]] | None = None) -> Ranking:
    suite = make_suite("fp32", *options, seeds=[0, 1])
    changes = {**FOUND, **(found or {})}
    return rank(suite, [make_record(o.name, s, identity=changes[o.name]) for o in suite.options for s in (0, 1)])


def printed(ranking: Ranking) -> str:
    file = io.StringIO()
    print_document(Console(file=file, width=400), summary(ranking))
    return file.getvalue()


def test_one_row_that_differs_as_declared() -> None:
    line = (
        "Same job: bf16 differs from fp32 only in compute dtype (declared: precision); weights, tokens, evaluation "
        "set, schedule and step count are the same."
    )
    assert same_job_lines(ranking_of(BF16)) == [line]
    assert line in printed(ranking_of(BF16))


def test_rows_that_differ_otherwise_share_a_line() -> None:
    ranking = ranking_of(BF16, LION)
    (line,) = same_job_lines(ranking)
    assert line.startswith("Same job: every other row differs from fp32 at most in compute dtype and optimizer")


def test_rows_that_share_a_sentence_say_it_once() -> None:
    fp16 = ("fp16", {"precision": {"name": "fp16_mixed"}})
    ranking = ranking_of(BF16, fp16, found={"fp16": {"compute_dtype": "float16"}})
    (line,) = same_job_lines(ranking)
    assert line.startswith("Same job: every other row differs from fp32 only in compute dtype")


def test_what_differs_is_not_said_to_be_the_same() -> None:
    fp16 = ("fp16", {"precision": {"name": "fp16_mixed"}})
    (line,) = same_job_lines(ranking_of(fp16, found={"fp16": {"steps_applied": 59}}))
    assert "only in steps applied and compute dtype (declared: precision)" in line
    assert line.endswith("weights, tokens, evaluation set and schedule are the same.")


def test_no_evaluation_set_is_claimed_where_there_was_none() -> None:
    suite = make_suite("fp32", "again", seeds=[0], job={"eval": "none"})
    blind: dict[str, Any] = {"final_loss": None, "identity": {"evaluation_set_sha256": None}}
    (line,) = same_job_lines(rank(suite, [make_record(o, 0, **blind) for o in ("fp32", "again")]))
    assert line == (
        "Same job: again differs from fp32 in nothing that was checked; weights, tokens, schedule and step count "
        "are the same."
    )


def test_what_is_not_verified_is_said_and_not_claimed() -> None:
    found = {"bf16": {"compute_dtype": "bfloat16", "token_stream_sha256": None, "first_step_gradient_norm": None}}
    same, hidden = same_job_lines(ranking_of(BF16, found=found))
    assert same.startswith("Same job, as far as verified: bf16")
    assert same.endswith("; weights, evaluation set, schedule and step count are the same.")
    assert hidden == "Not verified: token stream (bf16); first step gradient norm (bf16)."
    assert hidden in printed(ranking_of(BF16, found=found))


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ("initial_weights_sha256", "weights"),
        ("token_stream_sha256", "tokens"),
        ("learning_rate_shape_sha256", "schedule"),
    ],
)
def test_what_is_not_verified_for_a_reason_is_not_claimed_either(field: str, word: str) -> None:
    script = Script(arguments=[], not_seen={field: "nothing of it was seen"})
    unseen = replace(make_record("bf16", 0, identity={field: None}), script=script)
    same, hidden = same_job_lines(rank(make_suite("fp32", BF16, seeds=[0]), [make_record("fp32", 0), unseen]))
    assert word not in same.partition(";")[2]
    assert f"{field.removesuffix('_sha256').replace('_', ' ')}: nothing of it was seen (bf16)" in hidden


def test_without_an_identity_nothing_is_said_to_be_the_same() -> None:
    records = [make_record("fp32", 0), replace(make_record("bf16", 0), identity=None)]
    assert same_job_lines(rank(make_suite("fp32", BF16, seeds=[0]), records)) == [
        "Not verified: identity: none recorded for seed 0 (bf16)."
    ]


def test_a_violation_is_a_short_line_with_both_values() -> None:
    found = {"bf16": {"initial_weights_sha256": "f" * 64, "attention": "eager"}}
    ranking = ranking_of(BF16, LION, found=found)
    expected = [
        "bf16: not the same job: initial_weights_sha256 is ffffffffffff, aaaaaaaaaaaa for fp32 (seeds 0, 1)",
        "bf16: not the same job: attention: asked sdpa, found eager (seeds 0, 1)",
    ]
    text = printed(ranking)
    for line in expected:
        assert line in text
    assert "not comparable" in text
    assert "every other row" not in text
    assert "Not ranked: bf16 (did another job)." in text


def test_the_report_has_a_section_for_it() -> None:
    suite = make_suite("fp32", BF16, seeds=[0, 1])
    records = [make_record(o, s, identity=FOUND[o]) for o in ("fp32", "bf16") for s in (0, 1)]
    text = render(suite, rank(suite, records), records, {}, "x")
    assert "## Whether it was the same job\n\n- Same job: bf16 differs from fp32 only in compute dtype" in text
    assert "compared with the baseline's of the same seed" in text
    assert "here no row differs undeclared" in text
    assert "## Memory by rank" not in text
    assert "speed-up" not in text


def test_nothing_is_said_where_nothing_can_be_compared() -> None:
    records = [make_record("fp32", 0), make_failure("bf16", 0, "oom")]
    ranking = rank(make_suite("fp32", BF16, seeds=[0]), records)
    assert same_job_lines(ranking) == []


def test_where_the_baseline_failed_the_sentence_names_what_took_its_place() -> None:
    records = [make_failure("fp32", 0, "oom"), make_record("bf16", 0, identity=FOUND["bf16"]),
               make_record("lion", 0, identity=FOUND["lion"])]  # fmt: skip
    (line,) = same_job_lines(rank(make_suite("fp32", BF16, LION, seeds=[0]), records))
    assert line.startswith("Same job: lion differs from bf16 only in compute dtype and optimizer, as declared;")


def two_ranks(count: int = 2) -> tuple[Any, list[Any]]:
    suite = make_suite(
        "single",
        ("fsdp", {"strategy": {"name": "fsdp"}, "world_size": count, "micro_batch_size": 1}),
        ("one", {"strategy": {"name": "fsdp"}}),
        seeds=[0, 1],
    )
    ranks = [
        RankMemory(rank=n, peak_pss_growth_bytes=(n + 1) << 20, parameter_bytes=2 << 20, gradient_bytes=2 << 20,
                   optimizer_state_bytes=4 << 20)
        for n in range(count)
    ]  # fmt: skip
    found = {"strategy": "FSDPModule", "world_size": count, "gradient_accumulation_steps": 16 // count}
    records = [
        [make_record("single", seed, **speed(100)),
         make_record("fsdp", seed, identity=found, memory_by_rank=ranks, **speed(150)),
         make_record("one", seed, identity={"strategy": "FSDPModule"}, **speed(90))]
        for seed in (0, 1)
    ]  # fmt: skip
    return suite, [record for own in records for record in own]


def test_ranks_in_the_report() -> None:
    suite, records = two_ranks()
    text = render(suite, rank(suite, records), records, {}, "x")
    assert "| fsdp | 2 | 1.00 MiB, 2.00 MiB | 7.63 MiB / 8.00 MiB |" in text
    assert "arXiv:1910.02054" in text
    assert "| ranks | speed-up | efficiency |" in text
    assert "| 2 | 1.50x | - |" in text
    assert "- one: no evidence about sharding at one rank." in text
    assert "say nothing of NCCL on GPUs" in text


def test_ranks_in_the_terminal() -> None:
    suite, records = two_ranks()
    text = printed(rank(suite, records))
    assert "vs base" not in text
    for word in ("speed-up", "efficiency", "1.50x", "one: no evidence about sharding at one rank", "over gloo"):
        assert word in text


def test_ranks_fit_a_terminal_of_80_columns() -> None:
    suite, records = two_ranks()
    file = io.StringIO()
    print_document(Console(file=file, width=80), summary(rank(suite, records)))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    (row,) = (line.split() for line in lines if line.startswith(" 1  fsdp"))
    assert row == ["1", "fsdp", "150", "1.50x", "244.7", "300", "MiB", "2", "-", "2"]


def test_many_ranks_are_shown_by_their_range() -> None:
    suite, records = two_ranks(16)
    text = render(suite, rank(suite, records), records, {}, "x")
    assert "| fsdp | 16 | 1.00 MiB to 16.0 MiB |" in text


def test_speed_up_has_a_column_of_its_own_where_something_else_ranks() -> None:
    suite, records = two_ranks()
    by_loss = suite.model_copy(update={"decide": suite.decide.model_copy(update={"objective": "final_loss"})})
    (head, row) = (
        line for line in printed(rank(by_loss, records)).splitlines() if "efficiency" in line or " fsdp  " in line
    )
    assert "vs base" in head
    assert row.split()[-4:] == ["2", "1.50x", "-", "2"]
