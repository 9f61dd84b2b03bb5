"""What a trial may do to the bench: real servers and trial processes, a planted training inside."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import processes
import pytest
from launch.harness import all_pids, corpus, until
from msgspec.structs import replace

import selectbench.launch.trial as trial
from selectbench.choices import Choices
from selectbench.choices.model import Bpe
from selectbench.data.prepare import prepare
from selectbench.launch.trial import StopRequest, TrialEnd, TrialRunner, TrialServer
from selectbench.record.record import NOTHING, Completed, Failed, Trial
from selectbench.record.wire import Order, Progress
from selectbench.suite.job import Job
from selectbench.suite.sources import TextFiles
from selectbench.suite.suite import Limits

CHOICES = Choices.model_validate({"optimizer": {"name": "adamw", "lr": 1e-3}, "micro_batch_size": 2})


class Bench:
    """A server with the planted worker, and orders for it."""

    def __init__(self, folder: Path, modules: list[str]) -> None:
        self.folder = folder
        self.server = TrialServer([*modules], folder / "server.log")
        self.stop = StopRequest()
        (folder / "trials").mkdir()
        (folder / "corpus.txt").write_text(corpus())
        self.data = prepare(TextFiles(text=[str(folder / "corpus.txt")]), Bpe(bpe=300))

    def run(self, option: str, **limits: float) -> TrialEnd:
        runner = TrialRunner(self.server, Limits(**limits), self.stop, lambda event: None)
        return runner.run(self.order(option))

    def order(self, option: str) -> Order:
        job = Job.model_validate(
            {
                "model": {"family": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2},
                "tokenizer": {"bpe": 300}, "seq_len": 16, "global_batch_size": 2, "max_steps": 2, "eval": "none",
            }
        )  # fmt: skip
        return Order(
            trial=Trial(trial_id=option, option=option, seed=0, settings=NOTHING), job=job, choices=CHOICES,
            device="cpu", threads=1, world_size=1, data_folder=str(self.data.folder),
            trial_folder=str(self.folder / "trials" / option), weights_folder=str(self.folder / "weights"),
            min_timed_seconds=0.0,
        )  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with a_bench(tmp_path_factory.mktemp("bench"), ["launch.planted_worker"]) as made:
        yield made


@contextmanager
def a_bench(folder: Path, modules: list[str]) -> Iterator[Bench]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    made = Bench(folder, modules)
    try:
        yield made
    finally:
        made.server.close()
        patch.undo()


def failure(end: TrialEnd) -> Failed:
    assert isinstance(end.outcome, Failed)
    return end.outcome


def test_a_trial_completes(bench: Bench) -> None:
    end = bench.run("trains")
    assert isinstance(end.outcome, Completed)
    assert end.finished is not None
    assert end.software["torch"]


def test_an_exception_is_a_crash_with_its_traceback(bench: Bench) -> None:
    outcome = failure(bench.run("raises"))
    assert outcome.kind == "crashed"
    assert outcome.detail.startswith("RuntimeError: planted failure\n")
    assert "Traceback" in outcome.detail


def test_an_exit_is_a_crash_with_its_status(bench: Bench) -> None:
    outcome = failure(bench.run("exits"))
    assert outcome.kind == "crashed"
    assert "exit status 7" in outcome.detail


def test_a_signal_of_its_own_is_a_crash_that_names_it(bench: Bench) -> None:
    assert "SIGABRT" in failure(bench.run("aborts")).detail


def test_an_event_that_does_not_fit_is_a_crash(bench: Bench) -> None:
    outcome = failure(bench.run("garbles"))
    assert outcome.kind == "crashed"
    assert "event" in outcome.detail


def test_a_silent_trial_times_out(bench: Bench) -> None:
    outcome = failure(bench.run("hangs", stall_seconds=0.5))
    assert outcome.kind == "timeout"
    assert "limits.stall_seconds" in outcome.detail


def test_a_trial_over_its_time_leaves_its_stack(bench: Bench) -> None:
    outcome = failure(bench.run("hangs_with_stack", trial_seconds=1.5))
    assert outcome.kind == "timeout"
    assert outcome.detail.startswith("not done after 1.5 s (limits.trial_seconds)\n")
    assert "hang_in_the_planted_place" in outcome.detail


def test_a_spawned_trial_is_asked_too(tmp_path: Path) -> None:
    def time_is_up_in_training(event: object) -> None:
        if isinstance(event, Progress):
            runner.limits = Limits(trial_seconds=0.001)

    with a_bench(tmp_path, ["launch.threaded_module"]) as bench:
        runner = TrialRunner(bench.server, Limits(), bench.stop, time_is_up_in_training)
        order = bench.order("trains")
        long = order.job.model_copy(update={"max_steps": 10**6})
        outcome = failure(runner.run(replace(order, job=long)))
        assert outcome.kind == "timeout"
        assert "loop.py" in outcome.detail


def test_a_trial_that_does_not_answer_is_killed_when_its_grace_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TERM_GRACE_SECONDS", 0.5)
    end = bench.run("ignores_sigterm", stall_seconds=1.0)
    assert failure(end).kind == "timeout"
    assert end.wall_seconds > 1.5


def test_a_stop_request_waits_for_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TERM_GRACE_SECONDS", 1000.0)
    with a_bench(tmp_path, ["launch.planted_worker"]) as bench:
        bench.stop.ask("SIGINT to selectbench")
        assert failure(bench.run("ignores_sigterm", trial_seconds=1.0)).kind == "interrupted"


@pytest.mark.parametrize("option", ["rank_is_behind", "rank_is_behind_and_the_leader_hangs"])
def test_a_leader_says_which_rank_is_behind(bench: Bench, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TERM_GRACE_SECONDS", 0.5)
    outcome = failure(bench.run(option, stall_seconds=1.0))
    first, rest = outcome.detail.split("\n", 1)
    assert outcome.kind == "timeout"
    assert first == (
        "no sign of life for 1 s (limits.stall_seconds); rank 1 is behind the others: forward pass of step 7"
    )
    assert rest.endswith("ValueError: planted in rank 1")


def test_a_rank_that_raises_is_named_with_its_log(bench: Bench) -> None:
    outcome = failure(bench.run("rank_raises"))
    assert outcome.kind == "crashed"
    assert outcome.detail.startswith("rank 1: ValueError: planted in rank 1\nTraceback")


def test_a_rank_that_is_killed_is_named(bench: Bench) -> None:
    outcome = failure(bench.run("rank_is_killed"))
    assert (outcome.kind, outcome.detail) == ("crashed", "rank 1: ended by SIGKILL, which selectbench did not send")


def test_what_a_trial_gave_up_for_is_not_lost_when_it_does_not_end(bench: Bench) -> None:
    outcome = failure(bench.run("rank_runs_out_of_memory_and_the_leader_hangs", stall_seconds=1.0))
    assert (outcome.kind, outcome.detail) == ("oom", "rank 1: tried to allocate 1 EiB")


def test_a_trial_that_is_done_and_does_not_end_times_out(bench: Bench) -> None:
    assert failure(bench.run("never_ends", stall_seconds=2.0)).kind == "timeout"


def test_what_a_trial_leaves_behind_is_killed_though_it_has_a_session_of_its_own(bench: Bench) -> None:
    bench.run("leaves_a_daemon")
    log = (bench.folder / "trials" / "leaves_a_daemon" / "log.txt").read_text()
    daemon = int(log.split("daemon ")[1].split()[0])
    assert daemon not in all_pids()


def test_a_dead_server_costs_one_trial(bench: Bench) -> None:
    outcome = failure(bench.run("kills_server"))
    assert outcome.kind == "crashed"
    assert "server" in outcome.detail
    assert isinstance(bench.run("trains").outcome, Completed)


@pytest.mark.parametrize(("option", "kind"), [("stops_server", "timeout"), ("stops_server_and_gives_up", "oom")])
def test_a_stopped_server_ends_with_the_trial_that_it_tells_nothing_of(
    bench: Bench, option: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "END_SECONDS", 0.5)
    bench.run("trains")
    assert bench.server.process is not None
    stopped = bench.server.process
    assert failure(bench.run(option, stall_seconds=1.0)).kind == kind
    assert stopped.poll() == -signal.SIGKILL
    assert isinstance(bench.run("trains").outcome, Completed)


def test_a_stopped_server_that_nothing_is_asked_of_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "END_SECONDS", 0.5)
    with a_bench(tmp_path, ["launch.planted_worker"]) as bench:
        bench.run("raises")
        assert bench.server.process is not None
        stopped = bench.server.process
        stopped.send_signal(signal.SIGSTOP)
    assert stopped.poll() == -signal.SIGKILL


def test_the_trial_that_has_the_server_started_says_what_it_waited(bench: Bench) -> None:
    bench.server.close()
    first, second = bench.run("waits"), bench.run("finds it ready")
    assert 0 < first.server_start_seconds < first.wall_seconds
    assert second.server_start_seconds == 0


def test_trials_fork_from_one_server(bench: Bench) -> None:
    bench.run("trains")
    assert bench.server.process is not None
    before = bench.server.process.pid
    bench.run("raises")
    assert bench.server.process.pid == before


def test_a_server_that_may_not_fork_starts_plain_processes(tmp_path: Path) -> None:
    with a_bench(tmp_path, ["launch.threaded_module"]) as bench:
        end = bench.run("trains")
        assert isinstance(end.outcome, Completed), end.outcome
        assert bench.server.process is not None
        environment = Path(f"/proc/{bench.server.process.pid}/environ").read_bytes()
        assert b"SELECTBENCH_FORK_UNSAFE=1" in environment


def test_a_module_that_is_not_installed_does_not_end_the_server(tmp_path: Path) -> None:
    with a_bench(tmp_path, ["launch.planted_worker", "no.such.module"]) as bench:
        assert isinstance(bench.run("trains").outcome, Completed)


def test_a_bench_that_is_gone_takes_a_hanging_trial_with_it(tmp_path: Path) -> None:
    log = tmp_path / "trials" / "hangs" / "log.txt"
    with a_bench(tmp_path, ["launch.planted_worker"]) as bench:
        thread = threading.Thread(target=bench.run, args=("hangs",))
        thread.start()
        until(lambda: log.exists() and "planted" in log.read_text())
        trial = next(pid for pid in all_pids() if _output(pid) == log)
        assert bench.server.control is not None
        bench.server.control.shutdown(2)
        until(lambda: trial not in all_pids())
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.mark.parametrize("before", [[], ["json"]])
def test_a_server_that_imports_dies_with_the_bench(tmp_path: Path, before: list[str]) -> None:
    """It imports the first module itself, and the others in a child before."""
    log, modules = tmp_path / "server.log", [*before, "launch.never_imported"]
    code = "import signal; from pathlib import Path; from selectbench.launch.trial import TrialServer; "
    code += f"server = TrialServer({modules}, Path({str(log)!r})); server.start(); signal.pause()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    bench = processes.start([sys.executable, "-c", code], env=environment)
    until(lambda: log.exists() and "it begins" in log.read_text())
    started = [pid for pid in all_pids() if _output(pid) == log]
    assert len(started) == 1 + len(before)
    bench.kill()
    bench.wait(timeout=60)
    until(lambda: not set(started) & set(all_pids()), seconds=20)


def _output(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/fd/1").readlink()
    except OSError:
        return None
