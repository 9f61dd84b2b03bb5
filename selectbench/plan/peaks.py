"""What a GPU's matrix products could reach by its data sheet, by the name that the driver gives it.

Dense figures only: where a sheet counts structured sparsity in, half of it stands here. Tensor cores that add up
in fp32, as torch has them do; float32 is without tensor cores. SXM, PCIe and NVL boards of one chip differ, and
so do their names. A figure that could not be confirmed is left out, and so is every GPU whose sheet is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selectbench.choices import AnyChoices, Choices

MatmulDtype = Literal["float32", "tf32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Sheet:
    """Peak rates of one board, in TFLOP/s; None: it has no such units, or the figure is not confirmed."""

    source: str
    float32: float | None
    tf32: float | None
    bfloat16: float | None
    float16: float | None


_HOPPER = "https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper"
_V100 = "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
_GA102 = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_ADA_PRO = (
    "https://images.nvidia.com/aem-dam/en-zz/Solutions/technologies/"
    "NVIDIA-ADA-GPU-PROVIZ-Architecture-Whitepaper_1.1.pdf"
)
_RTX_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_A10 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf"
_A10G = "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf"
_A30 = "https://www.nvidia.com/content/dam/en-zz/Solutions/data-center/products/a30-gpu/pdf/a30-datasheet.pdf"
_A40 = "https://images.nvidia.cn/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
_T4 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"
_PRODUCT = "https://www.nvidia.com/en-us/data-center"

_SHEETS = {
    "Tesla V100-SXM2-16GB": Sheet(_V100, 15.7, None, None, 125),
    "Tesla V100-SXM2-32GB": Sheet(_V100, 15.7, None, None, 125),
    "Tesla V100-PCIE-16GB": Sheet(_V100, 14, None, None, 112),
    "Tesla V100-PCIE-32GB": Sheet(_V100, 14, None, None, 112),
    "Tesla T4": Sheet(_T4, 8.1, None, None, 65),
    "A100-SXM4-40GB": Sheet(_A100, 19.5, 156, 312, 312),
    "A100-SXM4-80GB": Sheet(_A100, 19.5, 156, 312, 312),
    "A100-PCIE-40GB": Sheet(_A100, 19.5, 156, 312, 312),
    "A100 80GB PCIe": Sheet(_A100, 19.5, 156, 312, 312),
    "A10": Sheet(_A10, 31.2, 62.5, 125, 125),
    "A10G": Sheet(_A10G, None, 35, 70, 70),
    "A30": Sheet(_A30, 10.3, 82, 165, 165),
    "A40": Sheet(_A40, 37.4, 74.8, 149.7, 149.7),
    "RTX A6000": Sheet(_GA102, 38.7, 77.4, 154.8, 154.8),
    "GeForce RTX 3090": Sheet(_GA102, 35.6, 35.6, 71, 71),
    "L4": Sheet(f"{_PRODUCT}/l4/", 30.3, 60, 121, 121),
    "L40": Sheet(f"{_PRODUCT}/l40/", 90.5, 90.5, 181.05, 181.05),
    "L40S": Sheet(f"{_PRODUCT}/l40s/", 91.6, 183, 362.05, 362.05),
    "RTX 6000 Ada Generation": Sheet(_ADA_PRO, 91.1, 182.1, 364.2, 364.2),
    "GeForce RTX 4090": Sheet(_ADA, 82.6, 82.6, 165.2, 165.2),
    "GeForce RTX 5090": Sheet(_RTX_BLACKWELL, 104.8, 104.8, 209.5, 209.5),
    "H100 80GB HBM3": Sheet(_HOPPER, 66.9, 494.7, 989.4, 989.4),
    "H100 PCIe": Sheet(_HOPPER, 51.2, 378, 756, 756),
    "H100 NVL": Sheet(f"{_PRODUCT}/h100/", 60, 417.5, 835.5, 835.5),
    "H200": Sheet(f"{_PRODUCT}/h200/", 67, 494.5, 989.5, 989.5),
    "H200 NVL": Sheet(f"{_PRODUCT}/h200/", 60, 417.5, 835.5, 835.5),
    "B200": Sheet(f"{_PRODUCT}/hgx/", None, None, 2250, 2250),
}
"""By the driver's name; drivers before 470 leave `NVIDIA` out of it, and Tesla boards never had it."""


def matmul_dtype(choices: AnyChoices) -> MatmulDtype:
    """What the matrix products of a precision run in: under autocast, of a working copy or of the weights.

    A command's are not known beforehand, and no share of a peak is told of it.
    """
    if not isinstance(choices, Choices):
        return "float32"
    precision = choices.precision
    found: Literal["float32", "bfloat16", "float16"] = (
        precision.autocast_dtype or precision.working_dtype or precision.parameter_dtype
    )
    return "tf32" if found == "float32" and precision.tf32 else found


def peak_flops_per_second(gpu_name: str, dtype: MatmulDtype) -> float | None:
    """Of dense matrix products in this dtype, for the whole board; None: not known."""
    sheet = _SHEETS.get(gpu_name.removeprefix("NVIDIA "))
    tera = None if sheet is None else getattr(sheet, dtype)
    return None if tera is None else tera * 1e12


def source(gpu_name: str) -> str | None:
    """Where the GPU's figures are from; None: it has none."""
    sheet = _SHEETS.get(gpu_name.removeprefix("NVIDIA "))
    return sheet.source if sheet else None
