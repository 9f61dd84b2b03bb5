from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from launch.harness import Workplace


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path)
    place.write()
    yield place
    assert place.trial_pids() == [], "a process outlived the run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A tiny suite run to its end, shared by tests that only read it."""
    place = Workplace(tmp_path_factory.mktemp("finished"))
    place.write()
    done = place.call("run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return place
