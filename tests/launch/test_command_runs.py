"""Suites whose job is a command: real scripts, each end with its outcome, and what the certificate says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch.harness import Workplace

SCRIPT = Path(__file__).parent / "scripts" / "behaves.py"
SUITE = """\
name: mine
job:
  command: "python {script} --seed {{seed}} --max-steps {{max_steps}} --lr {{lr}} {{args}}"
  max_steps: 12
  stop: {stop}
  timing: {{warmup_steps: 2}}
  eval: {eval}
  global_batch_size: 4
choices: {{lr: 0.01}}
options: {options}
baseline: plain
seeds: {seeds}
limits: {{stall_seconds: {stall}}}
"""


def write(
    place: Workplace,
    options: dict[str, Any],
    seeds: list[int],
    *,
    stop: str,
    held_out: bool = False,
    stall: int = 60,
) -> None:
    np.save(place.folder / "heldout.npy", np.arange(600, dtype="uint16") % 64)
    values = {"eval": "{heldout: heldout.npy, tokens: 256}" if held_out else "none", "options": json.dumps(options)}
    text = SUITE.format(script=SCRIPT, seeds=seeds, stop=stop, stall=stall, **values)
    (place.folder / "mine.yaml").write_text(text)


def outcomes(place: Workplace) -> dict[str, dict[str, Any]]:
    return {r["trial"]["option"]: r["outcome"] for r in place.records("mine") if r["phase"] == "contest"}


def rows(place: Workplace) -> dict[str, dict[str, Any]]:
    (folder,) = place.run_folders("mine")
    return {row["option"]: row for row in json.loads((folder / "ranking.json").read_text())["rows"]}


def warnings(place: Workplace) -> str:
    (folder,) = place.run_folders("mine")
    return "\n".join(json.loads((folder / "ranking.json").read_text())["warnings"])


def fields(row: dict[str, Any]) -> set[str]:
    return {violation["field"] for violation in row["identity"]["violations"]}


def test_a_script_is_observed_unchanged_and_ranked(workplace: Workplace) -> None:
    """Another learning rate is a declared difference; parameters left out and held-out rows trained on are none."""
    options = {
        "plain": {}, "faster": {"lr": 0.02, "may_change": ["peak_learning_rate"]},
        "without_effect": {"args": "--does nothing", "may_change": ["compute_dtype"]},
        "half": {"args": "--does forgets_the_head"},
        "knows": {"args": "--does trains_on_heldout", "may_change": [
            "token_stream_sha256", "first_step_loss", "first_step_gradient_norm", "first_step_update_norm"]},
    }  # fmt: skip
    write(workplace, options, [1], held_out=True, stop="at_max_steps")
    done = workplace.call("run", "mine.yaml")
    assert done.returncode == 0, done.stderr
    found = rows(workplace)
    assert found["plain"]["identity"]["comparable"]
    assert found["faster"]["identity"]["differs_as_declared"] == ["peak_learning_rate"]
    assert fields(found["half"]) == {"left_out_parameters"}
    assert fields(found["knows"]) == {"heldout_rows_trained"}
    (held_out,) = (u for u in found["knows"]["identity"]["not_verified"] if u["field"] == "held-out rows")
    assert held_out["reason"].startswith("48 of the first 48 rows trained on")
    later = "losses are held against our own in 2 steps alone, gradients in the first"
    assert {"field": "later steps", "reason": later} in found["plain"]["identity"]["not_verified"]
    assert "without_effect: declares compute_dtype, and is as the baseline plain in it" in warnings(workplace)
    of_contest = {r["trial"]["option"]: r for r in workplace.records("mine") if r["phase"] == "contest"}
    record = of_contest["plain"]
    assert record["identity"]["steps_applied"] == 12
    assert record["identity"]["tokens_per_step"] == 4 * 16
    assert record["outcome"]["measurement"]["heldout_tokens"] > 200
    assert record["outcome"]["measurement"]["timed_steps"] == 10
    assert {"first_step_loss", "token_stream_sha256", "final_loss"} <= record["script"]["conventions"].keys()
    assert "torch" in record["software"]
    again = workplace.call("run", "mine.yaml", "--reuse")
    assert "nothing was run" in again.stderr
    assert "does not repeat" not in warnings(workplace)


@pytest.mark.slow
def test_what_was_changed_shows_in_the_field_that_says_so_and_in_no_other(workplace: Workplace) -> None:
    """Rows that were not asked for show in all that follows from them."""
    options = {
        "plain": {}, "undeclared": {"lr": 0.03}, "larger": {"args": "--rows 8"}, "decayed": {"args": "--decay 0.2"},
        "clipped": {"args": "--clip 0.01"}, "slices": {"args": "--does slices"},
    }  # fmt: skip
    write(workplace, options, [1], held_out=True, stop="at_max_steps")
    done = workplace.call("run", "mine.yaml")
    assert done.returncode == 0, done.stderr
    found = rows(workplace)
    assert fields(found["undeclared"]) == {"peak_learning_rate"}
    assert {"global_batch_size", "tokens_per_step", "token_stream_sha256"} <= fields(found["larger"])
    assert fields(found["decayed"]) == {"optimizer"}
    assert fields(found["clipped"]) == {"first_step_update_norm"}
    assert fields(found["slices"]) == {"loss"}


@pytest.mark.slow
def test_every_end_of_a_command_has_its_outcome(workplace: Workplace) -> None:
    names = [
        "trains_nothing", "asks", "raises", "runs_out", "is_killed", "hangs", "floods", "leaves_a_daemon",
        "fails_at_the_end", "ends_early", "diverges", "diverges_at_once",
    ]  # fmt: skip
    options = {"plain": {}, **{name: {"args": f"--does {name}"} for name in names}}
    write(workplace, options, [1], stop="natural_end", stall=20)
    done = workplace.call("run", "mine.yaml")
    assert done.returncode == 3, done.stderr  # some trials failed
    found = outcomes(workplace)
    kinds = {name: outcome.get("kind", "completed") for name, outcome in found.items()}
    assert kinds == {
        "plain": "completed", "trains_nothing": "crashed", "asks": "crashed", "raises": "crashed",
        "runs_out": "oom", "is_killed": "crashed", "hangs": "timeout", "floods": "completed",
        "leaves_a_daemon": "completed",
        "fails_at_the_end": "crashed", "ends_early": "completed", "diverges": "diverged",
        "diverges_at_once": "diverged",
    }  # fmt: skip
    assert "no optimizer step of it was seen" in found["trains_nothing"]["detail"]
    assert "EOFError" in found["asks"]["detail"]
    assert "ValueError: the data are broken" in found["raises"]["detail"]
    assert "after step 4 of 12" in found["raises"]["detail"]
    assert "SIGKILL" in found["is_killed"]["detail"]
    # A process writes its steps a few at a time.
    assert any(f"at step {step} of 12 or just beyond" in found["hangs"]["detail"] for step in range(1, 5))
    assert "exited with status 1 after step 12 of 12" in found["fails_at_the_end"]["detail"]
    (folder,) = workplace.run_folders("mine")
    sizes = {
        r["trial"]["option"]: r["trial"]["trial_id"] for r in workplace.records("mine") if r["phase"] == "contest"
    }
    assert (folder / "trials" / sizes["floods"] / "log.txt").stat().st_size < 70 << 20
    log = (folder / "trials" / sizes["leaves_a_daemon"] / "log.txt").read_text()
    assert not Path(f"/proc/{log.split()[1]}").exists(), "what the command left behind ends with its trial"


def test_a_script_that_ends_by_itself_has_failed_and_a_job_that_does_not_repeat_is_told(
    workplace: Workplace,
) -> None:
    options = {"plain": {"args": "--does unseeded"}, "short": {"args": "--does ends_early"}}
    write(workplace, options, [1], stop="at_max_steps")
    done = workplace.call("run", "mine.yaml")
    assert done.returncode == 3, done.stderr
    assert outcomes(workplace)["short"]["detail"].startswith("the script ended by itself after 5 of 12 steps")
    assert "the job does not repeat: started twice with seed 1, the initial weights differ" in warnings(workplace)
    assert "does not repeat" in done.stdout


@pytest.mark.slow
def test_two_ranks_do_the_same_job_as_one(workplace: Workplace) -> None:
    """Through torchrun, each with its half of every step's rows."""
    options = {"plain": {}, "two": {"world_size": 2}}
    write(workplace, options, [1], held_out=True, stop="at_max_steps")
    path = workplace.folder / "mine.yaml"
    path.write_text(path.read_text().replace("python ", "torchrun --nproc-per-node {world_size} "))
    done = workplace.call("run", "mine.yaml")
    assert done.returncode == 0, done.stderr
    found = rows(workplace)["two"]["identity"]
    assert found["violations"] == []
    assert found["differs_as_declared"] == ["world_size", "strategy"]
    losses = {r["trial"]["option"]: r["outcome"]["measurement"]["final_loss"] for r in workplace.records("mine")}
    assert losses["two"] == pytest.approx(losses["plain"], rel=1e-5)


def test_a_tuned_job_is_started_again_with_what_was_tuned_and_a_seed_that_does_nothing_is_told(
    workplace: Workplace,
) -> None:
    write(workplace, {"plain": {"args": "--does ignores_seed"}}, [1, 2], held_out=True, stop="at_max_steps")
    with (workplace.folder / "mine.yaml").open("a") as suite:
        # The best rate is within: no more are tried.
        suite.write("tune: {parameters: {lr: {log: [1.0e-3, 100.0], n: 3}}, budget: {max_steps: 6}}\n")
    done = workplace.call("run", "mine.yaml")
    assert done.returncode == 0, done.stderr
    own = {r["phase"]: r["trial"]["settings"]["lr"] for r in workplace.records("mine") if r["phase"] != "tune"}
    assert own["repeat"] == own["contest"] != 0.01
    assert "does not repeat" not in done.stdout
    assert "seeds 1, 2 began with the same weights and read the same tokens" in warnings(workplace)
