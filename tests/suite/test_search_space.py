"""Grids and what extends them, by their laws."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import make_suite

from selectbench.choices import REGISTRY, Choices
from selectbench.choices.choice import is_own, tag_of
from selectbench.suite.stages import Axis, axes_of, between, beyond, first_values, with_values
from selectbench.suite.suite import Tune

ENDS = st.tuples(st.floats(1e-6, 1e2), st.floats(1.5, 1e4)).map(lambda pair: (pair[0], pair[0] * pair[1]))
AXES = st.builds(lambda ends, log: Axis("optimizer.lr", *ends, log), ENDS, st.booleans())


def choices(**optimizer: object) -> Choices:
    return make_suite(("one", {"optimizer": {"name": "adamw", "lr": 1e-3, **optimizer}})).options[0].choices


@given(AXES, st.integers(2, 20))
def test_a_grid_goes_from_end_to_end_in_even_steps(axis: Axis, n: int) -> None:
    tune = Tune.model_validate({"parameters": {"optimizer.lr": {"log": [1.0, 2.0], "n": n}}})
    values = [v["optimizer.lr"] for v in first_values(tune, [axis])]
    assert len(values) == n
    assert values[0] == pytest.approx(axis.low, rel=5e-3)
    assert values[-1] == pytest.approx(axis.high, rel=5e-3)
    assert values == sorted(values)


@given(AXES, st.integers(3, 12))
def test_one_more_past_an_end_is_one_step_further(axis: Axis, n: int) -> None:
    values = [axis.low * (axis.high / axis.low) ** (i / (n - 1)) for i in range(n)] if axis.logarithmic else [
        axis.low + i * (axis.high - axis.low) / (n - 1) for i in range(n)
    ]  # fmt: skip
    above = beyond(axis, values, upwards=True)
    if axis.logarithmic:
        assert above / values[-1] == pytest.approx(values[-1] / values[-2], rel=2e-2)
        assert beyond(axis, values, upwards=False) / values[0] == pytest.approx(values[0] / values[1], rel=2e-2)
    else:
        assert above > values[-1]


@given(AXES)
def test_between_two_lies_between_them(axis: Axis) -> None:
    middle = between(axis, axis.low, axis.high)
    assert axis.low < middle < axis.high
    if axis.logarithmic:
        assert middle == pytest.approx(math.sqrt(axis.low * axis.high), rel=1e-2)


def test_every_optimizer_says_where_its_learning_rate_is_looked_for_and_why() -> None:
    for kind in REGISTRY["optimizer"]:
        if is_own(tag_of(kind)):
            assert kind.lr_range is None  # type: ignore[attr-defined]
            continue
        low, high = kind.lr_range  # type: ignore[attr-defined]
        assert 0 < low < high
        assert high / low >= 10
        assert len(kind.lr_range_source) > 20  # type: ignore[attr-defined]


def test_one_range_is_not_for_all() -> None:
    ranges = {tag_of(kind): kind.lr_range for kind in REGISTRY["optimizer"]}  # type: ignore[attr-defined]
    assert ranges["lion"][1] < ranges["adamw"][1] < ranges["sgd"][1]


def test_several_settings_fill_their_box_and_do_so_again() -> None:
    tune = Tune.model_validate({
        "parameters": {"optimizer.lr": {}, "optimizer.weight_decay": {"log": [0.01, 1.0]}}, "trials": 12,
    })  # fmt: skip
    axes = axes_of(tune, choices())
    found = first_values(tune, axes)
    assert found == first_values(tune, axes)
    assert len(found) == 12
    for axis in axes:
        shares = sorted(axis.share(v[axis.path]) for v in found)
        assert shares[0] > -0.01
        assert shares[-1] < 1.01
        assert max(b - a for a, b in pairwise(shares)) < 0.25


def test_a_value_out_of_its_bounds_is_none() -> None:
    assert with_values(choices(), {"optimizer.beta2": 1.0}) is None
    changed = with_values(choices(), {"optimizer.lr": 0.5, "micro_batch_size": 4})
    assert changed is not None
    assert (changed.optimizer.lr, changed.micro_batch_size) == (0.5, 4)
