"""One rank's end ends the trial at once, names the rank that failed first, and leaves nothing behind."""

from pathlib import Path

import pytest

from selectbench.record.record import Failed
from selectbench.suite.suite import Limits

RANKS = {"job": {"max_steps": 50, "eval": "none"}, "micro_batch_size": 4, "world_size": 2}


def children(pid):
    return [int(c) for task in Path(f"/proc/{pid}/task").glob("*/children") for c in task.read_text().split()]


def failed(launched, option, strategy, **settings):
    end = launched.end(option=option, strategy={"name": strategy}, **RANKS, **settings)
    assert isinstance(end.outcome, Failed), end.outcome
    assert children(launched.server.process.pid) == []
    return end


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_rank_is_named_though_the_other_complains_too(launched, strategy):
    end = failed(launched, "rank_killed", strategy)
    assert end.outcome.kind == "crashed"
    assert end.outcome.detail.startswith("rank 1: ")
    assert "SIGKILL" in end.outcome.detail.splitlines()[0]


def test_a_rank_that_raises_is_named_with_its_own_log(launched):
    end = failed(launched, "rank_raises", "ddp")
    assert end.outcome.kind == "crashed"
    assert end.outcome.detail.startswith("rank 1: ValueError: planted failure of a rank")
    assert "in _misbehave" in end.outcome.detail
    assert "rank 1 says goodbye" in (launched.trial_folder / "rank1.log").read_text()


def test_a_rank_out_of_memory_is_an_oom_of_that_rank(launched):
    end = failed(launched, "rank_out_of_memory", "fsdp")
    assert end.outcome.kind == "oom"
    assert end.outcome.detail.startswith("rank 1: ")
    assert "20.00 GiB" in end.outcome.detail


def test_so_is_one_that_a_library_ended_and_one_that_had_no_memory_to_meet_the_others(launched):
    ended = failed(launched, "rank_ended_by_library", "ddp")
    assert ended.outcome.kind == "oom"
    assert ended.outcome.detail.startswith("rank 1: ended with exit status 1\nError out of memory at line 88")
    alone = failed(launched, "no_memory_to_meet", "ddp")
    assert alone.outcome.kind == "oom"
    assert "Cuda failure 2 'out of memory'" in alone.outcome.detail


@pytest.mark.parametrize("option", ["rank_hangs", "rank_hangs_in_collective"])
def test_a_rank_that_hangs_is_named_at_the_limit_with_its_stack(launched, option):
    launched.finished(job={"max_steps": 1, "eval": "none", "lr_schedule": {}})  # the server's imports are done
    launched.limits = Limits(stall_seconds=2)
    end = failed(launched, option, "ddp")
    assert end.outcome.kind == "timeout"
    assert "no sign of life for 2 s" in end.outcome.detail
    assert "rank 1 is in the forward pass of step 3, rank 0 waits in the" in end.outcome.detail
    assert "planted_ranks.py" in end.outcome.detail
    assert end.wall_seconds < 20


def test_after_any_failure_the_next_trial_of_ranks_runs(launched):
    failed(launched, "rank_killed", "ddp")
    finished = launched.finished(job={"max_steps": 4, "eval": "none"}, micro_batch_size=4, world_size=2,
                                 strategy={"name": "ddp"})  # fmt: skip
    assert finished.identity.world_size == 2


def test_without_a_loopback_interface_ranks_say_so_instead_of_waiting(launched):
    end = failed(launched, "no_loopback", "ddp")
    assert end.outcome.kind == "crashed"
    assert end.outcome.detail.startswith(
        "ranks meet at 127.0.0.1, which cannot be reached here (Network is unreachable)"
    )


def test_ranks_that_do_not_find_each_other_wait_for_minutes_and_not_for_ever(launched):
    end = failed(launched, "rank_never_comes", "ddp")
    assert end.outcome.kind == "crashed"
    assert "rank 0: " in end.outcome.detail
    assert "imed out" in end.outcome.detail
