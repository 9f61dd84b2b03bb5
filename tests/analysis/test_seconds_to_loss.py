"""`seconds_to_baseline_loss`: what decides where the question is how soon a loss is reached."""

from __future__ import annotations

from typing import Any

import pytest
from made_records import HOT, make_failure, make_meters, make_record, make_suite, speed, with_curve
from msgspec.structs import replace

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking, Row
from selectbench.record.record import Record
from selectbench.suite.suite import Suite

METRIC = "seconds_to_baseline_loss"
SEEDS = (0, 1, 2)
BY_IT = {"objective": METRIC, "constraints": [], "thresholds": {"final_loss": 0.0}}
"""Without the margin, so that the figures can be worked out by hand."""


def trial(option: str, seed: int, seconds: float, *losses: float, **more: Any) -> Record:
    """Of a trial as fast as its evaluations follow each other."""
    same = {"compute_dtype": "float32"}
    made = make_record(option, seed, identity=same, **{**speed(1000 / seconds), **more})
    return with_curve(made, seconds, *losses)


def suite_of(*names: str, **changes: Any) -> Suite:
    """Options of one job, told apart by their learning rates."""
    rows = [(name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (i + 1)}}) for i, name in enumerate(names)]
    return make_suite(*rows, **{"decide": BY_IT, **changes})


def baseline() -> list[Record]:
    """At 6, 5 and 4 nats after 10, 20 and 30 s; the seeds a percent or so apart."""
    return [trial("base", s, 10 + 0.01 * s, 6.0, 5.0, 4.0) for s in SEEDS]


def row(ranking: Ranking, option: str) -> Row:
    return next(row for row in ranking.rows if row.option == option)


def test_the_time_to_the_baselines_loss_of_the_same_seed() -> None:
    records = baseline() + [trial("new", s, 5 + 0.01 * s, 6.0, 3.0, 2.0) for s in SEEDS]
    ranking = rank(suite_of("base", "new"), records)
    # From 6 to 3 nats in its second stretch of 5 s: at 4 nats after two thirds of it.
    assert row(ranking, "new").metrics[METRIC].value == pytest.approx(5.01 * (1 + 2 / 3), rel=1e-5)
    assert row(ranking, "base").metrics[METRIC].value == pytest.approx(30.03, rel=1e-5)
    assert row(ranking, "new").metrics[METRIC].ratio_to_baseline == pytest.approx(5 / 18, rel=1e-3)
    assert [r.option for r in ranking.rows] == ["new", "base"]
    assert ranking.answer.startswith("new is the first to reach the baseline's loss: 8.35 s, 0.278x the baseline")
    found = row(ranking, "new").to_loss
    assert found is not None
    assert found.seconds == row(ranking, "new").metrics[METRIC].value


def test_the_margin_is_what_is_too_small_to_matter() -> None:
    margin = {**BY_IT, "thresholds": {"final_loss": 0.05}}
    ranking = rank(suite_of("base", decide=margin), baseline())
    assert row(ranking, "base").metrics[METRIC].value == pytest.approx(10.01 * (2 + 0.8))  # at 4.2 nats


def test_a_seed_that_does_not_get_there_takes_the_option_out() -> None:
    """The two seeds that do are the soonest of all."""
    records = baseline() + [trial("new", s, 9 + 0.01 * s, 6.0, 5.0, 3.9) for s in SEEDS]
    records += [trial("wild", s, 1 + 0.01 * s, 3.0, 3.0) for s in (0, 1)] + [trial("wild", 2, 1, 7.0, 5.0)]
    ranking = rank(suite_of("base", "new", "wild"), records)
    wild = row(ranking, "wild")
    assert (wild.rank, wild.metrics[METRIC].value, wild.metrics[METRIC].n) == (None, None, 0)
    assert ranking.rows[0].option == "new"
    assert "Not ranked: wild (loss not reached)" in ranking.answer
    assert "wild" not in {v.option for v in ranking.verdicts if v.name == "cheapest"}


def test_a_seed_that_diverged_did_not_get_there() -> None:
    records = baseline() + [trial("new", s, 1, 3.0, 3.0) for s in (0, 1)] + [make_failure("new", 2, "diverged")]
    ranking = rank(suite_of("base", "new"), records)
    assert row(ranking, "new").rank is None
    assert "Not ranked: new (loss not reached)." in ranking.answer


def test_a_throttled_seed_has_no_time_but_not_getting_there_counts() -> None:
    hot = {"meters": make_meters(HOT)}
    cold = {"meters": make_meters()}
    records = [trial("base", s, 10 + 0.01 * s, 6.0, 4.0, **cold) for s in SEEDS]
    records += [trial("slow", s, 5 + 0.01 * s, 6.0, 3.0, **(hot if s == 2 else cold)) for s in SEEDS]
    records += [trial("poor", s, 5 + 0.01 * s, 3.0, 3.0, **cold) for s in (0, 1)]
    records += [trial("poor", 2, 5, 6.0, 4.5, **hot)]
    ranking = rank(suite_of("base", "slow", "poor", device="cuda"), records)
    found = row(ranking, "slow").metrics[METRIC]
    assert (found.n, found.left_out) == (2, [2])
    assert found.value == pytest.approx(5.005 * (1 + 2 / 3))
    assert row(ranking, "poor").metrics[METRIC].value is None
    assert row(ranking, "poor").rank is None


def test_without_the_baseline_there_is_no_such_time() -> None:
    records = [make_failure("base", s, "oom") for s in SEEDS]
    records += [trial("new", s, 5, 6.0, 3.0) for s in SEEDS]
    ranking = rank(suite_of("base", "new"), records)
    assert row(ranking, "new").metrics[METRIC].value is None
    assert "No comparison: the baseline base did not complete (oom)." in ranking.answer


def test_a_bound_on_it_fails_where_it_is_not_reached() -> None:
    bound = {"objective": "tokens_per_second", "constraints": [f"{METRIC} <= 0.5x baseline"]}
    records = baseline() + [trial("new", s, 5 + 0.01 * s, 6.0, 3.0) for s in SEEDS]
    records += [trial("poor", s, 5, 6.0, 5.0) for s in SEEDS]
    ranking = rank(suite_of("base", "new", "poor", decide=bound), records)
    assert [c.verdict for c in row(ranking, "new").constraints] == ["holds"]
    (poor,) = row(ranking, "poor").constraints
    assert (poor.verdict, poor.detail) == ("fails", "the baseline's loss was not reached with 3 of 3 seeds")


def test_other_tokens_have_no_such_time() -> None:
    suite = make_suite("base", ("other", {"tokenizer": {"bpe": 1024}}), decide={"objective": "bits_per_byte"})
    other = {"token_stream_sha256": "9" * 64, "evaluation_set_sha256": "8" * 64}
    records = baseline() + [
        replace(trial("other", s, 1, 3.0), identity=make_record("other", s, identity=other).identity) for s in SEEDS
    ]
    assert row(rank(suite, records), "other").metrics[METRIC].value is None


def test_the_soonest_is_what_the_ranks_say() -> None:
    records = baseline() + [trial("new", s, 5 + 0.01 * s, 6.0, 3.0) for s in SEEDS]
    ranking = rank(suite_of("base", "new"), records)
    (soonest,) = (v for v in ranking.verdicts if v.name == "cheapest")
    assert (soonest.title, soonest.option) == ("Soonest to the baseline's loss", "new")
    assert soonest.file == "best.yaml"
    assert soonest.confidence == "Shown to be better than every other option that qualifies."


def test_who_is_not_shown_to_learn_as_well_is_not_called_faster() -> None:
    """All seeds got there within the margin, in half the time, and the final loss is open."""
    margin = {**BY_IT, "thresholds": {"final_loss": 0.05}}
    finals = (4.0, 4.15, 3.85)
    records = baseline() + [trial("new", s, 5 + 0.01 * s, 6.0, 5.0, finals[s]) for s in SEEDS]
    ranking = rank(suite_of("base", "new", decide=margin), records)
    found = row(ranking, "new")
    assert found.metrics[METRIC].value == pytest.approx(14.1, abs=0.1)
    assert found.against_baseline is not None
    assert found.against_baseline.decision == "undecided"


def test_time_to_a_loss_is_a_figure_and_no_card_where_it_is_not_the_objective() -> None:
    records = baseline() + [trial("new", s, 5 + 0.01 * s, 6.0, 3.0) for s in SEEDS]
    ranking = rank(suite_of("base", "new", decide={"constraints": []}), records)
    assert "cheapest" not in {v.name for v in ranking.verdicts}
    found = row(ranking, "new").to_loss
    assert found is not None
    assert found.seconds == pytest.approx(5.01 * (1 + 2 / 3), rel=1e-2)


def test_a_constraint_on_it_holds_only_where_luck_is_no_explanation() -> None:
    """Sooner and with a lower loss in the end holds; there for a moment, at the same speed, is open."""
    decide = {**BY_IT, "objective": "tokens_per_second", "constraints": [f"{METRIC} <= 0.9x baseline"]}
    records = baseline() + [trial("new", s, 10 + 0.01 * s, 5.5, 3.5 + 0.01 * s, 3.0) for s in SEEDS]
    ends = {0: 4.3, 1: 3.7, 2: 4.0}
    records += [trial("brief", s, 10 + 0.01 * s, 6.0, 3.99 - 0.01 * s, ends[s]) for s in SEEDS]
    ranking = rank(suite_of("base", "new", "brief", decide=decide), records)
    assert row(ranking, "brief").metrics[METRIC].ratio_to_baseline == pytest.approx(0.66, abs=0.01)
    assert [c.verdict for c in row(ranking, "new").constraints] == ["holds"]
    assert [c.verdict for c in row(ranking, "brief").constraints] == ["undecided"]
