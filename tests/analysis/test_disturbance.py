"""Busy machines, trials that stand out, and those that were run again: what is said, and what is not claimed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from made_records import make_failure, make_record, make_suite, speed

from selectbench.analysis.gate import ReadRun, compare, hold_gate
from selectbench.analysis.metrics import is_unclean, state_of
from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking, Row
from selectbench.analysis.statistics import outlying
from selectbench.record.record import Record
from selectbench.suite.suite import Suite

QUIET: dict[str, Any] = {"cpu_seconds": 20.0, "cores_seconds": 20.1, "run_queue_wait_seconds": 0.1,
                         "involuntary_switches": 40}  # fmt: skip
BUSY: dict[str, Any] = {**QUIET, "cores_seconds": 38.0, "run_queue_wait_seconds": 18.0,
                        "involuntary_switches": 9000}  # fmt: skip


def suite_of(*names: str, seeds: int = 5, **changes: Any) -> Suite:
    rows = [(name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + i)}}) for i, name in enumerate(names)]
    return make_suite(*rows, seeds=list(range(seeds)), **{"decide": {"constraints": []}, **changes})


def trial(name: str, seed: int, value: float, **more: Any) -> Record:
    return make_record(name, seed, identity={"compute_dtype": "float32"}, **{**QUIET, **speed(value), **more})


def trials(name: str, speeds: Sequence[float], busy: Sequence[int] = (), **more: Any) -> list[Record]:
    return [trial(name, s, v, **{**(BUSY if s in busy else {}), **more}) for s, v in enumerate(speeds)]


def row(ranking: Ranking, option: str) -> Row:
    return next(row for row in ranking.rows if row.option == option)


def noise(*, seed: int, seeds: int = 5, spread: float = 0.01, middle: float = 100.0) -> list[float]:
    return (middle * np.exp(np.random.default_rng(seed).normal(0, spread, seeds))).tolist()


@pytest.mark.parametrize(
    ("changes", "is_busy"),
    [
        ({}, True),
        ({"run_queue_wait_seconds": 0.9}, False),  # 4.5 % of its work
        ({"run_queue_wait_seconds": 1.1}, True),
        ({"cores_seconds": 20.9}, False),  # they waited for each other: its own doing
        ({"cores_seconds": None}, True),
        ({"run_queue_wait_seconds": None}, True),  # by 450 switches in a second of work
        ({"run_queue_wait_seconds": None, "involuntary_switches": 900}, False),
        ({"run_queue_wait_seconds": None, "cores_seconds": 20.5}, False),
        ({"cpu_seconds": None}, False),  # an older record
        ({"peak_memory_allocated_bytes": 1 << 30}, False),  # on a GPU its meters judge
    ],
)
def test_a_trial_is_busy_where_its_threads_waited_and_others_worked(changes: dict[str, Any], is_busy: bool) -> None:
    record = make_record("base", 0, **{**BUSY, **changes})
    state = state_of(record)
    assert is_unclean(record) == is_busy
    assert (state is not None and state.verdict == "busy") == is_busy


def test_what_a_trial_of_its_own_machine_waits_is_no_state() -> None:
    assert state_of(make_record("base", 0, **QUIET)) is None
    assert state_of(make_failure("base", 0, "timeout")) is None


def test_a_few_busy_trials_are_left_out_and_the_difference_is_found_without_them() -> None:
    records = trials("base", noise(seed=1)) + trials("a", [*noise(seed=2, middle=130)[:4], 13.0], busy=[4])
    ranking = rank(suite_of("base", "a"), records)
    found = row(ranking, "a")
    assert (found.busy_seeds, found.metrics["tokens_per_second"].left_out) == ([4], [4])
    assert found.against_baseline is not None
    assert found.against_baseline.decision == "better"
    (line,) = [line for line in ranking.warnings if "busy" in line]
    assert line.startswith(
        "the machine was busy with something else in 1 of 10 trials (a seed 4; a, seed 4: threads"
    )
    assert "`--rerun-unclean`" in line


@pytest.mark.parametrize("busy", [[0, 1, 2, 3, 4], [0, 1, 2]])
def test_too_many_busy_trials_count_and_no_seeds_are_proposed(busy: list[int]) -> None:
    speeds = noise(seed=3, spread=0.1), noise(seed=4, spread=0.1, middle=112)
    records = trials("base", speeds[0], busy) + trials("a", speeds[1], busy)
    ranking = rank(suite_of("base", "a"), records)
    assert row(ranking, "a").metrics["tokens_per_second"].n == 5
    assert "more seed" not in ranking.answer
    assert (
        f"The machine was busy with something else in {2 * len(busy)} of 10 trials: run these again on a quiet"
        in (ranking.answer)
    )
    quiet = rank(suite_of("base", "a"), trials("base", speeds[0]) + trials("a", speeds[1]))
    assert "more seed" in quiet.answer  # the same figures of a quiet machine


def settled_case(case: str) -> Ranking:
    busy = range(5) if case == "busy" else ()
    records = trials("base", noise(seed=1), busy) + trials("a", noise(seed=2, middle=130), busy)
    names = ["base", "a"]
    if case == "tied":
        records = trials("base", noise(seed=1)) + trials("a", noise(seed=2))
    elif case == "alone":
        records = trials("base", noise(seed=1)) + [make_failure("a", seed, "oom") for seed in range(5)]
    elif case == "incomplete":
        names = ["base", "a", "b"]
    elif case == "stalled":  # the mean step takes four times the median
        records = [r for r in records if r.trial.option == "base"] + [
            trial("a", s, v, step_time_median_seconds=1e-4) for s, v in enumerate(noise(seed=2, middle=130))
        ]
    return rank(suite_of(*names), records)


@pytest.mark.parametrize("case", ["sound", "busy", "tied", "alone", "incomplete", "stalled"])
def test_an_answer_is_settled_only_where_one_of_several_is_best_and_nothing_questions_it(case: str) -> None:
    ranking = settled_case(case)
    assert ranking.rows[0].rank == 1
    assert ranking.settled == (case == "sound"), ranking.answer
    assert ("settled" in ranking.model_dump(mode="json")) == (case == "sound")


def test_a_gate_says_which_run_had_a_busy_machine() -> None:
    suite = suite_of("base", "a")
    quiet = trials("base", noise(seed=1)) + trials("a", noise(seed=2))
    slow = trials("base", noise(seed=1, middle=50), range(5)) + trials("a", noise(seed=2, middle=50), range(5))
    run, reference = (ReadRun(name, suite, found, {}) for name, found in (("new", slow), ("old", quiet)))
    for notes in (
        hold_gate(run, reference, ["tokens_per_second >= 0.97x reference"]).notes,
        compare(run, reference).notes,
    ):
        assert [
            note for note in notes if note.startswith("new: the machine was busy with something else in 10 of 10")
        ]
        assert not [note for note in notes if note.startswith("old: the machine")]


def test_a_busy_machine_says_nothing_of_quality() -> None:
    losses = {"base": [5.5, 5.6, 5.4, 5.55, 5.45], "a": [5.53, 5.59, 5.44, 5.54, 5.49]}
    records = [
        trial(name, s, 100.0, final_loss=loss, **BUSY) for name, own in losses.items() for s, loss in enumerate(own)
    ]
    suite = suite_of("base", "a", decide={"objective": "final_loss", "constraints": []})
    answer = rank(suite, records).answer
    assert "more seeds" in answer
    assert "busy" not in answer


def test_an_outlier_is_named_and_nothing_is_proposed_from_its_spread() -> None:
    fast = noise(seed=6, middle=130)
    ranking = rank(suite_of("base", "a"), trials("base", noise(seed=5)) + trials("a", [*fast[:3], 13.0, fast[4]]))
    found = row(ranking, "a").against_baseline
    assert found is not None
    assert (found.decision, found.settling) == ("undecided", None)
    assert "a, seed 3 stands out and widens the intervals (see the warnings)." in ranking.answer
    assert any(
        line.startswith("a, seed 3 stands out: its tokens_per_second is 0.0990x") for line in ranking.warnings
    )
    assert "more seed" not in ranking.answer


def test_no_trial_stands_out_of_a_slow_round_a_noisy_option_or_few_trials() -> None:
    draw = np.random.default_rng(7)
    logs = draw.normal(0, 0.01, (4, 5))
    logs[:, 2] -= math.log(10)
    assert np.isnan(outlying(logs)).all()
    logs = draw.normal(0, 0.01, (4, 5)) * np.array([[1], [1], [1], [20]])
    assert np.isnan(outlying(logs)).all()
    assert np.isnan(outlying(np.log([[1.0, 1.0], [1.0, 10.0]]))).all()
    assert np.isnan(outlying(np.log([[1.0, 1.0, 10.0, 1.0]]))).all()


@pytest.mark.parametrize("options", [2, 3, 8])
@pytest.mark.parametrize("seeds", [4, 5, 10])
def test_the_one_that_stands_out_is_named_and_no_other(options: int, seeds: int) -> None:
    logs = np.random.default_rng(8).normal(0, 0.01, (options, seeds))
    logs[1, 2] -= math.log(10)
    logs[0, 0] = math.nan if options > 2 else logs[0, 0]
    assert np.argwhere(~np.isnan(outlying(logs))).tolist() == [[1, 2]]


def again(first: Record, value: float, **more: Any) -> Record:
    return trial(first.trial.option, first.trial.seed, value, attempt=first.attempt + 1,
                 started_at="2026-01-02T05:00:00Z", **more)  # fmt: skip


def test_what_was_run_again_is_told_with_both_figures() -> None:
    records = trials("base", noise(seed=1)) + trials("a", [*noise(seed=2, middle=130)[:4], 13.0], busy=[4])
    ranking = rank(suite_of("base", "a"), [*records, again(records[-1], 131.0)])
    assert (row(ranking, "a").busy_seeds, row(ranking, "a").metrics["tokens_per_second"].n) == ([], 5)
    (line,) = [line for line in ranking.warnings if "run again" in line]
    assert line.startswith(
        "a, seed 4: run again, as the machine was busy (threads waited for a core 0.9 s for each"
    )
    assert (
        "By tokens_per_second with what was replaced 81.50 tokens/s (against the baseline: not measurable here)"
        in line
    )
    assert "without it 129 tokens/s (against the baseline: 1.29x, 1.28x to 1.30x)" in line


def test_a_trial_that_ran_out_of_time_on_a_cpu_counts_against_its_option() -> None:
    late = make_failure("a", 4, "timeout")
    records = [*trials("base", noise(seed=1)), *trials("a", noise(seed=2, middle=130))[:4], late]
    ranking = rank(suite_of("base", "a"), records)
    found = row(ranking, "a")
    assert found.against_baseline is not None
    assert found.against_baseline.decision == "undecided"
    assert found.busy_seeds == []
    (told,) = found.failures
    assert told.note is None
    again = rank(suite_of("base", "a"), [*records, trial("a", 4, 131.0, attempt=2, **QUIET)])
    assert row(again, "a").metrics["tokens_per_second"].n == 5


def test_no_later_attempt_replaces_a_trial_of_a_quiet_machine() -> None:
    records = trials("base", noise(seed=1)) + trials("a", noise(seed=2))
    alone = rank(suite_of("base", "a"), records)
    ranking = rank(suite_of("base", "a"), [*records, again(records[-1], 900.0)])
    assert row(ranking, "a").metrics == row(alone, "a").metrics
    why = "it had completed, and no reading of the machine speaks against it"
    assert ranking.warnings == [f"option a, seed 4: attempt 1 counts, not 2: {why}"]
    failed = [*records[:-1], make_failure("a", 4, "crashed"), again(records[-1], 110.0)]
    assert row(rank(suite_of("base", "a"), failed), "a").n == 5


RUNS = 600


def claims(suite: Suite, speeds: np.ndarray, busy: np.ndarray, reruns: np.ndarray | None) -> set[str]:
    """What is called better or worse where busy trials are left out, or run again with these speeds."""
    records = []
    for place, option in enumerate(suite.options):
        for seed in suite.seeds:
            first = trial(option.name, seed, speeds[place, seed], **(BUSY if busy[place, seed] else {}))
            records.append(first)
            if reruns is not None and busy[place, seed]:
                records.append(again(first, reruns[place, seed]))
    rows = rank(suite, records).rows
    return {r.option for r in rows if r.against_baseline and r.against_baseline.decision in ("better", "worse")}


@pytest.mark.slow
@pytest.mark.parametrize("run_again", [False, True])
def test_what_is_run_again_or_left_out_by_readings_of_the_machine_makes_no_false_claims(run_again: bool) -> None:
    """Equal options; a tenth of the trials is on a busy machine, up to ten times as slow, reruns are as all are."""
    draw, suite, false, power = np.random.default_rng(9), suite_of("base", "a", "b"), 0, 0
    runs, undisturbed = 150, 0
    for _ in range(runs):
        rounds = draw.normal(0, 0.02, 5)
        quiet, other = (100 * np.exp(rounds + draw.normal(0, 0.01, (3, 5))) for _ in range(2))
        busy = draw.random((3, 5)) < 0.1
        slow = np.where(busy, quiet / draw.uniform(1, 10, (3, 5)), quiet)
        false += bool(claims(suite, slow, busy, other if run_again else None))
        undisturbed += bool(claims(suite, quiet, np.zeros((3, 5), bool), None))
        faster = np.array([[1.0], [1.3], [1.0]])
        power += "a" in claims(suite, slow * faster, busy, other * faster if run_again else None)
    error = math.sqrt(0.05 * 0.95 / runs)
    told = f"false claims {false / runs:.3f} +- {error:.3f}, of quiet machines {undisturbed / runs:.3f}"
    print(f"{told}; a true +30 % found {power / runs:.3f} of {runs} runs")
    assert false / runs <= 0.05 + 2 * error
    assert power / runs >= (0.97 if run_again else 0.8)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "seeds"), [(2, 5), (3, 3), (5, 3), (5, 5), (8, 5)])
def test_who_stands_out_in_noise_and_with_one_trial_ten_times_as_slow(options: int, seeds: int) -> None:
    draw = np.random.default_rng(10)
    named = dict.fromkeys((0.005, 0.05, 0.2), 0)
    found = wrong = 0
    for _ in range(RUNS):
        for spread in named:
            named[spread] += not np.isnan(outlying(draw.normal(0, spread, (options, seeds)))).all()
        logs = draw.normal(0, 0.01, (options, seeds)) + draw.normal(0, 0.02, seeds)
        logs[1] += math.log(1.3)
        logs[1, seeds // 2] -= math.log(10)
        places = np.argwhere(~np.isnan(outlying(logs))).tolist()
        found += [1, seeds // 2] in places
        wrong += places not in ([], [[1, seeds // 2]])
    error = math.sqrt(0.01 / RUNS)
    print({spread: count / RUNS for spread, count in named.items()}, found / RUNS, wrong / RUNS, f"+- {error:.4f}")
    assert max(named.values()) / RUNS <= 0.01 + 2 * error
    assert found / RUNS >= 0.99
    assert wrong / RUNS <= 0.01 + 2 * error


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_a_true_gain_with_one_trial_ten_times_as_slow_is_no_reason_for_more_seeds(seeds: int) -> None:
    draw, suite, runs = np.random.default_rng(11), suite_of("base", "a", "b", "c", seeds=seeds), 80
    named = proposed = false = 0
    for _ in range(runs):
        speeds = 100 * np.exp(draw.normal(0, 0.01, (4, seeds)) + draw.normal(0, 0.02, seeds))
        speeds[1] *= 1.3
        speeds[1, seeds // 2] /= 10
        ranking = rank(
            suite, [trial(o.name, s, speeds[i, s]) for i, o in enumerate(suite.options) for s in range(seeds)]
        )
        named += f"a, seed {seeds // 2} stands out" in ranking.answer
        proposed += "more seed" in ranking.answer
        found = [row(ranking, name).against_baseline for name in ("b", "c")]
        false += any(pair is not None and pair.decision in ("better", "worse") for pair in found)
    print(f"named {named / runs}, seeds proposed {proposed / runs}, false claims {false / runs} of {runs} runs")
    assert (named / runs, proposed) == (1.0, 0)
    assert false / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
