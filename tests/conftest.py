"""What tests of several areas need: a driver of GPUs where there is none."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import processes
import pytest
from stand_in import StandIn, built_driver

NEITHER_SLOW_NOR_LONG = "not slow and not long"
"""The choice that pyproject.toml makes where the command line makes none."""
TOGETHER = 4
"""Processes at most that all tests together run in."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """All tests together run in several processes, file by file; a part of them in one."""
    if hasattr(config, "workerinput"):  # this is one of the several
        return
    given = config.option
    is_all = config.args_source is pytest.Config.ArgsSource.TESTPATHS and given.markexpr == NEITHER_SLOW_NOR_LONG
    is_seen = given.usepdb or given.capture == "no" or given.benchmark_only
    if is_all and not is_seen and config.pluginmanager.hasplugin("xdist") and given.numprocesses is None:
        given.numprocesses, given.dist = min(TOGETHER, len(os.sched_getaffinity(0))), "loadfile"
        # As they are collected: files of few tests that take minutes would come last, by number of tests.
        given.loadscopereorder = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None]:
    """What a test started ends with it, however the test ended."""
    try:
        return (yield)
    finally:
        processes.end_all()


@pytest.fixture(scope="session", autouse=True)
def locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs that fixtures of many tests start wait for no other run of this machine, and no other run for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELECTBENCH_LOCKS", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(autouse=True)
def own_locks(locks: None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What another test's run still holds while it ends is nothing to this test's."""
    monkeypatch.setenv("SELECTBENCH_LOCKS", str(tmp_path_factory.mktemp("locks")))


@pytest.fixture(scope="session")
def driver_library() -> Path:
    """The folder that the stand-in for the driver's library lies in."""
    folder = built_driver()
    if folder is None:
        pytest.skip("no C compiler to build the stand-in driver with")
    return folder


@pytest.fixture
def stand_in(driver_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Two GPUs, `stand_in.TWO_GPUS`, as this process's driver; CUDA_VISIBLE_DEVICES is unset meanwhile."""
    driver = StandIn(tmp_path)
    driver.load(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver
