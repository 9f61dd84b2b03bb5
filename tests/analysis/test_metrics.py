import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import make_failure, make_record, make_suite

from selectbench.analysis.metrics import FORMULAS, observe
from selectbench.analysis.metrics import derive as derive_observed
from selectbench.analysis.summary import mean, standard_deviation
from selectbench.record.record import Measurement, Record
from selectbench.suite.metrics import METRICS


def derive(record: Record) -> dict[str, float | None]:
    return derive_observed(observe(record, make_suite("fp32")))


def test_metrics_of_a_trial_by_hand() -> None:
    found = derive(make_record("fp32", 0, timed_steps=50, timed_seconds=10.0, final_loss=2.0,
                               heldout_tokens=1000, heldout_bytes=4000))  # fmt: skip
    assert found["tokens_per_second"] == 50 * 2048 / 10
    assert found["final_perplexity"] == pytest.approx(7.389056098930650, rel=1e-12)
    # 2 nats x 1000 tokens = 2000 nats = 2885.39 bits over 4000 bytes
    assert found["bits_per_byte"] == pytest.approx(2885.390081777927 / 4000, rel=1e-12)
    assert found["peak_memory_bytes"] == 300 << 20
    assert found["skipped_share"] == 0


def test_one_bit_per_byte_is_a_fair_coin_per_byte() -> None:
    found = derive(make_record("fp32", 0, final_loss=math.log(2), heldout_tokens=77, heldout_bytes=77))
    assert found["bits_per_byte"] == pytest.approx(1.0, rel=1e-12)
    assert found["final_perplexity"] == pytest.approx(2.0, rel=1e-12)


@given(st.floats(0, 700), st.integers(1, 10**9), st.integers(1, 10**9))
def test_perplexity_to_bits_per_byte_by_another_road(loss: float, tokens: int, size: int) -> None:
    found = derive(make_record("fp32", 0, final_loss=loss, heldout_tokens=tokens, heldout_bytes=size))
    perplexity = found["final_perplexity"]
    assert perplexity is not None
    assert found["bits_per_byte"] == pytest.approx(math.log2(perplexity) * tokens / size, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({"final_loss": 1000.0}, "final_perplexity"),
        ({"final_loss": None}, "final_perplexity"),
        ({"final_loss": None}, "bits_per_byte"),
        ({"heldout_bytes": 0}, "bits_per_byte"),
        ({"heldout_tokens": None}, "bits_per_byte"),
        ({"timed_seconds": 0.0}, "tokens_per_second"),
        ({"timed_steps": 0}, "tokens_per_second"),
        ({"timed_steps": 10**400}, "tokens_per_second"),
        ({"timed_seconds": 5e-324}, "tokens_per_second"),
        ({"steps_applied": 0, "steps_skipped": 0}, "skipped_share"),
        ({"peak_pss_growth_bytes": None}, "peak_memory_bytes"),
    ],
)
def test_what_cannot_be_computed_is_none(changes: dict[str, float | None], unknown: str) -> None:
    assert derive(make_record("fp32", 0, **changes))[unknown] is None


def test_gpu_memory_is_the_allocators() -> None:
    record = make_record("fp32", 0, peak_memory_allocated_bytes=7, peak_pss_growth_bytes=9)
    assert derive(record)["peak_memory_bytes"] == 7


def test_a_failure_has_no_metrics() -> None:
    with pytest.raises(ValueError, match="failed"):
        derive(make_failure("fp32", 0, "oom"))


def test_direction() -> None:
    assert METRICS["tokens_per_second"].is_better(2, 1)
    assert METRICS["final_loss"].is_better(1, 2)


def test_mean_and_deviation_of_huge_numbers_stay_finite() -> None:
    assert mean([1.7e308, 1.7e308]) == pytest.approx(1.7e308)
    assert standard_deviation([1e308, 1.7e308]) == pytest.approx(0.7e308 / math.sqrt(2))
    assert standard_deviation([2.0, 4.0, 9.0]) == pytest.approx(math.sqrt(13))
    assert standard_deviation([5.0]) is None
    assert standard_deviation([5.0, 5.0]) == 0
    assert mean([]) is None


def test_every_metric_of_the_catalogue_has_one_formula() -> None:
    assert set(FORMULAS) == set(METRICS)
    for name, metric in METRICS.items():
        assert metric.measured_as is None or metric.measured_as in Measurement.__struct_fields__, name


@pytest.mark.parametrize("report", ["terminal", "markdown", "page"])
def test_no_two_columns_of_a_table_have_one_place(report: str) -> None:
    places = [metric.columns[report] for metric in METRICS.values() if report in metric.columns]
    assert sorted(places) == list(range(len(places)))
