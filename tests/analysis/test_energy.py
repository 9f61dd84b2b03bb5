"""Energy of the timed windows, and the figure that it comes from."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import make_meters, make_record, make_suite

from selectbench.analysis.metrics import Energy, derive, energy, observe
from selectbench.record.record import Meters

NO_COUNTER: dict[str, Any] = {"counter_joules": None}
AVERAGE_ONLY: dict[str, Any] = {"counter_joules": None, "instant_power_joules": None}
NOTHING: dict[str, Any] = {**AVERAGE_ONLY, "average_power_joules": None}


def metrics(*gpus: dict[str, Any], **measured: Any) -> dict[str, float | None]:
    return derive(observe(make_record("fp32", 0, meters=make_meters(*gpus), **measured), make_suite("fp32")))


@pytest.mark.parametrize(
    ("changes", "joules", "method"),
    [
        ({}, 3000.0, "counter"),
        ({"instant_power_joules": None}, 3000.0, "counter"),
        (NO_COUNTER, 3030.0, "instant_power"),
        (AVERAGE_ONLY, 2900.0, "average_power"),
    ],
)
def test_the_most_direct_figure_is_taken(changes: dict[str, Any], joules: float, method: str) -> None:
    assert energy(make_meters(changes)) == Energy(joules / 10, method, None)  # type: ignore[arg-type]


def test_several_gpus_are_added_up_and_the_least_direct_method_is_named() -> None:
    found = energy(make_meters({}, NO_COUNTER))
    assert found == Energy(603.0, "instant_power", None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metered_seconds": 4.99}, "metered for 4.99 s, less than 5 s"),
        ({"metered_seconds": 0.0}, "metered for 0 s, less than 5 s"),
        (NOTHING, "the driver reports neither energy nor power"),
        ({"instant_power_joules": 2690.0}, "the energy counter says 3,000 J, integrated power 2,690 J"),
        ({"instant_power_joules": 3340.0}, "the energy counter says 3,000 J, integrated power 3,340 J"),
        ({"counter_joules": 0.0}, "the energy counter says 0 J, integrated power 3,030 J"),
        ({"is_mig": True}, "a MIG slice has no meters of its own: the board's are for all its slices"),
    ],
)
def test_what_is_not_known_says_why(changes: dict[str, Any], reason: str) -> None:
    for gpus in ([changes], [{}, changes], [changes, {}]):
        assert energy(make_meters(*gpus)) == Energy(None, None, reason)
    found = metrics(changes)
    assert found["joules_per_token"] is None
    assert found["mean_power_watts"] is None


@pytest.mark.parametrize("power", [2700.0, 3333.0])
def test_counter_and_power_within_a_tenth_agree(power: float) -> None:
    assert energy(make_meters({"instant_power_joules": power})).method == "counter"


def test_without_meters_the_reason_is_theirs() -> None:
    assert energy(None).reason == "the trial's GPUs were not metered"
    assert energy(Meters(problem="no NVIDIA driver")).reason == "no NVIDIA driver"


def test_joules_per_token_by_hand() -> None:
    # 3,000 J in 10 s; 50 steps of 2,048 tokens in 10 s.
    found = metrics(timed_steps=50, timed_seconds=10.0)
    assert found["mean_power_watts"] == pytest.approx(300)
    assert found["joules_per_token"] == pytest.approx(3000 / (50 * 2048))


def test_tokens_count_as_far_as_their_seconds_were_metered() -> None:
    # Half of the windows were metered: half of the tokens are the energy's.
    found = metrics({"metered_seconds": 10.0}, timed_steps=50, timed_seconds=20.0)
    assert found["joules_per_token"] == pytest.approx(3000 / (50 * 2048 / 2))


def test_nothing_timed_is_no_energy_per_token() -> None:
    assert metrics(timed_steps=0)["joules_per_token"] is None


GPU = st.fixed_dictionaries({
    "metered_seconds": st.floats(5, 1e4), "counter_joules": st.one_of(st.none(), st.floats(1, 1e7)),
    "instant_power_joules": st.none(), "average_power_joules": st.floats(1, 1e7),
})  # fmt: skip


@given(st.lists(GPU, min_size=1, max_size=4), st.lists(GPU, min_size=1, max_size=4))
def test_the_energy_of_two_groups_is_the_sum_of_theirs(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> None:
    one, two, both = (energy(make_meters(*gpus)) for gpus in (ours, theirs, ours + theirs))
    assert one.mean_power_watts is not None
    assert two.mean_power_watts is not None
    assert both.mean_power_watts == pytest.approx(one.mean_power_watts + two.mean_power_watts, rel=1e-9)
    assert {one.method, two.method} >= {both.method}


@given(st.floats(1, 1e6), st.floats(1e-3, 1e3))
def test_energy_per_token_does_not_depend_on_how_long_it_was_metered(joules: float, factor: float) -> None:
    seconds = max(5.0, 5.0 * factor)
    gpu = {"metered_seconds": seconds, "counter_joules": joules * seconds, "instant_power_joules": None}
    once = {"metered_seconds": 5.0, "counter_joules": joules * 5.0, "instant_power_joules": None}
    assert metrics(gpu)["joules_per_token"] == pytest.approx(metrics(once)["joules_per_token"], rel=1e-9)
