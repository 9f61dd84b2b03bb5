"""A GPU driver for tests: machine/driver_stand_in.c behind the real binding, answering what a script says.

The script has lines `key value`, read anew at every call: `driver`, `cuda` (12040 is 12.4), `count`, `nvlink`
(1: each GPU reaches each other by it), and `gpu<N>.<key>` for each GPU. What a GPU has no key for, it answers as
not supported, and so with the value `unsupported`; with `missing` the driver is too old to have the call. Keys:

- name, uuid, bus, capability (`9.0`), power_limit_watts, ecc (0 or 1), max_sm_clock (MHz), cores
- memory_total, memory_used, memory_reserved (bytes; the last two are 0 unless given), memory_v2 (`unsupported`)
- power_watts; instant_power, average_power (watts; as power_watts unless given)
- counter: joules, or `frozen`, or absent: it grows by power_watts in steps of 100 ms from the loading on
- utilization (percent), temperature (Celsius), sm_clock, memory_clock (MHz), reasons (a bit mask)
- processes: `pid:bytes,pid:bytes`, `pid` alone where the driver doesn't say how much; absent: there are none
- lost (1: every call says that the GPU is lost)
- mig: the number of slices, 0 where MIG is off; each slice has keys as `gpu0.mig0.uuid`: uuid, name, the memory's,
  processes, instance (number of the GPU instance)
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pynvml
import pytest

Value = str | int | float | None
SOURCE = Path(__file__).parent / "machine" / "driver_stand_in.c"
LIBRARY = "libnvidia-ml.so.1"
TWO_GPUS: dict[str, Value] = {
    "driver": "550.54.15",
    "cuda": 12040,
    "count": 2,
    "gpu0.name": "NVIDIA H100",
    "gpu0.uuid": "GPU-aaaa1111-0000",
    "gpu0.bus": "00000000:3B:00.0",
    "gpu0.capability": "9.0",
    "gpu0.power_limit_watts": 650.5,
    "gpu0.ecc": 0,
    "gpu0.max_sm_clock": 1980,
    "gpu0.cores": 16896,
    "gpu0.memory_total": 80 << 30,
    "gpu0.memory_used": 4 << 20,
    "gpu0.memory_reserved": 600 << 20,
    "gpu0.power_watts": 100,
    "gpu0.utilization": 0,
    "gpu0.temperature": 35,
    "gpu0.sm_clock": 1755,
    "gpu0.memory_clock": 2619,
    "gpu0.reasons": 0,
    "gpu0.processes": "",
    "gpu0.mig": 0,
    "gpu1.name": "Old Board",
    "gpu1.uuid": "GPU-aaaa2222-0000",
    "gpu1.bus": "00000000:AF:00.0",
    "gpu1.capability": "7.0",
    "gpu1.processes": "unsupported",
}
"""An H100 that answers everything, and an old board that says little more than what it is."""


@cache
def built_driver() -> Path | None:
    """The folder of the built library; None: there is no C compiler. It is removed when Python ends."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="stand-in-driver-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / LIBRARY), str(SOURCE)], check=True)
    return folder


class StandIn:
    """One script, in a folder of the test's own, and the library that reads it."""

    def __init__(self, folder: Path) -> None:
        """With `TWO_GPUS` to begin with."""
        built = built_driver()
        assert built is not None, "depend on the fixture driver_library, which skips without a C compiler"
        self.library = built / LIBRARY
        self.script = folder / "stand_in_script"
        self._settings = dict(TWO_GPUS)
        self._write()

    def set(self, *pairs: Value, **settings: Value) -> None:
        """Changes keys, `set("gpu0.power_watts", 300, "gpu0.utilization", 90)` or `set(count=1)`, all at once.

        None takes a key away.
        """
        names = [str(name) for name in pairs[::2]]
        self._settings |= dict(zip(names, pairs[1::2], strict=True)) | settings
        self._write()

    def environment(self) -> dict[str, str]:
        """The variables under which another process has it for its driver."""
        path = os.environ.get("LD_LIBRARY_PATH")
        folders = [str(self.library.parent), *([path] if path else [])]
        return {"LD_LIBRARY_PATH": os.pathsep.join(folders), "STAND_IN_SCRIPT": str(self.script)}

    def load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes it this process's driver until the test ends; a real one is then there again."""
        monkeypatch.setenv("STAND_IN_SCRIPT", str(self.script))
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(self.library)))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def _write(self) -> None:
        lines = [f"{key} {value}\n" for key, value in self._settings.items() if value is not None]
        new = self.script.with_suffix(".new")
        new.write_text("".join(lines))
        new.replace(self.script)
