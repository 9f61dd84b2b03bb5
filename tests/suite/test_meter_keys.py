"""The suite's prices and how its GPUs are watched: read, checked, kept out of what identifies a trial."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from suite_texts import VALID, lines_of, write

from selectbench.suite.load import load_suite
from selectbench.suite.suite import Cost, MeterSettings


def load(folder, more="", **asked):
    return load_suite(str(write(folder, VALID + more)), **{"device": "cuda", **asked})


def test_nothing_given_means_defaults_and_a_resolved_file_without_them(tmp_path):
    suite = load(tmp_path)
    assert suite.cost is None
    assert suite.meters == MeterSettings(
        memory_interval_seconds=0.05, interval_seconds=0.1, settle_seconds=30.0, rerun_unclean=False
    )
    assert not {"cost", "meters"} & set(suite.resolved)


def test_what_is_given_is_resolved_and_loads_again(tmp_path):
    suite = load(tmp_path, "cost: {usd_per_gpu_hour: 2}\nmeters: {rerun_unclean: true}\n")
    assert suite.cost == Cost(usd_per_gpu_hour=2.0)
    assert suite.meters.rerun_unclean
    assert suite.resolved["cost"] == {"usd_per_gpu_hour": 2.0, "usd_per_kwh": None}
    assert suite.resolved["meters"]["settle_seconds"] == 30.0
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps(suite.resolved))
    assert load_suite(str(again), device="cpu") == suite


def test_the_command_line_and_a_profile_set_them(tmp_path):
    suite = load(tmp_path, "profiles: {cuda: {cost: {usd_per_kwh: 0.3}}}\n",
                 settings=["meters.interval_seconds=0.5"])  # fmt: skip
    assert suite.cost == Cost(usd_per_kwh=0.3)
    assert suite.meters.interval_seconds == 0.5


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("cost: {}\n", "a price is missing: usd_per_gpu_hour, usd_per_kwh or both"),
        ("cost: {usd_per_kwh: null}\n", "a price is missing"),
        ("cost: {usd_per_gpu_hour: 0}\n", "cost.usd_per_gpu_hour"),
        ("cost: {usd_per_kwh: -1}\n", "cost.usd_per_kwh"),
        ("cost: {usd_per_kwhh: 1}\n", "did you mean 'usd_per_kwh'"),
        ("meters: {interval_seconds: 0.001}\n", "meters.interval_seconds"),
        ("meters: {memory_interval_seconds: 11}\n", "meters.memory_interval_seconds"),
        ("meters: {settle_seconds: 3601}\n", "meters.settle_seconds"),
        ("meters: {settle_seconds: -1}\n", "meters.settle_seconds"),
        ("meters: {rerun_unclean: 3}\n", "meters.rerun_unclean"),
    ],
)
def test_mistakes_are_told_with_their_place(more, told, tmp_path):
    (line,) = lines_of(write(tmp_path, VALID + more), device="cuda")
    assert line.startswith("mine.yaml:14:")
    assert told in line


@pytest.mark.parametrize("edge", [{"interval_seconds": 0.005}, {"interval_seconds": 10.0}, {"settle_seconds": 0.0},
                                  {"settle_seconds": 3600.0}, {"memory_interval_seconds": 0.005}])  # fmt: skip
def test_the_bounds_themselves_are_allowed(edge):
    assert MeterSettings(**edge)


def test_a_price_without_a_number_is_refused():
    with pytest.raises(ValidationError):
        Cost(usd_per_kwh=float("inf"))


GPU_METRICS = ("peak_device_memory_bytes", "joules_per_token", "usd_per_billion_tokens")
PRICES = "cost: {usd_per_kwh: 0.3}\n"


@pytest.mark.parametrize("metric", GPU_METRICS)
def test_they_may_decide_on_a_gpu_and_not_on_a_cpu(metric, tmp_path):
    text = f"{PRICES}decide: {{objective: {metric}, constraints: ['{metric} <= 1.5x baseline']}}\n"
    assert load(tmp_path, text).decide.objective == metric
    lines = lines_of(write(tmp_path, VALID + text))
    assert len(lines) == 2
    assert all(f"{metric} is not measured: the job runs on the cpu" in line for line in lines)


def test_cost_decides_only_where_there_is_a_price(tmp_path):
    (line,) = lines_of(write(tmp_path, f"{VALID}decide: {{objective: usd_per_billion_tokens}}\n"), device="cuda")
    assert line.endswith("usd_per_billion_tokens is not measured: no price is given: "
                         "add `cost: {usd_per_gpu_hour: ...}`")  # fmt: skip


@pytest.mark.parametrize("metric", ["mfu", "hfu", "matmul_rate_share"])
@pytest.mark.parametrize("decide", ["objective: {}", "constraints: ['{} >= 0.4']"])
def test_utilization_decides_nothing(metric, decide, tmp_path):
    (line,) = lines_of(write(tmp_path, f"{VALID}decide: {{{decide.format(metric)}}}\n"), device="cuda")
    assert f"{metric} is shown and decides nothing: a share of one precision's rate says nothing" in line
