"""What a trial's processes run with: the OpenMP library, and how its threads wait."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import pytest
import torch

from selectbench.machine import SHORT_WAIT, WAIT_VARIABLES
from selectbench.worker.runtime import openmp, versions


class SymbolInfo(ctypes.Structure):
    """dladdr(3)'s Dl_info."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def library_that_torch_calls() -> str:
    """As the dynamic linker resolved it."""
    lib = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    found = SymbolInfo()
    assert ctypes.CDLL(None).dladdr(ctypes.cast(lib.omp_get_max_threads, ctypes.c_void_p), ctypes.byref(found))
    return Path(found.file.decode()).name


def test_the_openmp_library_is_the_one_that_torch_calls():
    told = versions()["openmp"]
    assert told is not None
    assert library_that_torch_calls() in told.split(", ")


def test_openmp_libraries_are_told_from_others_by_name(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r--p 00000000 fe:00 10    /home/someone/lib/libiomp5.so\n"
        "7f01-7f02 r-xp 00000000 fe:00 10    /home/someone/lib/libiomp5.so\n"
        "7f02-7f03 r-xp 00000000 fe:00 11    /opt/torch.libs/libgomp-24e2ab19.so.1.0.0\n"
        "7f03-7f04 r-xp 00000000 fe:00 12    /opt/torch/lib/libbackend_with_compiler.so\n"
        "7f04-7f05 r-xp 00000000 fe:00 13    /opt/lib/libompl.so\n"
        "7f05-7f06 rw-p 00000000 00:00 0\n"
    )
    assert openmp(maps) == "libgomp-24e2ab19.so.1.0.0, libiomp5.so"
    maps.write_text("")
    assert openmp(maps) is None


@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_trials_and_ranks_hold_how_threads_wait(launched, strategy):
    ranks = {"single": 1, "ddp": 2}[strategy]
    end = launched.end(
        option="shows_how_it_waits", strategy={"name": strategy}, world_size=ranks, micro_batch_size=4,
        job={"max_steps": 2, "eval": "none"},
    )  # fmt: skip
    assert end.finished is not None, end.outcome
    # This process may have loaded others besides, as other tests import more.
    assert end.software["openmp"] in versions()["openmp"]
    logs = [launched.trial_folder / name for name in ("log.txt", "rank0.log", "rank1.log")]
    lines = [line for log in logs if log.exists() for line in log.read_text().splitlines()]
    told = [json.loads(line.removeprefix("waits:")) for line in lines if line.startswith("waits:")]
    settled = {name: os.environ[name] for name in WAIT_VARIABLES if name in os.environ}
    given = settled or SHORT_WAIT
    assert told == [{name: given.get(name) for name in WAIT_VARIABLES}] * ranks
