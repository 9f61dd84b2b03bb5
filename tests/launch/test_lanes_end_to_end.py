"""Lanes by the command line with real training: the same losses as one after the other, cut off and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from launch.harness import LONG, TINY_SUITE, Workplace, running_trials, until
from made_records import make_suite
from msgspec.structs import replace
from plan.test_machine_choices import a_gpu, on

from selectbench.errors import UserError
from selectbench.launch.gpus import lanes_in
from selectbench.machine import Machine, _core_position, split_cores
from selectbench.planning.plan import lanes_of
from selectbench.record.record import Completed
from selectbench.record.run_folder import append_record, read_records

FOUR = TINY_SUITE.replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3]")
OWN = """
import os, signal
from torch.optim import AdamW


class Killed(AdamW):
    def step(self, closure=None):
        os.kill(os.getpid(), signal.SIGKILL)
"""
WITH_KILLED = FOUR.replace(
    "seeds: [", '  killed: {optimizer: {name: "ours:Killed", lr: 1e-3}}\ncode: [own]\nseeds: ['
)
needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two lanes need two cores")


def learnt(place: Workplace) -> dict[tuple[str, int], Any]:
    """Losses of every trial of the contest that completed; each did so once."""
    found: dict[tuple[str, int], Any] = {}
    for record in place.records():
        if record["phase"] == "contest" and record["outcome"]["status"] == "completed":
            trial = record["trial"]["option"], record["trial"]["seed"]
            assert trial not in found, "a trial was run to its end twice"
            measured = record["outcome"]["measurement"]
            found[trial] = record["loss_curve"], record["evaluation_curve"][-1]["loss"], measured["last_loss"]
    return found


def threads(place: Workplace) -> set[int]:
    orders = place.run_folders()[-1].glob("trials/*/order.json")
    return {json.loads(order.read_text())["threads"] for order in orders}


def lanes(place: Workplace) -> dict[int, set[int]]:
    """By seed, the lanes that ran trials of its round."""
    found: dict[int, set[int]] = {}
    for record in place.records():
        if record["phase"] == "contest":
            found.setdefault(record["trial"]["seed"], set()).add(record["lane"])
    return found


def busy_in_round(place: Workplace, seed: int) -> int:
    """Has that round look as on a busy machine, the others as on a quiet one; how many records there are."""
    path = place.run_folders()[-1] / "records.jsonl"
    records, _ = read_records(path)
    path.unlink()
    for record in records:
        outcome, wait = record.outcome, 9.0 * (record.trial.seed == seed)
        if isinstance(outcome, Completed):
            seen = {"cpu_seconds": 1.0, "run_queue_wait_seconds": wait, "cores_seconds": 1.0 + wait}
            record = replace(record, outcome=Completed(measurement=replace(outcome.measurement, **seen)))
        append_record(path, record)
    return len(records)


@pytest.mark.slow
@needs_two_cores
def test_two_lanes_learn_bit_for_bit_what_one_does_with_as_many_threads(workplace: Workplace) -> None:
    workplace.write(FOUR)
    site = workplace.folder / "site.yaml"
    site.write_text("lanes: 2\n")
    both = workplace.call("run", "tiny.yaml", "--site", "site.yaml", OMP_NUM_THREADS="", COLUMNS="80")
    assert both.returncode == 0, both.stderr
    side_by_side, each, of_seed = learnt(workplace), threads(workplace), lanes(workplace)
    assert each == {len(split_cores(2, os.sched_getaffinity(0), len(os.sched_getaffinity(0)))[0])}
    assert len(of_seed) == 4
    assert all(len(ran) == 1 for ran in of_seed.values()), "a round was shared between lanes"
    assert {lane for ran in of_seed.values() for lane in ran} == {0, 1}
    checked = [record for record in workplace.records() if record["phase"] == "interference"]
    assert Counter(record["neighbours"] for record in checked) == {0: 5, 1: 5}
    assert {(record["lane"], record["trial"]["option"]) for record in checked} == {(0, "whole")}
    assert "lane 2: trial" in both.stderr
    assert "beside a neighbour the baseline runs at" in both.stderr
    assert max(len(line) for line in both.stdout.splitlines() if "results/" not in line) <= 80
    report = (workplace.run_folders()[-1] / "report.md").read_text()
    assert "## Side by side" in report
    assert "measured with 1 neighbour" in report
    serial = workplace.call("run", "tiny.yaml", "--fresh", OMP_NUM_THREADS=str(*each))
    assert serial.returncode == 0, serial.stderr
    assert threads(workplace) == each
    assert learnt(workplace) == side_by_side
    assert {record["lane"] for record in workplace.records()} == {None}


@pytest.mark.slow
@needs_two_cores
def test_two_lanes_that_are_cut_off_leave_nothing_and_go_on_where_they_were(workplace: Workplace) -> None:
    """By Ctrl-C, then by SIGKILL; an option whose trials are killed ends no trial but its own."""
    workplace.write(WITH_KILLED)
    (workplace.folder / "own").mkdir()
    (workplace.folder / "own" / "ours.py").write_text(OWN)
    line = ("run", "tiny.yaml", "--lanes", "2", "--no-interference-check")
    affinities: set[frozenset[int]] = set()

    def two_run() -> bool:
        pids = running_trials(workplace)
        try:
            now = {frozenset(os.sched_getaffinity(pid)) for pid in pids}
        except ProcessLookupError:
            return False
        affinities.update(now)
        return len(now) >= 2

    workplace.hold()
    first = workplace.start(*line)
    until(two_run)
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=120)
    assert "the same command goes on where this run stopped" in told
    assert workplace.trial_pids() == []
    before = len(workplace.records())
    second = workplace.start(*line)
    until(two_run)
    workplace.let_go(*running_trials(workplace))
    until(lambda: len(workplace.records()) >= before + 2 and two_run())
    second.kill()
    second.communicate(timeout=120)
    workplace.let_go()
    until(lambda: workplace.trial_pids() == [])
    done = workplace.call(*line)
    assert done.returncode == 3, done.stderr  # one option is always killed
    assert len(workplace.run_folders()) == 1
    assert len(learnt(workplace)) == 8
    assert all(len(ran) == 1 for ran in lanes(workplace).values()), "a round went on in another lane"
    failed = [r for r in workplace.records() if r["outcome"]["status"] == "failed"]
    kinds = {(r["trial"]["option"], r["outcome"]["kind"]) for r in failed if r["outcome"]["kind"] != "interrupted"}
    assert kinds == {("killed", "crashed")}
    assert len(affinities) == 2
    assert not frozenset.intersection(*affinities), "two lanes had a core in common"
    assert "it was not tried whether lanes disturb each other" in done.stdout.replace("\n", " ")
    home, before = lanes(workplace), busy_in_round(workplace, 1)
    assert workplace.call(*line, "--rerun-unclean").returncode == 3
    again = workplace.records()[before:]
    assert sorted((r["trial"]["option"], r["trial"]["seed"]) for r in again) == [("halves", 1), ("whole", 1)]
    assert lanes(workplace) == home, "a round that is run again went to another lane"


@pytest.mark.slow
@needs_two_cores
def test_what_stops_one_lane_stops_all(workplace: Workplace) -> None:
    """The run's folder goes while both train: one sentence, no trial goes on."""
    process = workplace.start("run", "tiny.yaml", "--lanes", "2", "--no-interference-check", *LONG)
    until(lambda: len(running_trials(workplace)) >= 2)
    shutil.rmtree(workplace.run_folders()[-1], ignore_errors=True)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 2, told
    assert told.count("was deleted or moved while this run went on") == 1
    assert workplace.trial_pids() == []


def test_more_lanes_than_cores_and_a_wrong_site_are_refused_with_their_place(workplace: Workplace) -> None:
    (workplace.folder / "site.yaml").write_text("lanes: two\ncosts: {usd_per_gpu_hour: 2}\n")
    wrong = workplace.call("plan", "tiny.yaml", "--site", "site.yaml")
    assert wrong.returncode == 2
    assert "site.yaml:1:8: lanes: " in wrong.stderr
    assert "site.yaml:2:1: costs: unknown key" in wrong.stderr
    assert "did you mean 'cost'?" in wrong.stderr
    many = workplace.call("plan", "tiny.yaml", "--lanes", "1000")
    assert "lanes: 1000 on " in many.stderr


def test_cores_are_shared_equally_and_threads_of_one_core_stay_together(tmp_path: Path) -> None:
    for core, (package, siblings) in enumerate([(0, "0,2"), (1, "1,3"), (0, "0,2"), (1, "1,3")]):
        topology = tmp_path / f"cpu{core}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{package}\n")
        (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    assert sorted(range(4), key=lambda core: _core_position(core, tmp_path)) == [0, 2, 1, 3]
    assert [len(own) for own in split_cores(3, range(8), 8)] == [2, 2, 2]
    assert [len(own) for own in split_cores(2, range(8), 2)] == [1, 1], "of a quota of two cores each lane has one"
    assert split_cores(4, [0, 1], 2) == [[0, 1]] * 4
    assert lanes_in(Machine("cpu"), [])[0].cores == ()


@pytest.mark.parametrize(
    ("asked", "world_size", "found"),
    [("auto", 2, (4, 8)), ("auto", 3, (2, 6)), (3, 2, (3, 6)), ("auto", "auto", (1, 1)), (2, "auto", (2, 8))],
)
def test_the_gpus_are_divided_by_the_largest_option(
    asked: str | int, world_size: int | str, found: tuple[int, int]
) -> None:
    ranks = {"strategy": {"name": "ddp"}, "world_size": world_size, "micro_batch_size": 1}
    suite = make_suite("one", ("many", ranks), device="cuda", job={"global_batch_size": 24})
    gpus = [a_gpu(80, (9, 0), name=f"GPU {number}") for number in range(8)]
    machine = on(*gpus)
    lanes, need = lanes_of(asked, suite, machine)
    assert (lanes, need.least) == found
    divided = lanes_in(
        machine.in_lanes(lanes), gpus[: lanes * (8 // lanes if world_size == "auto" else found[1] // lanes)]
    )
    taken = [gpu.name for lane in divided for gpu in lane.gpus]
    assert len(taken) == len(set(taken)), "two lanes have a GPU in common"
    assert len({(len(lane.gpus), len(lane.cores)) for lane in divided}) == 1


def test_more_lanes_than_there_are_gpus_for_is_refused() -> None:
    suite = make_suite(
        "one", ("four", {"strategy": {"name": "ddp"}, "world_size": 4, "micro_batch_size": 1}), device="cuda"
    )
    with pytest.raises(
        UserError, match="lanes: 3 lanes need 12 GPUs, 4 for each, as an option asks for; there are 8"
    ):
        lanes_of(3, suite, on(*[a_gpu(80, (9, 0), name=f"GPU {number}") for number in range(8)]))
