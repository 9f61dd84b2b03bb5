"""`seconds_to_baseline_loss` in a suite file: when it decides and when it can't."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite_texts import changed, lines_of, write

from selectbench.suite.load import load_suite
from selectbench.suite.metrics import METRICS, parse_constraint

OBJECTIVE = "decide: {objective: seconds_to_baseline_loss, constraints: []}\n"
EVERY = ("max_steps: 30", "max_steps: 30\n  eval: {every_steps: 10}")
AT_END = "the loss is known at the end alone: give job.eval an every_steps below max_steps"


def test_it_decides_and_less_is_better(tmp_path: Path) -> None:
    suite = load_suite(str(write(tmp_path, changed(EVERY, more=OBJECTIVE))), device="cpu")
    assert suite.decide.objective == "seconds_to_baseline_loss"
    assert suite.threshold("seconds_to_baseline_loss") == METRICS["seconds_to_baseline_loss"].threshold == 0.01
    assert parse_constraint("seconds_to_baseline_loss <= 2 min").value == 120


def test_a_quick_run_is_ranked_by_speed_instead(tmp_path: Path) -> None:
    suite = load_suite(str(write(tmp_path, changed(EVERY, more=OBJECTIVE))), device="cpu", quick=True)
    assert suite.decide.objective == "tokens_per_second"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("max_steps: 30", "max_steps: 30\n  eval: {tokens: 64}"), AT_END),
        (("max_steps: 30", "max_steps: 30\n  eval: {every_steps: 30}"), AT_END),
        (("max_steps: 30", "max_steps: 30\n  eval: none"), "job.eval is none"),
        (("{precision: bf16_mixed}", "{tokenizer: {bpe: 1024}}"),
         "the options' tokenizers differ, and so does a token: take bits_per_byte, bytes_per_second"),
    ],
)  # fmt: skip
def test_it_is_refused_with_its_line_where_it_is_not_measured(
    change: tuple[str, str], why: str, tmp_path: Path
) -> None:
    both = [change] if "eval" in change[1] else [change, EVERY]
    (line,) = lines_of(write(tmp_path, changed(*both, more=OBJECTIVE)))
    assert line == f"mine.yaml:15:21: decide.objective: seconds_to_baseline_loss is not measured: {why}"


def test_runs_are_not_gated_by_it(tmp_path: Path) -> None:
    gate = "gate: [seconds_to_baseline_loss <= 1.1x reference]\n"
    (line,) = lines_of(write(tmp_path, changed(EVERY, more=gate)))
    assert line.startswith("mine.yaml:15:8: gate[0]: seconds_to_baseline_loss is to a loss of the run's own")
