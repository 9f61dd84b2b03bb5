"""Matrix products are really measured, by a process of their own, and kept for the GPU that they ran on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stand_in import StandIn

from selectbench import doctor
from selectbench.doctor import calibrate
from selectbench.errors import UserError
from selectbench.gpu.devices import gpus, peak_flops_per_second
from selectbench.launch import preparation
from selectbench.record.environment import (
    Calibration,
    Rate,
    _calibration_file,
    read_calibration,
    stored_rates,
    write_calibration,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(name: str = "NVIDIA H100", **flops_per_second: float) -> Calibration:
    rates = {dtype: Rate(flops_per_second=rate, size=8192) for dtype, rate in flops_per_second.items()}
    return Calibration(name=name, rates=rates, torch_version="2.13.0", measured_at="2026-01-02T03:04:05Z")


def test_a_cpu_is_measured_and_only_shown(cache: Path) -> None:
    told: list[str] = []
    ((found, is_stored),) = calibrate(None, told.append, sizes=[64, 128])
    assert set(found.rates) == {"float32", "bfloat16", "float16"}
    assert all(rate.flops_per_second > 1e6 and rate.size in (64, 128) for rate in found.rates.values())
    assert found.torch_version == torch.__version__
    assert not is_stored
    assert not list(cache.glob("calibration*"))
    assert any("float32: " in line and "FLOP/s" in line for line in told)


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    code = "from selectbench.worker import runtime as c; c.SIZES = {'cpu': (32,)}; c.calibrate('cpu', (), 0.01)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["dtype"] for line in lines] == ["float32", "bfloat16", "float16"]
    assert all(line["problem"] is None and line["size"] == 32 for line in lines)


def test_a_child_that_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = tmp_path / "python"
    stuck.write_text("#!/bin/sh\nexec sleep 1000\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(preparation, "PROBE_SECONDS", 0.3)
    with pytest.raises(UserError, match=f"torch of python {stuck} does not name its GPUs within"):
        preparation.check_torch_shows([], str(stuck))
    monkeypatch.setattr(doctor, "CALIBRATION_SECONDS", 0.3)
    monkeypatch.setattr(doctor.sys, "executable", str(stuck))
    with pytest.raises(UserError, match="it takes longer than"):
        calibrate(None, lambda _: None)


def test_gpus_without_a_gpu_are_refused() -> None:
    with pytest.raises(UserError, match="there is no GPU to calibrate"):
        calibrate("0", lambda _: None)


def test_a_gpus_rates_are_kept_under_its_own_uuid(
    stand_in: StandIn, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measuring process is the real one, but for the device, which is not here."""
    stand_in.set(count=1)
    (gpu,) = gpus()
    monkeypatch.setenv("SELECTBENCH_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(doctor, "wrong_device_reason", lambda: None)
    monkeypatch.setattr(doctor, "check_torch_shows", lambda found, python: None)
    worker = tmp_path / "on_the_cpu"
    worker.write_text(
        f'#!/bin/sh\n[ "$CUDA_VISIBLE_DEVICES $5" = "{gpu.uuid} cuda" ] || exit 9\n'
        f'exec {sys.executable} "$1" -m "$3" "$4" cpu 64\n'
    )
    worker.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(worker))
    ((found, is_stored),) = calibrate(None, lambda _: None)
    assert is_stored
    kept = read_calibration(gpu.uuid)
    assert kept == found
    assert stored_rates(gpu.uuid)["float32"] == kept.rates["float32"].flops_per_second
    assert stored_rates("GPU-another") == {}


def test_a_gpu_in_use_is_not_measured(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.set("count", 1, "gpu0.processes", f"{os.getppid()}:{4 << 30}")
    monkeypatch.setenv("SELECTBENCH_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(doctor, "wrong_device_reason", lambda: None)
    with pytest.raises(UserError, match=f"pid {os.getppid()}"):
        calibrate(None, lambda _: None)


@given(st.dictionaries(st.sampled_from(["float32", "tf32", "bfloat16"]), st.floats(1, 1e16), max_size=3))
def test_what_is_kept_is_what_is_found(rates: dict[str, float]) -> None:
    write_calibration("GPU-a", made(**rates))
    assert read_calibration("GPU-a") == made(**rates)
    assert stored_rates("GPU-a") == rates


def test_writers_at_the_same_time_lose_nothing() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_calibration(f"GPU-{n}", made(float32=n + 1.0)), range(24)))
    assert [stored_rates(f"GPU-{n}")["float32"] for n in range(24)] == [n + 1.0 for n in range(24)]


def test_a_damaged_file_is_no_rate_and_is_written_anew(cache: Path) -> None:
    cache.mkdir()
    _calibration_file("GPU-a").write_text('{"by_uuid": {"GPU-a": 7}}')
    assert stored_rates("GPU-a") == {}
    with pytest.raises(UserError, match="doctor --calibrate"):
        read_calibration("GPU-a")
    write_calibration("GPU-a", made(float32=1e12))
    assert stored_rates("GPU-a") == {"float32": 1e12}


def test_a_digit_that_changed_is_no_rate() -> None:
    write_calibration("GPU-a", made(float32=1e12))
    file = _calibration_file("GPU-a")
    text = file.read_text()
    file.write_text(text.replace("1000000000000.0", "7000000000000.0"))
    assert file.read_text() != text
    assert stored_rates("GPU-a") == {}
    with pytest.raises(UserError, match=r"it is damaged; .*doctor --calibrate"):
        read_calibration("GPU-a")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device that torch can use")
def test_a_real_gpu_reaches_no_more_than_its_data_sheet() -> None:
    ((found, _), *_) = calibrate(None, lambda _: None)
    assert found.rates
    for dtype, rate in found.rates.items():
        peak = peak_flops_per_second(found.name, dtype)  # type: ignore[arg-type]
        assert peak is None or 0.2 * peak < rate.flops_per_second < 1.05 * peak, (dtype, rate)
