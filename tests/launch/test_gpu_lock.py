"""Locks on GPUs: real files and real processes, no GPU."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Process, start

from selectbench.errors import UserError
from selectbench.launch import gpus as gpu_lock
from selectbench.launch.gpus import DEFAULT_FOLDER, TURN, holder_pid, is_locked, lock_folder, my_turn, try_lock

HOLD = """\
import sys
from selectbench.launch.gpus import try_lock
lock = try_lock(sys.argv[1])
print("held" if lock else "refused", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELECTBENCH_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


def hold(uuid: str) -> Process:
    process = start([sys.executable, "-c", HOLD, uuid], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_holder_at_a_time() -> None:
    assert not is_locked("GPU-a")
    first = try_lock("GPU-a")
    assert first is not None
    assert is_locked("GPU-a")
    assert try_lock("GPU-a") is None
    other = try_lock("GPU-b")
    assert other is not None
    first.release()
    first.release()
    assert not is_locked("GPU-a")
    again = try_lock("GPU-a")
    assert again is not None
    again.release()
    other.release()


def test_looking_leaves_nothing_behind(folder: Path) -> None:
    assert not is_locked("GPU-a")
    assert not folder.exists()


def test_a_killed_process_holds_nothing() -> None:
    process = hold("GPU-a")
    assert try_lock("GPU-a") is None
    assert holder_pid("GPU-a") == process.pid
    process.kill()
    process.communicate()
    lock = try_lock("GPU-a")
    assert lock is not None
    assert holder_pid("GPU-a") == os.getpid()
    lock.release()


def test_children_do_not_inherit_a_lock() -> None:
    lock = try_lock("GPU-a")
    assert lock is not None
    child = start(
        [sys.executable, "-c", "print('up', flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        close_fds=False,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    lock.release()
    left = is_locked("GPU-a")
    child.communicate("\n")
    assert not left


def test_every_user_may_lock_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        lock = try_lock("GPU-a")
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert lock is not None
    lock.release()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o666]


def test_a_file_made_without_o_creat_where_it_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "GPU-a.lock").touch()
    flags = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, how, *rest: flags.append(how) or real(path, how, *rest))
    lock = try_lock("GPU-a")
    assert lock is not None
    lock.release()
    assert not any(how & os.O_CREAT for how in flags)


def test_a_file_that_is_tidied_away_meanwhile_is_made_anew(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    real = gpu_lock.lock
    left = [folder / "GPU-a.lock"]

    def lose_it(descriptor: int, *, wait: bool) -> bool:
        if left:
            left.pop().unlink()
        return real(descriptor, wait=wait)

    monkeypatch.setattr(gpu_lock, "lock", lose_it)
    lock = try_lock("GPU-a")
    assert lock is not None
    assert try_lock("GPU-a") is None  # both looked at the file that is there now
    lock.release()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_refused(kind: str, folder: Path) -> None:
    folder.mkdir()
    path = folder / "GPU-a.lock"
    {"link": lambda: path.symlink_to("elsewhere"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(UserError, match=r"GPU-a\.lock: cannot lock: .*SELECTBENCH_LOCKS"):
        try_lock("GPU-a")
    assert not (folder / "elsewhere").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELECTBENCH_LOCKS", str(tmp_path / "file"))
    with pytest.raises(UserError, match="SELECTBENCH_LOCKS"):
        try_lock("GPU-a")


def test_a_slice_of_the_old_form_is_one_file(folder: Path) -> None:
    lock = try_lock("MIG-GPU-a/1/0")
    assert lock is not None
    assert [path.name for path in folder.iterdir()] == ["MIG-GPU-a_1_0.lock"]
    lock.release()


def test_turns_are_taken_one_after_the_other() -> None:
    with my_turn():
        assert try_lock(TURN) is None
    lock = try_lock(TURN)
    assert lock is not None
    lock.release()


def test_the_folder_is_everybodys_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELECTBENCH_LOCKS")
    assert lock_folder() == DEFAULT_FOLDER
