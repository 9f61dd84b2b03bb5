"""The kernel's out-of-memory killer: read from its counters, and struck for real where a cgroup can be made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch.harness import Workplace

from selectbench.launch.trial import oom_kills

LIMIT_BYTES = 1 << 30
MEMORY_V1 = Path("/sys/fs/cgroup/memory")


def test_cgroup_v2_counts_are_read(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/user/job\n")
    group = tmp_path / "fs" / "user" / "job"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\n")
    assert oom_kills(tmp_path / "cgroup", tmp_path / "fs") == 3


def test_cgroup_v1_counts_are_read_where_v2_has_none(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("4:memory:/job\n0::/\n")
    group = tmp_path / "fs" / "memory" / "job"
    group.mkdir(parents=True)
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert oom_kills(tmp_path / "cgroup", tmp_path / "fs") == 5


def test_without_a_counter_it_is_unknown(tmp_path: Path) -> None:
    assert oom_kills(tmp_path / "missing", tmp_path) is None


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    group = MEMORY_V1 / f"selectbench-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError:
        pytest.skip("no memory cgroup (v1) can be made here")
    yield group
    group.rmdir()


@pytest.mark.slow
def test_a_trial_that_the_kernel_kills_is_oom(workplace: Workplace, small_cgroup: Path) -> None:
    enter = f"open('{small_cgroup / 'cgroup.procs'}', 'w').write(str(__import__('os').getpid()))"
    arguments = ["run", "tiny.yaml", "--seeds", "0", "--axis", "micro_batch_size=4"]
    # 400 million parameters: 1.6 GB of weights alone, which are handed out lazily and killed when touched.
    model = "job.model={family: gpt2, n_layer: 8, n_embd: 2048, n_head: 2}"
    start = "sys.argv = ['selectbench', *sys.argv[1:]]; from selectbench.__main__ import main; main()"
    code = f"import sys; {enter}; {start}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--set", model], cwd=workplace.folder, check=False,
        capture_output=True, text=True, env=workplace.environment(), timeout=300,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    outcome = workplace.records()[-1]["outcome"]
    assert outcome["kind"] == "oom", outcome
    assert "out-of-memory killer" in outcome["detail"]
