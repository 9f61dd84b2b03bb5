"""The search before the contest, against made-up losses: what is tried, what is chosen, and that it is fair."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import MEASUREMENT, make_suite, speed
from msgspec import convert
from msgspec.structs import replace

from selectbench.analysis.tuning import (
    EXTENSIONS,
    OptionSearch,
    Search,
    search,
    speed_attempts,
    speed_candidates,
    tuning_attempts,
    tuning_candidates,
    with_best_settings,
)
from selectbench.record.record import NOTHING, Completed, Failed, Record, Trial
from selectbench.report.sections import search_tables
from selectbench.suite.stages import label
from selectbench.suite.suite import Suite, Values

LR = "optimizer.lr"
Loss = Callable[[str, Values], float | str]
"""Of an option with these values; a word is how it fails."""
SIZE = "micro_batch_size"
SGD = {"optimizer": {"name": "sgd", "lr": 0.1}}


def tuned(*options: Any, **tune: Any) -> Suite:
    return make_suite(*(options or ("adamw", ("sgd", SGD))), tune={"parameters": {LR: {"n": 5}}, **tune})


def trial(option: str, values: Values, found: float | str, *, metric: str = "final_loss") -> Record:
    own: dict[str, Any] = {"scores": {metric: found}} if metric == "bleu" else {metric: found}
    if metric == "tokens_per_second" and isinstance(found, float):
        own = dict(speed(found))
    outcome = (
        convert({"kind": found, "detail": "what happened"}, Failed) if isinstance(found, str)
        else Completed(measurement=replace(MEASUREMENT, **own))
    )  # fmt: skip
    name = label(option, values)
    return Record(
        trial=Trial(trial_id=name, option=name, seed=1000, settings=NOTHING, tunes=option, tried=values),
        phase="tune", round=0, outcome=outcome, wall_seconds=2.0, started_at="2026-01-02T03:04:05Z",
    )  # fmt: skip


def carried_out(suite: Suite, loss: Loss) -> list[Record]:
    """Every trial that the tuning asks for, batch after batch."""
    records: list[Record] = []
    done: set[tuple[str, float]] = set()
    while True:
        asked = tuning_candidates(suite, tuning_attempts(suite, records))
        open_ = [(o, v) for o, every in asked.items() for v in every if (o, v[LR]) not in done]
        if not open_:
            return records
        for option, values in open_:
            done.add((option, values[LR]))
            records.append(trial(option, values, loss(option, values)))


def valley(best: dict[str, float]) -> Loss:
    return lambda option, values: 5.0 + math.log10(values[LR] / best[option]) ** 2


def of(found: Search | None, option: str) -> OptionSearch:
    assert found is not None
    return next(own for own in found.tuning if own.option == option)


def counts(records: list[Record]) -> dict[str | None, int]:
    names = [r.trial.tunes for r in records]
    return {name: names.count(name) for name in set(names)}


def test_a_best_within_the_grid_is_taken_and_nothing_is_extended() -> None:
    suite = tuned()
    records = carried_out(suite, valley({"adamw": 3e-3, "sgd": 0.3}))
    assert counts(records) == {"adamw": 5, "sgd": 5}
    chosen = with_best_settings(suite, records)
    assert (chosen.option("adamw").choices.optimizer.lr, chosen.option("sgd").choices.optimizer.lr) == (3e-3, 0.3)
    assert of(search(suite, chosen, records), "adamw").edges == {}


def test_a_best_on_the_edge_extends_the_grid_and_all_are_tried_equally_often() -> None:
    suite = tuned()
    records = carried_out(suite, valley({"adamw": 0.09, "sgd": 0.3}))
    assert counts(records) == {"adamw": 7, "sgd": 7}
    found = of(search(suite, with_best_settings(suite, records), records), "adamw")
    assert found.chosen == {LR: pytest.approx(0.0948, rel=1e-2)}
    assert (found.edges, found.extensions) == ({}, 2)


DECAY = "optimizer.weight_decay"
WARM_UP = "optimizer.warmup_fraction"


BOTH = [(1e-3, 0.1), (1e-2, 1.0), (2e-3, 0.01), (5e-4, 0.3)]
"""Tried together."""


@pytest.mark.parametrize(
    ("best", "told"),
    [
        (1, "the high edge of lr and the high edge of weight_decay"), (2, "the low edge of weight_decay"),
        (3, "the low edge of lr"), (0, None),
    ],
)  # fmt: skip
def test_of_several_settings_it_is_told_which_lies_on_an_edge_and_that_none_is_extended(
    best: int, told: str | None
) -> None:
    box = {LR: {"log": [1e-4, 1e-2]}, DECAY: {"log": [1e-2, 1.0]}}
    suite = make_suite("adamw", tune={"parameters": box, "trials": 4})
    records = [
        trial("adamw", {LR: lr, DECAY: decay}, 5.0 + (place != best)) for place, (lr, decay) in enumerate(BOTH)
    ]
    found = search(suite, with_best_settings(suite, records), records)
    assert found is not None
    ((*_, words),) = search_tables(found)[0].rows
    rest = "not extended: several settings are tuned together; widen the range"
    assert words == (f"the best lies on {told}; {rest}" if told else "")


def test_an_edge_beyond_which_there_is_nothing_is_none() -> None:
    for path, ends in ((WARM_UP, [0.0, 0.5]), (WARM_UP, [0.1, 0.5])):
        suite = make_suite("adamw", tune={"parameters": {path: {"linear": ends, "n": 3}}})
        (tried,) = tuning_candidates(suite, {}).values()
        records = [trial("adamw", values, 5 + values[path]) for values in tried]
        assert of(search(suite, suite, records), "adamw").edges == ({} if ends[0] == 0 else {path: "low"})


def test_what_the_others_get_lies_beside_their_best() -> None:
    suite = tuned()
    records = carried_out(suite, valley({"adamw": 0.09, "sgd": 0.4}))
    tried = sorted(r.trial.tried[LR] for r in records if r.trial.tunes == "sgd")
    assert [lr for lr in tried if 0.3 < lr < 0.949], "between its best, 0.3, and the next"
    assert min(tried) == 0.03
    assert max(tried) == 3.0


def test_extending_ends() -> None:
    suite = tuned()
    records = carried_out(suite, valley({"adamw": 1e3, "sgd": 0.3}))
    assert counts(records) == {"adamw": 5 + EXTENSIONS, "sgd": 5 + EXTENSIONS}
    found = of(search(suite, with_best_settings(suite, records), records), "adamw")
    assert found.edges == {LR: "high"}


def test_a_rate_that_diverges_is_an_outcome_and_never_the_best() -> None:
    suite = tuned()
    records = carried_out(
        suite, lambda option, v: "diverged" if v[LR] > 2e-3 and option == "adamw" else 5.0 - v[LR] / 100
    )
    found = of(search(suite, with_best_settings(suite, records), records), "adamw")
    assert found.chosen == {LR: pytest.approx(9.49e-4)}
    assert {t.outcome for t in found.tried} == {"completed", "diverged"}
    assert found.edges == {}, "what lies above was tried and diverged"


def test_where_all_diverge_smaller_rates_are_tried() -> None:
    suite, shape = tuned(), valley({"adamw": 9e-5, "sgd": 0.3})
    records = carried_out(suite, lambda o, v: "diverged" if o == "adamw" and v[LR] > 2e-4 else shape(o, v))
    chosen = with_best_settings(suite, records).option("adamw").choices.optimizer.lr
    assert chosen == pytest.approx(9.49e-5, rel=1e-2)


def test_an_option_for_which_nothing_works_keeps_what_the_suite_says() -> None:
    suite = tuned()
    records = carried_out(suite, lambda option, v: "oom" if option == "sgd" else 5.0 + v[LR])
    assert with_best_settings(suite, records).option("sgd").choices.optimizer.lr == 0.1
    found = of(search(suite, with_best_settings(suite, records), records), "sgd")
    assert (found.chosen, len(found.tried)) == (None, 5)


def test_an_interrupted_trial_says_nothing() -> None:
    suite = tuned()
    records = carried_out(suite, valley({"adamw": 3e-3, "sgd": 0.3}))
    cut = [*records[:-1], trial("sgd", records[-1].trial.tried, "interrupted")]
    assert tuning_candidates(suite, tuning_attempts(suite, cut)) == tuning_candidates(
        suite, tuning_attempts(suite, records[:-1])
    )


@given(
    st.floats(-7, 4), st.floats(-7, 4), st.integers(0, 40), st.randoms(use_true_random=False),
    st.sets(st.integers(0, 30)),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_run_that_was_cut_off_asks_for_what_is_left_of_the_whole_one(
    adamw: float, sgd: float, kept: int, order: random.Random, failing: set[int]
) -> None:
    suite = tuned()
    shape = valley({"adamw": 10**adamw, "sgd": 10**sgd})

    def loss(option: str, values: Values) -> float | str:
        return "diverged" if int(1e6 * values[LR]) % 31 in failing else shape(option, values)

    whole = carried_out(suite, loss)
    assert len(set(counts(whole).values())) == 1, "as many trials of each"
    everything = {(r.trial.tunes, r.trial.tried[LR]) for r in whole}
    part = whole[:kept]
    order.shuffle(part)
    asked = tuning_candidates(suite, tuning_attempts(suite, part))
    assert {(o, v[LR]) for o, every in asked.items() for v in every} <= everything
    assert carried_out(suite, loss) == whole


def test_the_range_that_is_as_good_is_interpolated() -> None:
    suite = tuned("adamw")
    losses = {3e-4: 5.2, 9.49e-4: 5.0, 3e-3: 5.02, 9.49e-3: 5.2, 3e-2: 6.0}
    records = carried_out(suite, lambda _, v: losses[v[LR]])
    found = of(search(suite, suite, records), "adamw")
    assert found.flat_low == pytest.approx(9.49e-4 * (3e-4 / 9.49e-4) ** (0.05 / 0.2), rel=1e-2)
    assert found.flat_high == pytest.approx(3e-3 * (9.49e-3 / 3e-3) ** (0.03 / 0.18), rel=1e-2)
    assert not found.flat_is_open


def test_a_range_that_reaches_the_end_may_be_wider() -> None:
    suite = tuned("adamw")
    losses = {3e-4: 5.001, 9.49e-4: 5.0, 3e-3: 5.001, 9.49e-3: 5.2, 3e-2: 6.0}
    assert of(search(suite, suite, carried_out(suite, lambda _, v: losses[v[LR]])), "adamw").flat_is_open


def test_the_fastest_size_that_fits_is_taken_and_none_above_one_that_did_not() -> None:
    suite = make_suite("a", best_of={"micro_batch_size": [1, 2, 4, 8, 16]})
    size = "micro_batch_size"
    records = [
        trial("a", {size: n}, found, metric="tokens_per_second")
        for n, found in ((1, 100.0), (2, 300.0), (4, 200.0), (8, "oom"))
    ]
    asked = speed_candidates(suite, {"a": 1}, speed_attempts(suite, records))
    assert [v[size] for v in asked["a"]] == [1, 2, 4, 8]
    chosen = with_best_settings(suite, records)
    assert chosen.option("a").choices.micro_batch_size == 2
    found = search(suite, chosen, records)
    assert found is not None
    assert [t.outcome for t in found.sizes[0].tried] == ["completed"] * 3 + ["oom"]
    assert (found.wall_seconds, found.contest_wall_seconds) == (8.0, 0.0)


def test_of_sizes_the_fastest_is_taken_and_marked() -> None:
    suite = make_suite("a", best_of={"micro_batch_size": [1, 2, 4, 8, 16]})
    speeds: dict[int, float | str] = {1: 850.0, 2: 985.0, 4: 970.0, 8: 1000.0, 16: "oom"}
    records = [trial("a", {SIZE: size}, found, metric="tokens_per_second") for size, found in speeds.items()]
    found = search(suite, with_best_settings(suite, records), records)
    assert found is not None
    (own,) = found.sizes
    assert own.chosen == {SIZE: 8}
    ((_, _, told, _),) = search_tables(found)[0].rows
    assert "8: 1,000 (chosen)" in told


def test_the_control_takes_what_the_baseline_takes() -> None:
    control = ("control", {"precision": {"name": "fp32"}})
    suite = tuned("adamw", ("sgd", SGD), control).model_copy(update={"control": True})
    records = carried_out(suite, valley({"adamw": 3e-3, "sgd": 0.3}))
    assert counts(records) == {"adamw": 5, "sgd": 5}
    chosen = with_best_settings(suite, records)
    assert chosen.option("control").choices == chosen.option("adamw").choices


def test_a_score_is_best_at_its_highest() -> None:
    suite = tuned("adamw", metric="bleu")
    scores = {3e-4: 1.0, 3e-3: 9.0, 3e-2: 4.0}
    records = [trial("adamw", {LR: lr}, bleu, metric="bleu") for lr, bleu in scores.items()]
    assert with_best_settings(suite, records).option("adamw").choices.optimizer.lr == 3e-3
