"""A package `torch` for the module path that is built for CUDA and shows the devices that it is told to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SOURCE = """\
import json, os
from pathlib import Path
from types import SimpleNamespace
here = Path(__file__).parent
with (here / "imported").open("a") as stream:
    stream.write(os.environ.get("CUDA_VISIBLE_DEVICES", "(unset)") + "\\n")
shown = [SimpleNamespace(**facts) for facts in json.loads((here / "devices.json").read_text())]
cuda = SimpleNamespace(
    is_available=lambda: bool(shown), device_count=lambda: len(shown), get_device_properties=shown.__getitem__
)
"""


class FakeTorch:
    """Lies in a folder of its own, which goes on PYTHONPATH."""

    def __init__(self, folder: Path, version: str = "2.9.0") -> None:
        self.folder = folder
        package, facts = folder / "torch", folder / f"torch-{version}.dist-info"
        package.mkdir(parents=True)
        facts.mkdir()
        (package / "__init__.py").write_text(SOURCE)
        (package / "version.py").write_text(f"__version__ = {version!r}\ncuda = '12.4'\n")
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        self.shows()

    def shows(self, *uuids: str, places: Sequence[tuple[int, int, int] | None] = ()) -> None:
        """Its devices: UUIDs as torch tells them, without `GPU-`, '' for none; PCI domain, bus and device."""
        devices = []
        for number, uuid in enumerate(uuids):
            facts: dict[str, object] = {"uuid": uuid} if uuid else {}
            if number < len(places) and (place := places[number]) is not None:
                facts |= dict(zip(("pci_domain_id", "pci_bus_id", "pci_device_id"), place, strict=True))
            devices.append(facts)
        (self.folder / "torch" / "devices.json").write_text(json.dumps(devices))

    def asked_under(self) -> list[str]:
        """CUDA_VISIBLE_DEVICES of each process that imported it."""
        path = self.folder / "torch" / "imported"
        return path.read_text().splitlines() if path.exists() else []
