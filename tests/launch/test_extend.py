"""More seeds for a complete run: its rounds go on, and every judgement of it has a level of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evidence.readme_table import kept_run
from launch.harness import Workplace

from selectbench.errors import UserError
from selectbench.launch.preparation import Request, resolve, with_more_seeds
from selectbench.launch.publish import read_run
from selectbench.suite.load import load_suite
from selectbench.suite.suite import Suite


def order(records: list[dict[str, object]]) -> list[tuple[str, int]]:
    return [(record["trial"]["option"], record["trial"]["seed"]) for record in records]  # type: ignore[index]


def test_rounds_are_added_and_go_on_where_they_were_cut_off(workplace: Workplace) -> None:
    assert workplace.call("run", "tiny.yaml").returncode == 0
    (folder,), first = workplace.run_folders(), workplace.records()
    extended = workplace.call("run", "tiny.yaml", "--extend", "@latest", "--seeds", "7,2")
    assert extended.returncode == 0, extended.stderr
    assert "for judgement 2, at 0.5%, extending" in extended.stderr
    assert workplace.run_folders() == [folder]
    records = workplace.records()
    assert records[: len(first)] == first
    assert [one[1] for one in order(records)] == [0, 0, 1, 1, 7, 7, 2, 2]
    assert [o for o, _ in order(records)[4:6]] == [o for o, _ in reversed(order(records)[6:])]  # a mirrored pair
    ranking = json.loads((folder / "ranking.json").read_text())
    assert (ranking["seeds"], ranking["family"]["looks"], ranking["family"]["alpha"]) == (
        [0, 1, 7, 2],
        [2, 4],
        0.005,
    )
    assert "judgement 2 of this run; 99.5% intervals" in ranking["answer"]
    whole = (folder / "ranking.json").read_bytes()
    assert workplace.call("report", str(folder)).returncode == 0  # is no judgement
    assert (folder / "ranking.json").read_bytes() == whole

    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:-1]))
    other = workplace.call("run", "tiny.yaml", "--extend", "@latest", "--seeds", "8")  # the cut off one is meant
    assert other.returncode == 2
    assert "only a complete run is extended; finish it first: --extend with --seeds 7,2" in other.stderr
    resumed = subprocess.run(  # as the report proposes it
        [sys.executable, "-m", "selectbench", "run", "suite.yaml", "--extend", ".", "--seeds", "7,2"],
        cwd=folder, env=workplace.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert "7 of 8 trials have an outcome" in resumed.stderr
    assert order(workplace.records()) == order(records)
    assert load_suite(str(folder / "suite.yaml"), device="cpu").looks == [2, 4]
    again = workplace.call("run", "tiny.yaml", "--extend", str(folder), "--seeds", "7,2")
    assert again.returncode == 2
    assert "has seeds 7, 2 already; name new ones only, such as --seeds 8" in again.stderr


def test_only_the_same_run_is_extended(finished: Workplace) -> None:
    before = finished.records()
    words = ("run", "tiny.yaml", "--extend", "@latest", "--seeds", "2")
    for more, told in (
        (("--set", "job.max_steps=8"), "job.max_steps: 6 there, 8 here"),
        (("--set", "options.halves.micro_batch_size=1"), "options.halves.micro_batch_size: 2 there, 1 here"),
        (("--fresh",), "--fresh starts a run of its own"), (("--budget", "1h"), "--budget cuts rounds"),
        (("--quick",), "has one seed and claims nothing"),
    ):  # fmt: skip
        refused = finished.call(*words, *more)
        assert refused.returncode == 2, refused.stderr
        assert told in refused.stderr
    without = finished.call("run", "tiny.yaml", "--extend", "@latest")
    assert "--extend needs --seeds with the new ones" in without.stderr
    assert finished.records() == before
    (folder,) = finished.run_folders()
    assert "looks" not in (folder / "suite.yaml").read_text()


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Of a kept run with five seeds, of which `tmp_path/run` is a copy."""
    shutil.copytree(kept_run("precision"), tmp_path / "run")
    return load_suite(str(tmp_path / "run" / "suite.yaml"), device="cpu", require_files=False)


def more(suite: Suite, folder: Path, seeds: list[int]) -> Suite:
    asked = suite.model_copy(update={"seeds": seeds})
    return with_more_seeds(asked, folder)[0]


def test_a_further_extension_is_a_further_judgement(suite: Suite, tmp_path: Path) -> None:
    second = more(suite, tmp_path / "run", [5, 6, 7])
    assert (second.seeds, second.looks) == ([0, 1, 2, 3, 4, 5, 6, 7], [5, 8])
    assert (second.resolved["seeds"], second.resolved["looks"]) == (second.seeds, second.looks)


def test_seeds_that_are_there_already_are_refused(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has seed 4 already; name new ones only, such as --seeds 5"):
        more(suite, tmp_path / "run", [4, 5])


def test_a_run_that_was_never_complete_is_finished_first(suite: Suite, tmp_path: Path) -> None:
    path = tmp_path / "run" / "records.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="finish it first: the same command without --extend"):
        more(suite, tmp_path / "run", [5])


def test_a_stored_run_keeps_its_judgements_and_a_new_one_has_none(suite: Suite, tmp_path: Path) -> None:
    with (tmp_path / "run" / "suite.yaml").open("a") as stream:
        stream.write("looks: [3, 5]\n")
    stored = read_run(tmp_path / "run")
    family = stored.ranking().family
    assert family is not None
    assert (family.looks, family.alpha) == ([3, 5], 0.005)
    asked = Request(str(tmp_path / "run" / "suite.yaml"), profile="cpu")
    anew, _ = resolve(asked)
    assert anew.looks == []
    assert "looks" not in anew.resolved
