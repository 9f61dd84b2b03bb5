"""A race: which options run on after each round, why the others stopped, and what is said of them in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_races import SAME, Outcome, drawn, heavy, race_of, raced, reasons, rounds_of, row
from made_records import HOT, make_failure, make_meters, make_record, speed
from msgspec.structs import replace

from selectbench import units
from selectbench.analysis.race import open_options, open_trials, run_race
from selectbench.analysis.ranking import rank
from selectbench.analysis.summary import summarise
from selectbench.record.record import Record
from selectbench.suite.suite import Suite


def test_nothing_stops_before_the_first_look() -> None:
    suite = race_of("base", "up", "down")
    outcome = drawn({"base": 0, "up": 0.5, "down": -0.5})
    assert open_trials(suite, []) == [(name, seed) for seed in range(3) for name in ("base", "up", "down")]
    records = [outcome(name, seed) for name in ("base", "up", "down") for seed in range(3)]
    for known in range(len(records)):
        assert open_options(suite, records[:known]) == ["base", "up", "down"]
    assert open_options(suite, records) == []


def test_clear_differences_stop_at_the_first_look_and_say_why() -> None:
    suite = race_of("base", "up", "down")
    records = raced(suite, drawn({"base": 0, "up": 0.5, "down": -0.5}))
    ranking = rank(suite, records)
    assert rounds_of(records) == {"base": 3, "up": 3, "down": 3}
    assert ranking.race is not None
    assert (ranking.race.ended, ranking.race.open, ranking.race.rounds) == (True, [], 3)
    assert (ranking.race.trials_run, ranking.race.trials_planned, ranking.race.trials_saved) == (9, 18, 9)
    assert reasons(ranking)["down"].startswith("shown to be worse than up after 3 rounds: 0.3")
    assert "adjusted for the looks and the tests" in reasons(ranking)["down"]
    assert reasons(ranking)["up"] == "the leader, with no option left that is open after 3 rounds"
    assert [(r.option, r.rank) for r in ranking.rows] == [("up", 1), ("base", 2), ("down", 3)]


def test_a_stopped_option_is_complete_with_the_rounds_that_it_ran() -> None:
    suite = race_of("base", "one", "two", "down", most=5)
    records = raced(suite, drawn({"base": 0, "one": 0.5, "two": 0.501, "down": -0.5}))
    assert rounds_of(records) == {"base": 3, "one": 5, "two": 5, "down": 3}
    ranking = rank(suite, records)
    down = row(ranking, "down")
    assert (down.status, down.n, down.planned, down.missing_seeds) == ("completed", 3, 3, [])
    assert ranking.warnings == []
    assert "Incomplete" not in ranking.answer
    assert "at all 3 looks" in ranking.answer
    assert ranking.answer.startswith("Too close to call between one and two")
    assert ranking.race is not None
    assert (ranking.race.ended, ranking.race.open) == (True, ["one", "two"])
    assert reasons(ranking)["two"].startswith("open after 5 rounds: undecided against the leader one: 1.00x (")
    assert {r.option: r.rank for r in ranking.rows} == {"one": 1, "two": 1, "base": 3, "down": 4}


def test_more_seeds_take_the_time_of_the_options_that_run_on() -> None:
    made = drawn({"base": 0, "one": 0.5, "two": 0.501, "down": -0.5})
    seconds = {"base": 1000.0, "one": 5.0, "two": 7.0, "down": 2000.0}
    suite = race_of("base", "one", "two", "down", most=5)
    records = raced(suite, lambda name, seed: replace(made(name, seed), wall_seconds=seconds[name]))
    ranking = rank(suite, records)
    found = row(ranking, "two").against_best
    assert found is not None
    assert found.settling is not None
    assert found.settling.seconds == found.settling.seeds * 12.0
    assert f"{found.settling.seeds} more seeds, about {units.duration(found.settling.seconds)}," in ranking.answer


def test_open_constraints_take_the_time_of_the_options_that_run_on() -> None:
    made = drawn({"base": 0, "one": 0.1, "down": -0.5})
    losses = np.random.default_rng(3).normal(5.5, 0.01, (2, 5))
    decide = {"constraints": ["final_perplexity <= 1.01x baseline"]}
    suite = race_of("base", "one", "down", most=5, decide=decide)

    def outcome(name: str, seed: int) -> Record:
        record = made(name, seed)
        loss = 7.0 if name == "down" else losses[("base", "one").index(name), seed]
        measurement = replace(record.outcome.measurement, final_loss=loss)  # type: ignore[union-attr]
        changed = replace(record.outcome, measurement=measurement)
        return replace(record, outcome=changed, wall_seconds=100.0 if name == "down" else 3.0)

    ranking = rank(suite, raced(suite, outcome))
    assert ranking.race is not None
    assert ranking.race.open == ["base", "one"]
    (constraint,) = row(ranking, "one").constraints
    assert constraint.settling is not None
    assert constraint.settling.seconds == constraint.settling.seeds * 6.0


def test_an_option_out_of_the_race_says_what_is_not_known_of_it() -> None:
    suite = race_of("base", "up", "twin", most=4)
    ranking = rank(suite, raced(suite, drawn({"base": 0, "up": 0.5, "twin": 0.001})))
    assert reasons(ranking)["twin"].endswith("left undecided against the baseline base")
    assert row(ranking, "twin").against_baseline is not None
    assert row(ranking, "twin").against_baseline.decision == "undecided"


def test_equivalence_is_a_decision() -> None:
    suite = race_of("base", "twin", "up")
    records = raced(suite, drawn({"base": 0, "twin": 0.0001, "up": 0.001}, spread=0.0002))
    assert set(rounds_of(records).values()) == {3}
    ranking = rank(suite, records)
    assert reasons(ranking)["twin"].startswith(
        "decided after 3 rounds: no difference that matters from the baseline"
    )
    assert {r.rank for r in ranking.rows} == {1}


class TestFailures:
    OUT = staticmethod(drawn({"base": 0, "one": 0.5, "two": 0.501}))

    def test_an_option_that_never_completes_stops(self) -> None:
        suite = race_of("base", "one", "two", "none", most=4)

        def outcome(name: str, seed: int) -> Record:
            return make_failure(name, seed, "oom") if name == "none" else self.OUT(name, seed)

        records = raced(suite, outcome)
        assert rounds_of(records) == {"base": 3, "one": 4, "two": 4, "none": 3}
        ranking = rank(suite, records)
        assert reasons(ranking)["none"] == "every trial failed in 3 rounds (oom)"
        assert row(ranking, "none").status == "failed"

    def test_an_option_that_fails_now_and_then_runs_on(self) -> None:
        suite = race_of("base", "one", "two", most=4)

        def outcome(name: str, seed: int) -> Record:
            return make_failure(name, seed, "crashed") if (name, seed) == ("two", 1) else self.OUT(name, seed)

        records = raced(suite, outcome)
        assert rounds_of(records)["two"] == 4
        assert row(rank(suite, records), "two").status == "partial"

    def test_an_interrupted_trial_has_no_outcome(self) -> None:
        suite = race_of("base", "one", "two", most=4)
        records = [self.OUT(n, s) for n in ("base", "one", "two") for s in range(3) if (n, s) != ("base", 2)]
        records.append(make_failure("base", 2, "interrupted"))
        assert open_trials(suite, records) == [("base", 2)]
        assert open_options(suite, records) == ["base", "one", "two"]
        again = replace(self.OUT("base", 2), attempt=2)
        assert open_trials(suite, [*records, again]) == [("one", 3), ("two", 3)]

    @pytest.mark.parametrize("kind", ["oom", "unsupported", "diverged"])
    def test_all_options_failed(self, kind: str) -> None:
        suite = race_of("base", "one", control=False)
        records = raced(suite, lambda name, seed: make_failure(name, seed, kind))
        assert rounds_of(records) == {"base": 3, "one": 3}
        ranking = rank(suite, records)
        assert all(f"({kind})" in why for why in reasons(ranking).values())
        assert ranking.answer

    def test_without_a_baseline_the_others_race_for_the_lead(self) -> None:
        suite = race_of("base", "one", "down", most=4)

        def outcome(name: str, seed: int) -> Record:
            made = drawn({"base": 0, "one": 0.5, "down": -0.5})
            return make_failure(name, seed, "oom") if name == "base" else made(name, seed)

        ranking = rank(suite, raced(suite, outcome))
        assert "every trial failed" in reasons(ranking)["base"]
        assert reasons(ranking)["down"].startswith("shown to be worse than one after 3 rounds")
        assert [r.option for r in ranking.rows if r.rank] == ["one", "down"]


def test_one_option_alone_has_nothing_to_race() -> None:
    suite = race_of("base")
    records = raced(suite, drawn({"base": 0}))
    assert rounds_of(records) == {"base": 3}
    ranking = rank(suite, records)
    assert ranking.race is not None
    assert ranking.race.ended
    assert ranking.answer.startswith("base: ")


class TestControl:
    def suite(self, most: int = 5) -> Suite:
        made = race_of("base", "one", "down", most=most, control=True)
        control = made.options[0].model_copy(update={"name": "control"})
        return made.model_copy(update={"options": [*made.options, control]})

    def test_it_runs_as_long_as_the_baseline(self) -> None:
        records = raced(self.suite(), drawn({"base": 0, "one": 0.003, "down": -0.5, "control": 0}))
        assert rounds_of(records) == {"base": 5, "one": 5, "down": 3, "control": 5}

    def test_what_no_look_decides_is_adjusted_for_the_looks_too(self) -> None:
        """Warnings of the control, the Pareto set and verdicts by another metric than the objective."""
        made = drawn({"base": 0, "one": 0.5, "down": 0.0002, "control": 0}, spread=0.001)
        memory = {
            "base": [300, 301, 302],
            "one": [296, 298, 297],
            "down": [303.4, 305, 306],
            "control": [301, 300, 302],
        }
        losses = {"control": [5.48, 5.492, 5.467]}

        def outcome(name: str, seed: int) -> Record:
            found = made(name, seed).outcome
            own = {
                "peak_pss_growth_bytes": int(memory[name][seed] * (1 << 20)),
                "final_loss": losses.get(name, [5.5, 5.51, 5.49])[seed],
            }
            measurement = replace(found.measurement, **own)
            return replace(made(name, seed), outcome=replace(found, measurement=measurement))

        suite = self.suite(most=10)
        thresholds = {**suite.decide.thresholds, "peak_memory_bytes": 0.01}
        suite = suite.model_copy(update={"decide": suite.decide.model_copy(update={"thresholds": thresholds})})
        records = raced(suite, outcome)
        for repeat, sure in ((suite.repeat, False), (None, True)):
            ranking = rank(suite.model_copy(update={"repeat": repeat}), records)
            smallest = next(verdict for verdict in ranking.verdicts if verdict.name == "smallest_memory")
            assert smallest.sure is sure
            assert any(line.startswith("the control") for line in ranking.warnings) is sure
            assert row(ranking, "down").dominated_by == (["one", "base"] if sure else ["one"])

    def test_it_stops_with_the_baseline(self) -> None:
        suite = self.suite()
        records = raced(suite, drawn({"base": 0, "one": 0.5, "down": -0.5, "control": -0.1}))
        assert rounds_of(records) == {"base": 3, "one": 3, "down": 3, "control": 3}
        assert reasons(rank(suite, records))["control"] == "stops with the baseline base, which it repeats"


class TestConstraints:
    MEMORY = "peak_memory_bytes <= 1 GiB"

    def test_an_option_that_fails_one_stops(self) -> None:
        suite = race_of("base", "one", "two", most=4, decide={"constraints": [self.MEMORY]})
        made = drawn({"base": 0, "one": 0.5, "two": 0.501})

        records = raced(suite, heavy(made, "two"))
        assert rounds_of(records) == {"base": 3, "one": 3, "two": 3}
        ranking = rank(suite, records)
        assert reasons(ranking)["two"].startswith(f"shown to fail {self.MEMORY} after 3 rounds: ")
        assert row(ranking, "two").constraint_failures
        assert [r.option for r in ranking.rows if r.rank] == ["one", "base"]

    def quality(self, losses: Mapping[str, list[float]], most: int = 5) -> tuple[Suite, list[Record]]:
        constraint = {"constraints": ["final_loss <= 1.01x baseline"]}
        suite = race_of("base", *(n for n in losses if n != "base"), most=most, decide=constraint)

        def outcome(name: str, seed: int) -> Record:
            fast = 100.0 if name == "base" else 200.0
            if math.isnan(losses[name][seed]):
                return make_failure(name, seed, "diverged")
            return make_record(
                name, seed, identity=SAME, final_loss=losses[name][seed], **speed(fast + seed % 2 / 9)
            )

        return suite, raced(suite, outcome)

    BASE = (5.5, 5.51, 5.49, 5.5, 5.505)

    def test_an_open_constraint_keeps_an_option_and_the_baseline_in_the_race(self) -> None:
        suite, records = self.quality({"base": [*self.BASE], "new": [5.4, 5.7, 5.5, 5.62, 5.51]})
        assert rounds_of(records) == {"base": 5, "new": 5}
        ranking = rank(suite, records)
        assert "undecided: final_loss <= 1.01x baseline" in reasons(ranking)["new"]
        assert row(ranking, "new").constraints[0].verdict == "undecided"

    def test_a_constraint_that_holds_lets_it_stop(self) -> None:
        _, records = self.quality({"base": [*self.BASE], "new": [v - 0.0001 for v in self.BASE]})
        assert rounds_of(records) == {"base": 3, "new": 3}

    def test_a_divergence_after_a_constraint_held_takes_the_option_out(self) -> None:
        """The leader runs on for a rival whose constraint is open."""
        lead = [*(v - 0.0001 for v in self.BASE[:3]), math.nan, 5.5]
        suite, records = self.quality({"base": [*self.BASE], "lead": lead, "open": [5.4, 5.7, 5.5, 5.62, 5.51]})
        assert rounds_of(records) == {"base": 5, "lead": 4, "open": 5}
        ranking = rank(suite, records)
        assert row(ranking, "lead").constraints[0].verdict == "fails"
        assert "diverged with seed 3" in reasons(ranking)["lead"]

    def test_a_baseline_that_fails_one_is_no_yardstick(self) -> None:
        """Slower than a baseline that may not be taken, an option may still be the one to take."""
        suite = race_of("base", "slow", "slower", most=5, decide={"constraints": [self.MEMORY]})
        made = drawn({"base": 0, "slow": -0.5, "slower": -0.501})

        records = raced(suite, heavy(made, "base"))
        assert rounds_of(records) == {"base": 3, "slow": 5, "slower": 5}
        assert reasons(rank(suite, records))["base"] == "no option is open against it after 3 rounds"


def test_another_job_stops_at_the_first_look_and_later_too() -> None:
    suite = race_of("base", "one", "two", "other", most=5)
    made = drawn({"base": 0, "one": 0.5, "two": 0.501, "other": 0.5})

    def outcome(first: int) -> Outcome:
        def found(name: str, seed: int) -> Record:
            wrong = name == "other" and seed >= first
            record = made(name, seed)
            changed = replace(record.identity, token_stream_sha256="9" * 64)
            return replace(record, identity=changed) if wrong else record

        return found

    for first, rounds in ((0, 3), (3, 4)):
        records = raced(suite, outcome(first))
        assert rounds_of(records)["other"] == rounds
        ranking = rank(suite, records)
        assert reasons(ranking)["other"] == "not the same job: token_stream_sha256"
        other = row(ranking, "other")
        assert (other.status, other.rank, other.against_baseline) == ("not_comparable", None, None)


def test_a_run_that_was_cut_off_says_how_far_it_came() -> None:
    suite = race_of("base", "one", "two", "down", most=5)
    outcome = drawn({"base": 0, "one": 0.5, "two": 0.501, "down": -0.5})
    records = [outcome(n, s) for n in ("base", "one", "two", "down") for s in range(3)]
    for known, answer in (
        ([], "Incomplete, 12 of 14 trials"),
        ([outcome("two", 3)], "Incomplete, 13 of 14 trials"),
    ):
        ranking = rank(suite, [*records, *known])
        assert ranking.answer.startswith(answer)
        assert row(ranking, "down").status == "completed"
        assert row(ranking, "one").missing_seeds == [3]
        assert ranking.race is not None
        assert (ranking.race.ended, ranking.race.rounds, ranking.race.open) == (False, 3, ["one", "two"])
        assert row(ranking, "two").against_baseline.seeds == 3
    early = rank(suite, records[:5])
    assert early.answer.startswith("Incomplete, 5 of 12 trials")
    assert reasons(early)["base"] == "not judged yet: the first look is after 3 rounds"


def test_records_that_nobody_asked_for_change_nothing() -> None:
    suite = race_of("base", "up", "down")
    outcome = drawn({"base": 0, "up": 0.5, "down": -0.5})
    records = raced(suite, outcome)
    more = rank(suite, [*records, outcome("down", 4)])
    assert more.warnings == ["option down, seed 4: a record after the option had stopped is left out"]
    assert more.model_copy(update={"warnings": []}) == rank(suite, records)


def test_clean_rounds_are_waited_for() -> None:
    """Every trial so far was on a throttled GPU: that is no verdict."""
    suite = race_of("base", "hot", most=4, device="cuda")
    made = drawn({"base": 0, "hot": 0.5})

    def outcome(name: str, seed: int) -> Record:
        meters = make_meters(HOT if name == "hot" and seed < 3 else {})
        return replace(made(name, seed), meters=meters)

    assert rounds_of(raced(suite, outcome)) == {"base": 4, "hot": 4}


@pytest.mark.parametrize("value", [1e-300, 1e-9, 1e15, 1e300])
def test_extreme_and_equal_values(value: float) -> None:
    suite = race_of("base", "one", "two", most=4)
    factors = {"base": 1.0, "one": 1.0, "two": 2.0}
    records = raced(
        suite, lambda name, seed: make_record(name, seed, identity=SAME, **speed(value * factors[name]))
    )
    assert rounds_of(records) == {"base": 3, "one": 3, "two": 3}
    ranking = rank(suite, records)
    assert ranking.model_dump_json()
    assert reasons(ranking)["one"].startswith("shown to be worse than two")


def test_options_without_a_figure_end_the_race() -> None:
    suite = race_of("base", "one", most=4)
    records = raced(suite, lambda name, seed: make_record(name, seed, identity=SAME, timed_seconds=0.0))
    assert rounds_of(records) == {"base": 3, "one": 3}


def test_a_suite_without_repeat_has_no_race() -> None:
    suite = race_of("base", "one").model_copy(update={"repeat": None})
    records = [drawn({"base": 0, "one": 0.5})(name, seed) for name in ("base", "one") for seed in range(6)]
    assert "race" not in rank(suite, records).model_dump()
    with pytest.raises(ValueError, match="does not say `repeat`"):
        run_race(suite, summarise(suite, records)[0])


EFFECTS = st.lists(st.sampled_from([0.0, 0.004, 0.03, -0.03, 0.2]), min_size=2, max_size=3)


FAILS = st.frozensets(st.tuples(st.integers(1, 3), st.integers(0, 4)), max_size=3)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(effects=EFFECTS, fails=FAILS, seed=st.integers(0, 99), draw=st.data())
def test_the_answer_is_the_records_alone(
    effects: list[float], fails: frozenset[tuple[int, int]], seed: int, draw: st.DataObject
) -> None:
    """Whatever the order and wherever a run was cut off, the same options are open, and none comes back."""
    names = ["base", *(f"o{i}" for i in range(len(effects)))]
    suite = race_of(*names, most=5)
    made = drawn(dict(zip(names, [0.0, *effects], strict=True)), seed=seed)

    def outcome(name: str, number: int) -> Record:
        failed = (names.index(name), number) in fails
        return make_failure(name, number, "crashed") if failed else made(name, number)

    records, before = [], names
    while trials := open_trials(suite, records):
        opened = open_options(suite, records)
        assert set(opened) <= set(before)
        assert opened == [name for name in names if name in opened]
        assert {name for name, _ in trials} == set(opened)
        order = draw.draw(st.permutations(trials))
        cut = draw.draw(st.integers(0, len(order) - 1))
        midst = [*records, *(outcome(*trial) for trial in order[:cut])]
        assert open_options(suite, midst) == opened
        assert set(open_trials(suite, midst)) == set(order[cut:])
        records, before = [*records, *(outcome(*trial) for trial in trials)], opened
    shuffled = draw.draw(st.permutations(records))
    assert open_options(suite, shuffled) == []
    assert rank(suite, shuffled) == rank(suite, records)
