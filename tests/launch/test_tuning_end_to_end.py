"""Tuning and the search for the fastest size, by the command line with real training."""

from __future__ import annotations

import json
from typing import Any

import pytest
from launch.harness import TINY_SUITE, Workplace, until

from selectbench.suite.job import LrSchedule, shape_sha256, shares
from selectbench.suite.load import load_suite

pytestmark = pytest.mark.slow
BADLY_GUESSED = """\
baseline: adamw
options:
  adamw: {optimizer: {name: adamw, lr: 1e-3}}
  sgd: {optimizer: {name: sgd, lr: 1e-5}}
decide: {objective: final_loss, constraints: []}
seeds: [0, 1]
"""
"""SGD's rate is ten thousand times too small; at rates of their own it learns this tiny task better than AdamW."""
TUNED = BADLY_GUESSED + "tune: {parameters: {optimizer.lr: {n: 3}}, budget: {max_steps: 1.0x}}\n"
HEAD = TINY_SUITE[: TINY_SUITE.index("baseline:")].replace("max_steps: 6", "max_steps: 30")


def ranking(workplace: Workplace, suite: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workplace.run_folders(suite)[-1] / "ranking.json").read_text())
    return found


def losses(found: dict[str, Any]) -> dict[str, float]:
    return {row["option"]: row["metrics"]["final_loss"]["value"] for row in found["rows"]}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The suite with and without tuning, each run to its end; the tuned one was killed in its midst first."""
    place = Workplace(tmp_path_factory.mktemp("tuned"))
    place.write(HEAD.replace("name: tiny", "name: guessed") + BADLY_GUESSED, "guessed.yaml")
    place.write(HEAD.replace("name: tiny", "name: tuned") + TUNED, "tuned.yaml")
    assert place.call("run", "guessed.yaml").returncode == 0
    process = place.start("run", "tuned.yaml")
    until(lambda: len(place.records("tuned")) >= 2)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: place.trial_pids() == [])
    (place.folder / "before.json").write_text(json.dumps(place.records("tuned")))
    done = place.call("run", "tuned.yaml")
    assert done.returncode == 0, done.stderr
    return place


def test_tuning_puts_a_bad_guess_right_and_the_ranking_differs_as_it_should(tuned: Workplace) -> None:
    guessed, found = ranking(tuned, "guessed"), ranking(tuned, "tuned")
    assert losses(guessed)["adamw"] < losses(guessed)["sgd"]
    assert losses(found)["adamw"] > losses(found)["sgd"]
    assert losses(found)["sgd"] < losses(guessed)["sgd"] - 0.5
    assert (guessed["rows"][0]["option"], found["rows"][0]["option"]) == ("adamw", "sgd")


def test_the_contest_ran_with_what_was_chosen_on_seeds_of_its_own(tuned: Workplace) -> None:
    chosen = {own["option"]: own["chosen"]["optimizer.lr"] for own in ranking(tuned, "tuned")["search"]["tuning"]}
    contest = [r for r in tuned.records("tuned") if r["phase"] == "contest"]
    assert {(r["trial"]["option"], r["trial"]["seed"]) for r in contest} == {
        (option, seed) for option in ("adamw", "sgd") for seed in (0, 1)
    }  # fmt: skip
    assert all(r["trial"]["settings"]["optimizer"]["lr"] == chosen[r["trial"]["option"]] for r in contest)
    assert chosen["sgd"] > 1e-2
    assert {r["trial"]["seed"] for r in tuned.records("tuned") if r["phase"] == "tune"} == {1000}


def test_every_option_was_tried_equally_often_with_equal_tokens(tuned: Workplace) -> None:
    own = ranking(tuned, "tuned")["search"]["tuning"]
    assert len({(o["trials"], o["tokens"]) for o in own}) == 1


def test_a_killed_run_repeated_no_trial(tuned: Workplace) -> None:
    before, after = json.loads((tuned.folder / "before.json").read_text()), tuned.records("tuned")
    assert after[: len(before)] == before
    assert len(tuned.run_folders("tuned")) == 1
    ids = [r["trial"]["trial_id"] for r in after]
    assert len(set(ids)) == len(ids)


def test_what_was_chosen_is_in_every_report(tuned: Workplace) -> None:
    folder = tuned.run_folders("tuned")[-1]
    for name in ("report.md", "report.html"):
        assert "Each option at its own best" in (folder / name).read_text()
    assert "Loss over optimizer.lr" in (folder / "report.html").read_text()


def test_the_best_options_own_suite_has_the_tuned_rate_and_tunes_nothing(tuned: Workplace) -> None:
    folder = tuned.run_folders("tuned")[-1]
    best = next(iter(folder.glob("best*.yaml")))
    shown = tuned.call("plan", str(best), "--json")
    assert shown.returncode == 0, shown.stderr
    assert [stage["title"] for stage in json.loads(shown.stdout)["stages"]] == ["contest"]
    settings = [line for line in best.read_text().splitlines() if not line.startswith("#")]
    assert "tune" not in "\n".join(settings).replace("tuned", "")


def test_a_rate_that_diverges_is_an_outcome(workplace: Workplace) -> None:
    more = "tune: {parameters: {optimizer.lr: {log: [1.0, 1000.0], n: 2}}}\n"
    text = (
        HEAD.replace("max_steps: 30", "max_steps: 60\n  clip_norm: null")
        + more
        + "options:\n  sgd: {}\nseeds: [0]\n"
    )
    workplace.write(text.replace("name: adamw, lr: 1e-3", "name: sgd, lr: 0.1"))
    done = workplace.call("run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    found = [r["outcome"].get("kind", "completed") for r in workplace.records() if r["phase"] == "tune"]
    assert "diverged" in found
    assert "completed" in found


WARM_UP = "optimizer.warmup_fraction"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """One option, whose size is searched, then its rate and its warm-up at once."""
    place = Workplace(tmp_path_factory.mktemp("searched"))
    both = f"tune: {{parameters: {{optimizer.lr: {{}}, {WARM_UP}: {{linear: [0.1, 0.9]}}}}, trials: 2}}\n"
    place.write(
        HEAD.replace("micro_batch_size: 4", "micro_batch_size: auto") + "options:\n  one: {}\nseeds: [0]\n" + both
    )
    done = place.call("run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return place


def test_the_fastest_size_is_searched_at_the_same_global_batch(searched: Workplace) -> None:
    records = searched.records()
    sizes = [r["trial"]["tried"]["micro_batch_size"] for r in records if "micro_batch_size" in r["trial"]["tried"]]
    assert sorted(sizes) == [1, 2, 4]
    assert {r["identity"]["tokens_per_step"] for r in records} == {64}
    (own,) = ranking(searched, "tiny")["search"]["sizes"]
    fastest = max(own["tried"], key=lambda t: t["value"])
    contest = next(r for r in records if r["phase"] == "contest")
    assert own["chosen"] == fastest["values"]
    assert contest["trial"]["settings"]["micro_batch_size"] == own["chosen"]["micro_batch_size"]


def test_a_tuned_warm_up_is_what_the_trials_had(searched: Workplace) -> None:
    shapes = []
    for record in searched.records():
        steps = {"contest": 30}.get(record["phase"], 15)
        share = record["trial"]["settings"]["optimizer"].get("warmup_fraction")
        if share is not None:
            asked = shares(LrSchedule(warmup_steps=round(share * steps)), steps)
            shapes.append(record["identity"]["learning_rate_shape_sha256"])
            assert shapes[-1] == shape_sha256(asked)
    assert len(set(shapes)) == 3
    (row,) = ranking(searched, "tiny")["rows"]
    assert row["identity"]["comparable"]


def test_a_tuned_warm_up_is_in_the_best_suite(searched: Workplace) -> None:
    (own,) = ranking(searched, "tiny")["search"]["tuning"]
    (folder,) = searched.run_folders()
    best = load_suite(str(folder / "best.yaml"), device="cpu")
    assert best.options[0].choices.optimizer.warmup_fraction == own["chosen"][WARM_UP]


def test_a_budget_cuts_rounds_and_says_what_can_be_told(workplace: Workplace) -> None:
    seeds = TINY_SUITE.replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]")
    workplace.write(seeds)
    whole = json.loads(workplace.call("plan", "tiny.yaml", "--json").stdout)
    (contest,) = whole["stages"]
    half = contest["start_seconds"] + (contest["seconds"] - contest["start_seconds"]) * 0.55
    cut = workplace.call("plan", "tiny.yaml", "--json", "--budget", f"{half:.3f}s")
    kept = json.loads(cut.stdout)
    assert kept["expected_seconds"] <= half
    assert 1 <= len({t["seed"] for t in kept["trials"]}) < 10
    told = workplace.call("plan", "tiny.yaml", "--budget", f"{half:.3f}s").stdout
    assert "as speed does on an idle machine" in " ".join(told.split())
    short = workplace.call("plan", "tiny.yaml", "--budget", "0.001s")
    assert short.returncode == 2
    assert "a schedule is never cut" in short.stderr
    assert workplace.call("plan", "tiny.yaml", "--budget", "2 hours").returncode == 2
