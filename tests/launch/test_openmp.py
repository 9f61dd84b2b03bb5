"""CPU trials let cores go soon: what OpenMP libraries are told, that they read it, and what is recorded of it."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from pathlib import Path

import pytest
from launch.test_trial_runner import a_bench

from selectbench.launch.trial import TrialServer, server_environment
from selectbench.machine import SHORT_WAIT, WAIT_VARIABLES
from selectbench.record.environment import collect_environment
from selectbench.record.record import Completed


@pytest.fixture(autouse=True)
def _not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WAIT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def waits(environment: dict[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in WAIT_VARIABLES if name in environment}


def found_by_the_library(log: Path) -> set[tuple[str, str]]:
    """Names and values, as OMP_DISPLAY_ENV has a library print them when it is loaded."""
    return set(re.findall(r"(GOMP_SPINCOUNT|KMP_BLOCKTIME) ?= ?'(\d+)", log.read_text()))


@pytest.mark.parametrize("python", [None, sys.executable], ids=["own", "another"])
def test_the_library_of_a_server_has_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str | None
) -> None:
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    with closing(TrialServer(["selectbench.worker.trial"], tmp_path / "log.txt", python)) as server:
        server.start()
        assert server.receive()["forks"]
    found = found_by_the_library(tmp_path / "log.txt")
    assert found
    assert found <= SHORT_WAIT.items()


def test_the_library_of_a_trial_that_cannot_be_forked_has_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    with a_bench(tmp_path, ["launch.threaded_module"]) as bench:
        assert isinstance(bench.run("trains").outcome, Completed)
    found = found_by_the_library(tmp_path / "trials" / "trains" / "log.txt")
    assert found
    assert found <= SHORT_WAIT.items()


@pytest.mark.parametrize("python", [None, "/its/bin/python"])
@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "5"), ("KMP_BLOCKTIME", "9")]
)
def test_what_the_user_has_settled_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, python: str | None, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert waits(server_environment(python)) == {name: value}
    assert waits(collect_environment(None)["threads"]) == {name: value}


def test_the_record_has_what_trials_are_given() -> None:
    given = waits(server_environment(device="cpu"))
    assert given == SHORT_WAIT
    assert waits(collect_environment(None, device="cpu")["threads"]) == given


def test_trials_on_a_gpu_are_given_nothing() -> None:
    assert waits(server_environment(device="cuda")) == {}
    assert waits(collect_environment(None, device="cuda")["threads"]) == {}
