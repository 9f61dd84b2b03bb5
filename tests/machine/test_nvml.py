"""The real NVML binding against a stand-in driver of two GPUs."""

import pytest

NAMES = "[gpu.name for gpu in devices.gpus()]"
H100, OLD = "NVIDIA H100", "Old Board"


def test_a_gpu_that_answers_everything(with_driver):
    assert with_driver("asdict(devices.gpus()[0])") == {
        "name": H100,
        "uuid": "GPU-aaaa1111-0000",
        "index": 0,
        "is_mig": False,
        "pci_bus_id": "00000000:3B:00.0",
        "memory_total_bytes": 80 << 30,
        "compute_capability": [9, 0],
        "power_limit_watts": 650.5,
        "ecc_enabled": False,
        "max_sm_clock_hertz": 1.98e9,
        "cores": 16896,
        "driver_version": "550.54.15",
        "cuda_driver_version": [12, 4],
    }


def test_what_a_driver_is_too_old_for_is_none(with_driver):
    assert with_driver("devices.gpus()[0].cores", script={"gpu0.cores": "missing"}) is None


def test_what_a_board_does_not_answer_is_none(with_driver):
    old = with_driver("asdict(devices.gpus()[1])")
    unknown = {"memory_total_bytes", "power_limit_watts", "ecc_enabled", "max_sm_clock_hertz", "cores"}
    assert {key for key, value in old.items() if value is None} == unknown


@pytest.mark.parametrize(
    ("named", "names"),
    [
        ("0,1", [H100, OLD]),
        ("1,0", [OLD, H100]),
        (" 1 ", [OLD]),
        ("", []),
        ("-1", []),
        ("0,7,1", [H100]),
        ("GPU-aaaa2222-0000", [OLD]),
        ("GPU-aaaa2,GPU-aaaa1", [OLD, H100]),
        ("GPU-aaaa", []),
        ("GPU-ffff,0", []),
        ("MIG-unknown", []),
    ],
)
def test_cuda_visible_devices(with_driver, named, names):
    assert with_driver(NAMES, CUDA_VISIBLE_DEVICES=named) == names


def test_all_are_visible_where_nothing_is_named(with_driver):
    assert with_driver(NAMES) == [H100, OLD]


def test_topology(with_driver):
    matrix = "devices.topology(devices.gpus())"
    assert with_driver(matrix) == [["X", "SYS"], ["SYS", "X"]]
    assert with_driver(matrix, script={"nvlink": 1}) == [["X", "NVL"], ["NVL", "X"]]
    assert with_driver("devices.topology([])") == []


def test_topology_of_a_gpu_that_left(with_driver):
    assert with_driver(
        "devices.topology([__import__('dataclasses').replace(gpu, uuid='GPU-gone') for gpu in devices.gpus()])"
    ) == [["X", None], [None, "X"]]


def test_a_driver_that_is_not_loaded(with_driver):
    assert with_driver("[devices.gpus(), devices.problem()]", STAND_IN_SCRIPT="") == [[], "Driver Not Loaded"]
    assert with_driver("devices.problem()") is None


def test_no_driver_at_all(with_driver, tmp_path):
    found = with_driver("[devices.gpus(), devices.problem(), devices.topology([])]", LD_LIBRARY_PATH=str(tmp_path))
    assert found[0] == found[2] == []
    assert "Not Found" in found[1]
