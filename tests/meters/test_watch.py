"""What a run's watch sees before the first trial, and that it does not take one GPU for another."""

from __future__ import annotations

import time
from pathlib import Path

import pynvml
import pytest
from made_records import IDENTITY, MEASUREMENT
from stand_in import StandIn

from selectbench.gpu.devices import TorchDevice, gpus
from selectbench.gpu.meters import GpuWatch
from selectbench.record.environment import Calibration, Rate, write_calibration
from selectbench.record.record import NO_LOSSES, Meters
from selectbench.record.wire import Finished
from selectbench.suite.suite import MeterSettings

SETTINGS = MeterSettings(memory_interval_seconds=0.01, interval_seconds=0.01)


def never() -> bool:
    return False


def finished(*devices: TorchDevice) -> Finished:
    now = time.perf_counter()
    return Finished(
        measurement=MEASUREMENT, identity=IDENTITY, evaluation_curve=[], loss_curve=NO_LOSSES,
        devices=list(devices), timed_windows=[(now - 0.01, now)], training_window=(now - 0.01, now),
    )  # fmt: skip


def trial(folder: Path, done: Finished | None) -> Meters:
    """One on the first GPU."""
    with GpuWatch(gpus(), SETTINGS, lambda _: None, never) as watch:
        ready = watch.settle(1)
        with watch.during(ready, folder) as watching:
            pass
        return watching.meters(done)


def test_what_asking_torch_left_is_not_taken_for_another_users_work(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.set("gpu0.utilization", 60)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        stand_in.set("gpu0.utilization", 0)

    with GpuWatch(gpus()[:1], SETTINGS, pause, never) as watch:
        ready = watch.settle(1)
        assert len(pauses) == 1
        assert ready is not None
        assert ready.uses[0].utilization == 0
        stand_in.set("gpu0.utilization", 90)  # what the first trial left
        watch.settle(1)
        assert len(pauses) == 2


@pytest.mark.parametrize(
    ("device", "fits"),
    [
        (TorchDevice(uuid="aaaa1111-0000", pci_bus_id=None), True),
        (TorchDevice(uuid=None, pci_bus_id="00000000:3B:00.0"), True),
        (TorchDevice(uuid="aaaa2222-0000", pci_bus_id="00000000:AF:00.0"), False),
    ],
)
def test_readings_of_a_gpu_that_torch_did_not_train_on_are_not_believed(
    stand_in: StandIn, tmp_path: Path, device: TorchDevice, fits: bool
) -> None:
    meters = trial(tmp_path, finished(device))
    assert bool(meters.gpus) == fits
    assert (meters.problem is None) == fits
    if not fits:
        assert "GPU-aaaa1111-0000" in str(meters.problem)
        assert "aaaa2222-0000" in str(meters.problem)


def test_more_ranks_than_metered_gpus_are_noticed(stand_in: StandIn, tmp_path: Path) -> None:
    first = TorchDevice(uuid="aaaa1111-0000", pci_bus_id=None)
    second = TorchDevice(uuid="aaaa2222-0000", pci_bus_id=None)
    assert trial(tmp_path, finished(first, second)).gpus == []


def test_the_rates_that_were_measured_on_the_gpu_go_with_it(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    rates = {"bfloat16": Rate(flops_per_second=7e14, size=8192)}
    when = "2026-01-02T03:04:05Z"
    for uuid in ("GPU-aaaa1111-0000", "GPU-other"):
        write_calibration(uuid, Calibration(name="x", rates=rates, torch_version="2", measured_at=when))
    assert trial(tmp_path, None).gpus[0].matmul_flops_per_second == {"bfloat16": 7e14}


def test_readings_that_cannot_be_kept_are_told_and_lose_no_trial(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "trial").write_text("a file where the folder should be")
    (gpu,) = trial(tmp_path / "trial", finished()).gpus
    assert gpu.problem is not None
    assert "can't be kept" in gpu.problem
    assert gpu.memory_readings > 0 or gpu.memory_series


def test_a_driver_that_is_gone_is_the_reason_why_there_are_no_meters(stand_in: StandIn, tmp_path: Path) -> None:
    found = gpus()
    stand_in.script.unlink()
    with GpuWatch(found, SETTINGS, lambda _: None, never) as watch:
        ready = watch.settle(2)
        assert ready is None
        with watch.during(ready, tmp_path) as watching:
            pass
    meters = watching.meters(finished())
    assert meters.gpus == []
    assert "Driver Not Loaded" in str(meters.problem)


def test_the_driver_is_let_go_at_the_end(stand_in: StandIn, tmp_path: Path) -> None:
    trial(tmp_path, None)
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()
