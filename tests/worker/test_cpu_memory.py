"""Peak memory on a CPU: allocations of known size, in a process of their own so that the heap is fresh."""

import subprocess
import sys
from pathlib import Path

import pytest

from selectbench.worker.runtime import CpuMemory

MIB = 1 << 20

SCRIPT = """
import torch
from selectbench.worker.runtime import CpuMemory
MIB = 1 << 20
def touch(mebibytes):
    return torch.ones(mebibytes * MIB, dtype=torch.uint8)
touch(1)
memory = CpuMemory()
before = touch(300)   # set-up: gone before training
del before
kept = touch(40)      # weights
memory.start()
spike = touch(200)    # activations: gone before the end
del spike
memory.stop()
leftover = touch(400) # an evaluation's
memory.start()
memory.stop()
print(memory.growth_bytes)
"""


def test_the_peak_of_the_first_stretch_counts_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(240 * MIB, abs=12 * MIB)


def test_without_a_reset_of_the_peak_it_is_unknown(tmp_path: Path):
    (tmp_path / "smaps_rollup").write_text("Rss: 2048 kB\nPss: 512 kB\n")
    (tmp_path / "status").write_text("VmHWM: 4096 kB\nVmRSS: 2048 kB\n")
    (tmp_path / "clear_refs").mkdir()  # cannot be written
    memory = CpuMemory(tmp_path)
    memory.start()
    memory.stop()
    assert memory.peaks() == {"peak_pss_growth_bytes": None}


def test_what_lies_between_the_peak_and_now_is_added(tmp_path: Path):
    (tmp_path / "smaps_rollup").write_text("Rss: 2048 kB\nPss: 512 kB\nPss_Anon: 100 kB\n")
    (tmp_path / "status").write_text("VmHWM: 4096 kB\nVmRSS: 2048 kB\n")
    memory = CpuMemory(tmp_path)
    memory.start()
    (tmp_path / "smaps_rollup").write_text("Rss: 3072 kB\nPss: 1536 kB\n")
    memory.stop()
    assert memory.growth_bytes == (1536 - 512 + 2048) * 1024
