"""Runs that are killed, started twice, or lose their folder, their data or their disk lose no figure."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
from launch.harness import LONG, TINY_SUITE, Workplace, trial_is_running, until
from transformers import GPT2Config, GPT2LMHeadModel

from selectbench.record.run_folder import is_run, sweep_weights

WIDE = ("--set", "job.model={family: gpt2, n_layer: 1, n_embd: 256, n_head: 2}")
"""Initial weights of some MB, the largest file of the run."""


@pytest.fixture
def workplace(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """With a cache of its own."""
    monkeypatch.setenv("SELECTBENCH_CACHE", str(workplace.folder / "cache"))
    return workplace


def completed(place: Workplace) -> dict[tuple[str, int], Any]:
    """What a trial's figures of quality are, by trial; each must have been completed once."""
    found: dict[tuple[str, int], Any] = {}
    for record in place.records():
        if record["outcome"]["status"] == "completed":
            trial = record["trial"]["option"], record["trial"]["seed"]
            assert trial not in found, "a trial was run to its end twice"
            points = [(point["step"], point["loss"]) for point in record["evaluation_curve"]]
            found[trial] = points, record["loss_curve"]
    return found


class TestKills:
    """SIGKILL, SIGTERM or SIGINT at random moments, to the bench or to all that it started."""

    @pytest.mark.slow
    def test_eight(self, workplace: Workplace, tmp_path: Path) -> None:
        killed_and_resumed(workplace, tmp_path / "unkilled", kills=8, seed=8)

    @pytest.mark.long
    @pytest.mark.timeout(3600)
    def test_forty(self, workplace: Workplace, tmp_path: Path) -> None:
        killed_and_resumed(workplace, tmp_path / "unkilled", kills=40, seed=40)


def killed_and_resumed(place: Workplace, elsewhere: Path, kills: int, seed: int) -> None:
    """Runs the suite to its end again and again, with so many kills in all on the way."""
    elsewhere.mkdir()
    unkilled, draw = Workplace(elsewhere), random.Random(seed)
    unkilled.write()
    began = time.monotonic()
    assert unkilled.call("run", "tiny.yaml").returncode == 0
    whole_seconds, expected = time.monotonic() - began, completed(unkilled)
    left = kills
    while left:
        before = place.records()
        process = place.start("run", "tiny.yaml")
        ways = ["KILL", "KILL all", "TERM", "INT"]
        way, moment, count = draw.choice(ways), draw.uniform(0.0, whole_seconds), len(before) + draw.randrange(1, 4)
        if draw.random() < 0.5:  # just when a record is written
            until(partial(ended_or_at, place, count, process))
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
        if process.poll() is None:
            below = place.trial_pids()
            process.send_signal(signal.Signals[f"SIG{way.split()[0]}"])
            for pid in below if way == "KILL all" else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            left -= 1
        _, err = process.communicate(timeout=120)
        number = signal.Signals[f"SIG{way.split()[0]}"]  # which also ends a process that has no handler for it yet
        assert process.returncode in (0, -number, 130 if number != signal.SIGKILL else 0), (way, err)
        assert "Traceback" not in err, (way, err)
        until(lambda: not place.trial_pids())
        assert place.records()[: len(before)] == before, "a record was lost"
        reported = [folder for folder in place.run_folders() if (folder / "ranking.json").exists()]
        if reported and completed(place).keys() == expected.keys():
            assert process.returncode != 130, "nothing was left to go on with"
            complete(place, expected)
            shutil.rmtree(place.folder / "results")
    done = place.call("run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    complete(place, expected)


def ended_or_at(place: Workplace, records: int, process: processes.Process) -> bool:
    return process.poll() is not None or len(place.records()) >= records


def complete(place: Workplace, expected: dict[tuple[str, int], Any]) -> None:
    (run,) = filter(is_run, place.run_folders())  # a kill in the midst of making it leaves half a folder
    assert completed(place) == expected
    assert {record["outcome"].get("kind") for record in place.records()} <= {None, "interrupted"}
    assert not (run / "weights").exists()


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_report_is_not_run_once_more(workplace: Workplace) -> None:
    assert workplace.call("run", "tiny.yaml", "--seeds", "0").returncode == 0
    (folder,), records = workplace.run_folders(), workplace.records()
    whole = (folder / "ranking.json").read_bytes()
    (folder / "ranking.json").unlink()
    done = workplace.call("run", "tiny.yaml", "--seeds", "0")
    assert done.returncode == 0, done.stderr
    assert "every trial has its outcome; only the report was still to be written" in done.stderr
    assert (workplace.run_folders(), workplace.records()) == ([folder], records)
    assert (folder / "ranking.json").read_bytes() == whole


slow = partial(pytest.param, marks=pytest.mark.slow)


class TestWhatIsTakenAway:
    @pytest.mark.parametrize("name", ["", slow("suite.yaml"), slow("environment.json")])
    def test_the_runs_folder_or_a_file_of_it(self, workplace: Workplace, name: str) -> None:
        """It is told during a trial that would go on for hours, and the next run is whole."""
        process = workplace.start("run", "tiny.yaml", *LONG)
        assert process.stderr is not None
        while ": train " not in process.stderr.readline():  # it has written all that it needs by then
            assert process.poll() is None
        (folder,) = workplace.run_folders()
        if name:
            (folder / name).unlink()
        else:
            shutil.rmtree(folder)
        gone = f"lost its {name}" if name else "was deleted or moved"
        stopped(process, f"{folder.name}: it {gone} while this run went on")
        assert name or workplace.run_folders() == []
        assert not name or workplace.call("run", "tiny.yaml", "--seeds", "0").returncode == 0

    @pytest.mark.slow
    def test_its_records(self, workplace: Workplace) -> None:
        process = workplace.first_trial_done("run", "tiny.yaml")
        (folder,) = workplace.run_folders()
        (folder / "records.jsonl").unlink()
        workplace.let_go()
        stopped(process, f"{folder.name}: it lost its records.jsonl while this run went on")
        assert not (folder / "records.jsonl").exists()

    @pytest.mark.slow
    def test_half_a_folder_is_not_gone_on_with(self, workplace: Workplace) -> None:
        """As a start that is killed, or a person, leaves it."""
        workplace.hold()
        process = workplace.start("run", "tiny.yaml", "--seeds", "0")
        until(lambda: [f for f in workplace.run_folders() if (f / "environment.json").exists()])
        process.kill()
        process.communicate(timeout=60)
        until(lambda: workplace.trial_pids() == [])
        workplace.let_go()
        (half,) = workplace.run_folders()
        (half / "environment.json").rename(half / "kept")
        done = workplace.call("run", "tiny.yaml", "--seeds", "0")
        assert done.returncode == 0, done.stderr
        assert len(workplace.run_folders()) == 2
        assert not (half / "records.jsonl").exists()
        (half / "kept").rename(half / "environment.json")
        shutil.rmtree(half / "trials")
        shutil.rmtree(workplace.run_folders()[-1])
        assert workplace.call("run", "tiny.yaml", "--seeds", "0").returncode == 0
        assert len((half / "records.jsonl").read_text().splitlines()) == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["", "train.bin", "prepared.json"])
    def test_the_prepared_data(self, workplace: Workplace, name: str) -> None:
        """The next trial does not crash for it: it is run when the data are there again."""
        process = workplace.first_trial_done("run", "tiny.yaml", "--seeds", "0")
        (data,) = (workplace.folder / "cache" / "data").iterdir()
        if name:
            (data / name).unlink()
        else:
            shutil.rmtree(workplace.folder / "cache")
        workplace.let_go()
        stopped(process, "the prepared data were removed or damaged while this run went on")
        kept = workplace.records()
        done = workplace.call("run", "tiny.yaml", "--seeds", "0")
        assert done.returncode == 0, done.stderr
        assert workplace.records()[: len(kept)] == kept
        assert [record["outcome"]["status"] for record in workplace.records()] == ["completed", "completed"]

    @pytest.mark.slow
    def test_a_model_that_was_trained_before(self, workplace: Workplace) -> None:
        model = workplace.folder / "model"
        sizes = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 32, "vocab_size": 300}
        GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=0, **sizes)).save_pretrained(model)
        drawn = "{family: gpt2, n_layer: 1, n_embd: 32, n_head: 2}"
        workplace.write(TINY_SUITE.replace(drawn, f"{{pretrained: {model}}}"))
        process = workplace.first_trial_done("run", "tiny.yaml", "--seeds", "0")
        shutil.rmtree(model)
        workplace.let_go()
        stopped(process, "model.pretrained: ")
        assert [record["outcome"]["status"] for record in workplace.records()] == ["completed"]


def stopped(process: processes.Process, words: str) -> None:
    """The run ends with a sentence."""
    _, err = process.communicate(timeout=120)
    assert (process.returncode, "Traceback" in err) == (2, False), err
    assert words in err
    assert "run the same command again" in err


class TestFullDisks:
    def test_no_room_for_what_a_trial_writes(self, workplace: Workplace) -> None:
        """A limit on the size of files stands for it: the largest of a run are initial weights."""
        assert workplace.call("data", "tiny.yaml").returncode == 0
        process = workplace.start("run", "tiny.yaml", "--seeds", "0", *WIDE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        stopped(process, "seed 0: a disk did not take what was written: ")
        assert workplace.records() == []
        done = workplace.call("run", "tiny.yaml", "--seeds", "0", *WIDE)
        assert done.returncode == 0, done.stderr
        assert len(workplace.run_folders()) == 1

    @pytest.mark.slow
    def test_a_disk_that_is_really_full(self, workplace: Workplace, small_disk: Path) -> None:
        """Then even a trial's log has no room for why it crashed."""
        settings = ("--seeds", "0", "--results", str(small_disk), *WIDE)
        (small_disk / "ballast").write_bytes(bytes(1 << 20))
        stopped(workplace.start("run", "tiny.yaml", *settings), "a disk did not take what was written: ")
        left = shutil.disk_usage(small_disk).free
        (small_disk / "more").write_bytes(bytes(left))
        done = workplace.call("run", "tiny.yaml", *settings, "--fresh")
        assert done.returncode == 2
        assert "cannot write: No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert list(small_disk.glob("tiny/*/records.jsonl")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only who may mount has a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class TestStartsAtOnce:
    def test_one_runs_and_the_others_say_so(self, workplace: Workplace) -> None:
        started = [workplace.start("run", "tiny.yaml", "--seeds", "0") for _ in range(3)]
        said = [process.communicate(timeout=300)[1] for process in started]
        assert sorted(process.returncode for process in started) == [0, 2, 2]
        assert sum("another selectbench run measures on this CPU (pid " in err for err in said) == 2
        assert len(workplace.run_folders()) == 1
        assert len(workplace.records()) == 2

    @pytest.mark.slow
    def test_with_wait_they_run_one_after_the_other(self, workplace: Workplace) -> None:
        first = workplace.start("run", "tiny.yaml", *LONG)
        until(trial_is_running(workplace))
        second = workplace.start("run", "tiny.yaml", "--seeds", "0", "--wait")
        assert second.stderr is not None
        assert (
            f"waiting: another selectbench run measures on this CPU (pid {first.pid})" in second.stderr.readline()
        )
        assert len(workplace.run_folders()) == 1
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
        second.communicate(timeout=300)
        assert second.returncode == 0

    @pytest.mark.slow
    def test_who_waits_can_be_interrupted(self, workplace: Workplace) -> None:
        first = workplace.start("run", "tiny.yaml", *LONG)
        until(trial_is_running(workplace))
        second = workplace.start("run", "tiny.yaml", "--seeds", "0", "--wait")
        assert second.stderr is not None
        second.stderr.readline()
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=60)
        assert second.returncode == 130
        first.kill()
        first.communicate(timeout=60)
        until(lambda: workplace.trial_pids() == [])

    @pytest.mark.slow
    @pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
    def test_on_cores_of_its_own_the_second_takes_no_run_that_goes_on(self, workplace: Workplace) -> None:
        """Both would be free to measure, and have chosen the same folder."""
        cores = sorted(os.sched_getaffinity(0))[:2]
        words = [sys.executable, "-m", "selectbench", "run", "tiny.yaml", "--seeds", "0"]
        started = [
            processes.start(["taskset", "-c", str(core), *words], cwd=workplace.folder, stderr=subprocess.PIPE,
                            stdout=subprocess.DEVNULL, env=workplace.environment()) for core in cores
        ]  # fmt: skip
        said = [process.communicate(timeout=300)[1] for process in started]
        assert sorted(process.returncode for process in started) == [0, 2], said
        assert sum("another selectbench is running this" in err for err in said) == 1
        assert len(workplace.run_folders()) == 1


@pytest.mark.slow
def test_initial_weights_of_a_run_that_nobody_resumed_go_with_the_next_of_any_suite(workplace: Workplace) -> None:
    process = workplace.start("run", "tiny.yaml", *LONG)
    until(lambda: list((workplace.folder / "results").glob("tiny/*/weights/*.safetensors")))
    process.kill()
    process.communicate(timeout=60)
    until(lambda: workplace.trial_pids() == [])
    own = workplace.folder / "results" / "mine" / "1" / "weights"
    own.mkdir(parents=True)
    workplace.write(TINY_SUITE.replace("name: tiny", "name: other"), "other.yaml")
    other = workplace.start("run", "other.yaml", *LONG)
    until(trial_is_running(workplace))
    assert not (workplace.run_folders()[0] / "weights").exists()
    assert own.exists(), "it is in no run's folder"
    assert list(own.parent.iterdir()) == [own]
    (folder,) = workplace.run_folders("other")
    until(lambda: list(folder.glob("weights/*.safetensors")))
    sweep_weights(workplace.folder / "results")
    assert list(folder.glob("weights/*.safetensors")), "a run that goes on keeps its own"
    other.kill()
    other.communicate(timeout=60)
    until(lambda: workplace.trial_pids() == [])
