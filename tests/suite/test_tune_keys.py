"""`tune`, `best_of` and `micro_batch_size: auto` in a suite file: what they mean, and what is wrong with them."""

# ruff: noqa: ISC004 (a message is compared whole)
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from suite_texts import changed, lines_of, write

from selectbench.suite.load import load_suite
from selectbench.suite.stages import (
    axes_of,
    first_values,
    sizes_to_try,
    speed_job,
    speed_suite,
    tuning_job,
    tuning_suite,
)

TUNE = "tune: {parameters: {optimizer.lr: {n: 3}}}\n"
MISTAKES = {
    "upside down": (
        "tune: {parameters: {optimizer.lr: {log: [1e-2, 1e-4]}}}\n",
        "mine.yaml:14:35: tune.parameters.optimizer.lr: the range [0.01, 0.0001] is upside down: "
        "write [smaller, larger]",
    ),
    "empty": (
        "tune: {parameters: {optimizer.lr: {log: [1e-3, 1e-3]}}}\n",
        "mine.yaml:14:35: tune.parameters.optimizer.lr: the range [0.001, 0.001] is empty: write [smaller, larger]",
    ),
    "not positive": (
        "tune: {parameters: {optimizer.lr: {log: [0, 1e-3]}}}\n",
        "mine.yaml:14:35: tune.parameters.optimizer.lr: a logarithmic range begins above 0, found [0, 0.001]: "
        "for example [1e-4, 1e-2]",
    ),
    "nothing to tune": ("tune: {parameters: {}}\n", "mine.yaml:14:20: tune.parameters: must have at least 1 entry"),
    "a setting that is not there": (
        "tune: {parameters: {optimizer.lrr: {n: 3}}}\n",
        "mine.yaml:14:21: tune.parameters.optimizer.lrr: no option has optimizer.lrr (did you mean 'lr'?)",
    ),
    "a setting of nothing": (
        "tune: {parameters: {optimiser.lr: {n: 3}}}\n",
        "mine.yaml:14:21: tune.parameters.optimiser.lr: 'optimiser.lr' is no setting of a choice "
        "(did you mean 'optimizer'?)",
    ),
    "no range known": (
        "tune: {parameters: {optimizer.beta2: {n: 3}}}\n",
        "mine.yaml:14:38: tune.parameters.optimizer.beta2: no range is known for optimizer.beta2 of adamw: "
        "give one, such as {log: [1e-4, 1e-2]}",
    ),
    "out of bounds": (
        "tune: {parameters: {optimizer.beta2: {linear: [0.9, 1.5]}}}\n",
        "mine.yaml:14:38: tune.parameters.optimizer.beta2: optimizer.beta2 of adamw: 1.5 is out of its bounds: "
        "Input should be less than 1",
    ),
    "no number": (
        "tune: {parameters: {optimizer.implementation: {log: [1, 2]}}}\n",
        "mine.yaml:14:47: tune.parameters.optimizer.implementation: optimizer.implementation is no number to tune, "
        "it is 'fused'",
    ),
    "the contest's seed": (
        "tune: {parameters: {optimizer.lr: {n: 3}}, seed: 0}\n",
        "mine.yaml:14:50: tune.seed: the contest uses seed 0 too: what was chosen on a seed is flattered by it; "
        "give another `seed`",
    ),
    "a share of more than all": (
        "tune: {parameters: {optimizer.warmup_fraction: {linear: [0, 1.5]}}}\n",
        "mine.yaml:14:48: tune.parameters.optimizer.warmup_fraction: optimizer.warmup_fraction of adamw: 1.5 is "
        "out of its bounds: Input should be less than or equal to 1",
    ),
    "several without a number": (
        "tune: {parameters: {optimizer.lr: {}, optimizer.weight_decay: {log: [0.01, 1]}}}\n",
        "mine.yaml:14:7: tune: trials: of several settings say how many trials each option gets, such as 16",
    ),
    "longer than the job": (
        "tune: {parameters: {optimizer.lr: {n: 3}}, budget: {max_steps: 31}}\n",
        "mine.yaml:14:64: tune.budget.max_steps: a tuning trial of 31 steps is longer than the job's 30",
    ),
    "a size that cuts nothing": (
        "best_of: {micro_batch_size: [2, 3]}\n",
        "mine.yaml:14:33: best_of.micro_batch_size[1]: global_batch_size 8 can't be cut into micro-batches of 3",
    ),
    "a size twice": (
        "best_of: {micro_batch_size: [2, 2]}\n",
        "mine.yaml:14:29: best_of.micro_batch_size: a size is repeated",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_line(name: str, tmp_path: Path) -> None:
    more, expected = MISTAKES[name]
    assert lines_of(write(tmp_path, changed(more=more))) == [expected]


OTHERS = "too: what was chosen on a seed is flattered by it; give the contest other seeds"
ANOTHER = "too: what was chosen on a seed is flattered by it; give another `seed`"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"seeds": "0,1000"}, f"--seeds 0,1000: seeds[1]: tune uses seed 1000 {OTHERS}"),
        ({"settings": ["seeds=[1000]"]}, f"--set seeds=[1000]: seeds[0]: tune uses seed 1000 {OTHERS}"),
        ({"settings": ["tune.seed=0"]}, f"--set tune.seed=0: tune.seed: the contest uses seed 0 {ANOTHER}"),
        ({"seeds": "0,1"}, None),
    ],
)  # fmt: skip
def test_what_the_command_line_asked_for_is_blamed_by_its_argument(
    asked: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    path = write(tmp_path, changed(more=TUNE))
    assert lines_of(path, **asked) == ([expected] if expected else [])


def test_tuning_needs_an_evaluation(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("max_steps: 30", "max_steps: 30\n  eval: none"), more=TUNE))
    assert lines_of(path) == ["mine.yaml:15:7: tune: tuning needs an evaluation, but job.eval is none"]


def test_auto_is_a_search_for_all_options(tmp_path: Path) -> None:
    suite = load_suite(str(write(tmp_path, changed(("size: 8\noptions", "size: auto\noptions")))), device="cpu")
    assert suite.best_of is not None
    assert suite.best_of.micro_batch_size == "auto"
    assert sizes_to_try(suite.best_of, suite.job, 1) == [1, 2, 4, 8]
    assert sizes_to_try(suite.best_of, suite.job, 2) == [1, 2, 4]


WITHOUT_A_SIZE = ("\n  micro_batch_size: 8", "")


def test_a_size_that_is_missing_is_the_only_mistake_told(tmp_path: Path) -> None:
    path = write(tmp_path, changed(WITHOUT_A_SIZE, more=TUNE))
    assert lines_of(path) == ["mine.yaml:8:3: choices: required key 'micro_batch_size' is missing"]


def test_a_row_that_is_wrong_hides_no_mistake_of_the_tuning_s_own(tmp_path: Path) -> None:
    wrong = ("bf16_mixed", "bf16_mixed, attention: none")
    lines = lines_of(write(tmp_path, changed(wrong, more=TUNE.replace("n: 3", "log: [1e-3, 1e6]"))))
    assert [line.split(": ")[1] for line in lines] == ["options.bf16.attention", "tune.parameters.optimizer.lr"]


@pytest.mark.parametrize(
    ("best_of", "option", "begins"),
    [
        ("auto", "", 1), ("[4, 2]", "", 2), ("[4, 8]", ", global_batch_size: 4", 4),
        ("[2, 4, 8]", ", strategy: ddp, world_size: 2", 2), ("[8, 4]", ", strategy: ddp, world_size: 2", 4),
        ("[8, 5]", ", global_batch_size: 10", 1),
    ],
)  # fmt: skip
def test_where_sizes_are_searched_none_needs_to_be_given(
    best_of: str, option: str, begins: int, tmp_path: Path
) -> None:
    more = f"best_of: {{micro_batch_size: {best_of}}}\n"
    text = changed(WITHOUT_A_SIZE, ("bf16_mixed}", f"bf16_mixed{option}}}"), more=more + TUNE)
    suite = load_suite(str(write(tmp_path, text)), device="cpu")
    assert [o.choices.micro_batch_size for o in suite.options] == [begins, begins]
    again = load_suite(str(write(tmp_path, json.dumps(suite.resolved), "again.yaml")), device="cpu")
    assert again == suite


def test_ranks_that_cut_no_step_are_the_only_mistake_told(tmp_path: Path) -> None:
    ranks = ("bf16_mixed}", "bf16_mixed, strategy: ddp, world_size: 3}")
    more = "best_of: {micro_batch_size: [2, 4]}\n"
    for text in (changed(WITHOUT_A_SIZE, ranks, more=more), changed(ranks, more=more)):
        (line,) = lines_of(write(tmp_path, text))
        assert "is not a multiple of micro_batch_size" in line
        assert line.endswith("x world_size 3")


def test_auto_of_one_option_is_a_mistake(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("{precision: fp32}", "{precision: fp32, micro_batch_size: auto}")))
    expected = "auto is said once for all options: choices: {micro_batch_size: auto}"
    assert any(line.endswith(expected) and ":11:" in line for line in lines_of(path))


def test_a_resolved_suite_loads_as_itself(tmp_path: Path) -> None:
    suite = load_suite(
        str(write(tmp_path, changed(more=TUNE + "best_of: {micro_batch_size: auto}\n"))), device="cpu"
    )
    again = load_suite(str(write(tmp_path, json.dumps(suite.resolved), "again.yaml")), device="cpu")
    assert again == suite


@pytest.mark.parametrize("given", ["", ", warmup_fraction: 0.1"])
def test_a_warm_up_is_tuned_whether_the_suite_gives_one_or_not(given: str, tmp_path: Path) -> None:
    tune = "tune: {parameters: {optimizer.lr: {}, optimizer.warmup_fraction: {linear: [0, 0.2]}}, trials: 4}\n"
    suite = load_suite(str(write(tmp_path, changed(("lr: 1e-3", f"lr: 1e-3{given}"), more=tune))), device="cpu")
    assert suite.tune is not None
    tried = first_values(suite.tune, axes_of(suite.tune, suite.options[0].choices))
    stage = tuning_suite(suite, {"fp32": tried})
    of_trials = [stage.job.of(option.choices) for option in stage.options]
    assert [job.max_steps for job in of_trials] == [15] * 4
    fractions = [values["optimizer.warmup_fraction"] for values in tried]
    assert [job.lr_schedule.warmup_steps for job in of_trials] == [round(share * 15) for share in fractions]
    assert ("warmup_fraction" in suite.resolved["choices"]["optimizer"]) == bool(given)


def test_a_quick_run_searches_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, changed(more=TUNE + "best_of: {micro_batch_size: auto}\n"))
    suite = load_suite(str(path), device="cpu", quick=True)
    assert (suite.tune, suite.best_of) == (None, None)
    assert not {"tune", "best_of"} & suite.resolved.keys()


def test_a_tuning_trial_is_the_job_with_a_schedule_of_its_own(tmp_path: Path) -> None:
    schedule = (
        "max_steps: 30\n  lr_schedule: {warmup_steps: 6}\n  eval: {tokens: 64, every_steps: 5, at_start: true}"
    )
    suite = load_suite(str(write(tmp_path, changed(("max_steps: 30", schedule), more=TUNE))), device="cpu")
    assert suite.tune is not None
    job = tuning_job(suite)
    assert (job.max_steps, job.lr_schedule.warmup_steps) == (15, 3)
    assert job.eval != "none"
    assert (job.eval.tokens, job.eval.every_steps, job.eval.at_start) == (64, None, False)
    same = ("model", "data", "tokenizer", "seq_len", "global_batch_size", "clip_norm")
    assert all(getattr(job, key) == getattr(suite.job, key) for key in same)


def test_a_trial_of_speed_evaluates_nothing(tmp_path: Path) -> None:
    suite = load_suite(str(write(tmp_path, changed(more="best_of: {micro_batch_size: auto}\n"))), device="cpu")
    assert suite.best_of is not None
    job = speed_job(suite)
    assert (job.eval, job.max_steps, job.global_batch_size) == ("none", 20, suite.job.global_batch_size)


def test_a_share_that_is_none_is_told_in_its_own_words(tmp_path: Path) -> None:
    path = write(tmp_path, changed(more="tune: {parameters: {optimizer.lr: {n: 3}}, budget: {max_steps: 2x}}\n"))
    (line,) = lines_of(path)
    assert line.endswith("expected steps, or a share of the job's such as 0.5x, found '2x'")


def test_speed_is_searched_at_a_rate_at_which_nothing_diverges(tmp_path: Path) -> None:
    text = changed(("lr: 1e-3", "lr: 900.0"), more="best_of: {micro_batch_size: [4, 8]}\n")
    suite = load_suite(str(write(tmp_path, text)), device="cpu")
    stage = speed_suite(suite, {"fp32": [{"micro_batch_size": 4}, {"micro_batch_size": 8}]})
    low = suite.options[0].choices.optimizer.lr_range
    assert low is not None
    assert {o.choices.optimizer.lr for o in stage.options} == {low[0]}
    assert [o.choices.micro_batch_size for o in stage.options] == [4, 8]


@pytest.mark.parametrize(("objective", "expected"), [("final_loss", 0), ("tokens_per_second", 1)])
def test_only_a_suite_about_something_else_asks_for_equal_quality_unsaid(
    objective: str, expected: int, tmp_path: Path
) -> None:
    path = write(tmp_path, changed(more=f"decide: {{objective: {objective}}}\n"))
    assert len(load_suite(str(path), device="cpu").decide.constraints) == expected
