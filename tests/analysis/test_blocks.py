"""The statistics themselves, against scipy, against least squares written out, and by their laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from selectbench.analysis.family import (
    HypothesisTest,
    all_pairs,
    alpha_of,
    decide,
    holm,
    judge_all,
    judgement_number,
    seeds_to_settle,
)
from selectbench.analysis.statistics import (
    Difference,
    estimate_value,
    make_blocks,
    quantile,
    trigamma_inverse,
    two_sided_p,
)

Values = dict[str, dict[int, float]]


def table(seed: int, options: int, seeds: int, spread: float = 0.01) -> Values:
    draw = np.random.default_rng(seed)
    logs = (
        draw.normal(0, 0.05, (options, 1)) + draw.normal(0, 0.1, seeds) + draw.normal(0, spread, (options, seeds))
    )
    return {f"o{i}": {s: float(math.exp(logs[i, s])) for s in range(seeds)} for i in range(options)}


@pytest.mark.parametrize("df", [1.0, 1.7, 2.0, 4.0, 16.0, 92.5, 1e4])
def test_student_t_is_scipys(df: float) -> None:
    t = np.array([0.0, 1e-6, 0.3, 1.0, 2.7, 12.0, 300.0, 1e6])
    assert two_sided_p(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-6)
    p = np.array([0.999, 0.5, 0.05, 0.0036, 1e-7])
    assert quantile(p, df) == pytest.approx(stats.t.isf(p / 2, df), rel=1e-6)


def test_many_degrees_of_freedom_are_the_normal_distribution() -> None:
    assert quantile(0.05, math.inf) == pytest.approx(stats.norm.isf(0.025), rel=1e-8)
    assert two_sided_p(1.96, 1e9) == pytest.approx(2 * stats.norm.sf(1.96), rel=1e-8)


@pytest.mark.parametrize("x", [3.2e-4, 0.2, 0.5, 1.0, 3.7, 25.0, 4000.0, 9e5])
def test_the_inverse_of_trigamma_is_its_inverse(x: float) -> None:
    assert trigamma_inverse(float(special.polygamma(1, x))) == pytest.approx(x, rel=1e-9)


def test_two_options_are_a_paired_t_test() -> None:
    values = table(1, 2, 6)
    found = make_blocks(values).difference("o1", "o0")
    assert found
    expected = stats.ttest_rel(*(np.log(list(values[name].values())) for name in ("o1", "o0")))
    assert found.estimate / (found.standard_error or 0) == pytest.approx(expected.statistic)
    assert (found.degrees_of_freedom, found.spread) == (5, "own")


@pytest.mark.parametrize("holes", [0, 4])
def test_the_pooled_variance_is_that_of_least_squares(holes: int) -> None:
    values = table(2, 4, 5)
    for number in range(holes):
        del values[f"o{number % 4}"][number]
    blocks = make_blocks(values)
    cells = [(i, s, math.log(v)) for i, own in enumerate(values.values()) for s, v in own.items()]
    design = np.zeros((len(cells), 9))
    for row, (i, s, _) in enumerate(cells):
        design[row, i] = design[row, 4 + s] = 1
    target = np.array([v for *_, v in cells])
    fitted, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    assert blocks.pool
    assert blocks.pool.degrees_of_freedom == len(cells) - rank
    expected = ((target - design @ fitted) ** 2).sum() / (len(cells) - rank)
    assert blocks.pool.variance == pytest.approx(2 * expected)  # of a difference of two values


def test_a_turned_table_pools_the_same() -> None:
    values = table(3, 3, 40)
    turned = {f"o{s}": {i: own[s] for i, own in enumerate(values.values())} for s in range(40)}
    pool, pool_of_turned = make_blocks(values).pool, make_blocks(turned).pool
    assert pool
    assert pool_of_turned
    assert pool.variance == pytest.approx(pool_of_turned.variance)


def test_a_noisy_option_leans_on_its_own_spread() -> None:
    draw = np.random.default_rng(4)
    values = table(4, 6, 8, spread=0.001)
    values["o5"] = {s: v * float(np.exp(draw.normal(0, 0.2))) for s, v in values["o5"].items()}
    blocks = make_blocks(values)
    noisy, quiet = blocks.difference("o5", "o0"), blocks.difference("o1", "o0")
    assert noisy
    assert quiet
    assert noisy.spread == "own"
    assert quiet.standard_error == pytest.approx(0.001 * math.sqrt(2 / 8), rel=0.5)
    assert (noisy.standard_error or 0) > 0.02


@pytest.mark.parametrize("noisy", ["o0", "o3"])
def test_an_option_that_seems_noisier_has_its_own_variance_in_its_pairs(noisy: str) -> None:
    values, draw = table(4, 6, 5, spread=0.01), np.random.default_rng(6)
    values[noisy] = {s: v * float(np.exp(draw.normal(0, 0.015))) for s, v in values[noisy].items()}
    blocks = make_blocks(values)
    assert blocks.members.all()
    assert blocks.pool
    found, others = blocks.difference("o3", "o0"), blocks.difference("o2", "o1")
    assert found
    assert others
    logs = {name: np.log(list(own.values())) for name, own in values.items()}
    rest = np.mean([log for name, log in logs.items() if name != noisy], axis=0)
    own, half = np.var(logs[noisy] - rest, ddof=1) * 5 / 6, blocks.pool.variance / 2
    assert found.standard_error == pytest.approx(math.sqrt((own + half) / 5))
    free = (own + half) ** 2 / (own**2 / 4 + half**2 / blocks.pool.degrees_of_freedom)
    assert (found.degrees_of_freedom, found.spread) == (pytest.approx(free), "moderated")
    assert (others.standard_error or 0) < (found.standard_error or 0)


def test_a_missing_value_breaks_its_pairs_and_no_others() -> None:
    values = table(5, 3, 5)
    whole = make_blocks(values).difference("o2", "o0")
    del values["o1"][3]
    blocks = make_blocks(values)
    found, other = blocks.difference("o1", "o0"), blocks.difference("o2", "o0")
    assert found
    assert other
    assert whole
    assert (found.seeds, other.seeds) == (4, 5)
    assert other.estimate == whole.estimate


@pytest.mark.parametrize("seeds", [2, 5])
def test_no_spread_is_decided_by_the_threshold_alone(seeds: int) -> None:
    base = {s: 100.0 + s for s in range(seeds)}
    for factor, expected in ((1.0, "no_difference"), (1.005, "no_difference"), (1.02, "better"), (0.97, "worse")):
        values = {
            "a": base,
            "b": {s: v * factor for s, v in base.items()},
            "c": {s: v * 3 for s, v in base.items()},
        }
        found = make_blocks(values).difference("b", "a")
        assert found
        assert found.spread == "none"
        judged = judge_all({"": HypothesisTest(found)}, 0.04)[""]
        assert decide(judged, 0.01, more_is_better=True) == expected


def test_one_seed_tells_no_spread_whatever_the_others_do() -> None:
    values = table(6, 4, 5)
    values["o3"] = {0: 1.5}
    found = make_blocks(values).difference("o3", "o0")
    assert found
    assert (found.standard_error, found.spread, found.seeds) == (None, "unknown", 1)
    assert judge_all({"x": HypothesisTest(found)}, 0.04) == {}


def test_values_without_a_logarithm_are_holes() -> None:
    assert make_blocks({"a": {0: 0.0, 1: 2.0}, "b": {0: 1.0, 1: -3.0}}).difference("b", "a") is None
    assert estimate_value({0: 0.0, 1: -1.0}) is None


def test_one_options_own_values_are_a_one_sample_t() -> None:
    values = dict(enumerate((3.0, 3.3, 2.8, 3.1)))
    found = estimate_value(values)
    assert found
    expected = stats.ttest_1samp(np.log(list(values.values())), 0.0)
    assert found.estimate / (found.standard_error or 0) == pytest.approx(expected.statistic)


P = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(P)
def test_holm_is_its_definition(p: list[float]) -> None:
    adjusted = holm(np.array(p))
    order = sorted(range(len(p)), key=lambda i: p[i])
    for place, i in enumerate(order):
        expected = max(min(1.0, (len(p) - k) * p[order[k]]) for k in range(place + 1))
        assert adjusted[i] == pytest.approx(expected)


TESTS = st.lists(
    st.tuples(st.floats(-0.2, 0.2), st.floats(1e-4, 0.1), st.integers(1, 30), st.floats(-0.05, 0.05)),
    min_size=1, max_size=8,
)  # fmt: skip


@given(TESTS, st.sampled_from([0.04, 0.005, 0.0025]))
def test_an_interval_excludes_the_bound_exactly_where_holm_rejects(
    found: list[tuple[float, float, int, float]], alpha: float
) -> None:
    tests = {
        i: HypothesisTest(Difference(estimate, error, float(free), free + 1, "own"), bound)
        for i, (estimate, error, free, bound) in enumerate(found)
    }
    for i, judged in judge_all(tests, alpha).items():
        assume(abs(judged.p_adjusted - alpha) > 1e-6)
        assert judged.low <= judged.estimate <= judged.high
        assert (judged.low <= tests[i].bound <= judged.high) == (not judged.rejected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 6), st.data())
def test_all_pairs_are_the_single_ones(seed: int, options: int, seeds: int, data: st.DataObject) -> None:
    values = table(seed, options, seeds)
    for _ in range(data.draw(st.integers(0, 4))):
        values[f"o{data.draw(st.integers(0, options - 1))}"].pop(data.draw(st.integers(0, seeds - 1)), None)
    blocks = make_blocks(values)
    pairs = all_pairs(blocks, list(values), 0.04)
    singles = {}
    for i, j in itertools.combinations(range(options), 2):
        found = blocks.difference(f"o{i}", f"o{j}")
        if found:
            singles[i, j] = HypothesisTest(found)
    judged = judge_all(singles, 0.04)
    for i, j in itertools.combinations(range(options), 2):
        if (i, j) in judged:
            for place, sign in (((i, j), 1), ((j, i), -1)):
                assert pairs.p_adjusted[place] == pytest.approx(judged[i, j].p_adjusted, abs=1e-9)
                assert pairs.estimates[place] == pytest.approx(sign * judged[i, j].estimate)
        else:
            assert math.isnan(pairs.p_adjusted[i, j])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1000))
def test_the_unit_of_a_metric_does_not_matter(seed: int, factor: float) -> None:
    values = table(seed, 4, 4)
    scaled = {name: {s: v * factor for s, v in own.items()} for name, own in values.items()}
    one, two = (make_blocks(v).difference("o2", "o1") for v in (values, scaled))
    assert one
    assert two
    assert one.estimate == pytest.approx(two.estimate, abs=1e-9)
    assert one.standard_error == pytest.approx(two.standard_error, rel=1e-6)


def test_more_seeds_are_proposed_that_would_settle_it() -> None:
    wide = Difference(0.02, 0.01, 4.0, 5, "own")
    more = seeds_to_settle(wide, 0.01, 0.02)
    assert more
    seeds = 5 + more
    needed = (float(quantile(0.01, seeds - 1.0)) + 0.8416) * 0.01 * math.sqrt(5 / seeds)
    fewer = (float(quantile(0.01, seeds - 2.0)) + 0.8416) * 0.01 * math.sqrt(5 / (seeds - 1))
    assert needed <= 0.02 < fewer
    assert seeds_to_settle(wide, 0.01, 1e-6) is None
    assert seeds_to_settle(Difference(0.02, 0.0, None, 5, "none"), 0.01, 0.02) is None


def test_every_judgement_has_a_level_of_its_own_and_all_together_have_five_percent() -> None:
    assert [alpha_of(look) for look in (1, 2, 3)] == [0.04, 0.005, 0.0025]
    assert math.fsum(alpha_of(look) for look in range(1, 60)) == pytest.approx(0.05)
    assert [judgement_number(looks) for looks in ([], [5], [5, 8], [5, 8, 9])] == [1, 1, 2, 3]
    assert judgement_number([1, 4]) == 1  # with one seed nothing could be claimed
