"""Laws of the learning rate schedules."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import make_suite

from selectbench.suite.job import LrSchedule, shape_sha256, shares

NAMES = ("constant", "linear", "cosine", "warmup_stable_decay")


@st.composite
def schedules(draw):
    steps = draw(st.integers(1, 300))
    schedule = LrSchedule(
        name=draw(st.sampled_from(NAMES)),
        warmup_steps=draw(st.integers(0, steps)),
        final_fraction=draw(st.floats(0, 1)),
        decay_fraction=draw(st.floats(0.01, 1)),
    )
    return schedule, steps


@given(schedules())
def test_shares_stay_between_zero_and_the_peak(case):
    schedule, steps = case
    values = shares(schedule, steps)
    assert len(values) == steps
    assert all(0 <= value <= 1 for value in values)
    assert values[0] > 0 or (schedule.final_fraction < 1e-6 and steps == 1)


@given(schedules())
def test_warm_up_rises_to_the_peak_and_nothing_rises_after_it(case):
    schedule, steps = case
    values, warm = shares(schedule, steps), schedule.warmup_steps
    assert all(a < b for a, b in pairwise(values[:warm]))
    if warm:
        assert values[warm - 1] == 1
    assert all(a >= b - 1e-12 for a, b in pairwise(values[max(0, warm - 1) :]))


@given(schedules())
def test_decays_end_at_the_final_fraction(case):
    schedule, steps = case
    if schedule.warmup_steps < steps:
        expected = 1 if schedule.name == "constant" else schedule.final_fraction
        if schedule.name != "warmup_stable_decay" or round(schedule.decay_fraction * steps) > 0:
            assert shares(schedule, steps)[-1] == pytest.approx(expected, abs=1e-12)


@given(schedules())
def test_no_step_after_the_warm_up_jumps(case):
    schedule, steps = case
    values, warm = shares(schedule, steps), schedule.warmup_steps
    decaying = steps - warm
    if schedule.name == "warmup_stable_decay":
        decaying = min(decaying, round(schedule.decay_fraction * steps))
    # The cosine is steepest in its middle, pi / 2 times as steep as the line.
    bound = math.pi / 2 / max(1, decaying) + 1e-9
    assert all(abs(a - b) <= bound for a, b in pairwise(values[max(0, warm - 1) :]))


@given(st.floats(0, 1), st.integers(1, 300), st.sampled_from([None, 8, 32]))
def test_a_warm_up_of_the_optimizer_s_own_is_a_share_of_its_steps(fraction, steps, own_batch):
    chosen = {"optimizer": {"name": "sgd", "lr": 0.1, "warmup_fraction": fraction}, "global_batch_size": own_batch}
    job = {"max_steps": 2 * steps, "lr_schedule": {"warmup_steps": steps}}
    suite = make_suite("jobs", ("own", {k: v for k, v in chosen.items() if v is not None}), job=job)
    own, jobs = (suite.job.of(suite.option(name).choices) for name in ("own", "jobs"))
    assert jobs.lr_schedule.warmup_steps == steps
    assert own.max_steps == 2 * steps * 16 // (own_batch or 16)
    assert abs(own.lr_schedule.warmup_steps - fraction * own.max_steps) <= 0.5
    assert own.lr_schedule.model_copy(update={"warmup_steps": steps}) == suite.job.lr_schedule


def test_known_values():
    half = shares(LrSchedule(name="cosine", warmup_steps=2, final_fraction=0.0), 6)
    assert half == pytest.approx([0.5, 1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    stable = shares(LrSchedule(name="warmup_stable_decay", decay_fraction=0.4, final_fraction=0.0), 5)
    assert stable == pytest.approx([1, 1, 1, 0.5, 0])


def test_digest_tells_shapes_apart():
    linear, cosine = (shares(LrSchedule(name=name), 20) for name in ("linear", "cosine"))
    assert shape_sha256(linear) == shape_sha256(list(linear))
    assert shape_sha256(linear) != shape_sha256(cosine)
