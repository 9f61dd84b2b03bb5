"""How GPUs reach each other."""

from __future__ import annotations

from typing import Any

import pynvml

from selectbench.nvml.driver import ask, board_of, started
from selectbench.nvml.gpus import Gpu

TOPOLOGY_LEVELS = {
    pynvml.NVML_TOPOLOGY_INTERNAL: "PIX",
    pynvml.NVML_TOPOLOGY_SINGLE: "PIX",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "PXB",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB",
    pynvml.NVML_TOPOLOGY_NODE: "NODE",
    pynvml.NVML_TOPOLOGY_SYSTEM: "SYS",
}
"""How two GPUs reach each other over PCIe, in the words of `nvidia-smi topo -m`."""


def topology(these: list[Gpu]) -> list[list[str | None]]:
    """How each GPU reaches each other: `NVL`, `PIX`, `PXB`, `PHB`, `NODE`, `SYS`, `X` for itself, None unknown.

    Shape (GPUs, GPUs). The words are those of `nvidia-smi topo -m`, from near to far.
    """
    if not these:
        return []
    try:
        with started():
            handles = [board_of(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)) for gpu in these]
            return [
                ["X" if row == column else _path(a, b) for column, b in enumerate(handles)]
                for row, a in enumerate(handles)
            ]
    except pynvml.NVMLError:
        return [["X" if row == column else None for column in range(len(these))] for row in range(len(these))]


def _path(a: Any, b: Any) -> str | None:
    if ask(pynvml.nvmlDeviceGetP2PStatus, a, b, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == pynvml.NVML_P2P_STATUS_OK:
        return "NVL"
    level = ask(pynvml.nvmlDeviceGetTopologyCommonAncestor, a, b)
    return None if level is None else TOPOLOGY_LEVELS.get(level)
