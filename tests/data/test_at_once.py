"""Processes that prepare records at once, on disks with and without locks, and some that are killed in between."""

import os
import signal
import subprocess
import sys
import time

import pytest
from data.made import STORIES, chat, decoded, in_cache, jsonl, made, parquet
from processes import start

from selectbench.choices.model import Bpe
from selectbench.data import prepared as cache
from selectbench.data.prepared import Prepared, cache_root

CODE = """
import errno, fcntl, os, sys
def no_lock(*_):
    if os.environ["FLOCK"] == "ENOLCK":
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
if os.environ["FLOCK"]:
    fcntl.flock = no_lock
from selectbench.choices.model import Bpe
from selectbench.data.prepare import prepare
from selectbench.suite.sources import {kind}
data = {kind}.model_validate_json(sys.argv[1])
input()
prepared = prepare(data, Bpe(bpe=300), notify=lambda line: print(line, file=sys.stderr, flush=True))
print(prepared.folder, int(prepared.train().sum()), int(prepared.heldout().sum()))
"""


def begun(data, flock=""):
    """A process that waits for a line before it prepares; `flock`: what it does there, empty: what it should."""
    return start(
        [sys.executable, "-c", CODE.format(kind=type(data).__name__), data.model_dump_json()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "FLOCK": flock},
    )  # fmt: skip


def let_go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.parametrize("write", [jsonl, chat, parquet])
def test_two_processes_at_once_leave_one_whole_preparation(write, tmp_path):
    data = write(tmp_path)
    runs = [begun(data), begun(data)]
    for run in runs:
        let_go(run)
    said = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert len({out for out, _ in said}) == 1
    assert sum(err.count("preparing") for _, err in said) == 1  # once for the node
    prepared = made(data)
    assert in_cache() == [prepared.key]
    assert said[0][0].split()[1:] == [str(int(prepared.train().sum())), str(int(prepared.heldout().sum()))]


def test_the_wait_for_a_process_that_does_not_end_has_a_bound(tmp_path, monkeypatch):
    final, notes = tmp_path / "key", []
    monkeypatch.setattr(cache, "LONGEST_WAIT_SECONDS", 0.0)
    with cache.folder_lock(final, notes.append):
        assert notes == []
        with cache.folder_lock(final, notes.append):
            assert notes[0] == f"waiting for another process, which prepares {final}"
            assert notes[1:] == [f"waited 0 min for it: {final} is prepared here too"]


@pytest.mark.parametrize("flock", ["nothing", "ENOLCK"])
def test_without_locks_what_is_made_several_times_is_there_once_and_whole(flock, tmp_path):
    """One is killed as it writes; another reads what is there all the while."""
    data = jsonl(tmp_path, STORIES * 40)
    runs = [begun(data, flock) for _ in range(3)]
    for run in runs:
        let_go(run)
    next(iter(runs[0].stderr))
    runs[0].kill()
    while any(run.poll() is None for run in runs[1:]):
        for name in in_cache():
            if not name.startswith(".unfinished-"):
                Prepared.open(cache_root() / "data" / name).check()
    said = [run.communicate(timeout=60) for run in runs[1:]]
    assert [run.returncode for run in runs[1:]] == [0, 0], said
    prepared = made(data)
    assert [name for name in in_cache() if not name.startswith(".unfinished-")] == [prepared.key]
    assert {out.split()[1] for out, _ in said} == {str(int(prepared.train().sum()))}


@pytest.mark.parametrize("stage", ["preparing", "looking", "training"])
def test_a_killed_preparation_leaves_nothing_that_is_taken_for_whole(stage, tmp_path):
    data = jsonl(tmp_path, STORIES * 40)
    run = begun(data)
    let_go(run)
    for line in run.stderr:  # each stage is told before it begins
        if line.startswith(stage):
            break
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert all(name.startswith(".unfinished-") for name in in_cache())
    prepared = made(data)
    assert prepared.documents_in == len(STORIES) * 40
    assert prepared.key in in_cache()
    assert len(decoded(prepared, prepared.train())) == prepared.train_documents


def test_killed_at_any_moment_the_next_run_is_whole(tmp_path):
    """Whatever stands under a key when the process dies is complete."""
    data = jsonl(tmp_path, STORIES * 40)
    for delay in (0.02, 0.1, 0.25):
        run = begun(data)
        let_go(run)
        next(iter(run.stderr))
        time.sleep(delay)
        run.kill()
        run.communicate()
        keys = [name for name in in_cache() if not name.startswith(".unfinished-")]
        for key in keys:
            assert (cache_root() / "data" / key / "prepared.json").read_text().endswith("}\n")
    assert made(data, tokenizer=Bpe(bpe=300)).documents_in == len(STORIES) * 40
