"""Results and cache on storage that several machines share: real processes, for which flock is nothing or an error.

What a process takes for its machine is planted in it, as one machine is all that there is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes
import pytest

from selectbench.errors import UserError
from selectbench.record import run_folder
from selectbench.record.run_folder import RunLock, write_whole

HOLDS = """
import json, sys, time
from pathlib import Path
from made_records import make_record
from selectbench.errors import UserError
from selectbench.record import run_folder
folder, machine = Path(sys.argv[1]), sys.argv[2]
run_folder.ALIVE_SECONDS, run_folder.DEAD_SECONDS = 0.1, 1.5
own = run_folder.machine_mark
run_folder.machine_mark = lambda: machine or own()
has_ended = run_folder.RunLock._has_ended
def slowly(lock, file):  # all that look at once see the same
    answer = has_ended(lock, file)
    time.sleep(0.3)
    return answer
run_folder.RunLock._has_ended = slowly
def say(word): print(json.dumps(word), flush=True)
say("here")
while sys.stdin.readline():
    try:
        with run_folder.RunLock(folder, lambda line: None) as lock:
            say("holds")
            while sys.stdin.readline() == "write\\n":
                lock.append(make_record(f"of {machine}", 0))
                say("wrote")
        say("free")
    except UserError as error:
        say(str(error))
"""


class Holder:
    """A process that wants the folder each time that it is told so; `machine` empty: on this one."""

    def __init__(self, folder: Path, machine: str = "") -> None:
        self.process = processes.start(
            [sys.executable, "-c", HOLDS, str(folder), machine], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        assert self.said() == "here"

    def tell(self, word: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def said(self) -> str:
        assert self.process.stdout is not None
        return str(json.loads(self.process.stdout.readline()))

    def asked(self, word: str = "go") -> str:
        self.tell(word)
        return self.said()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (run_folder.SUITE, run_folder.ENVIRONMENT):
        (tmp_path / name).touch()
    return tmp_path


def test_of_many_processes_at_once_one_holds_a_runs_folder(folder: Path) -> None:
    (folder / ".lock").touch()  # of an earlier version
    wanting = [Holder(folder, machine) for machine in ("", "", "a", "a", "b")]
    for _ in range(2):
        for one in wanting:
            one.tell()
        said = [one.said() for one in wanting]
        (place,) = (number for number, word in enumerate(said) if word == "holds")
        assert all("another selectbench is running this" in word for word in said if word != "holds")
        holder = wanting.pop(place)
        assert holder.asked("write") == "wrote"
        holder.kill()  # whoever comes next on its machine knows; one elsewhere looks a while
    stopped, other = Holder(folder), Holder(folder)
    assert stopped.asked() == "holds"
    stopped.kill(signal.SIGSTOP)
    assert "another selectbench is running this" in other.asked()  # on its own machine it is known to be there
    stopped.kill()
    assert other.asked() == "holds"
    assert len(list(folder.glob(".lock-*"))) == 1
    assert len(run_folder.read_records(folder / "records.jsonl")[0]) == 2


def test_a_holder_on_another_machine_is_seen_to_live_to_end_and_to_be_gone(folder: Path) -> None:
    first = Holder(folder, "a")
    assert first.asked() == "holds"
    assert "another selectbench is running this" in Holder(folder, "b").asked()  # it touches its file
    with pytest.raises(UserError, match="another selectbench"), RunLock(folder):  # who does not wait to see
        pass
    assert first.asked("end") == "free"
    second = Holder(folder, "b")
    assert second.asked() == "holds"  # at once
    second.kill(signal.SIGSTOP)
    third = Holder(folder, "c")
    assert third.asked() == "holds"
    assert third.asked("write") == "wrote"
    second.kill(signal.SIGCONT)
    assert "it was taken over by another machine while this run went on" in second.asked("write")
    assert third.asked("write") == "wrote"
    records, notes = run_folder.read_records(folder / "records.jsonl")
    assert ([record.trial.option for record in records], notes) == (["of c", "of c"], [])


def test_who_makes_a_holders_file_and_dies_before_it_says_who_it_is_holds_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "DEAD_SECONDS", 0.2)
    (folder / ".lock-7").touch()
    with RunLock(folder, lambda _: None) as lock:
        assert lock.path.name == ".lock-8"
        assert not (folder / ".lock-7").exists()
        (folder / ".lock-8").rename(folder / ".lock-x")
        with pytest.raises(UserError, match="was deleted or moved"):
            lock.check()


def test_a_file_that_several_write_at_once_is_always_that_of_one(tmp_path: Path) -> None:
    """Two machines may give their processes one number, as threads have here."""
    path, texts = tmp_path / "a.json", [letter * 200_000 for letter in "abcd"]
    path.write_text(texts[0])
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write_whole, path, text) for text in texts * 25]
        while not all(one.done() for one in writing):
            assert path.read_text() in texts
        for one in writing:
            one.result()
    assert list(tmp_path.iterdir()) == [path]
