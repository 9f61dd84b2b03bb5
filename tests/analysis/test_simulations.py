"""The claims of rankings over many simulated runs: how often they are wrong, and how often a truth is found.

Each figure has its Monte Carlo error; a bound is asserted where the figure lies above it by more than twice that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from made_records import make_record, make_suite, speed

from selectbench.analysis.contest import Contest, Ranks
from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Comparison
from selectbench.analysis.summary import Summary
from selectbench.suite.metrics import METRICS
from selectbench.suite.suite import Suite

pytestmark = pytest.mark.slow
NAMES = ("base", "a", "b", "c", "d")
RUNS = 1000


def suite_of(seeds: int, threshold: float) -> Suite:
    options = [(name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + i)}}) for i, name in enumerate(NAMES)]
    decide = {"constraints": [], "thresholds": {"tokens_per_second": threshold}}
    return make_suite(*options, seeds=list(range(seeds)), decide=decide)


@dataclass(frozen=True)
class Run:
    """What is claimed of a simulated run."""

    against_baseline: dict[str, Comparison]
    ranks: dict[str, int]


def simulated(
    seed: int, effects: Sequence[float], spreads: Sequence[float], *, seeds: int = 5, threshold: float = 0.01,
    runs: int = RUNS, last_has: int | None = None,
) -> list[Run]:  # fmt: skip
    """Runs whose log speeds are effect + round + chance, judged as a ranking judges them.

    `last_has`: seeds that the last option completed; all of them where not given.
    """
    draw, suite = np.random.default_rng(seed), suite_of(seeds, threshold)
    found = []
    for _ in range(runs):
        rounds = draw.normal(0, 0.02, seeds)
        chance = draw.normal(size=(len(NAMES), seeds)) * np.array(spreads)[:, None]
        if last_has is not None:
            chance[-1, last_has:] = np.nan
        found.append(judged(suite, np.exp(math.log(1000) + np.array(effects)[:, None] + rounds + chance)))
    return found


def known(row: np.ndarray) -> dict[int, float]:
    return {seed: value for seed, value in enumerate(row.tolist()) if not math.isnan(value)}


def judged(suite: Suite, speeds: np.ndarray, *, proposes: bool = False) -> Run:
    """`proposes`: whether the seeds are foretold that would settle what is open, which takes half of the time."""
    summaries = []
    for option, row in zip(suite.options, speeds, strict=True):
        values = {name: {} for name in METRICS} | {"tokens_per_second": known(row)}
        summaries.append(Summary(option, suite.seeds, values=values, spoiled={name: {} for name in METRICS}))
    contest = Contest(suite, summaries, dict.fromkeys(NAMES, True))
    contest.is_complete = proposes
    ranks = Ranks(contest, NAMES)
    pairs = {name: contest.against_baseline(name) for name in NAMES[1:]}
    return Run(pairs, {name: ranks.rank(name) for name in ranks.ranked})


def test_the_simulation_judges_as_rank_does() -> None:
    speeds = np.exp(np.random.default_rng(3).normal(7, 0.02, (len(NAMES), 5)))
    suite = suite_of(5, 0.01)
    records = [make_record(n, s, **speed(speeds[i, s])) for i, n in enumerate(NAMES) for s in range(5)]
    run, rows = judged(suite, speeds), rank(suite, records).rows
    assert {row.option: row.rank for row in rows} == run.ranks
    for row in rows:
        if row.against_baseline:
            expected = run.against_baseline[row.option]
            assert row.against_baseline.decision == expected.decision
            assert row.against_baseline.p_adjusted == pytest.approx(expected.p_adjusted)


def claims(run: Run) -> set[tuple[str, str]]:
    """(option, decision) against the baseline, and (option, 'behind') for a rank that is not the first."""
    told = {(name, pair.decision) for name, pair in run.against_baseline.items()}
    behind = {(name, "behind") for name, number in run.ranks.items() if number > 1}
    return {claim for claim in told if claim[1] in ("better", "worse")} | behind


def cover(run: Run, effects: Sequence[float]) -> bool:
    """Whether every simultaneous interval against the baseline holds its truth."""
    truth = {name: math.exp(effect - effects[0]) for name, effect in zip(NAMES, effects, strict=True)}
    return all(pair.low <= truth[name] <= pair.high for name, pair in run.against_baseline.items())


def error(share: float) -> float:
    return math.sqrt(max(share * (1 - share), 1 / RUNS) / RUNS)


def told(what: str, share: float) -> str:
    return f"{what}: {share:.3f} +- {error(share):.3f} of {RUNS} runs"


@pytest.mark.parametrize("threshold", [0.0, 0.01])
def test_equal_options_are_seldom_told_apart(threshold: float) -> None:
    runs = simulated(11, [0.0] * 5, [0.01] * 5, threshold=threshold)
    false = sum(bool(claims(run)) for run in runs) / RUNS
    covered = sum(cover(run, [0.0] * 5) for run in runs) / RUNS
    print(told("false claims", false), told("intervals cover", covered), sep="\n")
    assert false <= 0.05
    assert 0.93 <= covered <= 0.97 + 2 * error(covered)


def test_a_slower_option_is_found() -> None:
    effects = [0.0, 0.0, 0.0, 0.0, math.log(0.97)]
    runs = simulated(12, effects, [0.01] * 5)
    found = sum(("d", "worse") in claims(run) for run in runs) / RUNS
    false = sum(bool(claims(run) - {("d", "worse"), ("d", "behind")}) for run in runs) / RUNS
    covered = sum(cover(run, effects) for run in runs) / RUNS
    print(told("found", found), told("false claims", false), told("intervals cover", covered), sep="\n")
    assert found >= 0.86
    assert false <= 0.05
    assert 0.93 <= covered <= 0.97 + 2 * error(covered)


@pytest.mark.parametrize("true", [0.008, 0.009])
def test_a_difference_below_the_threshold_may_be_called_better_and_is_not_shown_to_exceed_it(true: float) -> None:
    """The measured difference must be above the threshold, not the true one: docs/how-it-decides.md says so."""
    pairs = [run.against_baseline["d"] for run in simulated(21, [0.0] * 4 + [math.log1p(true)], [0.003] * 5)]
    better = sum(pair.decision == "better" for pair in pairs) / RUNS
    exceeds = sum(pair.exceeds for pair in pairs) / RUNS
    print(told(f"{true:.1%} called better", better), told("shown to exceed 1 %", exceeds), sep="\n")
    assert 0.1 <= better <= 0.35
    assert exceeds <= 0.01


def test_a_difference_far_above_the_threshold_is_shown_to_exceed_it() -> None:
    pairs = [run.against_baseline["d"] for run in simulated(22, [0.0] * 4 + [math.log(1.03)], [0.01] * 5)]
    exceeds = sum(pair.exceeds for pair in pairs) / RUNS
    print(told("3 % shown to exceed 1 %", exceeds))
    assert exceeds >= 0.43


@pytest.mark.parametrize(
    "effects", [[0.0, 0.03, -0.03, 0.06, -0.06], [0.0, 0.2, -0.2, 0.4, 0.0]], ids=["spread out", "one equal"]
)
def test_simultaneous_intervals_cover_real_differences(effects: list[float]) -> None:
    runs = simulated(13, effects, [0.01] * 5)
    covered = sum(cover(run, effects) for run in runs) / RUNS
    print(told("intervals cover", covered))
    assert covered + 2 * error(covered) >= 0.93
    assert covered <= 0.97 + 2 * error(covered)


@pytest.mark.parametrize("spreads", [
    [0.01, 0.01, 0.01, 0.01, 0.02], [0.01, 0.01, 0.01, 0.01, 0.05], [0.005, 0.01, 0.01, 0.02, 0.03],
    [0.02, 0.01, 0.01, 0.01, 0.01], [0.04, 0.01, 0.01, 0.01, 0.01],
])  # fmt: skip
@pytest.mark.parametrize("seeds", [3, 5])
def test_unequal_spreads_do_not_make_options_better(spreads: list[float], seeds: int) -> None:
    runs = simulated(14, [0.0] * 5, spreads, seeds=seeds, threshold=0.0)
    better = sum(any(decision == "better" for _, decision in claims(run)) for run in runs) / RUNS
    either = sum(bool(claims(run)) for run in runs) / RUNS
    print(told("false better", better), told("false claims", either), sep="\n")
    assert better <= 0.04 + 2 * error(better)
    # Of 20,000 runs 4.8 % with five seeds and 5.9 % with three, +- 0.2: the most where the baseline is noisy.
    assert either <= (0.05 if seeds == 5 else 0.06) + 2 * error(either)


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_noisy_option_of_two_seeds_borrows_no_spread(seeds: int) -> None:
    runs = simulated(15, [0.0] * 5, [0.01, 0.01, 0.01, 0.01, 0.05], seeds=seeds, threshold=0.0, last_has=2)
    false = sum(bool(claims(run)) for run in runs) / RUNS
    print(told("false claims", false))
    assert false <= 0.05 + 2 * error(false)


@pytest.mark.parametrize(
    ("effect", "least"), [(0.02, 0.7), (0.015, 0.6), (0.0, 0.2)], ids=["clear", "small", "none"]
)
def test_the_seeds_that_are_proposed_settle_most_open_questions(effect: float, least: float) -> None:
    """Of runs whose question was open with three seeds, how many were decided with the proposed ones."""
    runs, most, effects = 200, 40, [0.0, 0.0, 0.0, 0.0, effect]
    draw, suites, settled, tried = np.random.default_rng(17), {}, 0, 0
    for _ in range(runs):
        rounds, chance = draw.normal(0, 0.02, 3 + most), draw.normal(0, 0.01, (len(NAMES), 3 + most))
        speeds = np.exp(math.log(1000) + np.array(effects)[:, None] + rounds + chance)
        three = judged(suites.setdefault(3, suite_of(3, 0.01)), speeds[:, :3], proposes=True)
        found = three.against_baseline["d"]
        if found.decision != "undecided" or found.settling is None or found.settling.seeds > most:
            continue
        seeds = 3 + found.settling.seeds
        extended = suite_of(seeds, 0.01).model_copy(update={"looks": [3, seeds]})
        later = judged(suites.setdefault(seeds, extended), speeds[:, :seeds]).against_baseline["d"]
        tried, settled = tried + 1, settled + (later.decision != "undecided")
    share = settled / tried
    print(f"settled: {share:.3f} +- {math.sqrt(share * (1 - share) / tried):.3f} of {tried} proposals")
    assert tried >= runs / 3
    assert share >= least
