"""`doctor --calibrate`: has large matrix products measured on each idle GPU, and keeps the rates."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from selectbench import units
from selectbench.errors import MissingPackageError, UserError
from selectbench.gpu.devices import Gpu, gpus
from selectbench.launch.gpus import Notify, claim_gpus
from selectbench.launch.preparation import check_torch_shows
from selectbench.launch.trial import SINGLE_THREADED, server_environment
from selectbench.machine import INSTALL, cpu_model, inspect_machine, wrong_device_reason, wrong_system_reason
from selectbench.plan.plan import GpuNeed
from selectbench.record.environment import Calibration, Rate, store

CALIBRATION_SECONDS = 600.0
"""Longest time for all rates of a device; some seconds each, and torch's import."""


def calibrate(asked: str | None, notify: Notify, sizes: Sequence[int] = ()) -> list[tuple[Calibration, bool]]:
    """Measure every idle GPU, or those that `asked` names; without a GPU the CPU. Raises UserError.

    Each with whether later runs will find it: a CPU's rates are not stored. `sizes`: of the square matrices; the
    worker's own unless given.
    """
    if (reason := wrong_system_reason()) is not None:
        raise UserError(reason)
    if not inspect_machine().trains:
        raise MissingPackageError(f"calibrating needs torch, which is not installed: {INSTALL}")
    if (reason := wrong_device_reason()) is not None:
        raise UserError(reason)
    if not gpus():
        if asked is not None:
            raise UserError(f"--gpus {asked}: there is no GPU to calibrate; leave --gpus out to measure the CPU")
        return [(_measured(None, notify, sizes), False)]
    with claim_gpus(asked, GpuNeed(1, None), wait=False, notify=notify) as claim:
        return [(_measured(gpu, notify, sizes), True) for gpu in claim.gpus]


def _measured(gpu: Gpu | None, notify: Notify, sizes: Sequence[int]) -> Calibration:
    """The rates of a GPU, which are stored, or of the CPU."""
    if gpu is not None:
        check_torch_shows([gpu], None)
    name = gpu.name if gpu else cpu_model() or "CPU"
    notify(f"{name}: measuring matrix products")
    rates: dict[str, Rate] = {}
    torch_version = ""
    for line in _lines(gpu, sizes):
        dtype, rate, torch_version = line["dtype"], line["flops_per_second"], line["torch"]
        notify(f"{name}: {dtype}: {line['problem'] or units.flops_per_second(rate)}")
        if line["problem"] is None:
            rates[dtype] = Rate(flops_per_second=rate, size=line["size"])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    calibration = Calibration(name=name, rates=rates, torch_version=torch_version, measured_at=now)
    if gpu is not None:
        store(gpu.uuid, calibration)
    return calibration


def _lines(gpu: Gpu | None, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What the measuring process says, line by line; it ends with this one. Raises UserError where it fails."""
    device = "cpu" if gpu is None else "cuda"
    environment = server_environment(device=device, gpus=[] if gpu is None else [gpu])
    for name in SINGLE_THREADED:
        environment.pop(name)  # it need not stay fit to fork
    command = [sys.executable, "-P", "-m", "selectbench.worker", "calibrate", device, *map(str, sizes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(CALIBRATION_SECONDS, process.kill)
        watchdog.start()
        try:
            for line in process.stdout:
                yield json.loads(line)
        except BaseException:
            process.kill()
            raise
        finally:
            watchdog.cancel()
    if process.returncode == -9:
        raise UserError(f"calibrating was ended: it takes longer than {units.duration(CALIBRATION_SECONDS)}")
    if process.returncode != 0:
        raise UserError(f"calibrating ended with status {process.returncode}; see its message above")
