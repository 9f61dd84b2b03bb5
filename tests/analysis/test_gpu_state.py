"""The rule that decides whether a trial's GPUs were in a state in which its figures count."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import HOT, SHARED, make_failure, make_meters, make_record

from selectbench.analysis.metrics import GPU_STATE_RULE, SLOWDOWNS, State, is_unclean, state_of
from selectbench.record.record import Meters


def state(*gpus: dict[str, Any], **changes: Any) -> State:
    found = state_of(make_record("fp32", 0, meters=make_meters(*gpus, **changes)))
    assert found is not None
    return found


def limits(**shares: float) -> dict[str, Any]:
    return {"clock_limit_shares": shares}


def test_a_gpu_that_nothing_disturbed_is_clean() -> None:
    assert state() == State("clean", "")


@pytest.mark.parametrize("meters", [None, Meters(problem="no NVIDIA driver")])
def test_without_gpu_meters_there_is_no_verdict(meters: Meters | None) -> None:
    record = make_record("fp32", 0, meters=meters)
    assert state_of(record) is None
    assert not is_unclean(record)


@pytest.mark.parametrize("reason", ["hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown",
                                    "hw_power_brake_slowdown"])  # fmt: skip
def test_each_slowdown_throttles_above_two_percent_and_not_at_it(reason: str) -> None:
    assert state(limits(**{reason: 0.02})).verdict == "clean"
    found = state(limits(**{reason: 0.021}))
    assert (found.verdict, found.detail) == ("throttled", f"{SLOWDOWNS[reason]} in 2.1% of the readings")


def test_shares_of_different_reasons_are_not_added_up() -> None:
    # A hardware thermal slowdown is told as a hardware slowdown too: their sum would count it twice.
    assert state(limits(hw_slowdown=0.015, hw_thermal_slowdown=0.015)).verdict == "clean"
    assert "the largest share of any" in GPU_STATE_RULE


@pytest.mark.parametrize("reason", ["sw_power_cap", "gpu_idle", "applications_clocks_setting", "sync_boost",
                                    "display_clock_setting"])  # fmt: skip
def test_what_the_option_or_the_owner_brings_about_spoils_nothing(reason: str) -> None:
    assert state(limits(**{reason: 1.0})) == State("clean", "")


def test_another_process_makes_it_shared_and_is_named() -> None:
    assert state(SHARED) == State("shared", "also used by process 4711 (python)")


def test_a_process_without_a_name() -> None:
    unseen = {"other_processes": [{"pid": 9, "name": None, "memory_bytes": None}]}
    assert state(unseen).detail == "also used by process 9"


def test_a_gpu_at_work_before_the_trial_is_shared() -> None:
    assert state({"idle_utilization": 0.05}).verdict == "clean"
    assert state({"idle_utilization": None}).verdict == "clean"
    assert state({"idle_utilization": 0.4}) == State("shared", "at work 40% of the time before the trial")


def test_shared_and_throttled_at_once_says_both() -> None:
    found = state({**SHARED, **HOT})
    assert found.verdict == "shared"
    assert found.detail == ("also used by process 4711 (python); hardware thermal slowdown in 31% of the readings")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clock_limit_shares": None}, "the reasons that hold the clocks down can't be read"),
        ({"other_processes": None}, "the list of processes shows not even the trial's own, as in most containers"),
        ({"readings": 0, "clock_limit_shares": None}, "no readings while it was timed"),
        ({"problem": "GPU is lost"}, "GPU is lost"),
    ],
)
def test_what_cannot_be_seen_is_unknown_and_not_unclean(changes: dict[str, Any], words: str) -> None:
    assert state(changes) == State("unknown", words)
    assert not is_unclean(make_record("fp32", 0, meters=make_meters(changes)))


def test_what_was_seen_weighs_more_than_what_was_not() -> None:
    assert state({**HOT, "other_processes": None}).verdict == "throttled"
    assert state({**SHARED, "clock_limit_shares": None}) == State("shared", "also used by process 4711 (python)")


def test_the_worst_gpu_decides_and_is_numbered() -> None:
    assert state({}, HOT) == State("throttled", "GPU 1: hardware thermal slowdown in 31% of the readings")
    assert state(HOT, SHARED).verdict == "shared"


def test_a_problem_of_all_the_readings_is_unknown() -> None:
    assert state(problem="the sampler stopped") == State("unknown", "the sampler stopped")


def test_a_failed_trial_has_a_verdict_too() -> None:
    failure = make_failure("fp32", 0, "oom", meters=make_meters(SHARED))
    found = state_of(failure)
    assert found is not None
    assert found.verdict == "shared"
    assert is_unclean(failure)


SEVERITY = ["clean", "unknown", "throttled", "shared"]
SHARES = st.one_of(st.none(), st.dictionaries(st.sampled_from([*SLOWDOWNS, "sw_power_cap"]), st.floats(0, 1)))
PROCESSES = st.sampled_from([None, [], SHARED["other_processes"]])
UTILIZATION = st.one_of(st.none(), st.floats(0, 1))
GPU = {"clock_limit_shares": SHARES, "other_processes": PROCESSES, "idle_utilization": UTILIZATION}
GPUS = st.lists(st.fixed_dictionaries({**GPU, "readings": st.integers(0, 2)}), min_size=1, max_size=3)


@given(GPUS, st.sampled_from(sorted(SLOWDOWNS)), st.floats(0, 1))
def test_more_against_a_gpu_never_betters_the_verdict(
    gpus: list[dict[str, Any]], reason: str, share: float
) -> None:
    before = SEVERITY.index(state(*gpus).verdict)
    shares = gpus[0]["clock_limit_shares"]
    hotter = {**gpus[0], **limits(**{**(shares or {}), reason: max(share, (shares or {}).get(reason, 0.0))})}
    if shares is not None:
        assert SEVERITY.index(state(hotter, *gpus[1:]).verdict) >= before
    assert SEVERITY.index(state({**gpus[0], **SHARED}, *gpus[1:]).verdict) >= before
    assert SEVERITY.index(state(*gpus, HOT).verdict) >= before


@given(GPUS, st.randoms())
def test_the_order_of_gpus_changes_no_verdict(gpus: list[dict[str, Any]], shuffle: Any) -> None:
    before = state(*gpus).verdict
    shuffle.shuffle(gpus)
    assert state(*gpus).verdict == before
