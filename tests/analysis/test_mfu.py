"""Shares of the GPUs' arithmetic: by hand, in the right dtype, and unknown with the reason."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import ARCHITECTURE, make_meters, make_record, make_suite
from msgspec.structs import replace

from selectbench.analysis.metrics import (
    IMPOSSIBLE,
    IMPOSSIBLE_RATE,
    SHARES,
    Observed,
    Utilization,
    UtilizationName,
    hardware_flops_per_token,
    model_flops_per_token,
    observe,
    utilization,
)
from selectbench.analysis.ranking import rank
from selectbench.choices import REGISTRY
from selectbench.record.record import Meters
from selectbench.suite.metrics import METRICS

BIG = replace(ARCHITECTURE, matmul_parameters=10**9, block_matmul_parameters=8 * 10**8)
RATES = {"float32": 5e13, "tf32": 4e14, "bfloat16": 8e14, "float16": 8e14}
UNMEASURED = "no bfloat16 rate was measured on NVIDIA H100 80GB HBM3 (doctor --calibrate does)"
MEASURED = {"matmul_flops_per_second": RATES}


def observed(*gpus: dict[str, Any], choices: dict[str, Any] | None = None, **measured: Any) -> Observed:
    """A trial of 50 steps of 2,048 tokens in 10 s: 10,240 tokens/s."""
    suite = make_suite(("fp32", {"precision": {"name": "bf16_mixed"}, **(choices or {})}))
    meters = measured.pop("meters", make_meters(*gpus))
    identity = {"world_size": measured.pop("world_size", max(1, len(gpus)))}
    shape = measured.pop("architecture", BIG)
    record = make_record("fp32", 0, meters=meters, identity=identity, architecture=shape, **measured)
    return observe(record, suite)


def shares(*gpus: dict[str, Any], **changes: Any) -> list[float | None]:
    return [utilization(observed(*gpus, **changes), share).share for share in SHARES]


CHECKPOINTED = {"activation_checkpointing": {"name": "full"}}


def test_by_hand() -> None:
    # 6e9 + 12 x 128 x 128 FLOPs a token; 989.4e12 is the H100 SXM's dense bf16 peak.
    work = 6e9 + 12 * 128 * 128
    found = shares(MEASURED)
    assert found == pytest.approx([10_240 * work / 989.4e12] * 2 + [10_240 * work / 8e14], rel=1e-12)
    again = work + 2 * 8e8 + 4 * 128 * 128
    recomputed = shares(MEASURED, choices=CHECKPOINTED)
    assert recomputed == pytest.approx([found[0], 10_240 * again / 989.4e12, found[2]], rel=1e-12)


def test_several_gpus_share_the_work() -> None:
    alone, twice = shares(MEASURED), shares(MEASURED, MEASURED)
    assert [value and value * 2 for value in twice] == pytest.approx(alone, rel=1e-12)
    mixed = utilization(observed({}, {"name": "NVIDIA H100 PCIe"}), "mfu").share
    assert mixed == pytest.approx(10_240 * model_flops_per_token(BIG) / (989.4e12 + 756e12), rel=1e-12)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", "float32"), ("tf32", "tf32"), ("bf16_mixed", "bfloat16"), ("fp16_mixed", "float16"),
     ("bf16_master", "bfloat16"), ("bf16_pure", "bfloat16")],
)  # fmt: skip
def test_every_precision_is_held_against_the_peak_of_its_own_products(precision: str, dtype: str) -> None:
    trial = observed(MEASURED, choices={"precision": {"name": precision}}, tokens_per_step=100)
    assert trial.choices.matmul_dtype == dtype
    work = 500 * model_flops_per_token(BIG)
    peak = {"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12}[dtype]
    assert utilization(trial, "mfu").share == pytest.approx(work / peak, rel=1e-12)
    assert utilization(trial, "matmul_rate_share").share == pytest.approx(work / RATES[dtype], rel=1e-12)


def test_no_precision_was_forgotten() -> None:
    assert len(REGISTRY["precision"]) == 6


@pytest.mark.parametrize(
    ("share", "changes", "reason"),
    [
        ("mfu", {"architecture": None}, "this model's work does not follow from its shape"),
        ("mfu", {"timed_steps": 0}, "no step was timed"),
        ("mfu", {"timed_seconds": 0.0}, "no step was timed"),
        ("mfu", {"meters": None}, "the trial's GPUs were not metered"),
        ("mfu", {"meters": Meters(problem="no NVIDIA driver")}, "no NVIDIA driver"),
        ("mfu", {"world_size": 2}, "1 GPUs of 2 ranks were metered"),
        ("hfu", {"choices": {"framework": {"name": "ourlib.loop:train"}}},
         "what an own training loop computes is not seen"),
        ("matmul_rate_share", {}, UNMEASURED),
        ("mfu", {"timed_seconds": 0.5}, IMPOSSIBLE),
    ],
)  # fmt: skip
def test_what_is_not_known_says_why(share: UtilizationName, changes: dict[str, Any], reason: str) -> None:
    assert utilization(observed({}, **changes), share) == Utilization(None, reason)


@pytest.mark.parametrize(
    ("gpu", "share", "reason"),
    [
        ({"name": "NVIDIA Mystery 9"}, "mfu", "no data sheet's peak of NVIDIA Mystery 9 in bfloat16 is known"),
        ({"name": "Tesla T4"}, "hfu", "no data sheet's peak of Tesla T4 in bfloat16 is known"),
        ({"is_mig": True}, "mfu", "a MIG slice has no data sheet"),
        ({"matmul_flops_per_second": {"float32": 1e13}}, "matmul_rate_share",
         UNMEASURED),
        ({"matmul_flops_per_second": {"bfloat16": 1e12}}, "matmul_rate_share", None),
    ],
)  # fmt: skip
def test_one_unknown_gpu_makes_the_whole_unknown(
    gpu: dict[str, Any], share: UtilizationName, reason: str | None
) -> None:
    for gpus in ((MEASURED, gpu), (gpu, MEASURED), (gpu,)):
        found = utilization(observed(*gpus, timed_seconds=1000.0), share)
        assert found.reason == reason
        assert (found.share is None) == (reason is not None)


def test_a_slice_has_a_measured_rate_of_its_own() -> None:
    found = shares({"is_mig": True, **MEASURED})
    assert found[:2] == [None, None]
    assert found[2] == pytest.approx(10_240 * model_flops_per_token(BIG) / 8e14)


def test_a_share_above_one_is_withheld_and_warned_of() -> None:
    suite = make_suite("fp32", device="cuda")
    slow = {"matmul_flops_per_second": {"float32": 1e12}}
    records = [make_record("fp32", s, meters=make_meters(slow), architecture=BIG, timed_seconds=seconds)
               for s, seconds in enumerate((1.0, 10.0, 200.0))]  # fmt: skip
    ranking = rank(suite, records)
    assert f"fp32: utilisation {IMPOSSIBLE}, so it is withheld (seed 0)" in ranking.warnings
    assert f"fp32: utilisation {IMPOSSIBLE_RATE}, so it is withheld (seed 0, 1, 2)" in ranking.warnings
    (row,) = ranking.rows
    assert row.metrics["mfu"].n == 2
    assert row.metrics["matmul_rate_share"].value is None
    assert row.gpu is not None
    assert [unknown.seeds for unknown in row.gpu.arithmetic.unknown["mfu"]] == [[0]]


def test_the_row_says_what_the_shares_are_of() -> None:
    suite = make_suite(("fp32", {"precision": {"name": "bf16_mixed"}, **CHECKPOINTED}), device="cuda")
    gpus = make_meters(MEASURED, MEASURED)
    records = [make_record("fp32", s, meters=gpus, architecture=BIG, identity={"world_size": 2}) for s in range(3)]
    (row,) = rank(suite, records).rows
    assert row.gpu is not None
    assert row.gpu.arithmetic.model_dump() == {
        "dtype": "bfloat16", "model_flops_per_token": model_flops_per_token(BIG),
        "hardware_flops_per_token": hardware_flops_per_token(BIG, recomputed=True),
        "peak_flops_per_second": pytest.approx(2 * 989.4e12), "matmul_flops_per_second": pytest.approx(1.6e15),
        "unknown": {},
    }  # fmt: skip


def test_the_row_gives_no_part_of_a_rate() -> None:
    suite = make_suite("fp32", device="cuda")
    gpus = make_meters(MEASURED, {"name": "NVIDIA Mystery 9"})
    (row,) = rank(suite, [make_record("fp32", 0, meters=gpus, identity={"world_size": 2})]).rows
    assert row.gpu is not None
    assert row.gpu.arithmetic.peak_flops_per_second is None
    assert row.gpu.arithmetic.matmul_flops_per_second is None
    assert row.gpu.arithmetic.model_flops_per_token is None


@given(st.floats(1e-3, 1e6), st.integers(1, 10**12), st.integers(1, 8))
def test_a_share_is_between_nought_and_one_or_not_known(seconds: float, parameters: int, gpus: int) -> None:
    shape = replace(ARCHITECTURE, matmul_parameters=parameters)
    trial = observed(*[MEASURED] * gpus, architecture=shape, timed_seconds=seconds, choices=CHECKPOINTED)
    mfu, hfu = utilization(trial, "mfu").share, utilization(trial, "hfu").share
    assert mfu is None or 0 < mfu <= 1
    assert hfu is None or mfu is None or mfu <= hfu <= 1


def test_the_state_of_the_gpus_spoils_them() -> None:
    assert {METRICS[share].spoiled_by for share in SHARES} == {frozenset({"throttled", "shared", "busy"})}
