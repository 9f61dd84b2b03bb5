import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import make_failure, make_record, make_suite, speed
from msgspec.structs import replace

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking, Row
from selectbench.analysis.summary import centre
from selectbench.record.record import Record
from selectbench.report.ranking import constraint_failure_lines

BF16 = ("bf16", {"precision": {"name": "bf16_mixed"}})
FP16 = ("fp16", {"precision": {"name": "fp16_mixed"}})


def trials(option: str, speeds: list[float], loss: float = 5.5, **more: Any) -> list[Record]:
    return [make_record(option, seed, final_loss=loss, **speed(s), **more) for seed, s in enumerate(speeds)]


def row(ranking: Ranking, option: str) -> Row:
    return next(row for row in ranking.rows if row.option == option)


def test_the_contract_of_ranking_json() -> None:
    ranking = rank(make_suite("fp32", BF16), trials("fp32", [100, 110, 120]) + trials("bf16", [200, 220, 240]))
    content = json.loads(json.dumps(ranking.model_dump(mode="json")))
    assert {"schema_version", "suite", "baseline", "question", "answer", "rows", "warnings"} <= set(content)
    assert content["schema_version"] == 3
    first = content["rows"][0]
    assert {"option", "rank", "status", "n", "differs_in", "metrics", "failures"} <= set(first)
    assert (first["option"], first["rank"], first["status"], first["n"]) == ("bf16", 1, "completed", 3)
    assert first["differs_in"] == ["precision"]
    assert {"tokens_per_second", "step_time_median_seconds", "peak_memory_bytes", "final_loss", "final_perplexity",
            "bits_per_byte"} <= set(first["metrics"])  # fmt: skip
    found = first["metrics"]["tokens_per_second"]
    assert found["value"] == pytest.approx((200 * 220 * 240) ** (1 / 3))
    assert found["ratio_to_baseline"] == pytest.approx(2)
    assert found["standard_deviation"] == pytest.approx(20)
    assert content["warnings"] == []


def test_less_is_better_where_the_objective_says_so() -> None:
    suite = make_suite("fp32", BF16, decide={"objective": "final_loss", "constraints": []})
    ranking = rank(suite, trials("fp32", [1, 1, 1], loss=5.0) + trials("bf16", [9, 9, 9], loss=4.0))
    assert [r.option for r in ranking.rows] == ["bf16", "fp32"]
    assert "reaches the lowest held-out loss" in ranking.answer


def test_ratios_are_paired_by_seed() -> None:
    records = trials("fp32", [100, 100, 400]) + trials("bf16", [150, 150])
    found = row(rank(make_suite("fp32", BF16), records), "bf16")
    assert found.metrics["tokens_per_second"].ratio_to_baseline == pytest.approx(1.5)


def test_a_figure_is_the_mean_that_goes_with_its_ratio() -> None:
    """The geometric one: 200 and 50 tokens/s are 100, which is the baseline's 100 times the ratio of 1."""
    ranking = rank(make_suite("fp32", BF16), trials("fp32", [100, 100]) + trials("bf16", [200, 50]))
    for name in ("tokens_per_second", "final_perplexity", "peak_memory_bytes"):
        own, base = (row(ranking, option).metrics[name] for option in ("bf16", "fp32"))
        assert own.value is not None
        assert base.value is not None
        assert own.value / base.value == pytest.approx(own.ratio_to_baseline)
    assert row(ranking, "bf16").metrics["tokens_per_second"].value == pytest.approx(100)


def test_a_mean_of_values_below_zero_is_the_arithmetic_one() -> None:
    assert centre([0.5, -0.1, 0.2]) == pytest.approx(0.2)
    assert centre([]) is None


def test_perplexity_goes_with_the_mean_of_the_losses() -> None:
    suite = make_suite("fp32", seeds=[0, 1])
    records = [make_record("fp32", 0, final_loss=0.0), make_record("fp32", 1, final_loss=2.0)]
    found = row(rank(suite, records), "fp32").metrics["final_perplexity"].value
    assert found == pytest.approx(2.718281828459045)


def test_a_faster_option_that_fails_the_constraint_is_not_ranked_and_named() -> None:
    records = trials("fp32", [100, 101, 102]) + trials("bf16", [200, 201, 202], loss=5.6)
    ranking = rank(make_suite("fp32", BF16), records)
    assert [(r.option, r.rank, r.eligible) for r in ranking.rows] == [("fp32", 1, True), ("bf16", None, False)]
    (why,) = constraint_failure_lines(row(ranking, "bf16"))
    assert why == "final_perplexity <= 1.01x baseline: final_perplexity is 1.105x baseline"
    assert "Not ranked: bf16 (fails a constraint)." in ranking.answer


def test_an_absolute_constraint() -> None:
    suite = make_suite("fp32", BF16, decide={"constraints": ["tokens_per_second >= 150"]})
    ranking = rank(suite, trials("fp32", [100] * 3) + trials("bf16", [200] * 3))
    assert [(r.option, r.rank) for r in ranking.rows] == [("bf16", 1), ("fp32", None)]


def test_a_perplexity_too_large_to_hold_fails_the_constraint() -> None:
    records = trials("fp32", [100] * 3) + trials("bf16", [200] * 3, loss=5000.0)
    found = row(rank(make_suite("fp32", BF16), records), "bf16")
    assert not found.eligible
    assert found.metrics["final_perplexity"].value is None


def test_a_diverged_seed_is_not_equal_quality() -> None:
    records = trials("fp32", [100] * 3) + trials("bf16", [200] * 2) + [make_failure("bf16", 2, "diverged")]
    found = row(rank(make_suite("fp32", BF16), records), "bf16")
    assert (found.status, found.n, found.rank) == ("partial", 2, None)
    assert "diverged with seed 2" in found.constraint_failures[0].detail


@pytest.mark.parametrize("changes", [{"quick": True}, {"job": {"eval": "none"}}])
def test_without_an_evaluation_nothing_is_said_of_quality(changes: dict[str, Any]) -> None:
    blind = {"final_loss": None, "heldout_tokens": None, "heldout_bytes": None}
    records = [make_record(o, s, **blind, **speed(v)) for o, v in (("fp32", 1), ("bf16", 2)) for s in range(3)]
    ranking = rank(make_suite("fp32", BF16, **changes), records)
    assert row(ranking, "bf16").rank == 1
    assert row(ranking, "bf16").constraints[0].verdict == "not_judged"
    assert "quality was not measured" in ranking.answer
    assert "of those that hold" not in ranking.answer
    assert "equal quality" not in ranking.answer


def test_no_comparison_where_the_baseline_failed() -> None:
    records = [make_failure("fp32", s, "oom") for s in range(3)] + trials("bf16", [200, 201, 202])
    ranking = rank(make_suite("fp32", BF16), records)
    assert "No comparison: the baseline fp32 did not complete (oom)." in ranking.answer
    assert row(ranking, "bf16").metrics["tokens_per_second"].ratio_to_baseline is None
    assert row(ranking, "bf16").constraints[0].verdict == "not_judged"
    assert ranking.rows[-1].option == "fp32"
    assert ranking.rows[-1].status == "failed"


def test_an_option_without_a_seed_of_the_baselines_is_not_taken_as_good() -> None:
    records = [make_record("fp32", 0), make_failure("fp32", 1, "crashed"), make_failure("bf16", 0, "crashed"),
               make_record("bf16", 1, **speed(1e6))]  # fmt: skip
    ranking = rank(make_suite("fp32", BF16, seeds=[0, 1]), records)
    assert row(ranking, "bf16").rank is None
    assert ranking.rows[0].option == "fp32"


def test_everything_failed() -> None:
    records = [make_failure(o, s, "crashed", "Segmentation fault") for o in ("fp32", "bf16") for s in range(3)]
    ranking = rank(make_suite("fp32", BF16), records)
    assert {r.status for r in ranking.rows} == {"failed"}
    assert all(r.rank is None for r in ranking.rows)
    assert all(m.value is None for r in ranking.rows for m in r.metrics.values())
    assert ranking.answer.startswith("No answer")
    assert ranking.rows[0].failures[0].detail == "Segmentation fault"


def test_a_run_without_records() -> None:
    ranking = rank(make_suite("fp32", BF16), [])
    assert {r.status for r in ranking.rows} == {"partial"}
    assert ranking.warnings == ["the run is incomplete: 6 trials have no outcome"]
    assert "Incomplete, 0 of 6 trials" in ranking.answer
    assert "it has not run yet" in ranking.answer


def test_missing_seeds_are_told() -> None:
    ranking = rank(make_suite("fp32", BF16), trials("fp32", [100, 101, 102]) + trials("bf16", [200]))
    found = row(ranking, "bf16")
    assert (found.status, found.n, found.missing_seeds) == ("partial", 1, [1, 2])
    assert ranking.warnings == ["the run is incomplete: 2 trials have no outcome"]
    assert ranking.answer.startswith("Incomplete, 4 of 6 trials have an outcome; so far:")


def test_a_single_trial_has_no_spread_and_nothing_to_compare() -> None:
    ranking = rank(make_suite("fp32", seeds=[0]), [make_record("fp32", 0)])
    assert "there is no other option" in ranking.answer
    assert "there is no measure of spread" in ranking.answer
    assert ranking.rows[0].metrics["tokens_per_second"].standard_deviation is None


def test_a_difference_within_the_spread_is_too_close_to_call() -> None:
    records = trials("fp32", [100, 110, 120]) + trials("bf16", [108, 100, 125])
    answer = rank(make_suite("fp32", BF16), records).answer
    assert answer.startswith("Too close to call between bf16 and fp32")


def test_a_difference_that_every_seed_shows_is_called_though_seeds_differ() -> None:
    records = trials("fp32", [100, 200, 300]) + trials("bf16", [110, 221, 329])
    assert rank(make_suite("fp32", BF16), records).answer.startswith("bf16 is the fastest")


def test_exactly_equal_figures_are_a_tie() -> None:
    records = trials("fp32", [100] * 3) + trials("bf16", [100] * 3)
    assert rank(make_suite("fp32", BF16), records).answer.startswith("No difference that matters between")


def test_the_last_attempt_counts() -> None:
    records = [
        make_failure("fp32", 0, "oom", attempt=1),
        make_failure("fp32", 0, "crashed", attempt=2),
        make_record("fp32", 0, attempt=3, **speed(300)),
    ]
    for order in (records, records[::-1]):
        found = rank(make_suite("fp32", seeds=[0]), order).rows[0]
        assert found.metrics["tokens_per_second"].value == pytest.approx(300)
        assert found.failures == []


def test_tuning_counts_for_nothing() -> None:
    record = replace(make_record("fp32", 0), phase="tune")
    assert rank(make_suite("fp32", seeds=[0]), [record]).rows[0].n == 0


def test_strangers_are_named_and_left_out() -> None:
    ranking = rank(make_suite("fp32", seeds=[0]), [make_record("fp32", 0), make_record("other", 0)])
    assert ranking.warnings == [
        "option other, seed 0: its record belongs to no trial of this suite and is left out"
    ]


def test_many_strangers_are_one_warning() -> None:
    strangers = [make_record("other", seed) for seed in range(2000)]
    (warning,) = rank(make_suite("fp32", seeds=[0]), [make_record("fp32", 0), *strangers]).warnings
    assert warning == (
        "option other, seed 0; option other, seed 1; option other, seed 2; option other, seed 3; option other, "
        "seed 4 and 1,995 more: its record belongs to no trial of this suite and is left out"
    )


def test_of_two_records_of_one_attempt_the_later_counts() -> None:
    first, again = make_record("fp32", 1, **speed(100)), make_record("fp32", 1, **speed(200))
    suite = make_suite("fp32", seeds=[1])
    assert rank(suite, [first, again]).rows[0].metrics["tokens_per_second"].value == pytest.approx(200)
    assert rank(suite, [first, again]).warnings == []
    same = make_record("fp32", 1, **speed(100))
    failed = [make_failure("fp32", 1, "oom", detail=detail) for detail in ("here", "there")]
    assert rank(suite, [*failed, replace(same, attempt=2)]).warnings == []
    assert rank(suite, [first, replace(again, phase="tune")]).warnings == []


def test_two_trials_for_one_place_the_latest_counts() -> None:
    old = make_record("fp32", 0, trial_id="z", attempt=9, started_at="2026-01-01T00:00:00Z", **speed(1))
    new = make_record("fp32", 0, trial_id="a", attempt=1, started_at="2026-01-02T00:00:00Z", **speed(2))
    for order in ([old, new], [new, old]):
        ranking = rank(make_suite("fp32", seeds=[0]), order)
        assert ranking.rows[0].metrics["tokens_per_second"].value == pytest.approx(2)


def test_another_job_is_not_comparable() -> None:
    records = trials("fp32", [100] * 3) + trials("bf16", [200] * 3, identity={"token_stream_sha256": "f" * 64})
    ranking = rank(make_suite("fp32", BF16), records)
    found = row(ranking, "bf16")
    assert (found.status, found.rank, found.eligible) == ("not_comparable", None, False)
    assert found.metrics["tokens_per_second"].ratio_to_baseline is None
    assert found.constraints == []
    assert row(ranking, "fp32").rank == 1
    assert "Not ranked: bf16 (did another job)" in ranking.answer


def test_the_certificate_in_ranking_json() -> None:
    records = trials("fp32", [100] * 3)
    records += trials("bf16", [200] * 3, identity={"compute_dtype": "bfloat16", "parameters": 5, "attention": None})
    content = rank(make_suite("fp32", BF16), records).model_dump(mode="json")
    rows = {row["option"]: row["identity"] for row in content["rows"]}
    assert rows["fp32"] == {
        "comparable": True, "compared_with": [], "differs_as_declared": [], "violations": [], "not_verified": [],
    }  # fmt: skip
    assert rows["bf16"]["comparable"] is False
    assert rows["bf16"]["differs_as_declared"] == ["compute_dtype"]
    assert rows["bf16"]["not_verified"] == [{"field": "attention", "reason": None}]
    (violation,) = rows["bf16"]["violations"]
    assert {key: violation[key] for key in ("field", "baseline", "option", "seeds")} == {
        "field": "parameters", "baseline": 1_000_000, "option": 5, "seeds": [0, 1, 2],
    }  # fmt: skip


def test_a_row_without_a_completed_seed_has_nothing_to_compare() -> None:
    records = trials("fp32", [100] * 3) + [make_failure("bf16", s, "oom") for s in range(3)]
    found = row(rank(make_suite("fp32", BF16), records), "bf16")
    assert (found.status, found.identity.comparable, found.identity.violations) == ("failed", None, [])


def test_what_a_choice_may_change_is_declared() -> None:
    records = trials("fp32", [100] * 3)
    changed = {"steps_applied": 58, "compute_dtype": "float16"}
    records += trials("fp16", [200] * 3, identity=changed, steps_applied=58, steps_skipped=2)
    ranking = rank(make_suite("fp32", FP16), records)
    assert row(ranking, "fp16").rank == 1
    assert ranking.warnings == ["fp16: more than 1% of the optimizer steps were skipped (seeds 0, 1, 2)"]


def test_a_choice_that_both_share_declares_nothing() -> None:
    other = ("lr", {"precision": {"name": "fp16_mixed"}, "optimizer": {"name": "adamw", "lr": 2e-3}})
    records = trials("fp16", [100] * 3) + trials("lr", [200] * 3, identity={"steps_applied": 58})
    assert row(rank(make_suite(FP16, other), records), "lr").status == "not_comparable"


def test_other_doubts_become_warnings() -> None:
    records = trials("fp32", [100] * 3, num_alloc_retries=2)
    records += trials("bf16", [200] * 3, recompilations=1)
    warnings = rank(make_suite("fp32", BF16), records, ["the corpus is repeated 9 times"]).warnings
    assert warnings[0] == "the corpus is repeated 9 times"
    text = "\n".join(warnings)
    assert "fp32: the allocator ran short" in text
    assert "bf16: a recompilation voided a timed window" in text


def test_kinds_of_memory_are_not_mixed_silently() -> None:
    records = trials("fp32", [100] * 3) + trials("bf16", [1] * 3, peak_memory_allocated_bytes=5)
    ranking = rank(make_suite("fp32", BF16), records)
    assert ranking.memory_kind is None
    assert "peak memory mixes different quantities" in ranking.warnings[0]


def test_a_zero_of_the_baseline_gives_no_ratio() -> None:
    records = trials("fp32", [100] * 3, peak_pss_growth_bytes=0) + trials("bf16", [100] * 3)
    found = row(rank(make_suite("fp32", BF16), records), "bf16").metrics["peak_memory_bytes"]
    assert found.value == 300 << 20
    assert found.ratio_to_baseline is None


OUTCOMES = st.sampled_from(["missing", "completed", "oom", "diverged", "interrupted"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(OUTCOMES, st.floats(1, 1e6), st.floats(0, 2000)), min_size=9, max_size=9), st.randoms())
def test_the_order_of_records_does_not_matter(
    cells: list[tuple[str, float, float]], shuffle: random.Random
) -> None:
    suite = make_suite("fp32", BF16, FP16)
    records = []
    for number, (outcome, fast, loss) in enumerate(cells):
        option, seed = ("fp32", "bf16", "fp16")[number // 3], number % 3
        if outcome == "completed":
            records += [make_failure(option, seed, "crashed")]
            records += [make_record(option, seed, attempt=2, final_loss=loss, **speed(fast))]
        elif outcome != "missing":
            records.append(make_failure(option, seed, outcome))
    expected = rank(suite, records)
    shuffle.shuffle(records)
    assert rank(suite, records) == expected
    ranks = [r.rank for r in expected.rows if r.rank is not None]
    assert ranks == sorted(ranks)
    assert all(rank <= place for place, rank in enumerate(ranks, start=1)), "ties share the better rank"
    json.dumps(expected.model_dump(mode="json"), allow_nan=False)


def test_a_stalled_trial_is_told_in_the_answer() -> None:
    held_up = make_record("fp32", 0, timed_seconds=16.0, step_time_median_seconds=0.2)
    steady = make_record("bf16", 0, timed_seconds=14.0, step_time_median_seconds=0.2)
    ranking = rank(make_suite("fp32", BF16, seeds=[0]), [held_up, steady])
    (warning,) = (line for line in ranking.warnings if "disturbed" in line)
    assert warning.startswith("fp32: timing disturbed: the mean step took more than 1.5 times the median one")
    assert "The timing of fp32 was disturbed" in ranking.answer


def test_a_window_that_is_too_short_is_told() -> None:
    short = make_record("fp32", 0, timed_seconds=0.9, timed_steps=5, step_time_median_seconds=0.18)
    ranking = rank(make_suite("fp32", seeds=[0]), [short])
    assert any("timed for less than 1 s" in line for line in ranking.warnings)


def test_an_interrupted_trial_is_no_outcome() -> None:
    records = [make_record("fp32", 0), make_failure("bf16", 0, "interrupted")]
    assert rank(make_suite("fp32", BF16, seeds=[0]), records).answer.startswith("Incomplete, 1 of 2 trials")
