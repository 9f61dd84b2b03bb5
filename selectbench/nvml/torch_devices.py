"""What torch's CUDA devices are, asked of torch in a process of its own: this one stays without torch and CUDA.

CUDA numbers boards by speed, or by bus under CUDA_DEVICE_ORDER=PCI_BUS_ID; NVML always by bus. Where a number
alone does not say which board is meant, UUID and bus id do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

PROBE = """\
import json
import torch
def facts(found):
    place = [getattr(found, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    uuid = getattr(found, "uuid", None)
    return [None if uuid is None else str(uuid), None if None in place else "{:08X}:{:02X}:{:02X}.0".format(*place)]
there = torch.cuda.is_available()
devices = [facts(torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())] if there else []
print("\\n" + json.dumps(devices))
"""
"""Prints, on its last line, UUID and bus id of each device; runs under any Python that holds torch."""
FOR_CUDA_ONLY = """\
import runpy, sys
from importlib.util import find_spec
from pathlib import Path
torch = find_spec("torch")
if torch is None or not runpy.run_path(str(Path(torch.origin).with_name("version.py"))).get("cuda"):
    sys.exit("torch is not built for CUDA")
"""
"""Ends before importing torch takes its seconds for nothing."""
PROBE_SECONDS = 120


@dataclass(frozen=True)
class TorchDevice:
    """One of torch's CUDA devices; None: this torch does not say."""

    uuid: str | None
    """Without `GPU-`; that of the slice or of its board where MIG is on."""
    pci_bus_id: str | None
    """`00000000:3B:00.0`."""

    def __str__(self) -> str:
        return " at ".join(filter(None, (self.uuid, self.pci_bus_id))) or "a device that torch does not name"


def read_probe(output: str) -> list[TorchDevice] | None:
    """The devices that the probe printed, in torch's order; None: it did not come to its end."""
    try:
        return [TorchDevice(*facts) for facts in json.loads(output.rstrip().rpartition("\n")[2])]
    except (ValueError, TypeError):
        return None


def devices_of_torch() -> list[TorchDevice] | None:
    """What this interpreter's torch shows here, in its order; None: no torch built for CUDA, or it fails."""
    return _ask(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"))


@cache
def _ask(_visible: str | None, _order: str | None) -> list[TorchDevice] | None:
    """Once for each value of the two variables, as torch takes seconds to start."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", FOR_CUDA_ONLY + PROBE], capture_output=True, text=True, check=False,
            timeout=PROBE_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_probe(done.stdout) or None if done.returncode == 0 else None


def same_uuid(device: TorchDevice, uuids: Sequence[str]) -> bool:
    """Whether torch's device has one of these UUIDs of NVML's; torch leaves out the `GPU-` or `MIG-` before it."""
    return device.uuid is not None and device.uuid.lower() in {u.partition("-")[2].lower() for u in uuids}


def same_bus_id(device: TorchDevice, bus_id: str | None) -> bool:
    """Whether torch's device is on NVML's place of the PCI bus."""
    if device.pci_bus_id is None or bus_id is None:
        return False
    domain, _, rest = bus_id.upper().partition(":")
    return device.pci_bus_id.upper() == f"{domain:0>8}:{rest}"  # older drivers tell four digits of the domain
