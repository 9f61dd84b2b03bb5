"""What a trial executes is what identifies it: every module that a real one has loaded, and no report."""

import json
import shutil
from pathlib import Path

import pytest
from structure import structure

from selectbench.record.environment import PACKAGE, code_sha256, trial_files

KINDS = {
    "single": {},
    "ddp": {"strategy": "ddp", "world_size": 2, "micro_batch_size": 4},
    "ranks_started_anew": {"strategy": "ddp", "world_size": 2, "micro_batch_size": 4},
    "hf_trainer": {"framework": "hf_trainer"},
}  # fmt: skip


def names_of(files: list[Path]) -> set[str]:
    parts = (path.relative_to(PACKAGE.parent).with_suffix("").parts for path in files)
    return {".".join(one).removesuffix(".__init__") for one in parts}


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_that_a_trial_has_loaded_is_among_them(kind, launched):
    finished = launched.finished(option=kind, **KINDS[kind])
    written = [json.loads(path.read_text()) for path in launched.trial_folder.glob("loaded*.json")]
    assert len(written) == KINDS[kind].get("world_size", 1)
    loaded = {name for one in written for name in one}
    assert {"selectbench.worker.trial", "selectbench.choices.optimizer"} <= loaded
    assert loaded <= names_of(trial_files())
    if kind == "ranks_started_anew":  # where ranks cannot be forked, they train the same
        forked = launched.finished(option="ddp", **KINDS["ddp"])
        assert finished.measurement.last_loss == forked.measurement.last_loss
        assert finished.identity == forked.identity


def test_they_are_what_the_worker_imports_at_any_depth_and_nothing_else():
    """By the syntax, which is slower to read."""
    found = structure(PACKAGE.parent)
    waiting, reached = [name for name in found.modules if name.startswith("selectbench.worker")], set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            around = name.rpartition(".")[0]
            waiting += [*found.imports[name], *([around] if around in found.modules else [])]
    assert names_of(trial_files()) == reached
    assert not {name.split(".")[1] for name in reached if "." in name} & {
        "report",
        "analysis",
        "launch",
        "plan",
        "cli",
    }


@pytest.mark.parametrize(
    ("file", "is_executed"),
    [
        ("worker/loop.py", True), ("worker/engine.py", True), ("choices/optimizer.py", True),
        ("record/wire.py", True), ("__init__.py", True),
        ("report/files.py", False), ("analysis/ranking.py", False), ("launch/run.py", False), ("cli.py", False),
    ],
)  # fmt: skip
def test_a_comment_is_another_trial_only_where_one_executes_it(file, is_executed, tmp_path):
    copy = tmp_path / "selectbench"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert code_sha256(copy) == code_sha256()
    with (copy / file).open("a") as stream:
        stream.write("# changed\n")
    assert (code_sha256.__wrapped__(copy) != code_sha256()) == is_executed
