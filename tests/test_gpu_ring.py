"""The ring goes on where it ended, ends what takes too long, and says what is to be explained."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gpu_ring
import processes
import pytest
from bounded_process import Summary
from gpu_ring import RESULTS, ROOT, SLICES, Ended, Slice

from selectbench.suite.load import load_suite

NOTES = f"open({RESULTS + '/ran'!r}, 'a').write"
FACTS = {"code_sha256": "a", "gpus": ["some GPU"]}


def stand_in(name: str, code: str = "", status: int = 0, bound_seconds: float = 540.0) -> Slice:
    """A process that notes that it ran, does `code` and ends."""
    return Slice(name, f"what {name} tells", ("-c", f"{NOTES}('{name} ')\n{code}\nraise SystemExit({status})"),
                 bound_seconds=bound_seconds)  # fmt: skip


FIRST, SECOND, THIRD = stand_in("first"), stand_in("second"), stand_in("third")


class Ring:
    """A results folder, and calls of the ring with it."""

    def __init__(self, results: Path) -> None:
        self.results = results

    def ended(self, facts: dict[str, object] = FACTS, *, fresh: bool = False) -> Ended:
        return Ended(self.results / "gpu_ring.json", facts, fresh=fresh)

    def call(
        self, *slices: Slice, ended: Ended | None = None, minutes: float | None = None, again: bool = False
    ) -> int:
        summary, seconds = Summary(self.results / "gpu_ring.txt"), None if minutes is None else 60 * minutes
        return gpu_ring.run_ring(slices, self.results, ended or self.ended(), summary, seconds=seconds, again=again)

    def ran(self) -> list[str]:
        """The slices that were begun, in order."""
        notes = self.results / "ran"
        return notes.read_text().split() if notes.exists() else []

    def said(self) -> str:
        return (self.results / "gpu_ring.txt").read_text(encoding="utf-8")


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Ring(tmp_path)
    for number, handler in before.items():  # the command sets its own
        signal.signal(number, handler)


def test_a_call_goes_on_where_the_last_one_ended(ring: Ring) -> None:
    assert ring.call(FIRST, SECOND) == 0
    assert ring.call(FIRST, SECOND, THIRD) == 0
    assert ring.ran() == ["first", "second", "third"]


def test_what_was_cut_off_comes_after_what_has_not_run_yet(ring: Ring) -> None:
    ring.ended().add("first", None)
    assert ring.call(FIRST, SECOND) == 0
    assert ring.ran() == ["second", "first"]


def test_what_is_asked_for_runs_again_and_all_does_when_begun_anew(ring: Ring) -> None:
    ring.call(FIRST, SECOND)
    ring.call(SECOND, again=True)
    ring.call(FIRST, SECOND, ended=ring.ended(fresh=True))
    assert ring.ran() == ["first", "second", "second", "first", "second"]


def test_other_code_or_another_gpu_begins_anew(ring: Ring) -> None:
    ring.call(FIRST)
    ring.call(FIRST, ended=ring.ended(FACTS | {"code_sha256": "b"}))
    ring.call(FIRST, ended=ring.ended(FACTS | {"gpus": ["another"]}))
    assert ring.ran() == ["first"] * 3


def test_a_failure_is_told_by_every_later_call_and_the_ring_goes_on(ring: Ring) -> None:
    fails = stand_in("fails", status=7)
    assert ring.call(fails, SECOND) == 1
    assert ring.call(fails, SECOND) == 1
    assert ring.ran() == ["fails", "second"]
    assert ring.said().count("fails: exit status 7") == 2


def test_a_status_with_nothing_to_explain(ring: Ring) -> None:
    assert ring.call(Slice("two", "", ("-c", "raise SystemExit(2)"), good=(0, 2))) == 0


def test_no_slice_begins_that_may_take_longer_than_is_left(ring: Ring) -> None:
    assert ring.call(stand_in("short", bound_seconds=30.0), FIRST, minutes=5) == 3
    assert ring.ran() == ["short"]
    assert "left for a later call: first" in ring.said()
    assert ring.call(FIRST) == 0


def test_a_program_that_is_not_there_is_said(ring: Ring) -> None:
    assert ring.call(Slice("gone", "", ("tests/no_such_program.py",))) == 1
    assert "there is no tests/no_such_program.py here" in ring.said()


ENDLESS = """
import signal, subprocess
signal.signal(signal.SIGINT, signal.SIG_IGN)  # for what it starts as well
subprocess.run(["sh", "-c", "sleep 60"], stderr=open({held!r}, "w"))
"""


def test_a_slice_that_takes_too_long_is_ended_with_all_that_it_started(ring: Ring) -> None:
    held = ring.results / "held"
    os.mkfifo(held)
    reading = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert ring.call(stand_in("endless", ENDLESS.format(held=str(held)), bound_seconds=1.5), SECOND) == 3
        ends = select.poll()
        ends.register(reading, select.POLLHUP)
        # Told once all are gone that had it open for writing.
        assert ends.poll(30_000) == [(reading, select.POLLHUP)]
    finally:
        os.close(reading)
    assert ring.ran() == ["endless", "second"]
    assert "endless took more than 1.5 s" in ring.said()
    assert ring.call(stand_in("endless"), SECOND) == 0


def test_a_slice_that_takes_too_long_first_hears_ctrl_c(ring: Ring) -> None:
    waits = "try:\n import time; time.sleep(60)\nexcept KeyboardInterrupt:\n print('records', 'closed')"
    assert ring.call(stand_in("waits", waits, bound_seconds=3.0)) == 3
    assert "records closed" in ring.said()


KEPT = sorted((ROOT / "results" / "precision").glob("*Z-*"))[-1]


def leaves_a_run(code: str) -> Slice:
    return Slice("leaves", "", ("-c", f"import shutil, pathlib\n{code}", RESULTS), suite="precision")


def test_the_run_that_a_suite_wrote_to_is_told_and_held_against_what_is_expected(ring: Ring) -> None:
    older, newer = (ring.results / "precision" / f"2026010{day}T000000.000Z-000000000000" for day in (1, 2))
    for run in (older, newer):
        shutil.copytree(KEPT, run)
    assert ring.call(leaves_a_run(f"pathlib.Path({str(older / 'records.jsonl')!r}).touch()")) == 1
    assert f"-- {older}" in ring.said()
    assert f"-- {newer}" not in ring.said()
    assert "precision: DEPARTS: fp32: MFU: unknown" in ring.said()  # kept of a CPU, whose peak is not known


def test_a_suite_that_left_no_run_is_to_be_explained(ring: Ring) -> None:
    shutil.copytree(KEPT, ring.results / "precision" / KEPT.name)
    assert ring.call(leaves_a_run("")) == 1
    assert "leaves left no run" in ring.said()


def test_without_a_gpu_nothing_runs(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(gpu_ring, "SLICES", (FIRST,))
    assert gpu_ring.main(["--results", str(ring.results)]) == 2
    assert ring.ran() == []
    assert "torch sees no GPU here: nothing was run" in ring.said()


def test_the_command_runs_what_it_names(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_ring, "facts_of", lambda settings: FACTS)
    monkeypatch.setattr(gpu_ring, "SLICES", (FIRST, SECOND, THIRD))
    command = ["--results", str(ring.results)]
    assert gpu_ring.main([*command, "--only", "third,first", "--only", "third"]) == 0
    assert gpu_ring.main([*command, "--minutes", "1"]) == 3
    assert gpu_ring.main(command) == 0
    assert gpu_ring.main([*command, "--only", "first"]) == 0
    assert ring.ran() == ["third", "first", "second", "first"]


def test_an_unknown_slice_is_refused_with_the_nearest(ring: Ring, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        gpu_ring.main(["--results", str(ring.results), "--only", "doctor,precison"])
    assert refused.value.code == 2
    assert "there is no slice 'precison' (did you mean 'precision'?)" in capsys.readouterr().err
    assert ring.ran() == []


def test_the_list_says_what_each_slice_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_ring.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [one.name for one in SLICES]
    assert all(one.tells in line for one, line in zip(SLICES, lines, strict=True))


def test_no_slice_of_the_ring_takes_more_than_nine_minutes() -> None:
    assert max(one.bound_seconds for one in SLICES) <= 540


@pytest.mark.parametrize("one", [one for one in SLICES if one.suite], ids=lambda one: str(one.name))
def test_each_suite_of_the_ring_is_a_right_one(one: Slice) -> None:
    words = dict(zip(one.arguments[4::2], one.arguments[5::2], strict=True))
    changed = [words["--set"]] if "--set" in words else []
    path = str(ROOT / one.arguments[3])
    suite = load_suite(path, device="cuda", profile=words["--profile"], seeds=words["--seeds"], settings=changed)
    assert suite.name == one.suite


INTERRUPTED = '''
import sys
sys.path[:0] = [{tests!r}]
import gpu_ring
gpu_ring.facts_of = lambda settings: {{"gpus": ["some GPU"]}}
code = """if True:
    import os, time
    ring = os.getppid()
    print("begun", flush=True)
    for _ in range(3000):
        if os.getppid() == ring:
            time.sleep(0.01)
"""
gpu_ring.SLICES = (gpu_ring.Slice("waits", "", ("-c", code)),)
sys.exit(gpu_ring.main(["--results", {results!r}]))
'''


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_ring_ends_its_slice_and_goes_on_with_it_later(ring: Ring, number: signal.Signals) -> None:
    code = INTERRUPTED.format(tests=str(ROOT / "tests"), results=str(ring.results))
    # As a shell starts it in the background.
    process = processes.start([sys.executable, "-c", code], ignores=[signal.SIGINT], stdout=subprocess.PIPE)
    assert process.stdout is not None
    while process.stdout.readline() != "begun\n":
        assert process.poll() is None
    process.send_signal(number)
    rest = process.stdout.read()  # to its end: nothing holds the pipe any more
    assert process.wait() == 130
    assert "interrupted: the next call goes on with this slice" in rest
    assert ring.call(stand_in("waits"), ended=ring.ended({"gpus": ["some GPU"]})) == 0
    assert ring.ran() == ["waits"]
