"""Which GPUs a run takes: idle ones, named ones, never another run's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_torch import FakeTorch
from launch.harness import TINY_SUITE, Workplace, until
from processes import Process, start
from stand_in import StandIn

from selectbench.errors import UserError
from selectbench.gpu.devices import gpus, use_of
from selectbench.launch import gpus as gpu_claim
from selectbench.launch.gpus import TURN, Claim, Lock, claim_cores, claim_gpus, idle_now, try_lock
from selectbench.launch.trial import TrialServers, server_environment
from selectbench.planning.plan import GpuNeed

A, B = "GPU-aaaa0000-0000-0000-0000-000000000000", "GPU-bbbb0000-0000-0000-0000-000000000000"
ONE, BOTH, ALL = GpuNeed(1, 1), GpuNeed(2, 2), GpuNeed(1, None)

CLAIM = """\
import json, sys
from selectbench.errors import UserError
from selectbench.launch.gpus import claim_gpus
from selectbench.planning.plan import GpuNeed
count = int(sys.argv[1])
try:
    claim = claim_gpus(None, GpuNeed(count, count), wait="wait" in sys.argv, notify=lambda _: None)
    print(json.dumps([gpu.uuid for gpu in claim.gpus]), flush=True)
except UserError as error:
    print(json.dumps(error.problems), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def driver(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Two idle GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("SELECTBENCH_LOCKS", str(tmp_path / "locks"))
    for number, uuid in enumerate((A, B)):
        for key, value in {
            "uuid": uuid, "name": f"Board {number}", "memory_total": 80 << 30, "memory_used": 5 << 20,
            "memory_reserved": 600 << 20, "utilization": 0, "processes": "",
        }.items():  # fmt: skip
            stand_in.set(f"gpu{number}.{key}", value)
    return stand_in


class Told(list[str]):
    """What the user is told."""

    def __call__(self, line: str) -> None:
        self.append(line)


def claim(
    asked: str | None = None,
    need: GpuNeed = ONE,
    *,
    wait: bool = False,
    told: Told | None = None,
    pause: Callable[[], object] = lambda: pytest.fail("it waited"),
) -> Claim:
    return claim_gpus(asked, need, wait=wait, notify=Told() if told is None else told, pause=pause)


def taken(found: Claim) -> list[str]:
    return [gpu.uuid for gpu in found.gpus]


def test_the_first_idle_ones_are_taken_and_no_more() -> None:
    told = Told()
    with claim(told=told) as first:
        assert taken(first) == [A]
        with claim() as second:
            assert taken(second) == [B]
    assert told == []
    with claim(need=ALL) as both:
        assert taken(both) == [A, B]


def test_letting_go_of_what_the_plan_does_not_use() -> None:
    with claim(need=ALL) as found:
        found.keep(1)
        assert taken(found) == [A]
        with claim() as other:
            assert taken(other) == [B]
    with claim() as again:
        assert taken(again) == [A]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("processes", f"{os.getpid()}:{20 << 30}", [f"pid {os.getpid()}", "holds 20.0 GiB"]),
        ("processes", "4194999:1000", ["pid 4194999 holds 1000 B"]),
        ("utilization", 6, ["utilization 6%"]),
        ("memory_used", 2 << 30, ["2.00 GiB of its memory"]),
        ("lost", 1, []),
    ],
    ids=["a process seen", "a process not seen", "at work", "memory taken", "lost"],
)
def test_a_gpu_in_use_is_passed_over(key: str, value: object, words: list[str], driver: StandIn) -> None:
    seen = gpus()
    driver.set(f"gpu0.{key}", value)
    assert not use_of(seen[0]).is_idle
    with claim() as found:
        assert taken(found) == [B]
    if not words:
        return
    with pytest.raises(UserError) as error:
        claim(need=BOTH)
    head, busy, fix = error.value.problems
    assert head == "this suite needs 2 idle GPUs, 1 of 2 is idle"
    assert busy.startswith("  GPU 0 (Board 0): ")
    assert all(word in busy for word in words)
    assert "--wait" in fix
    assert "--gpus 0,1" in fix
    assert "fewer ranks" in fix


def test_the_gpus_to_name_are_the_idle_ones_first(driver: StandIn) -> None:
    driver.set("count", 3)
    for key, value in {"uuid": "GPU-cccc", "name": "Board 2", "memory_total": 80 << 30, "memory_used": 0}.items():
        driver.set(f"gpu2.{key}", value)
    driver.set("gpu0.utilization", 50)
    driver.set("gpu1.utilization", 50)
    with pytest.raises(UserError, match="--gpus 0,2 "):
        claim(need=BOTH)
    with claim("0"), pytest.raises(UserError, match="--gpus 1,2 "):
        claim(need=BOTH)
    with claim("0,1"), pytest.raises(UserError) as error:
        claim(need=BOTH)
    assert "--gpus" not in error.value.problems[-1]


def test_a_process_is_named(driver: StandIn) -> None:
    name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    driver.set("gpu0.processes", f"{os.getpid()}:1000")
    (tenant,) = use_of(gpus()[0]).tenants
    assert (tenant.pid, tenant.memory_bytes, tenant.name) == (os.getpid(), 1000, name)


@pytest.mark.parametrize(
    ("key", "value"),
    [("utilization", 5), ("memory_used", 1 << 30), ("memory_reserved", 3 << 30), ("processes", "unsupported")],
)
def test_what_a_desktop_or_the_driver_takes_is_idle(key: str, value: object, driver: StandIn) -> None:
    driver.set(f"gpu0.{key}", value)
    with claim() as found:
        assert taken(found) == [A]


def test_idle_memory_grows_with_the_board(driver: StandIn) -> None:
    driver.set("gpu0.memory_used", 3 << 30)
    assert not use_of(gpus()[0]).is_idle
    driver.set("gpu0.memory_total", 200 << 30)
    assert use_of(gpus()[0]).is_idle


def test_a_named_gpu_is_taken_though_it_is_in_use(driver: StandIn) -> None:
    driver.set("gpu1.utilization", 90)
    told = Told()
    with claim("1,0", told=told) as found:
        assert taken(found) == [B, A]
    (note,) = told
    assert note.startswith("GPU 1 (Board 1): utilization 90%; used anyway")


def test_a_named_gpu_of_another_run_is_not_taken() -> None:
    with claim("0") as first:
        with pytest.raises(UserError, match=rf"GPU 0 .*another selectbench run has it \(pid {os.getpid()}\)"):
            claim("1,0")
        with claim("1") as second:  # nothing was kept of what failed
            assert taken(first) + taken(second) == [A, B]


@pytest.mark.parametrize(
    ("asked", "found"),
    [("0", [A]), (" 1 , 0", [B, A]), (A, [A]), ("GPU-bb,0", [B, A]), ("0,1", [A, B])],
)
def test_names_of_gpus(asked: str, found: list[str]) -> None:
    with claim(asked) as named:
        assert taken(named) == found


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("2", "'2' is no visible GPU; there are 0 GPU-aaaa"),
        ("GPU-", "'GPU-' fits several GPUs"),
        ("", "'' is no visible GPU"),
        ("0,", "'' is no visible GPU"),
        ("-1", "'-1' is no visible GPU"),
        ("0,GPU-aa", "GPU 0 .* is named twice"),
    ],
)
def test_names_of_no_gpu(asked: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        claim(asked)


def test_numbers_count_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{B},{A}")
    with claim("0") as found:
        assert taken(found) == [B]


def test_waiting_ends_when_a_gpu_is_free(driver: StandIn) -> None:
    driver.set("gpu0.processes", "4194999:1000")
    driver.set("gpu1.utilization", 80)
    told = Told()
    steps = iter([
        lambda: driver.set("gpu1.utilization", 70),  # nothing new to say
        lambda: driver.set("gpu0.processes", "4194998:1000"),
        lambda: driver.set("gpu1.utilization", 0),
    ])  # fmt: skip
    with claim(wait=True, told=told, pause=lambda: next(steps)()) as found:
        assert taken(found) == [B]
    assert len(told) == 2
    assert told[0].startswith(
        "waiting for 1 idle GPU, 0 of 2 are idle: GPU 0 (Board 0): pid 4194999 holds 1000 B; GPU 1"
    )
    assert "pid 4194998" in told[1]


def test_waiting_for_a_named_gpu_of_another_run() -> None:
    first = claim("0")
    told = Told()
    with claim("0", wait=True, told=told, pause=first.release) as second:
        assert taken(second) == [A]
    held = f"GPU 0 (Board 0): another selectbench run has it (pid {os.getpid()})"
    assert told == [f"waiting for the GPUs that --gpus names: {held}"]


def test_a_long_wait_says_now_and_then_how_long_it_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selectbench.launch.gpus.REPORT_AGAIN_SECONDS", 1e-9)
    first, told = claim("0"), Told()
    steps = iter([lambda: None, lambda: None, first.release])
    with claim("0", wait=True, told=told, pause=lambda: next(steps)()):
        assert len(told) == 3
    assert all(re.match(r"waiting, since \d+ s, for the GPUs", line) for line in told)


def test_ctrl_c_while_waiting_takes_nothing(driver: StandIn) -> None:
    driver.set("gpu0.utilization", 80)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claim(need=BOTH, wait=True, pause=interrupt)
    with claim("1") as found:
        assert taken(found) == [B]


def test_a_look_takes_nothing(driver: StandIn) -> None:
    assert idle_now(None, ONE) == (gpus()[:1], ["2 of 2 GPUs are idle now"])
    driver.set("gpu0.utilization", 50)
    found, notes = idle_now(None, ALL)
    assert [gpu.uuid for gpu in found] == [B]
    assert notes == ["1 of 2 GPUs are idle now", "GPU 0 (Board 0): utilization 50%"]
    assert idle_now("0", ONE)[0] == gpus()[:1]
    with claim() as other:
        assert taken(other) == [B]
        found, notes = idle_now(None, ONE)
        assert found == gpus()  # a run would not start; the plan is what it would be
        assert notes[0] == "0 of 2 GPUs are idle now"
        assert "another selectbench run" in notes[2]


def start_claim(count: int, driver: StandIn, *more: str) -> Process:
    return start(
        [sys.executable, "-c", CLAIM, str(count), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, **driver.environment()},
    )  # fmt: skip


def answer(process: Process) -> list[str]:
    assert process.stdout is not None
    found: list[str] = json.loads(process.stdout.readline())
    return found


def test_two_runs_at_once_share_out_the_gpus(driver: StandIn) -> None:
    runs = [start_claim(1, driver) for _ in range(2)]
    assert sorted(uuid for run in runs for uuid in answer(run)) == [A, B]
    for run in runs:
        run.communicate()


def test_of_two_runs_that_need_all_one_gets_all(driver: StandIn) -> None:
    runs = [start_claim(2, driver) for _ in range(2)]
    answers = [answer(run) for run in runs]
    winner = answers.index([A, B])
    assert f"another selectbench run has it (pid {runs[winner].pid})" in answers[1 - winner][1]
    for run in runs:
        run.communicate()


def test_gpus_are_locked_by_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = []

    def watched(uuid: str) -> Lock | None:
        alone.append(try_lock(TURN) is None)
        return try_lock(uuid)

    monkeypatch.setattr(gpu_claim, "try_lock", watched)
    with claim(need=BOTH):
        assert alone == [True, True]
        lock = try_lock(TURN)  # and the turn is over when GPUs are taken
        assert lock is not None
        lock.release()


def test_a_run_that_waits_goes_on_when_another_is_killed(driver: StandIn) -> None:
    first = start_claim(2, driver)
    assert answer(first) == [A, B]
    second = start_claim(2, driver, "wait")
    first.kill()
    first.communicate()
    assert answer(second) == [A, B]
    second.communicate()


def test_trials_see_the_gpus_of_the_run_in_the_order_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = gpus()[::-1]
    assert server_environment(device="cuda", gpus=both)["CUDA_VISIBLE_DEVICES"] == f"{B},{A}"
    assert "CUDA_VISIBLE_DEVICES" not in server_environment(device="cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert server_environment()["CUDA_VISIBLE_DEVICES"] == "1"
    environment = partial(server_environment, device="cuda", gpus=both)
    with TrialServers(lambda _: [], tmp_path, environment) as servers:
        for server in (servers.of(None), servers.of("/other/python")):
            assert server.environment(server.python)["CUDA_VISIBLE_DEVICES"] == f"{B},{A}"


@pytest.fixture
def torch(tmp_path: Path) -> FakeTorch:
    found = FakeTorch(tmp_path / "site")
    found.shows(A[4:], B[4:])
    return found


def run_cli(driver: StandIn, torch: FakeTorch, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    place = Workplace(tmp_path)
    place.write(DDP_SUITE)
    return place.call(*arguments, **driver.environment(), PYTHONPATH=str(torch.folder))


RANKS = "ranks: {strategy: ddp, world_size: auto, micro_batch_size: 2}"
DDP_SUITE = TINY_SUITE.replace("halves: {micro_batch_size: 2}", RANKS)


def planned(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return {option["option"]: option["world_size"] for option in json.loads(done.stdout)["options"]}


def test_a_plan_counts_idle_gpus(driver: StandIn, torch: FakeTorch, tmp_path: Path) -> None:
    assert planned(run_cli(driver, torch, tmp_path, "plan", "tiny.yaml", "--json")) == {"whole": 1, "ranks": 2}
    driver.set("gpu0.utilization", 50)
    assert planned(run_cli(driver, torch, tmp_path, "plan", "tiny.yaml", "--json")) == {"whole": 1, "ranks": 1}
    said = run_cli(driver, torch, tmp_path, "plan", "tiny.yaml", "--gpus", "1,0").stdout
    assert "ddp x 2 ranks" in said
    assert "warning: 1 of 2 GPUs are idle now" in said
    assert "warning: GPU 0 (Board 0): utilization 50%" in said
    assert torch.asked_under() == []


def test_a_run_checks_that_torch_shows_what_was_taken(driver: StandIn, torch: FakeTorch, tmp_path: Path) -> None:
    torch.shows(A[4:], B[4:])
    done = run_cli(driver, torch, tmp_path, "run", "tiny.yaml", "--gpus", "1,0")
    assert done.returncode == 2
    assert f"torch does not run on the GPUs that were taken: its cuda:0 is {A[4:]}, and Board 1, {B}" in done.stderr
    assert torch.asked_under() == [f"{B},{A}"]


def test_a_run_that_finds_no_idle_gpu(driver: StandIn, torch: FakeTorch, tmp_path: Path) -> None:
    driver.set("gpu0.utilization", 50)
    driver.set("gpu1.processes", f"{os.getpid()}:1000")
    done = run_cli(driver, torch, tmp_path, "run", "tiny.yaml")
    assert done.returncode == 2
    assert "this suite needs 1 idle GPU, 0 of 2 are idle" in done.stderr
    assert "GPU 1 (Board 1): pid" in done.stderr


@pytest.mark.parametrize(
    ("ignores", "number", "status"),
    [([], signal.SIGINT, 130), ([signal.SIGINT], signal.SIGTERM, -signal.SIGTERM)],
    ids=["Ctrl-C", "SIGTERM in the background"],
)
def test_a_signal_ends_a_run_that_waits(
    driver: StandIn, torch: FakeTorch, tmp_path: Path, ignores: list[signal.Signals], number: int, status: int
) -> None:
    driver.set("gpu0.utilization", 50)
    driver.set("gpu1.utilization", 50)
    place = Workplace(tmp_path)
    place.write(DDP_SUITE)
    variables = {**driver.environment(), "PYTHONPATH": str(torch.folder)}
    process = place.start("run", "tiny.yaml", "--wait", ignores=ignores, **variables)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("waiting for 1 idle GPU" in line for line in lines)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert place.run_folders() == []


def test_naming_gpus_for_a_job_on_the_cpu(driver: StandIn, torch: FakeTorch, tmp_path: Path) -> None:
    done = run_cli(driver, torch, tmp_path, "plan", "tiny.yaml", "--gpus", "0", "--profile", "cpu")
    assert done.returncode == 2
    assert done.stderr == "--gpus 0: the job's device is cpu; leave --gpus out\n"


PREPARE = """\
import json, sys
from selectbench.launch.preparation import Request, prepare_all
ready = prepare_all(Request("tiny.yaml", **json.loads(sys.argv[1])), lambda _: None)
machine, plan, facts = ready.machine, ready.plan, ready.environment
print(json.dumps({
    "claimed": [gpu.uuid for gpu in ready.claim.gpus], "device_count": machine.device_count,
    "environment": [gpu["name"] for gpu in facts["gpus"]], "driver": facts["driver_version"],
    "unsupported": {p.option.name: p.unsupported for p in plan.options},
    "ranks": {p.option.name: p.world_size for p in plan.options},
}), flush=True)
sys.stdin.read()
"""


def prepare(
    suite: str, driver: StandIn, torch: FakeTorch, tmp_path: Path, **request: object
) -> tuple[dict[str, Any], Process]:
    place = Workplace(tmp_path)
    place.write(suite)
    process = start(
        [sys.executable, "-c", PREPARE, json.dumps(request)], cwd=tmp_path, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env=place.environment(**driver.environment(), PYTHONPATH=str(torch.folder)),
    )  # fmt: skip
    assert process.stdout is not None
    return json.loads(process.stdout.readline()), process


def test_a_run_takes_what_its_plan_uses(driver: StandIn, torch: FakeTorch, tmp_path: Path) -> None:
    driver.set("gpu0.utilization", 50)
    ready, process = prepare(DDP_SUITE, driver, torch, tmp_path)
    assert ready["claimed"] == [B]
    assert ready["device_count"] == 1
    assert ready["environment"] == ["Board 1"]
    assert ready["ranks"] == {"whole": 1, "ranks": 1}
    assert try_lock(B) is None
    process.communicate()
    until(lambda: try_lock(B) is not None)


def test_a_suite_of_one_rank_leaves_the_other_gpu(driver: StandIn, torch: FakeTorch, tmp_path: Path) -> None:
    ready, process = prepare(TINY_SUITE, driver, torch, tmp_path, gpus="1,0")
    assert ready["claimed"] == [B]  # of the two that were named
    assert ready["environment"] == ["Board 1"]
    lock = try_lock(A)
    assert lock is not None
    process.communicate()


def test_more_ranks_than_gpus_are_a_row_that_is_unsupported(
    driver: StandIn, torch: FakeTorch, tmp_path: Path
) -> None:
    suite = DDP_SUITE.replace("world_size: auto, micro_batch_size: 2", "world_size: 4, micro_batch_size: 1")
    ready, process = prepare(suite, driver, torch, tmp_path)
    assert ready["claimed"] == [A]
    assert ready["unsupported"]["whole"] is None
    assert "world_size 4 needs as many GPUs" in ready["unsupported"]["ranks"]
    process.communicate()


def test_a_run_on_the_cpu_takes_no_gpu(driver: StandIn, torch: FakeTorch, tmp_path: Path) -> None:
    ready, process = prepare(TINY_SUITE, driver, torch, tmp_path, profile="cpu")
    assert (ready["claimed"], ready["environment"], ready["driver"]) == ([], [], None)
    cores = [f"core-{core}" for core in os.sched_getaffinity(0)]
    assert {path.stem for path in (tmp_path / "locks").iterdir()} == {TURN, *cores}
    assert try_lock(cores[0]) is None
    process.communicate()
    assert try_lock(cores[0]) is not None


def test_runs_share_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    told, waited = Told(), []

    def cores(*wanted: int, wait: bool = False) -> Claim:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(wanted))
        return claim_cores(wait=wait, notify=told, pause=lambda: (waited.append(1), second.release()))

    with cores(0, 1) as first, cores(2, 3) as second:
        with pytest.raises(UserError, match=rf"another .* measures on this CPU \(pid {os.getpid()}\)(.|\n)*--wait"):
            cores(3, 4)
        with cores(4), cores(5):  # what was refused holds none of them
            pass
        with cores(3, 4, wait=True):
            assert (len(waited), len(told)) == (1, 1)
        first.release()
    with cores(0, 1, 2, 3, 4, 5):
        pass
