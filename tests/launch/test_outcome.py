"""What a trial's end means, where no real process can be made to end so."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from selectbench.launch.outcome import Ending, outcome_of
from selectbench.record.record import Failed
from selectbench.record.wire import GaveUp


def ended(folder: Path, status: int | None, said: GaveUp | None = None, *, oom: bool = False) -> Failed:
    outcome = outcome_of(Ending(folder, status, said, stopped=None, oom_killed=oom))
    assert isinstance(outcome, Failed)
    return outcome


@pytest.mark.parametrize("oom", [False, True])
def test_a_killed_trial_is_oom_where_the_kernels_counter_grew(tmp_path: Path, oom: bool) -> None:
    outcome = ended(tmp_path, -signal.SIGKILL, oom=oom)
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


def test_a_signal_without_a_name(tmp_path: Path) -> None:
    assert "signal 40" in ended(tmp_path, -40).detail
