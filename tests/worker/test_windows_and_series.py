"""What is timed, what voids a window, and when a training counts as diverged."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from selectbench.record.record import interquartile_range
from selectbench.worker import recorder
from selectbench.worker.recorder import Diverged, Series, StepTensors, Timing, Window
from selectbench.worker.runtime import SINGLE_RANK


def steps(losses, norm=1.0, applied=True):
    tail = (torch.tensor(norm), torch.tensor(applied), torch.tensor(7), 64, 1)
    return [StepTensors(torch.tensor(loss), *tail) for loss in losses]


@given(st.lists(st.floats(1e-4, 1e3), min_size=1))
def test_the_interquartile_range_is_numpys_for_jobs_and_scripts_alike(seconds):
    low, high = np.quantile(seconds, (0.25, 0.75))
    assert interquartile_range(seconds) == pytest.approx(high - low, rel=1e-9, abs=1e-12)


def test_a_window_counts_its_steps_and_no_more():
    window = Window("cpu")
    for compiled in (False, True, False):
        window.step_done(compiled)
    window.close()
    assert len(window.step_seconds) == 3
    assert window.compiled == [False, True, False]
    assert sum(window.step_seconds) <= window.seconds


def closed(opened, seconds, step_seconds, compiled):
    window = Window("cpu")
    vars(window).update(opened=opened, seconds=seconds, step_seconds=step_seconds, compiled=compiled)
    return window


def test_windows_are_sorted_into_warm_up_timed_and_voided():
    timing = Timing()
    timing.add(closed(100.0, 11.0, [10.0, 1.0], [True, False]), timed=False, of_the_job=True)
    timing.add(closed(111.0, 8.0, [1.0, 1.0, 6.0], [False, False, True]), timed=True, of_the_job=True)
    timing.add(closed(119.0, 6.0, [1.0, 2.0, 3.0], [False] * 3), timed=True, of_the_job=True)
    timing.add(closed(126.0, 2.0, [2.0], [False]), timed=True, of_the_job=False)
    assert timing.timed_steps == [1.0, 2.0, 3.0, 2.0]
    assert timing.timed_seconds == 8.0
    assert timing.training_seconds == 25.0
    assert timing.recompilations == 1
    assert timing.median_seconds() == 2.0
    assert interquartile_range(timing.timed_steps) == 0.5
    assert timing.compile_seconds() == 10.0 + 6.0 - 2 * 2.0
    assert timing.warmup_seconds() == 1.0 + 2.0
    assert timing.stretches == [(119.0, 125.0), (126.0, 128.0)]


def test_timed_windows_that_follow_each_other_closely_are_one_stretch():
    timing = Timing()
    for opened in (10.0, 12.05, 14.01, 17.0):
        timing.add(closed(opened, 2.0, [2.0], [False]), timed=True, of_the_job=True)
    assert timing.stretches == [(10.0, pytest.approx(16.01)), (17.0, 19.0)]


def test_nothing_timed_has_no_median():
    timing = Timing()
    assert timing.median_seconds() is interquartile_range(timing.timed_steps) is timing.compile_seconds() is None


def test_a_recompilation_voids_its_window_and_is_made_up_for(trials):
    calls = iter([0] * 6 + [1] * 10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "compilations", lambda: next(calls))
        finished = trials.finished(job={"max_steps": 12})
    plain = trials.finished(job={"max_steps": 12})
    assert finished.measurement.recompilations == 1
    assert finished.measurement.timed_steps >= 10
    assert finished.measurement.final_loss == plain.measurement.final_loss
    assert finished.identity == replace(plain.identity, compiled=True)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_diverges_with_its_step(loss):
    series = Series()
    series.read(steps([5.0, 4.0]), SINGLE_RANK)
    with pytest.raises(Diverged, match="step 3 is"):
        series.read(steps([4.0, loss]), SINGLE_RANK)


def test_ten_steps_above_twice_the_first_loss_diverge_and_nine_do_not():
    series = Series()
    series.read(steps([5.0] + [11.0] * 8), SINGLE_RANK)
    with pytest.raises(Diverged, match="more than 2 times the first loss"):
        series.read(steps([11.0]), SINGLE_RANK)


def test_infinite_gradients_diverge_unless_the_step_was_skipped():
    series = Series()
    series.read(steps([5.0], norm=math.inf, applied=False), SINGLE_RANK)
    with pytest.raises(Diverged, match="gradient norm of step 1"):
        series.read(steps([5.0], norm=math.inf), SINGLE_RANK)
