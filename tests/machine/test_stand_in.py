"""What other tests take for granted of the stand-in driver itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from stand_in import StandIn

from selectbench.gpu import devices as nvml

ENERGY = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
INSTANT, AVERAGE = pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_POWER_AVERAGE
CALLS_FOR_ONE_BOARD = [
    pynvml.nvmlDeviceGetName,
    pynvml.nvmlDeviceGetMemoryInfo,
    pynvml.nvmlDeviceGetUtilizationRates,
    pynvml.nvmlDeviceGetPowerUsage,
    pynvml.nvmlDeviceGetTotalEnergyConsumption,
    pynvml.nvmlDeviceGetCurrentClocksEventReasons,
    pynvml.nvmlDeviceGetComputeRunningProcesses,
    pynvml.nvmlDeviceGetMigMode,
]


@pytest.fixture
def board(stand_in: StandIn) -> Iterator[Any]:
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()


def step_of(board: Any) -> int:
    """Millijoules from one value of the energy counter to the next."""
    first = pynvml.nvmlDeviceGetTotalEnergyConsumption(board)
    while (following := pynvml.nvmlDeviceGetTotalEnergyConsumption(board)) == first:
        pass
    return int(following - first)


def test_the_energy_counter_grows_in_stairs_by_power(stand_in: StandIn, board: Any) -> None:
    for watts in (700, 130):
        stand_in.set("gpu0.power_watts", watts)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(board)
        step = step_of(board)
        assert step > 0
        assert step % (watts * 100) == 0


def test_a_counter_that_stands_still_and_one_that_is_told(stand_in: StandIn, board: Any) -> None:
    stand_in.set("gpu0.counter", "frozen", "gpu1.power_watts", 50)
    frozen = pynvml.nvmlDeviceGetTotalEnergyConsumption(board)
    step_of(pynvml.nvmlDeviceGetHandleByIndex(1))
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(board) == frozen
    stand_in.set("gpu0.counter", 12.5)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(board) == 12500


def test_each_field_has_a_status_of_its_own(stand_in: StandIn, board: Any) -> None:
    stand_in.set("gpu0.power_watts", 300.5, "gpu0.instant_power", 280, "gpu0.counter", "unsupported")
    fields = pynvml.nvmlDeviceGetFieldValues(board, [INSTANT, AVERAGE, ENERGY, 9999])
    assert [field.nvmlReturn for field in fields] == [0, 0, 3, 3]
    assert [field.value.uiVal for field in fields[:2]] == [280_000, 300_500]
    stand_in.set("gpu0.average_power", "unsupported", "gpu0.counter", 5e6)
    average, energy = pynvml.nvmlDeviceGetFieldValues(board, [AVERAGE, ENERGY])
    assert (average.nvmlReturn, energy.value.ullVal) == (3, 5_000_000_000)


def test_memory_with_and_without_what_the_driver_keeps(stand_in: StandIn, board: Any) -> None:
    stand_in.set("gpu0.memory_total", 1000, "gpu0.memory_used", 300, "gpu0.memory_reserved", 50)
    old = pynvml.nvmlDeviceGetMemoryInfo(board)
    new = pynvml.nvmlDeviceGetMemoryInfo(board, pynvml.nvmlMemory_v2)
    assert (old.total, old.free, old.used) == (1000, 650, 350)
    assert (new.total, new.free, new.used, new.reserved) == (1000, 650, 300, 50)
    stand_in.set("gpu0.memory_v2", "unsupported")
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetMemoryInfo(board, pynvml.nvmlMemory_v2)
    stand_in.set("gpu0.memory_v2", None)
    with pytest.raises(pynvml.NVMLError_ArgumentVersionMismatch):
        pynvml.nvmlDeviceGetMemoryInfo(board, 1)


def test_state_now(stand_in: StandIn, board: Any) -> None:
    stand_in.set("gpu0.utilization", 97, "gpu0.reasons", "0x24", "gpu0.processes", "12:34,56")
    assert pynvml.nvmlDeviceGetUtilizationRates(board).gpu == 97
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(board) == 0x24
    assert pynvml.nvmlDeviceGetTemperature(board, 0) == pynvml.nvmlDeviceGetTemperatureV(board, 0) == 35
    assert [pynvml.nvmlDeviceGetClockInfo(board, kind) for kind in (1, 2)] == [1755, 2619]
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(board)
    assert [(process.pid, process.usedGpuMemory) for process in processes] == [(12, 34), (56, None)]


@pytest.mark.parametrize("call", CALLS_FOR_ONE_BOARD)
def test_a_board_that_is_lost_answers_nothing(call: Any, stand_in: StandIn, board: Any) -> None:
    call(board)
    stand_in.set("gpu0.lost", 1)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        call(board)
    pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(1))


def test_a_slice_has_memory_and_processes_only(stand_in: StandIn, board: Any) -> None:
    stand_in.set(
        "gpu0.mig", 1, "gpu0.mig0.uuid", "MIG-1", "gpu0.mig0.memory_total", 10, "gpu0.mig0.processes", "7:8"
    )
    own = pynvml.nvmlDeviceGetHandleByUUID("MIG-1")
    assert pynvml.nvmlDeviceGetMemoryInfo(own).total == 10
    assert [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(own)] == [7]
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(own)
    assert pynvml.nvmlDeviceGetUUID(parent) == pynvml.nvmlDeviceGetUUID(board)
    for call in (pynvml.nvmlDeviceGetPowerUsage, pynvml.nvmlDeviceGetTotalEnergyConsumption):
        call(parent)
        with pytest.raises(pynvml.NVMLError_NotSupported):
            call(own)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetUtilizationRates(parent)


def test_it_leaves_the_process_as_it_was(driver_library: Path, tmp_path: Path) -> None:
    before = nvml.gpus(), nvml.problem()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        StandIn(tmp_path).load(patch)
        assert [gpu.name for gpu in nvml.gpus()] == ["NVIDIA H100", "Old Board"]
        patch.delenv("STAND_IN_SCRIPT")
        assert nvml.problem() == "Driver Not Loaded"
    assert (nvml.gpus(), nvml.problem()) == before
