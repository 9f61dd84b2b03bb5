"""Options with global batches of their own, by the command line with real training."""

from __future__ import annotations

import json
from typing import Any

import pytest
from launch.harness import TINY_SUITE, Workplace

pytestmark = pytest.mark.slow
SIZES = """\
baseline: global_batch_size=4
axes: {global_batch_size: [4, 2, 8]}
seeds: [0, 1]
decide: {objective: seconds_to_baseline_loss, constraints: []}
"""
HEAD = TINY_SUITE[: TINY_SUITE.index("baseline:")]
TINY = HEAD.replace("max_steps: 6", "max_steps: 12").replace("every_steps: 3", "every_steps: 2") + SIZES


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Three sizes, run to the end."""
    place = Workplace(tmp_path_factory.mktemp("sizes"))
    place.write(TINY.replace("micro_batch_size: 4", "micro_batch_size: 2"))
    process = place.call("run", "tiny.yaml")
    assert process.returncode == 0, process.stderr
    return place


def ranking(workplace: Workplace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workplace.run_folders()[-1] / "ranking.json").read_text())
    return found


def size_of(record: dict[str, Any]) -> int:
    found: int = record["trial"]["settings"]["global_batch_size"]
    return found


def test_every_trial_consumed_as_many_tokens_in_steps_of_its_own(done: Workplace) -> None:
    found = {
        (size_of(r), r["identity"]["steps_applied"], r["identity"]["tokens_per_step"],
         r["identity"]["gradient_accumulation_steps"])
        for r in done.records()
    }  # fmt: skip
    assert found == {(2, 24, 32, 1), (4, 12, 64, 2), (8, 6, 128, 4)}


def test_it_was_evaluated_after_the_same_tokens(done: Workplace) -> None:
    places = {tuple(point["tokens"] for point in r["evaluation_curve"]) for r in done.records()}
    assert places == {tuple(range(128, 769, 128))}


def test_the_certificate_declares_what_a_global_batch_changes_and_nothing_else(done: Workplace) -> None:
    rows = {row["option"]: row["identity"] for row in ranking(done)["rows"]}
    expected = {
        "token_stream_sha256", "tokens_per_step", "steps_requested", "steps_applied",
        "gradient_accumulation_steps", "learning_rate_shape_sha256",
    }  # fmt: skip
    for size in (2, 8):
        found = rows[f"global_batch_size={size}"]
        assert (found["comparable"], found["violations"]) == (True, [])
        firsts = {"first_step_loss", "first_step_gradient_norm"}
        assert set(found["differs_as_declared"]) - firsts == expected


def test_the_time_to_the_baselines_loss_decides_and_stands_in_the_reports(done: Workplace) -> None:
    found = ranking(done)
    assert found["objective"] == "seconds_to_baseline_loss"
    base = next(row for row in found["rows"] if row["option"] == "global_batch_size=4")
    assert 0 < base["metrics"]["seconds_to_baseline_loss"]["value"] <= base["metrics"]["training_seconds"]["value"]
    for row in found["rows"]:
        missed = row["to_loss"]["not_reached"]
        assert (row["metrics"]["seconds_to_baseline_loss"]["value"] is None) == bool(missed)
    report = (done.run_folders()[-1] / "report.md").read_text()
    assert "| to baseline's loss |" in report


def test_the_runs_own_suite_plans_the_same_steps(done: Workplace) -> None:
    planned = done.call("plan", str(done.run_folders()[-1] / "suite.yaml"), "--json")
    assert planned.returncode == 0, planned.stderr
    shown = json.loads(planned.stdout)
    assert [(o["global_batch_size"], o["max_steps"]) for o in shown["options"]] == [(4, 12), (2, 24), (8, 6)]
    assert shown["tokens_per_trial"] == 768
