"""Cost at the suite's prices."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import make_meters, make_record, make_suite
from msgspec.structs import replace

from selectbench.analysis.metrics import derive, observe
from selectbench.analysis.ranking import rank
from selectbench.record.record import Record

RENT, POWER = {"usd_per_gpu_hour": 2.0}, {"usd_per_kwh": 0.25}


def metered(gpus: int = 1, seed: int = 0, **changes: Any) -> Record:
    return make_record("fp32", seed, identity={"world_size": gpus}, meters=make_meters(*([{}] * gpus)), **changes)


def costs(record: Record, cost: dict[str, float] | None, device: str = "cuda") -> tuple[float | None, float | None]:
    suite = make_suite("fp32", device=device, cost=cost)
    found = derive(observe(record, suite))
    return found["usd_per_billion_tokens"], found["usd_of_job"]


def test_by_hand() -> None:
    # 10,240 tokens/s on two GPUs of 300 W; the job: 60 steps of 2,048 tokens in 12.5 s.
    hours = 2 * 1e9 / 10_240 / 3600
    kwh = 600 / 10_240 * 1e9 / 3.6e6
    billion, job = costs(metered(2), {**RENT, **POWER})
    assert billion == pytest.approx(2.0 * hours + 0.25 * kwh)
    assert job == pytest.approx(2.0 * 2 * 12.5 / 3600 + 0.25 * 600 / 10_240 * 60 * 2048 / 3.6e6)


def test_skipped_steps_are_paid_for() -> None:
    whole = costs(metered(), POWER)[1]
    assert costs(metered(steps_applied=50, steps_skipped=10), POWER)[1] == pytest.approx(whole)


@pytest.mark.parametrize("cost", [RENT, POWER])
def test_evaluation_and_start_up_cost_nothing(cost: dict[str, float]) -> None:
    changed = metered(evaluation_seconds=1e6, startup_seconds=1e6)
    assert costs(changed, cost) == costs(metered(), cost)


PRICE = st.floats(1e-6, 1e4)


@given(PRICE, PRICE, st.integers(1, 8), st.floats(1, 1e6))
def test_the_two_prices_add_up(rent: float, power: float, gpus: int, seconds: float) -> None:
    record = metered(gpus, timed_seconds=seconds, training_seconds=seconds)
    both = costs(record, {"usd_per_gpu_hour": rent, "usd_per_kwh": power})
    parts = costs(record, {"usd_per_gpu_hour": rent}), costs(record, {"usd_per_kwh": power})
    for whole, one, other in zip(both, *parts, strict=True):
        assert whole == pytest.approx((one or 0) + (other or 0), rel=1e-9)


def test_without_prices_nothing_is_said() -> None:
    assert costs(metered(), None) == (None, None)
    assert rank(make_suite("fp32", device="cuda", seeds=[0]), [metered()]).rows[0].cost_unknown == []


def test_a_price_that_cannot_be_applied_leaves_no_part_of_the_cost() -> None:
    blind = replace(metered(), meters=make_meters({"metered_seconds": 3.0}))
    assert costs(blind, {**RENT, **POWER}) == (None, None)
    ranking = rank(make_suite("fp32", device="cuda", cost={**RENT, **POWER}, seeds=[0]), [blind])
    reason = "usd_per_kwh: the energy is not known: metered for 3.00 s, less than 5 s"
    assert f"cost is not known: {reason} (fp32)" in ranking.warnings
    assert [(u.reason, u.seeds) for u in ranking.rows[0].cost_unknown] == [(reason, [0])]


def test_rent_needs_no_meters() -> None:
    old = replace(metered(), meters=None)
    assert costs(old, RENT) == costs(metered(), RENT)


def test_rent_without_a_number_of_gpus_is_unknown() -> None:
    hidden = replace(metered(), identity=None)
    assert costs(hidden, RENT) == (None, None)
    assert costs(hidden, POWER)[0] is not None


@pytest.mark.parametrize("cost", [RENT, POWER])
def test_a_cpu_has_no_price(cost: dict[str, float]) -> None:
    assert costs(make_record("fp32", 0), cost, device="cpu") == (None, None)
    ranking = rank(make_suite("fp32", cost=cost, seeds=[0]), [make_record("fp32", 0)])
    assert "cost is not known: the job ran on the cpu, and the suite's prices are those of GPUs (fp32)" in (
        ranking.warnings
    )


def test_cheapest_is_an_objective() -> None:
    suite = make_suite("fp32", ("bf16", {"precision": {"name": "bf16_mixed"}}), device="cuda", cost=POWER,
                       seeds=[0, 1, 2],
                       decide={"objective": "usd_per_billion_tokens", "constraints": []})  # fmt: skip
    meters = make_meters({"counter_joules": 1500.0, "instant_power_joules": None})
    records = [replace(metered(), trial=make_record("fp32", s).trial) for s in range(3)]
    ranking = rank(suite, [*records, *(make_record("bf16", s, meters=meters) for s in range(3))])
    assert ranking.answer.startswith("bf16 is the cheapest: 1.02 USD per billion tokens, 0.50x the baseline")
