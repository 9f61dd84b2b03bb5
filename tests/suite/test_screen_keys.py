"""`screen` in a suite file: what it means, what is wrong with it, and the trials that it asks for."""

# ruff: noqa: ISC004 (a message is compared whole)
from __future__ import annotations

from pathlib import Path

import pytest
from suite_texts import changed, lines_of, write

from selectbench.suite.load import load_suite
from selectbench.suite.stages import SCREENING_SECONDS, screening_seeds, screening_suite

SCREEN = "screen: [tokens_per_second >= 0.5x baseline]\n"
MISTAKES = {
    "a metric of quality": (
        "screen: [final_perplexity <= 1.1x baseline]\n",
        "mine.yaml:14:10: screen[0]: a short trial does not measure final_perplexity: take one of "
        "tokens_per_second, step_time_median_seconds, peak_memory_bytes, peak_device_memory_bytes",
    ),
    "energy": (
        "screen: [joules_per_token <= 2x baseline]\n",
        "mine.yaml:14:10: screen[0]: a short trial does not measure joules_per_token: take one of "
        "tokens_per_second, step_time_median_seconds, peak_memory_bytes, peak_device_memory_bytes",
    ),
    "a misspelt metric": (
        "screen: [token_per_second >= 0.5x baseline]\n",
        "mine.yaml:14:10: screen[0]: unknown metric 'token_per_second' (did you mean 'tokens_per_second'?)",
    ),
    "the wrong way round": (
        "screen: [tokens_per_second <= 0.5x baseline]\n",
        "mine.yaml:14:10: screen[0]: 'tokens_per_second <= 0.5x baseline': more tokens_per_second is better, so a "
        "bound is >= (found <=)",
    ),
    "what only GPUs tell": (
        "screen: [peak_device_memory_bytes <= 8 GiB]\n",
        "mine.yaml:14:10: screen[0]: peak_device_memory_bytes is not measured: the job runs on the cpu, and only "
        "GPUs have meters and a price",
    ),
    "no list": (
        "screen: tokens_per_second >= 0.5x baseline\n",
        "mine.yaml:14:9: screen: found \"tokens_per_second >= 0.5x baseline\", expected a list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_place(name: str, tmp_path: Path) -> None:
    text, message = MISTAKES[name]
    assert lines_of(write(tmp_path, changed(more=text))) == [message]


def test_tokens_that_differ_have_no_speed_to_screen_by(tmp_path: Path) -> None:
    text = changed(("bf16: {precision: bf16_mixed}", "bytes: {tokenizer: {bytes: true}}"), more=SCREEN)
    (line,) = lines_of(write(tmp_path, text))
    assert "screen[0]: tokens_per_second is not measured: the options' tokenizers differ" in line


def test_a_run_keeps_it_in_its_suite_and_a_quick_one_has_none(tmp_path: Path) -> None:
    path = str(write(tmp_path, changed(more=SCREEN)))
    suite = load_suite(path, device="cpu")
    assert suite.screen == suite.resolved["screen"] == ["tokens_per_second >= 0.5x baseline"]
    for left_out in (
        load_suite(path, device="cpu", quick=True),
        load_suite(path, device="cpu", settings=["screen="]),
    ):
        assert left_out.screen == []
        assert "screen" not in left_out.resolved


def test_its_trials_are_short_evaluate_nothing_and_have_seeds_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("lr: 1e-3", "lr: 10.0"), more=SCREEN + "seeds: [2000, 1, 2002]\n"))
    suite = load_suite(str(path), device="cpu")
    assert screening_seeds(suite) == [2001, 2003]
    stage = screening_suite(suite)
    assert stage.seeds == [2001, 2003]
    assert stage.job.max_steps == suite.job.timing.warmup_steps + 10
    assert stage.job.timing.min_timed_seconds == SCREENING_SECONDS
    assert stage.job.eval == "none"
    assert all(
        option.choices.optimizer.lr <= 1e-3 for option in stage.options
    )  # a rate that diverges is no finding
    assert [option.tunes for option in stage.options] == [None, None]


def test_with_batches_of_their_own_all_options_train_on_as_many_tokens(tmp_path: Path) -> None:
    text = changed(("bf16: {precision: bf16_mixed}", "large: {global_batch_size: 24}"), more=SCREEN)
    stage = screening_suite(load_suite(str(write(tmp_path, text)), device="cpu"))
    jobs = [stage.job.of(option.choices) for option in stage.options]
    assert len({job.max_steps * job.tokens_per_step for job in jobs}) == 1
