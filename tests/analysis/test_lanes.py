"""Trials that ran side by side: what their speeds may claim, and what is told of their lanes; from made records."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from made_records import make_record, make_suite
from msgspec.structs import replace

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking
from selectbench.record.record import Completed, Record
from selectbench.suite.stages import interference_seeds
from selectbench.suite.suite import Suite

SUITE = make_suite(
    "fp32", "tf32", seeds=[0, 1, 2, 3], decide={"constraints": ["final_perplexity <= 1.01x baseline"]}
)
NOISE = [0.999, 0.998, 1.001, 1.002, 1.0]


def contest(*, neighbours: int = 1, lane_slower: float = 1.0) -> list[Record]:
    """Two lanes with two rounds each: tf32 takes 0.8 of the time, and learns as well."""
    return [
        replace(
            make_record(option, seed, timed_seconds=seconds * NOISE[seed] * (lane_slower if seed % 2 else 1.0),
                        final_loss=loss + seed / 1000),
            lane=seed % 2, neighbours=neighbours,
        )
        for option, seconds, loss in (("fp32", 10.0, 5.5), ("tf32", 8.0, 5.5001))
        for seed in SUITE.seeds
    ]  # fmt: skip


def pairs(slower: float, *, neighbours: int = 1, suite: Suite = SUITE) -> list[Record]:
    """The baseline's short trials: beside a neighbour they take `slower` times as long."""
    found = []
    for place, seed in enumerate(interference_seeds(suite)):
        is_beside = place % 2
        noise = NOISE[place // 2] if is_beside else 1.0
        record = make_record(
            "fp32", seed, timed_seconds=10.0 * (slower if is_beside else 1.0) * noise, final_loss=None
        )
        found.append(replace(record, phase="interference", lane=0, neighbours=neighbours * is_beside))
    return found


def ranked(records: Sequence[Record]) -> Ranking:
    return rank(SUITE, records)


def speeds_claim(ranking: Ranking) -> bool:
    """Whether a difference of speed is claimed anywhere: by a rank, a comparison, a verdict, or the Pareto set."""
    row = next(row for row in ranking.rows if row.option == "tf32")
    return (
        row.rank is not None
        or row.against_baseline is not None
        or row.metrics["tokens_per_second"].ratio_to_baseline is not None
        or any(verdict.name == "fastest" and verdict.option for verdict in ranking.verdicts)
        or any(row.dominated_by for row in ranking.rows)
    )


def test_speeds_beside_a_neighbour_that_does_not_disturb_count() -> None:
    ranking = ranked([*contest(), *pairs(1.0)])
    assert ranking.rows[0].option == "tf32"
    assert speeds_claim(ranking)
    assert ranking.lanes is not None
    assert ranking.lanes.withheld == []
    assert ranking.lanes.rounds == {"0": [0, 2], "1": [1, 3]}
    beside = ranking.lanes.beside["tokens_per_second"]
    assert beside.equivalent
    assert beside.low < 1.0 < beside.high


def test_a_neighbour_that_interferes_makes_no_claim_of_speed_and_quality_still_counts() -> None:
    """Planted: every option is slower beside it, and by the figures tf32 is a fourth faster."""
    ranking = ranked([*contest(), *pairs(1.03)])
    assert not speeds_claim(ranking)
    assert ranking.lanes is not None
    assert {"tokens_per_second", "training_seconds", "joules_per_token"} <= set(ranking.lanes.withheld)
    assert "beside a neighbour the baseline runs at 0.971x (0.9" in ranking.answer
    assert "not shown to be within 1.0%" in ranking.answer
    (tf32,) = (row for row in ranking.rows if row.option == "tf32")
    assert tf32.metrics["tokens_per_second"].value is not None  # shown all the same
    assert tf32.metrics["tokens_per_second"].unclean
    assert [c.verdict for c in tf32.constraints] == ["holds"]
    assert tf32.metrics["final_loss"].ratio_low is not None


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], "it was not tried whether lanes disturb each other"),
        (pairs(1.0)[:4], "fewer than 3 of 5 pairs of short trials are whole"),
        (pairs(1.0, neighbours=0), "fewer than 3 of 5 pairs of short trials are whole"),
    ],
)
def test_without_a_whole_check_speeds_claim_nothing(records: list[Record], why: str) -> None:
    for alone in ([], ["fp32-0"], ["tf32-3"], ["fp32-2", "tf32-2"]):  # as the first and the last trials of a run
        lone = [replace(record, neighbours=int(record.trial.trial_id not in alone)) for record in contest()]
        ranking = ranked([*lone, *records])
        assert not speeds_claim(ranking)
        assert why in ranking.answer


def test_on_a_cpu_memory_beside_a_neighbour_is_tried_too() -> None:
    """A library's page that both lanes have mapped is half a page of each."""
    checked = pairs(1.0)
    more = [
        replace(r, outcome=Completed(measurement=replace(r.outcome.measurement, peak_pss_growth_bytes=400 << 20)))
        for r in checked if r.neighbours and isinstance(r.outcome, Completed)
    ]  # fmt: skip
    ranking = ranked([*contest(), *(r for r in checked if not r.neighbours), *more])
    assert ranking.lanes is not None
    assert ranking.lanes.withheld == ["peak_memory_bytes"]
    assert "Of memory nothing is claimed" in ranking.answer
    assert "the baseline's peak_memory_bytes is 1.33x" in ranking.answer
    assert speeds_claim(ranking)


def test_the_line_that_adds_seeds_has_as_many_lanes() -> None:
    undecided = [
        replace(r, outcome=Completed(measurement=replace(r.outcome.measurement, timed_seconds=seconds)))
        for r, seconds in zip(contest()[4:], (9.888, 9.683, 9.81, 9.937), strict=True)
        if isinstance(r.outcome, Completed)
    ]
    answer = ranked([*contest()[:4], *undecided, *pairs(1.0)]).answer
    assert "To add seeds: selectbench run suite.yaml --extend . --seeds 4,5,6,7,8 --lanes 2 (in" in answer


def test_noise_shows_no_equivalence() -> None:
    """An interval that is wider than the threshold is no proof, even around 1."""
    noisy = [
        replace(
            record, outcome=Completed(measurement=replace(record.outcome.measurement, timed_seconds=10.0 * factor))
        )
        for record, factor in zip(pairs(1.0), [1, 1.03, 1, 0.97, 1, 1.02, 1, 0.98, 1, 1.0], strict=True)
        if isinstance(record.outcome, Completed)
    ]
    assert not speeds_claim(ranked([*contest(), *noisy]))


def test_trials_without_a_neighbour_need_no_check() -> None:
    ranking = ranked(contest(neighbours=0))
    assert speeds_claim(ranking)
    assert ranking.lanes is not None
    assert ranking.lanes.neighbours == 0


def test_a_slow_lane_is_a_share_of_the_variance_and_no_difference_of_options() -> None:
    same, apart = ranked([*contest(), *pairs(1.0)]), ranked([*contest(lane_slower=1.1), *pairs(1.0)])
    assert same.lanes is not None
    assert apart.lanes is not None
    assert same.lanes.variance_shares["tokens_per_second"] < 0.5
    assert apart.lanes.variance_shares["tokens_per_second"] > 0.99
    ratios = [ranking.rows[0].metrics["tokens_per_second"].ratio_to_baseline for ranking in (same, apart)]
    assert ratios[0] == pytest.approx(ratios[1])
    assert rank(SUITE, [replace(record, lane=None, neighbours=0) for record in contest()]).lanes is None


def test_an_option_that_is_slower_on_one_lane_is_judged_by_lanes() -> None:
    """Its rounds there show the same difference again."""
    moved = [
        replace(r, outcome=Completed(measurement=replace(r.outcome.measurement, timed_seconds=9.0)))
        if r.lane and r.trial.option == "tf32" and isinstance(r.outcome, Completed) else r
        for r in contest(neighbours=0)
    ]  # fmt: skip
    assert "intervals count lanes, not rounds" in ranked(moved).answer
    assert "intervals count lanes" not in ranked(contest(neighbours=0)).answer
