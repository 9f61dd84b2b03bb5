"""Whatever goes wrong in the observer, the script does not notice; what went wrong is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from observe.watched import Run, run

HOOKS = [
    "_add_optimizer", "_find_model", "_before_forward", "_after_forward", "_before_backward", "_after_backward",
    "_before_update", "_after_update", "_note_scale", "_after_scaler_step", "_pause", "_finish",
]  # fmt: skip
WAY = ("--fp16", "--validate", "2", "--save", "3", "--micro", "2")


def planted(folder: Path, hook: str) -> Path:
    """plain.py in a process whose observer fails in a hook, every time."""
    script = folder / "planted.py"
    script.write_text(
        "import runpy, sys, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent / 'scripts')!r})\n"
        "import selectbench_observer\n"
        "observer = selectbench_observer.Observer\n"
        f"assert callable(getattr(observer, {hook!r}))\n"
        "def fail(self, *args, **kwargs):\n    raise ValueError('planted')\n"
        f"name = {hook!r}\nfail.__name__ = name\nsetattr(observer, name, fail)\n"
        "# Stand-ins hold the methods that were there when they were made.\n"
        "selectbench_observer._observer.passive = True\n"
        "selectbench_observer._observer = None\nselectbench_observer.install()\n"
        f"sys.argv[0] = {str(Path(__file__).parent / 'scripts' / 'plain.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return script


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("alone"), *WAY, observed=False, forked=True)


@pytest.mark.slow
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_fails_leaves_the_script_as_it_is(alone: Run, tmp_path: Path, hook: str) -> None:
    seen = run(tmp_path, *WAY, script=planted(tmp_path, hook), forked=True)
    assert (seen.status, seen.printed("weights"), seen.printed("rank")) == (
        0, alone.printed("weights"), alone.printed("rank")
    ), seen.output  # fmt: skip
    assert seen.one("problem")["what"] == "ValueError: planted"
    assert seen.all("end") == []


def test_settings_that_can_not_be_read_are_said_and_nothing_else(tmp_path: Path) -> None:
    seen = run(tmp_path, "--steps", "2", environment={"SELECTBENCH_OBSERVE": str(tmp_path / "missing.json")})
    assert (seen.status, seen.ranks, len(seen.printed("weights"))) == (0, {}, 1)
    assert "selectbench: the observer could not be installed" in seen.output
