"""How looks share alpha, and what a race keeps of each of them."""

from __future__ import annotations

import math

import pytest
from made_races import planted, race_of, raced, rounds_of, row
from made_records import make_suite

from selectbench.analysis.blocks import Difference, make_blocks
from selectbench.analysis.contest import hold_contest
from selectbench.analysis.family import ALPHA, HypothesisTest, judge_all
from selectbench.analysis.pairs import all_pairs
from selectbench.analysis.race import open_options, run_race
from selectbench.analysis.ranking import rank
from selectbench.analysis.spending import looks_at, looks_of
from selectbench.analysis.standing import stand
from selectbench.analysis.summary import summarise
from selectbench.suite.suite import Repeat


@pytest.mark.parametrize(("least", "most"), [(3, 10), (2, 3), (4, 4), (2, 50)])
def test_the_levels_of_the_looks_sum_to_alpha(least: int, most: int) -> None:
    repeat = Repeat(min=least, max=most)
    shares = [1 / looks_at(repeat, rounds) for rounds in range(least, most + 1)]
    assert len(shares) == looks_of(repeat)
    assert math.fsum(shares) == pytest.approx(1)
    assert shares[-1] == max(shares)


def test_alpha_is_the_familys() -> None:
    """The shares are of the level that the family declares."""
    assert ALPHA / looks_at(Repeat(min=3, max=10), 10) == pytest.approx(0.025)


def test_looks_multiply_p_and_widen_intervals_that_agree_with_it() -> None:
    tests = {n: HypothesisTest(Difference(d, 0.01, 20, 5, "own")) for n, d in (("a", 0.03), ("b", 0.001))}
    once, often = judge_all(tests), judge_all(tests, looks=8)
    assert often["a"].p == once["a"].p
    assert often["a"].p_adjusted == pytest.approx(8 * once["a"].p_adjusted)
    assert (once["a"].rejected, often["a"].rejected) == (True, False)
    assert often["a"].low < 0 < once["a"].low
    assert often["b"].p_adjusted == 1
    only = {"a": tests["a"]}
    assert judge_all(only, looks=8)["a"].low == judge_all(only, total=8)["a"].low


def test_looks_adjust_all_pairs_alike() -> None:
    values = {"a": {0: 100, 1: 101, 2: 99}, "b": {0: 101.5, 1: 102.2, 2: 101.5}, "c": {0: 104, 1: 104.5, 2: 103}}
    blocks = make_blocks(values)
    once, often = (all_pairs(blocks, list(values), looks) for looks in (1, 8))
    assert often.p_adjusted.tolist() == pytest.approx((8 * once.p_adjusted).tolist())
    assert (often.half_widths > 1.5 * once.half_widths).all()
    beats = [[pairs.beats(name, "a", 0.0, more_is_better=True) for name in "bc"] for pairs in (once, often)]
    assert beats == [[True, True], [False, True]]


def test_looks_adjust_every_comparison_of_a_contest() -> None:
    suite = make_suite("base", "a", "b", seeds=list(range(5)), decide={"constraints": []})
    values = {"base": [100, 101, 99, 100, 100], "a": [101, 101, 100, 102, 101], "b": [103, 102, 104, 103, 102]}
    records = [planted(values)(name, seed) for name in values for seed in range(5)]
    summaries = summarise(suite, records)[0]
    held = [hold_contest(suite, summaries, dict.fromkeys(values, True), looks=looks) for looks in (1, 3)]
    for pair in (("a", "base"), ("b", "a")):
        once, often = (stand(contest, list(values)).comparison(*pair) for contest in held)
        assert once is not None
        assert often is not None
        assert often.p_adjusted == pytest.approx(min(1, 3 * once.p_adjusted))
        assert often.low < once.low < once.high < often.high
    open_ = [contest.against_baseline("a") for contest in held]
    assert all(found is not None and found.settling is not None for found in open_)
    assert open_[0].settling.seeds < open_[1].settling.seeds


def test_what_was_decided_stays_decided() -> None:
    """The leader runs on for a rival, and later rounds would take its lead over the baseline back."""
    suite = race_of("base", "lead", "rival", most=6)
    speeds = {
        "base": [100, 100.1, 99.9, *[115.0] * 3], "lead": [110, 110.2, 109.9, 110, 90, 110],
        "rival": [109.5, 110.8, 109.9, 110.3, 109.9, 110.2],
    }  # fmt: skip
    first = [planted(speeds)(name, seed) for name in speeds for seed in range(3)]
    assert open_options(suite, first) == ["lead", "rival"]
    records = [planted(speeds)(name, seed) for name in speeds for seed in range(3 if name == "base" else 6)]
    ranking = rank(suite, records)
    found = row(ranking, "lead").against_baseline
    assert found is not None
    assert (found.decision, found.seeds) == ("better", 3)
    assert row(ranking, "lead").metrics["tokens_per_second"].ratio_to_baseline == found.ratio


def test_a_decision_outlives_a_look_that_would_not_make_it() -> None:
    suite = race_of("base", "lead", "open", most=5)
    speeds = {
        "base": [100, 100.1, 99.9, 118, 90], "lead": [110, 110.2, 109.9, 108, 120],
        "open": [99, 101.9, 108.2, 112, 96],
    }  # fmt: skip
    records = raced(suite, planted(speeds))
    assert rounds_of(records)["lead"] == 5
    lead = row(rank(suite, records), "lead")
    found = lead.against_baseline
    assert found is not None
    assert (found.decision, found.seeds) == ("better", 3)
    assert lead.metrics["tokens_per_second"].ratio_to_baseline == found.ratio
    alone = rank(suite.model_copy(update={"repeat": None}), records)
    assert row(alone, "lead").against_baseline.decision == "undecided"


def test_the_order_of_a_stopped_option_is_that_of_its_look() -> None:
    """Later rounds are wild, and with their spread it would be told from nobody."""
    suite = race_of("base", "lead", "second", "open", most=6)
    speeds = {
        "base": [100, 100.1, 99.9], "lead": [110, 110.1, 109.9, 90, 130, 110],
        "second": [105.5, 104.2, 105.3], "open": [109.0, 108.8, 109.1, 130, 90, 109],
    }  # fmt: skip
    records = raced(suite, planted(speeds))
    assert rounds_of(records) == {"base": 3, "lead": 6, "second": 3, "open": 6}
    ranking = rank(suite, records)
    assert {r.option: r.rank for r in ranking.rows} == {"lead": 1, "open": 1, "second": 3, "base": 4}
    against = row(ranking, "second").against_best
    assert against is not None
    assert (against.against, against.decision, against.seeds) == ("lead", "worse", 3)
    assert against.high < 1


def test_what_is_open_in_the_end_is_judged_at_the_level_of_the_last_look() -> None:
    suite = race_of("base", "one", most=5)
    speeds = {"base": [100, 101, 99, 100.5, 99.5], "one": [101.5, 101, 101.4, 100.6, 101.2]}
    records = raced(suite, planted(speeds))
    assert rounds_of(records) == {"base": 5, "one": 5}
    found = row(rank(suite, records), "one").against_baseline
    alone = row(rank(suite.model_copy(update={"repeat": None}), records), "one").against_baseline
    assert found is not None
    assert found.p_adjusted == pytest.approx(2 * alone.p_adjusted)
    assert found.settling is not None
    kept = run_race(suite, summarise(suite, records)[0]).kept.comparison("one", "base")
    assert kept is not None
    assert found.settling == kept.settling


def test_rows_of_one_rank_stand_in_the_order_of_what_they_share() -> None:
    """An option that stopped ran in fast rounds only: its mean is no reason to put it first."""
    suite = race_of("base", "lead", "twin", "open", most=5)
    base = [150, 150.01, 149.99, 100, 100.01]
    speeds = {
        "base": base, "lead": [v * 1.05 for v in base], "twin": [v * 1.049 for v in base],
        "open": [120, 190, 150, 99, 130],
    }  # fmt: skip
    records = raced(suite, planted(speeds))
    assert rounds_of(records) == {"base": 5, "lead": 5, "twin": 3, "open": 5}
    ranking = rank(suite, records)
    figures = {r.option: r.metrics["tokens_per_second"].value for r in ranking.rows}
    assert figures["twin"] > figures["lead"]
    assert [(r.option, r.rank) for r in ranking.rows if r.option in ("lead", "twin")] == [("lead", 1), ("twin", 1)]
