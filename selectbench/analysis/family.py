"""A family of tests: p adjusted by Holm, and simultaneous intervals whose ends agree with it.

Each test asks whether a logarithm differs from a bound. Holm 1979, "A simple sequentially rejective multiple test
procedure", holds the probability of any false claim at alpha. The intervals are Bonferroni's, of level
1 - alpha / tests each, so that all of them cover with probability 1 - alpha; no informative interval of that
kind rejects all that Holm does (Strassburger & Bretz 2008, doi:10.1002/sim.3338), so where Holm rejects a bound
that lies within the interval, the interval's end is moved to the bound. That leaves less than the nominal coverage
only where such a rejection is false.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from selectbench.analysis.result import Decision
from selectbench.analysis.statistics import Blocks, Bools, Difference, Floats, Integers, quantile, two_sided_p

FIRST_LOOK = 0.04
"""Probability of any false claim of a family, where the run is judged for the first time."""
LATER_LOOKS = 0.01
"""The same of all later judgements of the run together: of the second half of it, of each further one half of that
of the one before. Over all looks, however many, a claim is false with 0.05 at most (Bonferroni's inequality)."""
LIKELY = 0.8
"""Chance with which the seeds that are proposed settle a question, if the difference is what it looks like.

It often is not: of questions among five options (spread 1 %, threshold 1 %) that were open with three seeds, the
proposed ones, judged a second time, settled 79 % where the truth was 2 %, 69 % at 1.5 % and 30 % where there was
none (standard error 3 to 5 %; tests/analysis/test_simulations.py)."""
MOST_SEEDS = 200
"""More are never proposed."""
FEWEST_TO_PROPOSE = 3
"""Seeds whose spread foretells anything; of two it is right in half of all cases at best."""
ROUNDING = 1e-11
"""Of logarithms: a difference of just the threshold is not above it. A ratio of twelve digits keeps it."""
Key = TypeVar("Key", bound=Hashable)
Z_LIKELY = 0.8416
"""The normal distribution's quantile of LIKELY."""
DEFAULT_SPREAD = 0.01
"""Of one trial's figure, as a share: what speed varies by between runs on an idle machine."""


def look_of(looks: Sequence[int]) -> int:
    """The number of a judgement, from 1; `looks`: seeds at each of the run's, this one the last; none: the first.

    Those of one seed do not count, as nothing can be claimed then.
    """
    return 1 + sum(seeds > 1 for seeds in looks[:-1])


def alpha_of(look: int) -> float:
    """Probability of any false claim of a family at a run's judgement of this number."""
    return FIRST_LOOK if look == 1 else LATER_LOOKS / 2 ** (look - 1)


@dataclass(frozen=True)
class HypothesisTest:
    """Whether a logarithm differs from a bound."""

    difference: Difference
    bound: float = 0.0
    """A logarithm; 0 is the ratio 1."""
    least_p: float = 0.0
    """The p of another hypothesis that must be rejected too: the larger p is the claim's (an intersection-union
    test: Berger 1982, doi:10.1080/00401706.1982.10487790)."""


@dataclass(frozen=True)
class Judged:
    """One test among its family; logarithms."""

    estimate: float
    low: float
    high: float
    p: float
    p_adjusted: float
    alpha: float
    """The family's."""

    @property
    def is_exact(self) -> bool:
        """Whether there was no spread: chance had no part in it, so it is none of the tests that share alpha."""
        return self.low == self.high

    @property
    def rejected(self) -> bool:
        """Whether the bound is claimed not to be the truth."""
        return self.p_adjusted <= self.alpha


def judge_all(
    tests: Mapping[Key, HypothesisTest], alpha: float, total: int | None = None, *, besides: int = 0
) -> dict[Key, Judged]:
    """Of all tests whose spread is known; the others are none of the family, which shares `alpha`.

    Those without any spread are decided by the values alone and take no part of alpha. `total`: how many the
    family has, where not all are given; `besides`: how many it has besides these.
    """
    known = {key: test for key, test in tests.items() if test.difference.standard_error is not None}
    if not known:
        return {}
    differences = [test.difference for test in known.values()]
    estimates = np.array([d.estimate for d in differences])
    errors = np.array([d.standard_error or 0.0 for d in differences])
    free = np.array([d.degrees_of_freedom or math.inf for d in differences])
    bounds = np.array([test.bound for test in known.values()])
    p = np.maximum(p_values(estimates - bounds, errors, free), [test.least_p for test in known.values()])
    adjusted, by_chance = p.copy(), errors > 0
    sharing = (total or int(by_chance.sum())) + besides
    adjusted[by_chance] = holm(p[by_chance], sharing)
    sharing = max(1, sharing)
    half = np.where(by_chance, quantile(alpha / sharing, free) * errors, 0.0)
    low, high = agreeing_ends(estimates - half, estimates + half, estimates, bounds, adjusted <= alpha)
    columns = (estimates.tolist(), low.tolist(), high.tolist(), p.tolist(), adjusted.tolist())
    return {key: Judged(*found, alpha) for key, found in zip(known, zip(*columns, strict=True), strict=True)}


def p_values(distances: Floats, errors: Floats, free: Floats) -> Floats:
    """Two-sided, elementwise; without any spread 1 for no distance and 0 for any."""
    p = np.where(distances == 0, 1.0, 0.0)
    spread = errors > 0
    p[spread] = two_sided_p(distances[spread] / errors[spread], free[spread])
    return p


def holm(p: Floats, tests: int | None = None) -> Floats:
    """Adjusted p of each; `tests`: how many the family has, where not all are given."""
    total = len(p) if tests is None else tests
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * (total - np.arange(len(p))))
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def agreeing_ends(
    low: Floats, high: Floats, estimates: Floats, bounds: Floats, rejected: Bools
) -> tuple[Floats, Floats]:
    """Ends that exclude the bound where it is rejected."""
    above, below = rejected & (estimates > bounds), rejected & (estimates < bounds)
    low = np.where(above, np.maximum(low, bounds + ROUNDING), low)
    high = np.where(below, np.minimum(high, bounds - ROUNDING), high)
    return low, high


def decide(judged: Judged, threshold: float, *, more_is_better: bool) -> Decision:
    """The two gates: the adjusted p, and a difference above the threshold (a share, such as 0.01)."""
    matters = math.log1p(threshold) + ROUNDING
    if judged.rejected and abs(judged.estimate) > matters:
        return "better" if (judged.estimate > 0) is more_is_better else "worse"
    within = -matters <= judged.low and judged.high <= matters
    return "no_difference" if within and (threshold > 0 or judged.low == judged.high) else "undecided"


def own_interval(difference: Difference, alpha: float = 0.05) -> tuple[float, float] | None:
    """Ends of its interval of level 1 - alpha by itself, as logarithms; None: no measure of spread."""
    if difference.standard_error is None:
        return None
    half = difference.standard_error * float(quantile(alpha, difference.degrees_of_freedom or math.inf))
    return difference.estimate - half, difference.estimate + half


def seeds_to_settle(difference: Difference, alpha: float, distance: float) -> int | None:
    """More seeds until a distance so large would be told with a chance of LIKELY; None: more than MOST_SEEDS.

    `distance`: between the estimate and what it must be told from, as a logarithm. From the observed spread, with
    degrees of freedom that grow with the seeds; `alpha`: the test's own, a family's over its tests.
    """
    error, free = difference.standard_error, difference.degrees_of_freedom
    if not error or not free or distance <= 0 or difference.seeds < FEWEST_TO_PROPOSE:
        return None
    of_one_seed, free_of_one = error * math.sqrt(difference.seeds), free / (difference.seeds - 1)

    def tells(seeds: int) -> bool:
        critical = float(quantile(alpha, free_of_one * (seeds - 1)))
        return (critical + Z_LIKELY) * of_one_seed / math.sqrt(seeds) <= distance

    low, high = difference.seeds, MOST_SEEDS
    if not tells(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tells(middle) else (middle, high)
    return high - difference.seeds


@dataclass(frozen=True)
class Pairs:
    """Of n options the n (n - 1) / 2 pairs, each as (first, second) with first < second."""

    names: Sequence[str]
    first: Integers
    second: Integers
    estimates: Floats
    """Logarithm of first over second; NaN where no seed has both."""
    p: Floats
    """Of each by itself; NaN where there is no measure of spread."""
    p_adjusted: Floats
    """The same adjusted for all pairs."""
    alpha: float
    """The family's."""
    half_widths: Floats
    """Of the simultaneous intervals (Bonferroni's over all pairs); NaN where there is no measure of spread."""

    def place(self, option: str, other: str) -> int:
        """Of the pair of these two, in whichever order."""
        low, high = sorted((self.names.index(option), self.names.index(other)))
        return low * len(self.names) - low * (low + 1) // 2 + high - low - 1

    def beats(self, option: str, yardstick: str, threshold: float, *, more_is_better: bool) -> bool:
        """Whether it is shown to be better than the yardstick, adjusted for all options against that one."""
        place = self.place(option, yardstick)
        others = [self.place(name, yardstick) for name in self.names if name != yardstick]
        known = [p for p in self.p[others].tolist() if not math.isnan(p)]
        p, ahead = float(self.p[place]), float(self.estimates[place])
        signed = ahead if self.names.index(option) < self.names.index(yardstick) else -ahead
        gain = signed if more_is_better else -signed
        if math.isnan(p) or gain <= math.log1p(threshold) + ROUNDING:
            return False
        return float(holm(np.array(known))[known.index(p)]) <= self.alpha

    def better(self, threshold: float, *, more_is_better: bool, families: int = 1) -> Bools:
        """[i, j]: whether i is shown to be better than j by both gates; `families` share alpha."""
        told = self.p_adjusted <= self.alpha / families
        told &= np.abs(self.estimates) > math.log1p(threshold) + ROUNDING
        ahead = (self.estimates > 0) == more_is_better
        return self._square(told & ahead, told & ~ahead)

    def same(self, threshold: float) -> Bools:
        """[i, j]: whether the whole interval lies within the threshold."""
        with np.errstate(invalid="ignore"):
            within = np.abs(self.estimates) + self.half_widths <= math.log1p(threshold) + ROUNDING
        return self._square(within, within)

    def not_worse(self, threshold: float, *, more_is_better: bool) -> Bools:
        """[i, j]: whether i is shown to be worse than j by less than the threshold, or not at all."""
        signed = self.estimates if more_is_better else -self.estimates
        least = -math.log1p(threshold) - ROUNDING
        with np.errstate(invalid="ignore"):
            return self._square(signed - self.half_widths >= least, -signed - self.half_widths >= least)

    def known(self) -> Bools:
        """[i, j]: whether there is a measure of spread."""
        known = ~np.isnan(self.p_adjusted)
        return self._square(known, known)

    def ahead_by_means(self, *, more_is_better: bool, by: float = 0.0) -> Bools:
        """[i, j]: whether i's estimate is better than j's by more than the share `by`; no claim."""
        signed = self.estimates if more_is_better else -self.estimates
        return self._square(signed > math.log1p(by), -signed > math.log1p(by))

    def _square(self, of_first: Bools, of_second: Bools) -> Bools:
        """[i, j] from what is true of each pair's first option over its second, and the other way round."""
        square = np.zeros((len(self.names), len(self.names)), bool)
        square[self.first, self.second] = of_first
        square[self.second, self.first] = of_second
        return square


def all_pairs(blocks: Blocks, names: Sequence[str], alpha: float) -> Pairs:
    """Among the options of these names, in their order: the tests of `statistics`, adjusted by Holm."""
    first, second = np.triu_indices(len(names), 1)
    places = blocks.places(names)
    found = blocks.differences(places[first], places[second])
    estimates, errors, free = found.estimates, found.standard_errors, found.degrees_of_freedom
    adjusted = np.full(len(first), np.nan)
    known = ~np.isnan(errors)
    spread = known & (errors > 0)
    p = np.full(len(first), np.nan)
    p[known] = adjusted[known] = p_values(estimates[known], errors[known], free[known])
    adjusted[spread] = holm(p[spread])
    widths = np.full(len(first), np.nan)
    widths[known] = 0.0
    widths[spread] = quantile(alpha / max(1, int(spread.sum())), free[spread]) * errors[spread]
    return Pairs(names, first, second, estimates, p, adjusted, alpha, widths)


def detectable(rounds: int, options: int, tests: int, spread: float = DEFAULT_SPREAD) -> float:
    """The share by which two options must differ to be told apart with a chance of 80 %.

    For a variance that is pooled over the options, at Bonferroni's level for `tests` of a first judgement: the sum
    of the t quantile and the normal one of 0.8, in standard errors of a difference (Cohen 1988, chapter 2, in its
    normal approximation).
    """
    free = max(1, (max(2, options) - 1) * (rounds - 1))
    error = spread * math.sqrt(2 / rounds)
    return math.expm1((float(quantile(FIRST_LOOK / tests, free)) + Z_LIKELY) * error)
