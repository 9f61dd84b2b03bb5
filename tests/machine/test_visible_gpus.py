"""Which GPUs a process sees, as CUDA would show them: MIG, names, numbers that torch is asked about."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_torch import FakeTorch
from stand_in import StandIn

from selectbench.gpu.devices import Gpu, TorchDevice, _ask, first_difference, gpus, read_probe

A, B = "GPU-aaaa0000-0000-0000-0000-000000000000", "GPU-bbbb0000-0000-0000-0000-000000000000"
A_PLACE, B_PLACE = (0, 0x3B, 0), (0, 0xAF, 0)


@pytest.fixture
def driver(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    for number, (uuid, bus) in enumerate(((A, "3B"), (B, "AF"))):
        stand_in.set(f"gpu{number}.uuid", uuid)
        stand_in.set(f"gpu{number}.bus", f"00000000:{bus}:00.0")
    return stand_in


@pytest.fixture
def sliced(driver: StandIn) -> StandIn:
    """The first board is cut into two slices."""
    driver.set("gpu0.mig", 2)
    for number in (0, 1):
        driver.set(f"gpu0.mig{number}.uuid", f"MIG-{number}{number}")
        driver.set(f"gpu0.mig{number}.name", "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
        driver.set(f"gpu0.mig{number}.memory_total", 10 << 30)
    return driver


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTorch:
    _ask.cache_clear()
    found = FakeTorch(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(found.folder))
    return found


def uuids(monkeypatch: pytest.MonkeyPatch, visible: str | None = None) -> list[str]:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    return [gpu.uuid for gpu in gpus()]


def test_boards_have_their_numbers(driver: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(gpu.index, gpu.is_mig) for gpu in gpus()] == [(0, False), (1, False)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{B},{A}")
    assert [gpu.index for gpu in gpus()] == [1, 0]


@pytest.mark.parametrize(("visible", "seen"), [("0,0", []), (f"0,{A}", []), (f"{B},GPU-bbbb", [])])
def test_a_gpu_named_twice_hides_all(
    visible: str, seen: list[str], driver: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert uuids(monkeypatch, visible) == seen


def test_a_board_that_is_lost_leaves_the_others_their_numbers(
    driver: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.set("gpu0.lost", 1)
    assert uuids(monkeypatch) == [B]
    assert uuids(monkeypatch, "1") == [B]
    assert uuids(monkeypatch, "0,1") == []


def test_an_older_driver_shows_one_slice_and_nothing_else(sliced: StandIn) -> None:
    sliced.set("driver", "550.54.15")
    (seen,) = gpus()
    assert (seen.uuid, seen.index, seen.is_mig) == ("MIG-00", 0, True)
    assert (seen.memory_total_bytes, seen.pci_bus_id) == (10 << 30, "00000000:3B:00.0")


def test_a_later_driver_shows_all_slices_and_boards(sliced: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    sliced.set("driver", "570.86.15")
    assert uuids(monkeypatch) == ["MIG-00", "MIG-11", B]
    assert [gpu.is_mig for gpu in gpus()] == [True, True, False]
    assert uuids(monkeypatch, f"{B},MIG-11") == [B, "MIG-11"]


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        ("MIG-11", ["MIG-11"]),
        ("MIG-1", ["MIG-11"]),
        ("MIG-", []),
        ("MIG-22", []),
        ("MIG-11,MIG-00", ["MIG-11"]),
        ("0", ["MIG-00"]),
        (A, ["MIG-00"]),
        ("1", [B]),
        ("1,0", ["MIG-00"]),
    ],
)
def test_slices_by_name(visible: str, seen: list[str], sliced: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    sliced.set("driver", "550.54.15")
    assert uuids(monkeypatch, visible) == seen


def test_a_slice_by_its_old_name(sliced: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    sliced.set("gpu0.mig1.uuid", f"MIG-{A}/2/0")
    assert uuids(monkeypatch, f"MIG-{A}/2/0") == [f"MIG-{A}/2/0"]


@pytest.mark.parametrize("by", ["uuid", "place", "both"])
def test_cudas_numbers_are_torchs(
    by: str, driver: StandIn, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [B[4:].upper(), A[4:]] if by != "place" else ["", ""]
    torch.shows(*named, places=[B_PLACE, A_PLACE] if by != "uuid" else [])
    assert uuids(monkeypatch, "0,1") == [B, A]
    assert gpus()[0].index == 1
    assert torch.asked_under() == ["0,1"]  # once


@pytest.mark.parametrize("visible", [None, f"{A},{B}", "", "GPU-bb"])
def test_torch_is_not_asked_where_names_say_it(
    visible: str | None, driver: StandIn, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.shows(B[4:])
    uuids(monkeypatch, visible)
    assert torch.asked_under() == []


def test_torch_is_not_asked_where_numbers_are_the_bus_order(
    driver: StandIn, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.shows(B[4:], A[4:])
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert uuids(monkeypatch, "0,1") == [A, B]
    assert torch.asked_under() == []


def test_torch_is_not_asked_where_all_boards_are_of_one_kind(
    driver: StandIn, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.set("gpu0.name", "NVIDIA H100 PCIe")
    driver.set("gpu1.name", "NVIDIA H100 PCIe")
    torch.shows(B[4:], A[4:])
    assert uuids(monkeypatch, "0,1") == [A, B]
    assert torch.asked_under() == []


def test_a_slice_by_number_is_torchs(sliced: StandIn, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch) -> None:
    sliced.set("gpu0.name", "NVIDIA H100 PCIe")
    sliced.set("gpu1.name", "NVIDIA H100 PCIe")
    torch.shows("11", places=[A_PLACE])
    assert uuids(monkeypatch, "0") == ["MIG-11"]


def test_slices_of_one_board_that_torch_tells_by_place_alone(
    sliced: StandIn, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.shows("", "", places=[A_PLACE, A_PLACE])
    assert uuids(monkeypatch, "0,1") == ["MIG-00", "MIG-11"]


def test_numbers_are_nvmls_where_torch_does_not_say(
    driver: StandIn, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.shows("cccc0000-0000-0000-0000-000000000000")
    assert uuids(monkeypatch, "0,1") == [A, B]
    _ask.cache_clear()
    (torch.folder / "torch" / "__init__.py").write_text("raise RuntimeError('broken')\n")
    assert uuids(monkeypatch, "0,1") == [A, B]


def gpu(uuid: str, bus: str | None = "0000:3B:00.0") -> Gpu:
    return Gpu(
        name="Board", uuid=uuid, index=0, is_mig=False, pci_bus_id=bus, memory_total_bytes=None,
        compute_capability=None, power_limit_watts=None, ecc_enabled=None, max_sm_clock_hertz=None, cores=None,
        driver_version=None, cuda_driver_version=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "taken", "words"),
    [
        ([TorchDevice("aa-b", None)], [gpu("GPU-AA-B")], None),
        ([TorchDevice("ff", "00000000:3B:00.0")], [gpu("GPU-aa")], None),
        ([TorchDevice(None, None)], [gpu("GPU-aa")], None),
        ([TorchDevice("ff", "00000000:AF:00.0")], [gpu("GPU-aa")], "cuda:0 is ff at 00000000:AF:00.0, and"),
        ([TorchDevice("ff", None)], [gpu("GPU-aa")], "cuda:0 is ff, and Board, GPU-aa at 0000:3B:00.0, was taken"),
        ([TorchDevice("aa", None)], [gpu("GPU-aa"), gpu("GPU-bb")], "cuda:1 is not there"),
        ([TorchDevice("aa", None), TorchDevice("bb", None)], [gpu("GPU-aa")], "cuda:1 is bb, and no GPU was taken"),
        ([TorchDevice("aa", None), TorchDevice("bb", None)], [gpu("GPU-bb"), gpu("GPU-aa")], "cuda:0 is aa"),
    ],
)  # fmt: skip
def test_torchs_devices_against_those_taken(shown: list[TorchDevice], taken: list[Gpu], words: str | None) -> None:
    found = first_difference(shown, taken)
    assert found is None if words is None else words in str(found)


def test_torch_that_names_a_slices_board(sliced: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    (seen, *_) = gpus()
    assert first_difference([TorchDevice(A[4:], None)], [seen]) is None
    assert first_difference([TorchDevice(B[4:], None)], [seen]) is not None


@pytest.mark.parametrize(
    ("output", "devices"),
    [
        ('a warning\n\n[["aa", null]]\n', [TorchDevice("aa", None)]),
        ("\n[]\n", []),
        ("", None),
        ("Traceback\n", None),
        ("[[1]]\n", None),
        ("3\n", None),
    ],
)
def test_what_the_probe_prints(output: str, devices: list[TorchDevice] | None) -> None:
    assert read_probe(output) == devices
