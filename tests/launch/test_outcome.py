"""What a trial's end means, where no real process can be made to end so."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from selectbench.launch.trial import Ending, outcome_of
from selectbench.record.record import Failed
from selectbench.record.wire import GaveUp


def ended(folder: Path, status: int | None, said: GaveUp | None = None, *, oom: bool = False) -> Failed:
    outcome = outcome_of(Ending(folder, status, said, stopped=None, oom_killed=oom))
    assert isinstance(outcome, Failed)
    return outcome


@pytest.mark.parametrize("said", [None, GaveUp(kind="crashed", detail="")])
@pytest.mark.parametrize("oom", [False, True])
def test_a_killed_trial_is_oom_where_the_kernels_counter_grew(
    tmp_path: Path, oom: bool, said: GaveUp | None
) -> None:
    outcome = ended(tmp_path, -signal.SIGKILL, said, oom=oom)
    assert outcome.kind == ("oom" if oom else "crashed")
    assert ("out-of-memory killer" in outcome.detail) == oom


@pytest.mark.parametrize("oom", [False, True])
def test_so_is_a_killed_rank(tmp_path: Path, oom: bool) -> None:
    said = GaveUp(kind="crashed", detail="", rank=3, exit_status=-signal.SIGKILL)
    outcome = ended(tmp_path, 0, said, oom=oom)
    assert outcome.kind == ("oom" if oom else "crashed")
    assert outcome.detail.startswith("rank 3: ")


def test_a_rank_that_raised_is_not_oom_because_another_process_was(tmp_path: Path) -> None:
    said = GaveUp(kind="crashed", detail="", rank=0, exit_status=1)
    assert ended(tmp_path, 0, said, oom=True).kind == "crashed"


def test_a_rank_that_told_its_failure_has_no_exit_status(tmp_path: Path) -> None:
    (tmp_path / "rank0.log").write_text("Traceback\nmodel.py, line 3\npkg.TooWideError: 7\n")
    said = GaveUp(kind="crashed", detail="in set-up", rank=0)
    assert ended(tmp_path, 0, said).detail.splitlines()[0] == "rank 0: pkg.TooWideError: 7; in set-up"


def test_a_worker_that_gave_up_without_a_word_is_told_by_its_log(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("RuntimeError: seven\n")
    assert ended(tmp_path, 1, GaveUp(kind="crashed", detail="")).detail.startswith("RuntimeError: seven\n")


BITSANDBYTES = "Error out of memory at line 532 in file /src/csrc/ops.cu\n"
FLASH_ATTENTION = "CUDA error (/src/flash_fwd_launch_template.h:88): out of memory\n"
UNCAUGHT = (
    "terminate called after throwing an instance of 'c10::AcceleratorError'\n  what():  CUDA error: out of memory\n"
)
OTHER = "Error invalid argument at line 532 in file /src/csrc/ops.cu\n"


@pytest.mark.parametrize(
    ("said", "status", "kind"),
    [
        (BITSANDBYTES, 1, "oom"),
        (FLASH_ATTENTION, 1, "oom"),
        (UNCAUGHT, -signal.SIGABRT, "oom"),
        (OTHER, 1, "crashed"),
        (BITSANDBYTES, -signal.SIGKILL, "crashed"),
        (BITSANDBYTES + "KeyError: 'x'\n", 1, "crashed"),
    ],
)
def test_a_library_that_ends_the_process_says_in_the_log_that_memory_was_short(
    tmp_path: Path, said: str, status: int, kind: str
) -> None:
    (tmp_path / "log.txt").write_text(said)
    (tmp_path / "rank2.log").write_text(said)
    alone = ended(tmp_path, status)
    rank = ended(tmp_path, 0, GaveUp(kind="crashed", detail="", rank=2, exit_status=status))
    assert (alone.kind, rank.kind) == (kind, kind)
    assert said.strip() in alone.detail


def test_a_signal_without_a_name(tmp_path: Path) -> None:
    assert "signal 40" in ended(tmp_path, -40).detail


def test_of_a_long_line_the_beginning_is_kept(tmp_path: Path) -> None:
    known = ", ".join(f"family{number}" for number in range(3000))
    (tmp_path / "log.txt").write_text(f"Traceback\nValueError: Unrecognized model: gpt9. One of {known}\n")
    outcome = ended(tmp_path, 1)
    assert outcome.detail.startswith("ValueError: Unrecognized model: gpt9. One of family0, ")
    assert len(outcome.detail) < 3000
