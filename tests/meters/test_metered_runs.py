"""Whole runs with real training, metered on GPUs whose driver does what a scenario says while each trial runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch.harness import TINY_SUITE, all_pids, corpus
from stand_in import StandIn, Value

from selectbench.analysis.metrics import energy, state_of
from selectbench.gpu.devices import gpus
from selectbench.gpu.sampler import FILE_NAME, descends_from
from selectbench.launch.display import Display
from selectbench.launch.gpus import Claim
from selectbench.launch.preparation import Preparation, Request, prepare_all
from selectbench.launch.run import Result, Retried, pending, run
from selectbench.record.record import Completed, Failed, GpuMeters, Record
from selectbench.record.run_folder import read_records

pytestmark = pytest.mark.slow
GIB = 1 << 30
SUITE = TINY_SUITE.split("baseline:")[0] + "seeds: [0]\n"
QUIET: tuple[Value, ...] = (
    "gpu0.power_watts", 60, "gpu0.memory_used", 4 << 20, "gpu0.utilization", 0, "gpu0.reasons", 1,
    "gpu0.lost", None, "gpu0.processes", "", "gpu0.counter", None, "gpu0.instant_power", None,
)  # fmt: skip
"""Of an idle GPU that answers everything."""


class Scenario(Display):
    """A display that has the driver follow the trials: what it shows is no matter here."""

    def __init__(self, driver: StandIn, acts: Mapping[tuple[str, str], tuple[Value, ...]]) -> None:
        """`acts`: by (option, phase), what the driver says from then on; `launch` is the trial's start."""
        super().__init__()
        self.driver, self.acts = driver, acts
        self.seen: dict[str, list[str]] = {}
        """By option whose own processes the driver lists, the others that it lists too."""
        self.notes: list[str] = []
        self.started: list[str] = []

    def _act(self, phase: str) -> None:
        self.driver.set(*self.acts.get((self.started[-1], phase), ()))
        if phase == "train" and self.started[-1] in self.seen:
            own = [str(pid) for pid in all_pids() if descends_from(pid, os.getpid())]
            self.driver.set("gpu0.processes", ",".join([*own, *self.seen[self.started[-1]]]))

    def run_started(self, *_: object, before_contest: bool = False) -> None: ...

    def trial_started(self, option: str, seed: int, number: int, of: int) -> None:
        self.started.append(option)
        self._act("launch")

    def phase_changed(self, phase: str) -> None:
        self._act(phase)

    def progress(self, step: int, *_: object) -> None:
        self._act(f"step {step}")

    def tick(self) -> None: ...

    def trial_ended(self, *_: object) -> None:
        self.driver.set(*QUIET)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None: ...


Runs = Callable[..., tuple[Result, Scenario]]


def prepared(folder: Path, options: str, **more: str) -> Preparation:
    (folder / "corpus.txt").write_text(corpus())
    extra = "".join(f"{key}: {value}\n" for key, value in more.items())
    (folder / "tiny.yaml").write_text(f"{SUITE}options: {options}\n{extra}")
    settings = ["job.timing={min_timed_seconds: 1.2}", "job.max_steps=16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # the job is a CPU's: nobody here has the GPUs' torch
        preparation = prepare_all(Request(str(folder / "tiny.yaml"), settings=settings), lambda _: None)
    preparation.claim.release()
    return replace(preparation, claim=Claim(gpus()))


def records_of(result: Result) -> list[Record]:
    return read_records(result.folder / "records.jsonl")[0]


def first_gpu(record: Record) -> GpuMeters:
    assert record.meters is not None
    return record.meters.gpus[0]


@pytest.fixture
def driver(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stand_in.set(*QUIET)
    return stand_in


LOAD: tuple[Value, ...] = (
    "gpu0.power_watts", 300, "gpu0.utilization", 97, "gpu0.reasons", 4, "gpu0.memory_used", 9 * GIB,
)  # fmt: skip
ACTS: dict[tuple[str, str], tuple[Value, ...]] = {
    ("clean", "train"): LOAD,
    ("clean", "evaluate"): ("gpu0.memory_used", 30 * GIB),
    ("hot", "train"): (*LOAD, "gpu0.reasons", 0x40),
    ("shared", "train"): LOAD,
    ("power_only", "launch"): ("gpu0.counter", "unsupported", "gpu0.instant_power", "unsupported"),
    ("power_only", "train"): LOAD,
    ("dies", "train"): LOAD,
    ("vanishes", "train"): LOAD,
    ("vanishes", "extra"): ("gpu0.lost", 1),
}  # fmt: skip
OPTIONS = """
  clean: {}
  hot: {optimizer: {name: adamw, lr: 1.1e-3}}
  shared: {micro_batch_size: 2}
  power_only: {optimizer: {name: adamw, lr: 1.3e-3}}
  dies: {optimizer: {name: sgd, lr: 1000}}
  vanishes: {optimizer: {name: adamw, lr: 1.5e-3}}
"""


@pytest.fixture(scope="module")
def whole_run(driver_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One trial of each scenario, on the first of two GPUs."""
    folder = tmp_path_factory.mktemp("metered")
    with pytest.MonkeyPatch.context() as patch:
        driver = StandIn(folder)
        driver.load(patch)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        driver.set(*QUIET)
        preparation = prepared(folder, OPTIONS, baseline="clean")
        scenario = Scenario(driver, ACTS)
        scenario.seen = {"clean": [], "hot": [], "shared": ["1:5000000"]}
        result = run(preparation, folder / "results", lambda: scenario)
        yield result, {record.trial.option: record for record in records_of(result)}


def test_only_the_gpu_of_the_trials_rank_is_metered(whole_run: Any) -> None:
    _, records = whole_run
    assert {len(record.meters.gpus) for record in records.values()} == {1}
    assert first_gpu(records["clean"]).name == "NVIDIA H100"


def test_energy_is_power_times_the_timed_seconds_by_every_meter(whole_run: Any) -> None:
    gpu = first_gpu(whole_run[1]["clean"])
    timed = whole_run[1]["clean"].outcome.measurement.timed_seconds
    assert timed <= gpu.metered_seconds <= timed + 0.5
    # The counter goes up in steps of 100 ms, so that both edges may be off by one.
    assert gpu.counter_joules == pytest.approx(300 * gpu.metered_seconds, abs=300 * 0.25)
    assert gpu.instant_power_joules == pytest.approx(300 * gpu.metered_seconds, rel=0.1)
    assert gpu.average_power_joules == pytest.approx(300 * gpu.metered_seconds, rel=0.1)


def test_memory_of_the_evaluation_is_not_the_trainings(whole_run: Any) -> None:
    gpu = first_gpu(whole_run[1]["clean"])
    assert gpu.idle_memory_bytes == 4 << 20
    assert max(value for _, value in gpu.memory_series) == 30 * GIB
    assert gpu.peak_device_memory_bytes in (9 * GIB, 4 << 20, None)  # six steps may end before the first reading


@pytest.mark.parametrize(
    ("option", "verdict", "words"),
    [
        ("hot", "throttled", "hardware thermal slowdown"),
        ("shared", "shared", "process 1 ("),
        ("vanishes", "unknown", "stopped answering"),
        ("clean", "clean", ""),
        ("power_only", "unknown", "list of processes"),  # nobody is listed, though a trial runs
    ],
)
def test_the_state_of_each_trials_gpu(whole_run: Any, option: str, verdict: str, words: str) -> None:
    state = state_of(whole_run[1][option])
    assert state is not None
    assert state.verdict == verdict
    assert words in state.detail


def test_a_board_without_a_counter_is_metered_by_its_average_power(whole_run: Any) -> None:
    gpu = first_gpu(whole_run[1]["power_only"])
    assert gpu.counter_joules is None
    assert gpu.instant_power_joules is None
    assert gpu.average_power_joules == pytest.approx(300 * gpu.metered_seconds, rel=0.1)
    assert "less than 5 s" in (energy(whole_run[1]["power_only"].meters).reason or "")


def test_a_trial_that_fails_keeps_its_memory_curve(whole_run: Any) -> None:
    record = whole_run[1]["dies"]
    assert isinstance(record.outcome, Failed)
    assert record.outcome.kind == "diverged"
    assert first_gpu(record).memory_series
    assert first_gpu(record).metered_seconds == 0


def test_a_gpu_that_vanishes_leaves_the_trials_result_and_what_was_read(whole_run: Any) -> None:
    record = whole_run[1]["vanishes"]
    assert isinstance(record.outcome, Completed)
    gpu = first_gpu(record)
    assert gpu.memory_readings > 0 or gpu.memory_series
    assert gpu.counter_joules is None
    assert gpu.problem is not None


def test_all_readings_lie_in_the_trials_folder(whole_run: Any) -> None:
    result, records = whole_run
    for record in records.values():
        assert (result.folder / "trials" / record.trial.trial_id / FILE_NAME).stat().st_size > 100


def test_the_report_leaves_unclean_trials_out_and_says_so(whole_run: Any) -> None:
    text = (whole_run[0].folder / "report.md").read_text()
    assert "throttled: hardware thermal slowdown" in text
    assert "shared: also used by process 1" in text
    ranking = json.loads((whole_run[0].folder / "ranking.json").read_text())
    rows = {row["option"]: row for row in ranking["rows"]}
    assert rows["hot"]["metrics"]["tokens_per_second"]["unclean"]
    assert not rows["clean"]["metrics"]["tokens_per_second"]["unclean"]


def test_an_unclean_trial_runs_once_more_where_the_suite_asks_for_it(driver: StandIn, tmp_path: Path) -> None:
    acts = {("hot", "train"): (*LOAD, "gpu0.reasons", 0x40)}
    preparation = prepared(
        tmp_path,
        "{clean: {}, hot: {optimizer: {name: adamw, lr: 1.1e-3}}}",
        baseline="clean",
        meters="{rerun_unclean: true}",
    )

    class CoolsDown(Scenario):
        def note(self, text: str) -> None:
            super().note(text)
            if "run again" in text:
                self.acts = {}
                self.driver.set(*QUIET)

    scenario = CoolsDown(driver, acts)
    result = run(preparation, tmp_path / "results", lambda: scenario)
    assert sorted(scenario.started) == ["clean", "hot", "hot"]
    hot = [record for record in records_of(result) if record.trial.option == "hot"]
    assert [record.attempt for record in hot] == [1, 2]
    assert [state_of(record).verdict for record in hot] == ["throttled", "unknown"]  # type: ignore[union-attr]
    assert any("throttled" in note and "run again" in note for note in scenario.notes)
    # The second attempt counts, however it went.
    left = pending(preparation.plan.trials, preparation.suite, records_of(result), retried=Retried(failed=True))
    assert left == []


def test_memory_that_stays_is_told_before_the_next_trial(driver: StandIn, tmp_path: Path) -> None:
    class Leaks(Scenario):
        def trial_ended(self, *_: object) -> None:
            self.driver.set("gpu0.memory_used", 7 * GIB, "gpu0.processes", f"1:{7 * GIB}")

    preparation = prepared(
        tmp_path, "{a: {}, b: {optimizer: {name: adamw, lr: 1.1e-3}}}", baseline="a", meters="{settle_seconds: 0.1}"
    )
    scenario = Leaks(driver, {})
    result = run(preparation, tmp_path / "results", lambda: scenario)
    first, second = records_of(result)
    assert first.meters is not None
    assert second.meters is not None
    assert (first.meters.settled, second.meters.settled) == (True, False)
    (note,) = [note for note in scenario.notes if "memory has not been released" in note]
    assert "pid 1 (" in note
    assert "7.00 GiB" in note
    assert "was not back to where it was" in (result.folder / "report.md").read_text()


def test_without_a_gpu_the_record_says_why_there_are_no_meters(tmp_path: Path) -> None:
    preparation = replace(prepared(tmp_path, "{a: {}}", baseline="a"), claim=Claim())
    result = run(preparation, tmp_path / "results", Display)
    (record,) = records_of(result)
    assert record.meters is not None
    assert record.meters.problem == "trained on the CPU"
    assert record.meters.gpus == []
    state = state_of(record)  # the test's own machine may be busy
    assert state is None or state.verdict == "busy"
