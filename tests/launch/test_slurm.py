"""Runs whose rounds are jobs of a real Slurm with two nodes on this machine: what they train and what they leave.

Where no Slurm can be had the tests are skipped, or fail where SELECTBENCH_TESTS_NEED_SLURM is set.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import processes
import pytest
from launch.harness import LONG, TINY_SUITE, Workplace, output_of, until
from launch.slurm_nodes import NEEDED, NODES, Slurm, two_nodes, why_not

from selectbench.errors import UserError
from selectbench.launch.preparation import Request, resolve
from selectbench.launch.site import Round, SlurmRun, Task, attached, read_site, states
from selectbench.suite.load import load_suite

SITE = """\
launcher: slurm
exclusive: true
setup: |
  export SELECTBENCH_LOCKS="{folder}/locks-$SLURMD_NODENAME" OMP_NUM_THREADS=1
"""
TWO_NODES = (
    TINY_SUITE.replace("micro_batch_size: 4\n", "micro_batch_size: 2\n  world_size: auto\n  strategy: ddp\n")
    .replace("whole: {}", "ddp: {}")
    .replace("halves: {micro_batch_size: 2}", "fsdp: {strategy: fsdp}")
    .replace("baseline: whole", "baseline: ddp")
    .replace("seeds: [0, 1]", "seeds: [0]")
)


class Site(Workplace):
    """A login node."""

    slurm: Slurm

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**{**self.slurm.environment, **more})

    def write_site(self, **more: Any) -> None:
        text = SITE.format(folder=self.folder) + "".join(f"{key}: {json.dumps(v)}\n" for key, v in more.items())
        (self.folder / "site.yaml").write_text(text)

    @property
    def run(self) -> Path:
        """The newest."""
        return self.run_folders()[-1]

    def of_rounds(self) -> list[dict[str, Any]]:
        """Every whole line that rounds of any run wrote."""
        paths = sorted((self.folder / "results").glob("tiny/*/rounds/*/records.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def losses(self) -> dict[tuple[str, int], list[float]]:
        """Of every step of each completed trial."""
        found = {}
        for record in self.records():
            trial = record["trial"]
            content = (self.run / "trials" / trial["trial_id"] / "series.json").read_bytes()
            found[trial["option"], trial["seed"]] = msgspec.json.decode(content)["loss_nats_per_token"]
        return found

    def left(self) -> list[int]:
        """Processes of the runs, on either node."""
        return [*self.trial_pids(), *(pid for node in NODES for pid in self.slurm.of_node(node))]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if (reason := why_not()) is not None:
        pytest.fail(reason) if NEEDED in os.environ else pytest.skip(reason)
    place = Site(tmp_path / "a 100% work")
    place.folder.mkdir()
    with two_nodes(tmp_path / "slurm") as place.slurm:
        place.write(TINY_SUITE.replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3]"))
        place.write_site(rounds_at_once=2)
        yield place
    until(lambda: not place.left(), 20)


def ended(process: processes.Process, seconds: float = 200) -> tuple[int, str]:
    _, err = process.communicate(timeout=seconds)
    return process.returncode, err


def test_records_of_a_round_whose_folder_is_gone_stay(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "suite.yaml").write_text("options: {a: {}}\nseeds: [0, 1]\n")
    for number, text in enumerate(("first\n", "second\nthird\n")):
        (tmp_path / "rounds" / str(number)).mkdir(parents=True)
        (tmp_path / "rounds" / str(number) / "records.jsonl").write_text(text)
    run, records = SlurmRun(tmp_path), tmp_path / "records.jsonl"
    run.gather()
    assert records.read_text() == "first\nsecond\nthird\n"
    shutil.rmtree(tmp_path / "rounds" / "0")
    (tmp_path / "rounds" / "1" / "records.jsonl").write_bytes(b"second\nthird\nfourth, torn: \xff")
    run.gather()
    assert records.read_bytes() == b"first\nsecond\nthird\nfourth, torn: \xff\n"
    shutil.rmtree(tmp_path / "rounds")
    run.gather()
    assert records.read_bytes() == b"first\nsecond\nthird\nfourth, torn: \xff\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "1:1: the file is empty: a site file says"),
        ("# only a remark\n", "1:1: the file is empty: a site file says"),
        ("job: {seq_len: 8}\n", "a suite, not a site file: "),
        ("launcher: slurm\ntime: 4\n", "2:7: time: expected a time with its unit, such as 2h"),
        ("launcher: slurm\nsbatch: [--nodes=3]\n", "sbatch: --nodes: say it with the key `nodes`"),
        ("launcher: slurm\nsbatch: [-t 4]\n", "sbatch: -t: say it with the key `time`"),
        ("launcher: slurm\nsbatch: [--array=0-9]\n", "sbatch: --array: selectbench sets it: leave it out"),
        ("partition: gpu\n", "partition: only for `launcher: slurm`: add that"),
    ],
)
def test_a_wrong_site_file_is_refused_with_the_fix(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        read_site(str(tmp_path / "site.yaml"), None)
    assert f"site.yaml:{told}" in str(refused.value) or told in str(refused.value)
    (tmp_path / "site.yaml").write_text("launcher: slurm\nsbatch: [--constraint=h100, -C x]\n")
    with pytest.raises(UserError, match="a site file, not a suite: selectbench run SUITE --site "):
        load_suite(str(tmp_path / "site.yaml"), device="cpu")
    assert read_site(str(tmp_path / "site.yaml"), None).sbatch == ["--constraint=h100", "-C x"]


def test_a_run_is_named_as_the_newest_of_its_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("results/tiny/1-a/slurm", "results/tiny/2-b/slurm", "results/tiny/3-c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "suite.yaml").write_text("")
    assert attached(Path("tiny@latest")).folder == attached(Path("results/tiny/2-b")).folder
    for other in ("other@latest", "tiny@newest", "results/tiny/3-c", "results/tiny", "."):
        with pytest.raises(UserError, match="not a run under Slurm"):
            attached(Path(other))


def test_what_waits_for_ever_says_what_to_do() -> None:
    limit = Round(0, 0, [], 2, Task("1_0", "PENDING", "PartitionNodeLimit"))
    assert "cancel it, and change `nodes`, `time` or `partition`" in limit.state
    free = replace(limit, task=Task("1_0", "PENDING", "Resources"))
    assert free.state == "waits (for free nodes)"
    running = replace(limit, number=1, task=Task("1_1", "RUNNING", "n1"))
    rounds = [free, running, *(replace(limit, number=number, task=None) for number in (2, 3))]
    assert states(rounds) == "round 0: waits (for free nodes); round 1: runs on n1; rounds 2 to 3: not complete"
    assert states([free, running, replace(free, number=2)]).startswith("rounds 0, 2: waits (for free nodes); ")


def test_nodes_of_a_run_under_slurm_are_the_site_files(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("launcher: slurm\nnodes: 2\n")
    with pytest.raises(UserError, match="--nnodes: under Slurm, `nodes` of the site file says"):
        resolve(Request("precision", site=str(tmp_path / "site.yaml"), nodes=2))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_four_rounds_on_two_nodes_are_one_run_that_trains_what_one_machine_trains(site: Site) -> None:
    """The last two are added to the first."""
    status, err = ended(site.start("run", "tiny.yaml", "--site", "site.yaml", "--seeds", "0,1"))
    assert status == 0, err
    more = ("--extend", "@latest", "--seeds", "2,3")
    status, err = ended(site.start("run", "tiny.yaml", "--site", "site.yaml", *more))
    assert status == 0, err
    assert ": complete" in err
    assert err.count(": completed, ") == 4
    assert "; 8 of 8 done" in err
    (run,) = site.run_folders()
    records = site.records()
    assert [(r["round"], r["trial"]["seed"]) for r in records] == [(n, n) for n in range(4) for _ in range(2)]
    assert {r["node"] for r in records} == set(NODES)
    assert all(len({r["node"] for r in records if r["round"] == number}) == 1 for number in range(4))
    orders = [[r["trial"]["option"] for r in records if r["round"] == number] for number in range(4)]
    assert orders[1] == orders[0][::-1]  # rounds in pairs, as of a run on one machine
    assert orders[3] == orders[2][::-1]
    assert site.slurm.jobs() == []
    assert "looks:\n- 2\n- 4\n" in (run / "suite.yaml").read_text()
    ranking = json.loads((run / "ranking.json").read_text())
    assert {row["option"]: row["n"] for row in ranking["rows"]} == {"whole": 4, "halves": 4}
    under_slurm = site.losses()
    alone = site.call("run", "tiny.yaml", "--fresh", SELECTBENCH_LOCKS=str(site.folder / "locks"))
    assert alone.returncode == 0, alone.stderr
    assert under_slurm == site.losses()
    again = site.call("run", "tiny.yaml", "--site", "site.yaml", "--seeds", "0,1", "--reuse", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == ranking["rows"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_trial_over_two_nodes_of_slurm_trains_what_one_node_trains(site: Site) -> None:
    site.write(TWO_NODES)
    site.write_site(nodes=2)
    status, err = ended(site.start("run", "tiny.yaml", "--site", "site.yaml"))
    assert status == 0, err + (site.run / "rounds/0/job.log").read_text()
    records, over_two = site.records(), site.losses()
    assert {r["trial"]["option"] for r in records} == {"ddp", "fsdp"}
    for record in records:
        assert record["identity"]["world_size"] == 2
        assert (record["node"], [n["node"] for n in record["nodes"]]) == ("n[1-2]", [1])
    site.write(TWO_NODES.replace("auto", "2"))
    alone = site.call("run", "tiny.yaml", SELECTBENCH_LOCKS=str(site.folder / "locks"))
    assert alone.returncode == 0, alone.stderr
    assert over_two == site.losses()


def trials_on(site: Site, node: str) -> list[int]:
    """Processes of trials that run on the node."""
    return [pid for pid in site.slurm.of_node(node) if "/trials/" in output_of(pid)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_is_detached_from_looked_at_and_cancelled_and_goes_on(site: Site) -> None:
    done = site.call("run", "tiny.yaml", "--site", "site.yaml", "--detach", *LONG)
    assert done.returncode == 0, done.stderr
    assert f"selectbench attach {site.run.relative_to(site.folder)} shows it" in done.stderr
    until(lambda: all(trials_on(site, node) for node in NODES))
    looking = site.start("attach", str(site.run))
    assert looking.stderr is not None
    assert looking.stderr.readline() == "tiny: 8 trials\n"
    said = looking.stderr.readline()  # it has looked
    looking.send_signal(signal.SIGINT)
    status, err = ended(looking)
    assert (status, "the run goes on" in err) == (130, True), err
    assert "round 0: runs on n" in said
    again = site.call("run", "tiny.yaml", "--site", "site.yaml", "--detach", *LONG)
    assert "Slurm has all rounds that are not complete already" in again.stderr
    cancelled = site.call("cancel", str(site.run))
    assert "4 jobs ended; every record is kept" in cancelled.stderr, cancelled.stderr
    assert site.slurm.jobs() == []
    until(lambda: not site.left(), 20)
    outcomes = [record["outcome"] for record in site.of_rounds()]
    assert {outcome["kind"] for outcome in outcomes} <= {"interrupted"}


SLOWER = TINY_SUITE.replace("max_steps: 6", "max_steps: 1200").replace("every_steps: 3", "every_steps: 1200")


def completed(records: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return sorted(
        (r["trial"]["option"], r["trial"]["seed"]) for r in records if r["outcome"]["status"] == "completed"
    )


def job_of(site: Site, node: str) -> str:
    """Number of the round that runs there."""
    return next(line.split()[0] for line in site.slurm.jobs() if line.endswith(f"RUNNING {node}"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_that_is_cut_off_and_one_whose_node_is_lost_are_queued_again_and_do_no_trial_twice(
    site: Site,
) -> None:
    site.hold()
    run = site.start("run", "tiny.yaml", "--site", "site.yaml", "--seeds", "0,1")
    until(lambda: all(trials_on(site, node) for node in NODES))
    site.let_go(*(pid for node in NODES for pid in trials_on(site, node)))
    until(lambda: len(completed(site.of_rounds())) == 2 and all(trials_on(site, node) for node in NODES))
    cut_off, lost = job_of(site, "n1"), job_of(site, "n2")
    job = json.loads((site.run / "slurm" / "jobs.json").read_text())["jobs"][0]
    site.slurm.ask("scancel", "--signal=TERM", f"{job}_{cut_off}")  # as when its time is nearly up
    site.slurm.lose("n2")
    until(lambda: len(site.of_rounds()) == 3)
    site.let_go()
    status, err = ended(run)
    assert status == 0, err
    log = (site.run / "rounds" / cut_off / "job.log").read_text()
    assert "the job is queued again, and goes on where it was cut off" in log
    expected = sorted((option, seed) for option in ("whole", "halves") for seed in (0, 1))
    assert completed(site.of_rounds()) == completed(site.records()) == expected
    interrupted = [r for r in site.records() if r["outcome"]["status"] == "failed"]
    assert [(r["round"], r["outcome"]["kind"]) for r in interrupted] == [(int(cut_off), "interrupted")]
    assert {r["node"] for r in site.records() if r["round"] == int(lost)} == {"n1", "n2"}


def of_round(site: Site, node: str, mark: str) -> int:
    """A process of the round's job on that node: its selectbench, or a rank of the trial at hand."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in site.slurm.of_node(node)}
    ranks = [pid for pid in lines if "/rank" in output_of(pid)]
    top = [pid for pid, words in lines.items() if b"--round" in words and words[1:3] == [b"-m", b"selectbench"]]
    return (ranks if mark == "rank" else top)[0]


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("attempt", range(4))
@pytest.mark.parametrize("who", ["bench", "agent", "rank", "daemon", "job", "time"])
def test_whatever_ends_a_round_over_two_nodes_leaves_nothing_and_it_is_completed(
    site: Site, who: str, attempt: int
) -> None:
    site.write(TWO_NODES.replace("max_steps: 6", "max_steps: 600").replace("every_steps: 3", "every_steps: 600"))
    limit = {"time": "1min", "sbatch": ["--signal=TERM@20"]} if who == "time" else {}
    site.write_site(nodes=2, **limit)
    line = ("run", "tiny.yaml", "--site", "site.yaml")
    run = site.start(*line)
    until(lambda: all(trials_on(site, node) for node in NODES))
    time.sleep(random.Random(f"{who} {attempt}").uniform(0, 6))
    job = json.loads((site.run / "slurm" / "jobs.json").read_text())["jobs"][0]
    if who in ("bench", "agent", "rank"):
        until(lambda: who != "rank" or any("/rank" in output_of(pid) for pid in site.slurm.of_node("n2")))
        os.kill(of_round(site, "n1" if who == "bench" else "n2", who), signal.SIGKILL)
    elif who == "daemon":
        site.slurm.lose("n2")
        until(lambda: not site.slurm.of_node("n1"), 60)
        site.slurm.start("n2")
    elif who == "job":
        site.slurm.ask("scancel", str(job))
    status, err = ended(run, 500)
    until(lambda: not site.left(), 20)
    told = [r["outcome"].get("detail", "") for r in site.records() if r["outcome"].get("kind") != "interrupted"]
    if who == "rank":
        assert status == 3, err
        assert any(one.startswith("rank 1 on node 1: ended by SIGKILL") for one in told)
    elif who in ("bench", "job"):
        assert status == 130, err
        assert "round 0 (seed 0) is not complete" in err
    else:
        assert status == 0, err
    before = completed(site.of_rounds())
    again = site.call(*line, "--retry-failed")
    assert again.returncode == 0, again.stderr
    assert completed(site.of_rounds()) == completed(site.records()) == [("ddp", 0), ("fsdp", 0)]
    assert set(before) <= set(completed(site.records()))


def held_back(site: Site, node: str, share: float, over: threading.Event) -> None:
    """Stop the node's ranks for that share of the time, as cpulimit does."""
    while not over.is_set():
        ranks = trials_on(site, node)
        end = time.monotonic() + 1
        while ranks and time.monotonic() < end:
            for number, seconds in ((signal.SIGSTOP, 0.05 * share), (signal.SIGCONT, 0.05 * (1 - share))):
                for pid in ranks:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(seconds)
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_slow_node_is_named_and_makes_no_false_verdict(site: Site) -> None:
    """Of two options that are the same."""
    equal = SLOWER.replace("  halves: {micro_batch_size: 2}\n", "")
    site.write(equal.replace("seeds: [0, 1]", f"seeds: {list(range(8))}\ncontrol: true"))
    over = threading.Event()
    slowing = threading.Thread(target=held_back, args=(site, "n2", 0.5, over))
    slowing.start()
    try:
        status, err = ended(site.start("run", "tiny.yaml", "--site", "site.yaml"), 800)
    finally:
        over.set()
        slowing.join()
    assert status == 0, err
    ranking = json.loads((site.run / "ranking.json").read_text())
    speeds = ranking["nodes"]["speeds"]
    assert speeds["n2"]["off"]
    assert speeds["n2"]["ratio"] < 0.8
    assert "n2 is" in ranking["answer"]
    (control,) = (row for row in ranking["rows"] if row["option"] == "control")
    assert control["against_baseline"]["decision"] not in ("better", "worse")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_doctor_measures_each_node_and_what_goes_between_them(site: Site) -> None:
    done = site.call("doctor", "--site", "site.yaml")
    assert done.returncode == 0, done.stderr
    assert "measuring 2 nodes" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("n")]
    assert [row[0] for row in rows] == ["node", *NODES]
    assert all(row[2] == "GFLOP/s" and row[4].endswith("iB/s") for row in rows[1:]), done.stdout  # none is a dash
    assert "all-reduce over 2 nodes: " in done.stdout
    until(lambda: not site.slurm.jobs(), 20)
