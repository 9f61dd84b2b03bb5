"""Laptops: on macOS and Windows everything but training does what it does on Linux, to the last byte."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evidence.readme_table import ROOT, oldest_run
from launch.harness import TINY_SUITE, corpus
from other_system import is_there, missing

import selectbench
from selectbench.errors import ExitCode
from selectbench.record.run_folder import ENVIRONMENT, RECORDS_FILE, SUITE

SYSTEMS = {"darwin": "macOS", "win32": "Windows"}
KEPT = str(oldest_run("precision"))
SLOWER = str(Path("results") / "precision" / oldest_run("precision").name)
"""The kept run's copy in which every trial took twice as long."""
each_system = pytest.mark.parametrize("system", SYSTEMS)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a suite, its text, and the slower run, without what follows from its records."""
    (tmp_path / "tiny.yaml").write_text(TINY_SUITE)
    (tmp_path / "corpus.txt").write_text(corpus() + "ünïcödé lines → too\n" * 3, encoding="utf-8")
    run = _copied(tmp_path / SLOWER)
    records = [json.loads(line) for line in (run / RECORDS_FILE).read_text().splitlines()]
    for record in records:
        if record["outcome"]["status"] == "completed":
            record["outcome"]["measurement"]["timed_seconds"] *= 2
    (run / RECORDS_FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def _copied(folder: Path) -> Path:
    """The kept run without what follows from it."""
    folder.mkdir(parents=True)
    for name in (SUITE, ENVIRONMENT, RECORDS_FILE):
        shutil.copy(Path(KEPT) / name, folder / name)
    return folder


def call(place: Path, system: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which sees nothing that the system lacks."""
    variables = {"SELECTBENCH_CACHE": str(place / f"cache-{system}"), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "other_system.py"), system, *arguments], cwd=place, check=False,
        capture_output=True, text=True, env={**os.environ, **variables},
    )  # fmt: skip


def alike(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a command does on Windows, where it prints what it prints here and ends with the same status."""
    here, there = call(place, "linux", *arguments), call(place, "win32", *arguments)
    assert (there.returncode, there.stdout, there.stderr) == (here.returncode, here.stdout, here.stderr)
    return there


def test_what_is_hidden_is_what_these_systems_lack() -> None:
    assert {"sched_getaffinity", "pidfd_open", "memfd_create"} <= missing("os", "darwin") <= missing("os", "win32")
    assert {"fork", "setsid", "killpg", "pread", "O_CLOEXEC", "getuid"} <= missing("os", "win32")
    assert {"SIGHUP", "SIGKILL", "SIGCHLD", "setitimer"} <= missing("signal", "win32")
    assert {"AF_UNIX", "send_fds"} <= missing("socket", "win32")
    assert not any(is_there(name, "win32") for name in ("fcntl", "resource", "termios", "pwd", "grp"))
    assert all(is_there(name, "win32") for name in ("os", "signal", "socket", "time", "__future__"))
    assert is_there("fcntl", "darwin")


@each_system
def test_every_module_of_the_bench_can_be_imported(system: str, place: Path) -> None:
    found = pkgutil.walk_packages(selectbench.__path__, "selectbench.", onerror=pytest.fail)
    modules = [name for module in found if "worker" not in (name := module.name) and "__main__" not in name]
    imported = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
    done = call(place, system, "-c", f"{imported}print('torch' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")


@each_system
def test_a_report_has_the_same_bytes(system: str, place: Path) -> None:
    run = _copied(place / "copy")
    done = call(place, system, "report", "copy")
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    made, kept = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (run, Path(KEPT)))
    assert made == kept


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",), ("schema",), ("list",), ("compare", KEPT, SLOWER), ("report", SLOWER, "--json"),
        ("report", SLOWER, "bf16_pure"),
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_windows_shows_the_same(arguments: tuple[str, ...], place: Path) -> None:
    done = alike(place, *arguments)
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert done.stdout


@pytest.mark.parametrize(
    ("limit", "status"),
    [("tokens_per_second >= 0.97x reference", ExitCode.REGRESSION), ("final_loss <= 1.01x reference", ExitCode.OK),
     ("tokens_per_second >= fast", ExitCode.USER_ERROR)],
)  # fmt: skip
def test_a_gate_has_the_same_status(limit: str, status: ExitCode, place: Path) -> None:
    assert alike(place, "gate", SLOWER, "--against", KEPT, "--limit", limit).returncode == status


def test_a_notebook_reads_a_run(place: Path) -> None:
    code = (
        f"import selectbench; run = selectbench.load({KEPT!r})\n"
        "print(run.ranking.answer, run.to_pandas().to_csv(), run.to_pandas('options').to_csv())"
    )
    assert "bf16_master" in alike(place, "-c", code).stdout


def test_the_template_has_the_same_bytes(place: Path) -> None:
    made = []
    for system in ("linux", "win32"):
        assert call(place, system, "init", "made.yaml").returncode == ExitCode.OK
        made.append((place / "made.yaml").read_bytes())
        (place / "made.yaml").unlink()
    assert made[0] == made[1]


def test_data_are_prepared_alike(place: Path) -> None:
    made = []
    for system in ("linux", "win32"):
        done = call(place, system, "data", "tiny.yaml")
        assert done.returncode == ExitCode.OK, done.stderr
        made.append({path.name: path.read_bytes() for path in (place / f"cache-{system}").glob("data/*/*.bin")})
    assert made[0] == made[1] != {}


@each_system
def test_a_plan_is_made_as_if_the_machine_could_train(system: str, place: Path) -> None:
    done = call(place, system, "plan", "tiny.yaml")
    assert done.returncode == ExitCode.OK, done.stderr
    assert f"training needs Linux, and this is {SYSTEMS[system]}" in done.stdout
    assert "unsupported" not in done.stdout


def test_a_plan_has_the_same_trials(place: Path) -> None:
    command = ("plan", "tiny.yaml", "--json")
    here, there = (json.loads(call(place, system, *command).stdout) for system in ("linux", "win32"))
    assert there["trials"] == here["trials"] != []


@each_system
@pytest.mark.parametrize("command", [("run", "tiny.yaml"), ("doctor", "--calibrate")])
def test_training_is_refused_in_one_sentence(command: tuple[str, ...], system: str, place: Path) -> None:
    before = sorted(place.rglob("*"))
    done = call(place, system, *command)
    assert (done.returncode, done.stdout) == (ExitCode.USER_ERROR, "")
    assert done.stderr.startswith(f"training needs Linux, and this is {SYSTEMS[system]}: run it ")
    assert done.stderr.count("\n") == 1
    assert sorted(place.rglob("*")) == before


@each_system
def test_the_doctor_says_that_training_needs_linux(system: str, place: Path) -> None:
    done = call(place, system, "doctor")
    assert done.returncode == ExitCode.USER_ERROR, done.stderr
    assert done.stderr == ""
    assert f"system  broken  training needs Linux, and this is {SYSTEMS[system]}" in done.stdout
    assert "cores   ok" in done.stdout
    assert "tmpfs" not in done.stdout
    assert "runs here" not in done.stdout
