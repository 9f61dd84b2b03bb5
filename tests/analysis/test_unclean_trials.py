"""What throttled and shared GPUs do to means, ratios, ranks and the answer."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import HOT, SHARED, make_failure, make_meters, make_record, make_suite, speed
from msgspec.structs import replace

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking, Row
from selectbench.record.record import Meters, Record
from selectbench.report.ranking import cause_lines
from selectbench.suite.metrics import METRICS

BF16 = ("bf16", {"precision": {"name": "bf16_mixed"}})
CLEAN: dict[str, Any] = {}
UNKNOWN: dict[str, Any] = {"other_processes": None}


def suite_of(*options: Any, **changes: Any) -> Any:
    return make_suite(*options, **{"device": "cuda", **changes})


def trials(option: str, *runs: tuple[float, dict[str, Any]], **more: Any) -> list[Record]:
    """One trial for each pair of speed and GPU."""
    return [make_record(option, seed, meters=make_meters(gpu), **speed(fast), **more)
            for seed, (fast, gpu) in enumerate(runs)]  # fmt: skip


def row(ranking: Ranking, option: str) -> Row:
    return next(row for row in ranking.rows if row.option == option)


STEADY = trials("fp32", (100, CLEAN), (100, CLEAN), (100, CLEAN))


def test_a_throttled_seed_is_left_out_of_speed_and_kept_in_quality() -> None:
    records = STEADY + trials("bf16", (200, CLEAN), (50, HOT), (220, CLEAN), final_loss=5.4)
    ranking = rank(suite_of("fp32", BF16), records)
    found = row(ranking, "bf16").metrics["tokens_per_second"]
    assert (found.value, found.n, found.left_out, found.unclean) == (pytest.approx(44_000**0.5), 2, [1], False)
    assert found.ratio_to_baseline == pytest.approx(4.4**0.5)
    assert found.standard_deviation == pytest.approx(200**0.5)
    loss = row(ranking, "bf16").metrics["final_loss"]
    assert (loss.n, loss.left_out) == (3, [])
    assert "(2 to 3 seeds;" in ranking.answer
    (warning,) = ranking.warnings
    assert warning.startswith("bf16: seed 1 throttled: hardware thermal slowdown in 31% of the readings")
    assert warning.endswith("; left out of speed, energy and cost")


def test_an_option_that_was_never_clean_is_shown_but_neither_ranked_nor_compared() -> None:
    records = STEADY + trials("bf16", (900, HOT), (900, SHARED), (900, HOT))
    ranking = rank(suite_of("fp32", BF16), records)
    found = row(ranking, "bf16")
    speeds = found.metrics["tokens_per_second"]
    assert (found.rank, found.eligible, found.n) == (None, True, 3)
    assert (speeds.value, speeds.ratio_to_baseline, speeds.unclean) == (pytest.approx(900), None, True)
    assert "bf16 is the fastest" not in ranking.answer
    assert "Not ranked: bf16 (shared and throttled)." in ranking.answer
    assert found.metrics["final_loss"].ratio_to_baseline == pytest.approx(1)


def test_one_that_also_fails_a_constraint_is_not_called_better() -> None:
    records = STEADY + trials("bf16", (900, HOT), (900, HOT), (900, HOT), final_loss=6.5)
    ranking = rank(suite_of("fp32", BF16), records)
    assert row(ranking, "bf16").constraint_failures
    assert "Not ranked: bf16 (throttled)." in ranking.answer


def test_a_baseline_that_was_never_clean_gives_no_ratio_of_speed() -> None:
    records = trials("fp32", (100, HOT), (100, HOT), (100, HOT)) + trials("bf16", *[(200, CLEAN)] * 3)
    ranking = rank(suite_of("fp32", BF16), records)
    found = row(ranking, "bf16")
    assert found.rank == 1
    assert found.metrics["tokens_per_second"].ratio_to_baseline is None
    assert found.metrics["final_loss"].ratio_to_baseline == pytest.approx(1)
    assert "No ratios of speed, energy or cost: every trial of the baseline fp32 was throttled" in ranking.answer
    assert "2.00x" not in ranking.answer


def test_where_nothing_was_clean_there_is_no_answer() -> None:
    records = trials("fp32", *[(100, HOT)] * 3) + trials("bf16", *[(200, SHARED)] * 3)
    ranking = rank(suite_of("fp32", BF16), records)
    assert ranking.answer.startswith("No answer: no option completed with a clean tokens_per_second")
    assert [r.rank for r in ranking.rows] == [None, None]


def test_by_quality_an_unclean_option_is_ranked() -> None:
    suite = suite_of("fp32", BF16, decide={"objective": "final_loss", "constraints": []})
    ranking = rank(suite, STEADY + trials("bf16", *[(200, HOT)] * 3, final_loss=5.0))
    assert row(ranking, "bf16").rank == 1
    assert "Left out" not in ranking.answer


@pytest.mark.parametrize("constraint", ["tokens_per_second >= 150", "tokens_per_second >= 1.5x baseline"])
def test_a_constraint_on_speed_is_not_judged_by_throttled_trials(constraint: str) -> None:
    suite = suite_of("fp32", BF16, decide={"objective": "final_loss", "constraints": [constraint]})
    found = row(rank(suite, STEADY + trials("bf16", *[(900, HOT)] * 3)), "bf16").constraints[0]
    assert (found.verdict, found.detail) == ("not_judged", "every trial was throttled")
    relative = row(rank(suite, trials("fp32", *[(1, HOT)] * 3) + trials("bf16", *[(900, CLEAN)] * 3)), "bf16")
    judged = relative.constraints[0]
    assert judged.verdict == ("not_judged" if "baseline" in constraint else "holds")
    if judged.verdict == "not_judged":
        assert judged.detail == "every trial of the baseline fp32 was throttled"


def test_a_constraint_without_a_seed_that_both_had_clean_is_not_judged() -> None:
    suite = suite_of("fp32", BF16, seeds=[0, 1], decide={"constraints": ["tokens_per_second >= 1.5x baseline"]})
    records = trials("fp32", (100, CLEAN), (100, HOT)) + trials("bf16", (200, HOT), (200, CLEAN))
    found = row(rank(suite, records), "bf16").constraints[0]
    assert (found.verdict, found.detail) == ("not_judged", "no seed was clean with the baseline too")


@pytest.mark.parametrize("constraint", ["joules_per_token <= 1", "joules_per_token <= 2x baseline"])
def test_what_no_meter_told_fails_no_constraint(constraint: str) -> None:
    records = STEADY + trials("bf16", *[(200, {"metered_seconds": 1.0})] * 3)
    found = row(rank(suite_of("fp32", BF16, decide={"constraints": [constraint]}), records), "bf16")
    assert (found.constraints[0].verdict, found.rank) == ("not_judged", 1)
    assert found.constraints[0].detail == "no trial measured joules_per_token"


def test_throttling_leaves_the_devices_memory_sharing_spoils_it() -> None:
    peak = {"peak_device_memory_bytes": 21 << 30}
    records = trials(
        "fp32", (100, CLEAN), (100, {**HOT, **peak}), (100, {**SHARED, "peak_device_memory_bytes": 1 << 36})
    )
    found = rank(suite_of("fp32"), records).rows[0]
    memory = found.metrics["peak_device_memory_bytes"]
    assert (memory.value, memory.left_out) == (pytest.approx((8 * 20) ** 0.5 * (1 << 30)), [2])
    assert found.metrics["peak_memory_bytes"].left_out == []
    assert found.gpu is not None
    assert found.gpu.memory.peak_over_idle_bytes == memory.value
    assert found.gpu.memory.peak_bytes == (9 + 21) / 2 * (1 << 30)


def test_memory_of_the_gpu_that_needs_most_decides() -> None:
    meters = make_meters({}, {"peak_device_memory_bytes": 12 << 30, "idle_memory_bytes": 5 << 30})
    found = rank(suite_of("fp32", seeds=[0]), [make_record("fp32", 0, meters=meters)]).rows[0]
    assert found.metrics["peak_device_memory_bytes"].value == 8 << 30
    assert found.gpu is not None
    assert (found.gpu.memory.peak_bytes, found.gpu.memory.idle_bytes) == (12 << 30, 5 << 30)


@pytest.mark.parametrize("changes", [{"idle_memory_bytes": None}, {"peak_device_memory_bytes": None},
                                     {"peak_device_memory_bytes": 1, "idle_memory_bytes": 2}])  # fmt: skip
def test_memory_that_one_gpu_does_not_tell_is_unknown(changes: dict[str, Any]) -> None:
    record = make_record("fp32", 0, meters=make_meters({}, changes))
    found = rank(suite_of("fp32", seeds=[0]), [record]).rows[0]
    assert found.metrics["peak_device_memory_bytes"].value is None


def test_an_unknown_state_spoils_nothing() -> None:
    records = STEADY + trials("bf16", *[(200, UNKNOWN)] * 3)
    ranking = rank(suite_of("fp32", BF16), records)
    found = row(ranking, "bf16")
    assert (found.rank, found.metrics["tokens_per_second"].left_out) == (1, [])
    assert found.gpu is not None
    assert found.gpu.states == {"unknown": 3}
    assert ranking.warnings == []


def test_an_oom_on_a_shared_gpu_is_no_finding() -> None:
    alone, beside = (make_failure("bf16", seed, "oom", meters=make_meters(gpu))
                     for seed, gpu in enumerate((CLEAN, SHARED)))  # fmt: skip
    ranking = rank(suite_of("fp32", BF16), [*STEADY, alone, beside])
    found = row(ranking, "bf16")
    assert [failure.note for failure in found.failures] == [
        None, "this says nothing about the option: the GPU was shared: also used by process 4711 (python)",
    ]  # fmt: skip
    assert found.gpu is not None
    assert found.gpu.states == {"clean": 1, "shared": 1}
    assert "Not ranked: bf16 (oom)." in ranking.answer
    assert any("oom" in cause and "this says nothing about the option" in cause for cause in cause_lines(ranking))


@pytest.mark.parametrize(
    ("kind", "gpu", "noted"),
    [("oom", HOT, False), ("timeout", HOT, True), ("timeout", SHARED, True), ("diverged", SHARED, False)],
)
def test_only_what_the_state_may_cause_is_excused(kind: str, gpu: dict[str, Any], noted: bool) -> None:
    failure = make_failure("fp32", 0, kind, meters=make_meters(gpu))
    found = rank(suite_of("fp32", seeds=[0]), [failure]).rows[0].failures[0]
    assert (found.note is not None) is noted


def test_what_was_wrong_before_and_around_the_trial_is_told() -> None:
    unsettled = replace(make_meters(), settled=False)
    records = [make_record("fp32", 0, meters=unsettled), make_record("fp32", 1, meters=Meters(problem="no driver"))]
    warnings = rank(suite_of("fp32", seeds=[0, 1]), records).warnings
    assert any("was not back to where it was before" in line and "(seed 0)" in line for line in warnings)
    assert any(line.startswith("no GPU meters") and line.endswith("no driver") for line in warnings)


def test_on_a_cpu_missing_meters_are_no_warning() -> None:
    record = make_record("fp32", 0, meters=Meters(problem="the job runs on the cpu"))
    ranking = rank(make_suite("fp32", seeds=[0]), [record])
    assert ranking.warnings == []
    assert ranking.rows[0].gpu is None


def test_ranking_json_says_how_energy_came_about_and_what_is_not_known() -> None:
    short = {"metered_seconds": 2.0}
    runs = [(100, {"counter_joules": None}), (100, short), (100, HOT)]
    content = json.loads(json.dumps(rank(suite_of("fp32"), trials("fp32", *runs)).model_dump(mode="json")))
    gpu = content["rows"][0]["gpu"]
    assert gpu["energy_method"] == "instant_power"
    assert gpu["energy_unknown"] == [{"reason": "metered for 2.00 s, less than 5 s", "seeds": [1]}]
    assert gpu["states"] == {"clean": 2, "throttled": 1}
    assert [state["verdict"] for state in gpu["by_seed"]] == ["clean", "clean", "throttled"]
    assert gpu["clock_limit_shares"] == {"sw_power_cap": 0.4, "hw_thermal_slowdown": 0.0}
    assert gpu["state"]["highest_temperature_celsius"] == 61


def test_records_without_meters_have_no_gpu() -> None:
    found = rank(suite_of("fp32", seeds=[0]), [make_record("fp32", 0)]).rows[0]
    assert (found.gpu, found.cost_unknown) == (None, [])
    assert all(value.left_out == [] and not value.unclean for value in found.metrics.values())


def test_quality_is_spoiled_by_nothing_and_all_that_is_timed_by_both() -> None:
    for metric in METRICS.values():
        timed = (
            metric.name.endswith(("_seconds", "per_second", "joules_per_token", "_watts", "_to_baseline_loss"))
            or "usd" in metric.name
        )
        assert metric.spoiled_by >= {"throttled", "shared", "busy"} or not timed, metric.name
        assert not (metric.quality and metric.spoiled_by), metric.name


GPUS = st.sampled_from([CLEAN, HOT, SHARED, UNKNOWN])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 1e6), GPUS), min_size=6, max_size=6), st.floats(1e-3, 1e3))
def test_unclean_values_change_no_figure_while_there_are_clean_ones(
    runs: list[tuple[float, dict[str, Any]]], factor: float
) -> None:
    def ranked(scale: float) -> Ranking:
        scaled = [(fast * scale if gpu in (HOT, SHARED) else fast, gpu) for fast, gpu in runs]
        records = trials("fp32", *scaled[:3]) + trials("bf16", *scaled[3:])
        return rank(suite_of("fp32", BF16, decide={"constraints": []}), records)

    before, after = ranked(1.0), ranked(factor)
    for option in ("fp32", "bf16"):
        ours, theirs = (row(found, option) for found in (before, after))
        assert ours.rank == theirs.rank
        one, two = ours.metrics["tokens_per_second"], theirs.metrics["tokens_per_second"]
        assert one.ratio_to_baseline == two.ratio_to_baseline
        assert one == two or (one.unclean and two.unclean)
        assert not (one.unclean and ours.rank)
