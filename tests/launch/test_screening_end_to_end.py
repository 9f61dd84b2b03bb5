"""Screening by the command line with real training: who runs when, what is kept, and what a reader is told."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from typing import Any

import pytest
from launch.harness import TINY_SUITE, Workplace, until
from msgspec.structs import replace

from selectbench.record.record import Completed
from selectbench.record.run_folder import append_record, read_records

pytestmark = pytest.mark.slow
OPTIMIZERS = """
import time
from pathlib import Path

from torch.optim import AdamW

WAS_HERE = Path(__file__).parents[1] / "was_here"
QUIET = Path(__file__).parents[1] / "quiet"


class Slow(AdamW):
    def step(self, closure=None):
        time.sleep(0.0 if QUIET.exists() else 0.25)
        return super().step(closure)


class SlowOnce(AdamW):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.nap = 0.0 if WAS_HERE.exists() else 0.25
        WAS_HERE.touch()

    def step(self, closure=None):
        time.sleep(self.nap)
        return super().step(closure)


class Broken(AdamW):
    def step(self, closure=None):
        raise RuntimeError("no such step")
"""
SCREENED = TINY_SUITE.replace("  halves: {micro_batch_size: 2}\n", (
    '  slow: {optimizer: {name: "ours:Slow", lr: 1e-3}}\n'
    '  once: {optimizer: {name: "ours:SlowOnce", lr: 1e-3}}\n'
    '  broken: {optimizer: {name: "ours:Broken", lr: 1e-3}}\n'
    "  tf32: {precision: tf32}\n"
)).replace("  lr_schedule:", "  timing: {warmup_steps: 1}\n  lr_schedule:")  # fmt: skip
SCREENED += "code: [own]\nscreen: [tokens_per_second >= 0.1x baseline]\n"


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The suite run to its end; it was killed while it screened."""
    place = Workplace(tmp_path_factory.mktemp("screened"))
    place.write(SCREENED)
    (place.folder / "own").mkdir()
    (place.folder / "own" / "ours.py").write_text(OPTIMIZERS)
    process = place.start("run", "tiny.yaml")
    until(lambda: len(place.records()) >= 2)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: place.trial_pids() == [])
    (place.folder / "before.json").write_text(json.dumps(place.records()))
    done = place.call("run", "tiny.yaml", COLUMNS="80")
    assert done.returncode == 3, done.stderr  # one option is broken
    (place.folder / "stdout").write_text(done.stdout)
    (place.folder / "stderr").write_text(done.stderr)
    return place


def trials(place: Workplace, phase: str) -> list[str]:
    return [record["trial"]["option"] for record in place.records() if record["phase"] == phase]


def rows(place: Workplace) -> dict[str, dict[str, Any]]:
    found = json.loads((place.run_folders()[-1] / "ranking.json").read_text())["rows"]
    return {row["option"]: row for row in found}


def test_the_baseline_is_first_and_last_and_who_missed_runs_once_more(screened: Workplace) -> None:
    order = trials(screened, "screen")
    assert order[0] == "whole"
    assert sorted(order[1:4]) == ["broken", "once", "slow"]
    assert order[4] == "whole"
    assert sorted(order[5:]) == ["once", "slow"]


def test_only_the_one_that_is_slow_twice_has_no_trial_in_the_contest(screened: Workplace) -> None:
    assert Counter(trials(screened, "contest")) == {"whole": 2, "once": 2, "broken": 2, "tf32": 2}
    found = rows(screened)
    statuses = {name: row["status"] for name, row in found.items()}
    assert statuses == {
        "whole": "completed", "once": "completed", "slow": "screened_out", "broken": "failed", "tf32": "failed",
    }  # fmt: skip
    assert found["once"]["screening"]["bounds"][0]["missed"] == [True, False]
    assert [trial["outcome"] for trial in found["broken"]["screening"]["trials"]] == ["crashed"]
    assert "screening" not in found["tf32"]


def test_a_run_that_is_killed_while_it_screens_goes_on_where_it_was(screened: Workplace) -> None:
    before, after = json.loads((screened.folder / "before.json").read_text()), screened.records()
    assert after[: len(before)] == before
    assert len(screened.run_folders()) == 1
    ids = [record["trial"]["trial_id"] for record in after]
    assert len(set(ids)) == len(ids)


def test_short_trials_are_short_and_evaluate_nothing(screened: Workplace) -> None:
    for record in screened.records():
        if record["phase"] == "screen" and record["outcome"]["status"] == "completed":
            measurement = record["outcome"]["measurement"]
            assert measurement["final_loss"] is None
            assert measurement["timed_seconds"] >= 1.0
            assert record["trial"]["seed"] not in (0, 1)


def test_everybody_is_told(screened: Workplace) -> None:
    words = " ".join((screened.folder / "stdout").read_text().split())
    assert "Not ranked: slow (screened out)" in words or ", slow (screened out)" in words
    assert "the baseline's tokens_per_second in two short trials" in words
    assert "slow is screened out: " in (screened.folder / "stderr").read_text()
    assert max(map(len, (screened.folder / "stdout").read_text().splitlines()[:12])) <= 80
    folder = screened.run_folders()[-1]
    for name in ("report.md", "report.html"):
        assert "slow: screened out: " in (folder / name).read_text()
    by_name = {row["option"]: row for row in csv.DictReader(io.StringIO((folder / "ranking.csv").read_text()))}
    assert by_name["slow"]["status"] == "screened_out"
    assert by_name["slow"]["tokens_per_second"] == ""
    assert "slow" not in [one["name"] for one in json.loads((folder / "benchmark.json").read_text())["benchmarks"]]
    best = (folder / "best.yaml").read_text()
    assert "screen:" not in best


def test_the_run_is_whole_and_a_report_of_it_is_the_same(screened: Workplace) -> None:
    (run,) = json.loads(screened.call("list", "--json").stdout)
    assert (run["trials_done"], run["trials_planned"]) == (8, 8)
    folder = screened.run_folders()[-1]
    before = (folder / "ranking.json").read_text()
    shown = screened.call("report", str(folder))
    assert shown.returncode == 0, shown.stderr
    assert (folder / "ranking.json").read_text() == before
    assert "incomplete" not in shown.stdout
    option = screened.call("report", str(folder), "slow")
    assert option.returncode == 0, option.stderr
    assert "Not ranked (screened out)" in option.stdout
    assert "the baseline's tokens_per_second in two short trials" in " ".join(option.stdout.split())


def test_a_plan_has_the_stage_with_its_time_and_can_leave_it_out(screened: Workplace) -> None:
    shown = json.loads(screened.call("plan", "tiny.yaml", "--json").stdout)
    assert [(stage["title"], stage["trials"]) for stage in shown["stages"]] == [("screening", 5), ("contest", 8)]
    assert shown["stages"][0]["seconds"] > 0
    assert "screened first: an option takes part" in screened.call("plan", "tiny.yaml").stdout
    without = json.loads(screened.call("plan", "tiny.yaml", "--json", "--no-screen").stdout)
    assert [stage["title"] for stage in without["stages"]] == ["contest"]
    assert without["expected_seconds"] < shown["expected_seconds"]


def test_a_run_without_screening_screens_nothing(workplace: Workplace) -> None:
    workplace.write(TINY_SUITE + "screen: [tokens_per_second >= 1000x baseline]\n")
    done = workplace.call("run", "tiny.yaml", "--seeds", "0", "--no-screen")
    assert done.returncode == 0, done.stderr
    assert {record["phase"] for record in workplace.records()} == {"contest"}
    assert "screen:" not in (workplace.run_folders()[-1] / "suite.yaml").read_text()


def test_against_a_run_that_had_it_the_row_is_lost_and_no_regression_is_claimed(screened: Workplace) -> None:
    done = screened.call("run", "tiny.yaml", "--no-screen")
    assert done.returncode == 3, done.stderr
    folders = screened.run_folders()
    assert len(folders) == 2
    whole, short = str(folders[1]), str(folders[0])
    compared = screened.call("compare", whole, short)
    assert "slow completed in the reference and not in the run (screened out)" in compared.stdout
    gated = screened.call(
        "gate", short, "--against", whole, "--limit", "peak_memory_bytes <= 100x reference", "--json"
    )
    checks = [one for one in json.loads(gated.stdout)["checks"] if one["option"] == "slow"]
    assert {one["verdict"] for one in checks} == {"inconclusive"}
    assert any("screened out, so it is not known" in one["detail"] for one in checks)


def test_who_a_busy_machine_screened_out_is_tried_again_and_takes_part_when_asked(screened: Workplace) -> None:
    folder = screened.run_folders()[0]
    path = folder / "records.jsonl"
    records, _ = read_records(path)
    path.unlink()
    for record in records:
        if record.phase == "screen" and record.trial.option == "slow":
            assert isinstance(record.outcome, Completed)
            busy = {"cpu_seconds": 1.0, "run_queue_wait_seconds": 9.0, "cores_seconds": 10.0}
            record = replace(record, outcome=Completed(measurement=replace(record.outcome.measurement, **busy)))
        append_record(path, record)
    shown = " ".join(screened.call("report", str(folder)).stdout.split())
    assert "busy with something else in short trials that screened out slow (slow: threads waited" in shown
    (screened.folder / "quiet").touch()
    done = screened.call("run", "tiny.yaml", "--rerun-unclean")
    assert done.returncode == 3, done.stderr  # one option is broken
    added = read_records(path)[0][len(records) :]
    short = [r.attempt for r in added if (r.phase, r.trial.option) == ("screen", "slow")]
    assert short == [2, 2]
    assert {r.trial.seed for r in added if (r.phase, r.trial.option) == ("contest", "slow")} == {0, 1}
    rows_now = {row["option"]: row for row in json.loads((folder / "ranking.json").read_text())["rows"]}
    assert rows_now["slow"]["status"] == "completed"
