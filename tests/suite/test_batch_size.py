"""`global_batch_size` of an option: as many tokens as the job's, in other steps."""

# ruff: noqa: ISC004 (a message is compared whole)
from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from suite_texts import changed, lines_of, write

from selectbench.suite.load import load_suite
from selectbench.suite.stages import sizes_to_try, speed_job, tuning_job
from selectbench.suite.suite import Suite

JOB = (
    "max_steps: 30",
    "max_steps: 48\n  lr_schedule: {warmup_steps: 6}\n  eval: {tokens: 64, every_steps: 16}",
)
"""Evaluates after every 128 of 384 sequences."""
OPTIONS = """\
axes: {global_batch_size: [8, 4, 16, 32]}
baseline: global_batch_size=8
"""


def text(*pairs: tuple[str, str], options: str = OPTIONS, more: str = "") -> str:
    whole = changed(JOB, ("micro_batch_size: 8", "micro_batch_size: 4"), *pairs)
    return whole[: whole.index("options:")] + options + more


def load(folder: Path, content: str, **asked: object) -> Suite:
    return load_suite(str(write(folder, content)), **{"device": "cpu", **asked})


def shape(suite: Suite, option: str) -> tuple[int, ...]:
    job = suite.job.of(suite.option(option).choices)
    assert job.eval != "none"
    return job.global_batch_size, job.max_steps, job.lr_schedule.warmup_steps, job.eval.every_steps or 0


def test_steps_warm_up_and_evaluations_are_at_the_same_tokens(tmp_path: Path) -> None:
    suite = load(tmp_path, text())
    assert [shape(suite, o.name) for o in suite.options] == [
        (8, 48, 6, 16), (4, 96, 12, 32), (16, 24, 3, 8), (32, 12, 2, 4),
    ]  # fmt: skip
    jobs = [suite.job.of(o.choices) for o in suite.options]
    assert len({job.max_steps * job.tokens_per_step for job in jobs}) == 1
    assert [o.differs_in for o in suite.options] == [[], *[["global_batch_size"]] * 3]


def test_the_jobs_own_size_changes_nothing(tmp_path: Path) -> None:
    suite = load(tmp_path, text())
    assert suite.job.of(suite.option("global_batch_size=8").choices) == suite.job.in_batches_of(8) == suite.job
    once = suite.job.of(suite.option("global_batch_size=32").choices)
    assert once.of(suite.option("global_batch_size=32").choices) == once


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (20, "steps of 20 sequences do not divide the job's 384 sequences (max_steps 48 x the job's "
             "global_batch_size 8) evenly: the nearest sizes that do: 16 or 32"),
        (24, "steps of 24 sequences do not divide the 128 sequences from one evaluation to the next "
             "(eval.every_steps 16 x the job's global_batch_size 8) evenly: the nearest sizes that do: 16 or 32"),
        (500, "steps of 500 sequences do not divide the job's 384 sequences (max_steps 48 x the job's "
              "global_batch_size 8) evenly: the nearest sizes that do: 128"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_divide_the_job_is_told_with_its_line(size: int, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, text(options=OPTIONS.replace("16, 32", f"16, {size}")))
    assert lines_of(path) == [f"mine.yaml:12:38: axes.global_batch_size[3]: {problem}"]


def test_no_size_is_guessed_that_has_no_divisor_near(tmp_path: Path) -> None:
    one_step = text(("max_steps: 48", "max_steps: 10000000"), ("warmup_steps: 6", "warmup_steps: 0"))
    path = write(tmp_path, one_step.replace(", every_steps: 16", ""))
    assert lines_of(path) == [
        "mine.yaml:12:31: axes.global_batch_size[1]: the job's tokens are 20000000 steps of 4 sequences, "
        "at most 10000000 are allowed"
    ]


def test_every_options_own_step_must_be_whole_micro_batches(tmp_path: Path) -> None:
    path = write(tmp_path, text(options="options:\n  a: {}\n  b: {global_batch_size: 2}\nbaseline: a\n"))
    assert lines_of(path) == [
        "mine.yaml:14:26: options.b.global_batch_size: global_batch_size 2 is not a multiple of micro_batch_size 4 "
        "x world_size 1"
    ]


def test_the_jobs_size_twice_is_one_option_twice(tmp_path: Path) -> None:
    path = write(tmp_path, text(options="options:\n  a: {}\n  b: {global_batch_size: 8}\nbaseline: a\n"))
    assert lines_of(path) == ["mine.yaml:14:6: options.b: 'b' has the same choices as 'a'"]


@pytest.mark.parametrize("value", ["0", "2.5", "big"])
def test_a_size_is_a_whole_number(value: str, tmp_path: Path) -> None:
    path = write(tmp_path, text(options=f"options:\n  a: {{global_batch_size: {value}}}\nbaseline: a\n"))
    (line,) = lines_of(path)
    assert line.startswith("mine.yaml:13:26: options.a.global_batch_size: found ")


def test_the_resolved_suite_and_the_command_line_say_the_same(tmp_path: Path) -> None:
    suite = load(tmp_path, text())
    again = load(tmp_path, yaml.safe_dump(suite.resolved, sort_keys=False))
    assert (again.job, again.options) == (suite.job, suite.options)
    options = "options:\n  a: {}\n  b: {precision: bf16_mixed}\nbaseline: a\n"
    asked = load(tmp_path, text(options=options), settings=["choices.global_batch_size=16"])
    assert [shape(asked, o.name) for o in asked.options] == [(16, 24, 3, 8)] * 2
    gridded = load(tmp_path, text(options=options), axes=["global_batch_size=8,32"])
    assert {o.choices.global_batch_size for o in gridded.options} == {8, 32}


def test_tuning_gives_every_option_as_many_tokens(tmp_path: Path) -> None:
    tune = "tune: {parameters: {optimizer.lr: {n: 3}}, budget: {max_steps: 9}}\n"
    suite = load(tmp_path, text(more=tune))
    jobs = [tuning_job(suite).of(o.choices) for o in suite.options]
    assert [(job.global_batch_size, job.max_steps) for job in jobs] == [(8, 12), (4, 24), (16, 6), (32, 3)]


def test_trials_of_speed_are_long_enough_for_the_largest_batch(tmp_path: Path) -> None:
    search = "best_of: {micro_batch_size: [4, 32], max_steps: 5}\n"
    suite = load(tmp_path, text(more=search))
    assert suite.best_of is not None
    jobs = {o.name: speed_job(suite).of(o.choices) for o in suite.options}
    assert [job.max_steps for job in jobs.values()] == [20, 40, 10, 5]
    assert [sizes_to_try(suite.best_of, job, 1) for job in jobs.values()] == [[4], [4], [4], [4, 32]]


def test_a_quick_run_keeps_the_tokens_equal(tmp_path: Path) -> None:
    suite = load(tmp_path, text().replace("16, 32", "16, 64"), quick=True)
    jobs = [suite.job.of(o.choices) for o in suite.options]
    assert [job.max_steps for job in jobs] == [24, 48, 12, 3]
