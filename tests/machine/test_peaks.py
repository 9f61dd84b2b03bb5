"""Peaks by the driver's name of a GPU: dense, by board and dtype, and unknown where nothing is known."""

import pytest

from selectbench.gpu.devices import _SHEETS, MatmulDtype, peak_flops_per_second, source


@pytest.mark.parametrize(
    ("name", "dtype", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "float32", 66.9),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA H200", "tf32", 494.5),
        ("NVIDIA H200 NVL", "tf32", 417.5),
        ("NVIDIA A100-SXM4-80GB", "float16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("A100-SXM4-40GB", "tf32", 156),
        ("NVIDIA L4", "bfloat16", 121),
        ("Tesla T4", "float16", 65),
        ("Tesla V100-SXM2-32GB", "float16", 125),
        ("Tesla V100-PCIE-16GB", "float16", 112),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
    ],
)
def test_boards_and_dtypes_are_told_apart(name: str, dtype: MatmulDtype, teraflops: float) -> None:
    assert peak_flops_per_second(name, dtype) == pytest.approx(teraflops * 1e12, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("NVIDIA H100", "bfloat16"),  # which board?
        ("NVIDIA A100", "bfloat16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16"),
        ("NVIDIA H100 80GB HBM3 ", "bfloat16"),
        ("nvidia h200", "bfloat16"),
        ("Quadro P400", "float32"),
        ("", "float32"),
        ("Tesla V100-SXM2-16GB", "bfloat16"),  # no such units
        ("Tesla T4", "tf32"),
    ],
)
def test_what_is_not_known_is_none(name: str, dtype: MatmulDtype) -> None:
    assert peak_flops_per_second(name, dtype) is None


@pytest.mark.parametrize(
    ("name", "multiprocessors", "tensor_per_clock", "gigahertz"),
    [
        # Multiprocessors, dense bf16 operations of one per clock, and the clock of the figure, as published.
        ("NVIDIA A100-SXM4-80GB", 108, 2048, 1.410),
        ("NVIDIA A30", 56, 2048, 1.440),
        ("NVIDIA A10", 72, 1024, 1.695),
        ("NVIDIA A40", 84, 1024, 1.740),
        ("NVIDIA RTX A6000", 84, 1024, 1.800),
        ("NVIDIA GeForce RTX 3090", 82, 512, 1.695),
        ("NVIDIA GeForce RTX 4090", 128, 512, 2.520),
        ("NVIDIA RTX 6000 Ada Generation", 142, 1024, 2.505),
        ("NVIDIA L40", 142, 512, 2.490),
        ("NVIDIA GeForce RTX 5090", 170, 512, 2.407),
        ("NVIDIA H100 80GB HBM3", 132, 4096, 1.830),
        ("NVIDIA H100 PCIe", 114, 4096, 1.620),
    ],
)
def test_peaks_follow_from_the_chips(
    name: str, multiprocessors: int, tensor_per_clock: int, gigahertz: float
) -> None:
    chip = multiprocessors * tensor_per_clock * gigahertz * 1e9
    assert peak_flops_per_second(name, "bfloat16") == pytest.approx(chip, rel=5e-3)


@pytest.mark.parametrize("name", sorted(_SHEETS))
def test_a_sheet_is_consistent_and_names_its_source(name: str) -> None:
    sheet = _SHEETS[name]
    address = source(f"NVIDIA {name}")
    assert address is not None
    assert address.startswith("https://")
    assert sheet.bfloat16 in (sheet.float16, None)
    # Tensor cores take half as many tf32 products as 16-bit ones, on every board that has both.
    if sheet.tf32 is not None and sheet.float16 is not None:
        assert sheet.float16 / sheet.tf32 == pytest.approx(2, rel=0.02)
    if sheet.float32 is not None and sheet.float16 is not None:
        assert sheet.float16 > sheet.float32


def test_a_gpu_without_a_sheet_has_no_source() -> None:
    assert source("NVIDIA Quadro P400") is None
