"""The checks on real GPUs' figures find what is wrong, and say what is not known."""

from __future__ import annotations

from typing import Any

import pytest
from gpu_expectations import checks
from made_records import ARCHITECTURE, make_meters, make_record, make_suite, speed
from msgspec.structs import replace

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking
from selectbench.record.record import Architecture
from selectbench.suite.suite import Suite


def ranking(
    tokens_per_second: dict[str, float], suite: Any = None, architecture: Architecture | None = None, **gpu: Any
) -> tuple[Suite, Ranking]:
    records = [
        make_record(
            option, 0, meters=make_meters(gpu), peak_memory_allocated_bytes=6 << 30,
            peak_memory_reserved_bytes=7 << 30, architecture=architecture, **speed(value),
        )
        for option, value in tokens_per_second.items()
    ]  # fmt: skip
    made = suite or make_suite(*[(name, {"precision": {"name": name}}) for name in tokens_per_second], seeds=[0])
    return made, rank(made, records)


GOOD = {"fp32": 10_000.0, "tf32": 22_000.0, "fp16_mixed": 24_000.0, "bf16_mixed": 25_000.0}


def held(found: tuple[Suite, Ranking]) -> dict[str, bool]:
    return {check.what: check.holds for check in checks(*found)}


def test_usual_speeds_are_as_expected() -> None:
    found = held(ranking(GOOD))
    assert all(holds for what, holds in found.items() if "speed" in what or "loss" in what or "power" in what)
    assert sum("speed" in what for what in found) == 3


def test_a_speed_up_that_cannot_be_is_found() -> None:
    found = held(ranking({**GOOD, "tf32": 10_100.0}))
    assert not found["tf32: speed over fp32"]
    assert found["bf16_mixed: speed over fp32"]


def test_how_much_of_a_peak_is_believed_depends_on_the_units() -> None:
    """At 1e9 FLOPs a token an H100's sheet has 66.9 TFLOP/s without tensor cores, 494.7 and 989.4 with them."""
    shape = replace(ARCHITECTURE, matmul_parameters=10**9 // 6, attention_width=0)
    sheet = {"fp32": 66.9e3, "tf32": 494.7e3, "fp16_mixed": 989.4e3, "bf16_mixed": 989.4e3}

    def at(share: float) -> dict[str, bool]:
        found = held(ranking({name: share * peak for name, peak in sheet.items()}, architecture=shape))
        return {what.removesuffix(": MFU"): holds for what, holds in found.items() if what.endswith("MFU")}

    assert at(0.45) == dict.fromkeys(sheet, True)
    assert at(0.85) == {"fp32": True, "tf32": False, "fp16_mixed": False, "bf16_mixed": False}
    assert at(1.05) == dict.fromkeys(sheet, False)


def test_device_memory_below_the_allocators_is_found() -> None:
    good = held(ranking(GOOD, idle_memory_bytes=1 << 30, peak_device_memory_bytes=9 << 30))
    bad = held(ranking(GOOD, idle_memory_bytes=1 << 30, peak_device_memory_bytes=7 << 30))
    what = "fp32: device memory over the allocator's reserved memory"
    assert good[what]
    assert not bad[what]


@pytest.mark.parametrize(("joules", "holds"), [(3000.0, True), (30.0, False), (None, False)])
def test_a_power_that_no_board_draws_or_tells_is_found(joules: float | None, holds: bool) -> None:
    found = ranking(
        GOOD, counter_joules=joules, instant_power_joules=joules, average_power_joules=joules
    )  # fmt: skip
    assert held(found)["fp32: mean power, W"] == holds


def test_an_unknown_figure_departs_and_says_so() -> None:
    unmetered = ranking(GOOD, counter_joules=None, instant_power_joules=None, average_power_joules=None)
    (line,) = [str(check) for check in checks(*unmetered) if check.what == "fp32: mean power, W"]
    assert line.startswith("DEPARTS")
    assert "unknown" in line


def test_accumulation_that_is_faster_than_the_whole_is_found() -> None:
    def cut(quarters: float) -> dict[str, bool]:
        sizes = {"whole": 16, "halves": 8, "quarters": 4}
        suite = make_suite(*[(name, {"micro_batch_size": size}) for name, size in sizes.items()], seeds=[0])
        return held(ranking({"whole": 10_000.0, "halves": 9_800.0, "quarters": quarters}, suite))

    assert cut(9_500.0)["quarters: speed over whole's"]
    assert not cut(12_000.0)["quarters: speed over whole's"]
