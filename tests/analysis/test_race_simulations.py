"""Races over many simulated suites: what they save, and how often they claim what the full grid denies.

The full grid is ten rounds of every option, judged once as a suite without `repeat` is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import pytest
from made_records import make_record
from test_simulations import NAMES, suite_of

from selectbench.analysis.look import Look, take_look
from selectbench.analysis.metrics import METRICS
from selectbench.analysis.race import Race, run_race
from selectbench.analysis.summary import Summary
from selectbench.suite.suite import Repeat, Suite

ROUNDS = 10
DONE = make_record("base", 0)
DRAWN = [0.0, *(math.log1p(effect) for effect in (0.03, -0.03, 0.1, -0.1))]
"""Of which an option's true effect is one."""


@dataclass(frozen=True)
class Raced:
    race: Race
    summaries: list[Summary]

    @cached_property
    def full(self) -> Look:
        """What all rounds say, looked at once."""
        by_name = {summary.name: summary for summary in self.summaries}
        return take_look(self.race.suite, ROUNDS, by_name, 1, frozenset())

    @property
    def share(self) -> float:
        """Trials run over those of the full grid."""
        return sum(len(self.race.asked(name)) for name in NAMES) / (ROUNDS * len(NAMES))

    @property
    def contradicts(self) -> bool:
        """Whether it claims better or worse of a pair of which the full grid decides anything else."""
        pairs = [(self.race.kept.decision(*pair), self.full.decision(*pair)) for pair in combinations(NAMES, 2)]
        return any(ours in ("better", "worse") and theirs not in (ours, "undecided") for ours, theirs in pairs)

    @property
    def better(self) -> list[str]:
        """Options that it claims to be better than the baseline."""
        return [name for name in NAMES[1:] if self.race.kept.decision(name, "base") == "better"]

    @property
    def claims(self) -> bool:
        """Whether it tells any pair apart."""
        return any(self.race.kept.decision(*pair) in ("better", "worse") for pair in combinations(NAMES, 2))


def summaries_of(suite: Suite, speeds: np.ndarray) -> list[Summary]:
    none: dict[str, dict[int, float]] = {name: {} for name in METRICS}
    done = dict.fromkeys(suite.seeds, DONE)
    return [
        Summary(option, suite.seeds, done, values=none | {"tokens_per_second": dict(enumerate(row))}, spoiled=none)
        for option, row in zip(suite.options, speeds.tolist(), strict=True)
    ]


def simulated(seed: int, effects: Sequence[float], runs: int) -> Iterator[Raced]:
    """Races whose log speeds are effect + round + chance of 1 %, each option's effect drawn from these."""
    draw = np.random.default_rng(seed)
    suite = suite_of(ROUNDS, 0.01).model_copy(update={"repeat": Repeat(min=3, max=ROUNDS)})
    for _ in range(runs):
        truth = np.array([0.0, *draw.choice(effects, len(NAMES) - 1)])
        logs = truth[:, None] + draw.normal(0, 0.02, ROUNDS) + draw.normal(0, 0.01, (len(NAMES), ROUNDS))
        summaries = summaries_of(suite, 1000 * np.exp(logs))
        yield Raced(run_race(suite, summaries), summaries)


def shown(what: str, found: Sequence[float]) -> float:
    """The mean, printed with its Monte Carlo error."""
    error = float(np.std(found)) / math.sqrt(len(found))
    print(f"{what}: {np.mean(found):.4f} +- {error:.4f} of {len(found)} suites")
    return float(np.mean(found))


@pytest.mark.slow
def test_a_race_saves_trials_and_seldom_contradicts_the_full_grid() -> None:
    found = list(simulated(21, DRAWN, 1000))
    assert shown("contradicts the full grid", [run.contradicts for run in found]) <= 0.05
    assert shown("trials of the full grid", [run.share for run in found]) <= 0.6
    assert min(run.share for run in found) == 0.3


@pytest.mark.slow
def test_a_race_of_equals_seldom_finds_one_better() -> None:
    found = list(simulated(22, [0.0], 300))
    assert shown("false better than the baseline", [bool(run.better) for run in found]) <= 0.05
    assert shown("any false claim of a pair", [run.claims for run in found]) <= 0.05
    shown("trials of the full grid", [run.share for run in found])
