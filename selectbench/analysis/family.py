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
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from selectbench.analysis.result import Decision
from selectbench.analysis.statistics import Blocks, Bools, Difference, Floats, quantile, two_sided_p

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
"""Fewest seeds whose spread is used to propose more; with two it is right in half of all cases at best."""
ROUNDING = 1e-11
"""Rounding of logarithms: a difference of just the threshold is not above it. A ratio of twelve digits keeps it."""
Key = TypeVar("Key", bound=Hashable)
Z_LIKELY = 0.8416
"""The normal distribution's quantile of LIKELY."""
DEFAULT_SPREAD = 0.01
"""Spread of one trial's figure, as a share: that of speed between runs on an idle machine."""


def judgement_number(looks: Sequence[int]) -> int:
    """Number of a judgement, from 1; `looks`: seeds at each of the run's, of which one seed is none."""
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
class ClaimTest:
    """The result of one test of a family; estimate and ends are logarithms."""

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
        """Whether the hypothesis that the truth is the bound is rejected, adjusted for the family."""
        return self.p_adjusted <= self.alpha


def judge_all(tests: Mapping[Key, HypothesisTest], alpha: float, *, further: int = 0) -> dict[Key, ClaimTest]:
    """Results of all tests whose spread is known; the others are not in the family, which shares `alpha`.

    Those without any spread are decided by the values alone and take no part of alpha. `further`: how many tests
    the family has besides these.
    """
    known = {key: test for key, test in tests.items() if test.difference.standard_error is not None}
    if not known:
        return {}
    differences = [test.difference for test in known.values()]
    estimates = np.array([d.estimate for d in differences])
    errors = np.array([d.standard_error or 0.0 for d in differences])
    dof, bounds = np.array([d.dof for d in differences]), np.array([test.bound for test in known.values()])
    n_tests = int((errors > 0).sum()) + further
    least = np.array([test.least_p for test in known.values()])
    p, adjusted, half = _p_and_widths(estimates - bounds, errors, dof, alpha, n_tests, least)
    low, high = agreeing_ends(estimates - half, estimates + half, estimates, bounds, adjusted <= alpha)
    columns = (estimates.tolist(), low.tolist(), high.tolist(), p.tolist(), adjusted.tolist())
    return {key: ClaimTest(*row, alpha) for key, row in zip(known, zip(*columns, strict=True), strict=True)}


def _p_and_widths(
    distances: Floats, errors: Floats, dof: Floats, alpha: float, n_tests: int, least_p: Floats | float = 0.0
) -> tuple[Floats, Floats, Floats]:
    """Two-sided p, adjusted p, and half the width of the simultaneous interval; NaN where the error is.

    Without any spread p is 1 for no distance and 0 for any, however many tests share alpha.
    """
    p, half, spread = np.where(distances == 0, 1.0, 0.0), np.zeros(len(distances)), errors > 0
    p[spread] = two_sided_p(distances[spread] / errors[spread], dof[spread])
    p = np.maximum(p, least_p)
    adjusted = p.copy()
    adjusted[spread] = holm(p[spread], n_tests)
    half[spread] = quantile(alpha / max(1, n_tests), dof[spread]) * errors[spread]
    known = np.where(np.isnan(errors), np.nan, 0.0)
    return p + known, adjusted + known, half + known


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
    """Ends of intervals, moved so that they exclude the bound where it is rejected."""
    above, below = rejected & (estimates > bounds), rejected & (estimates < bounds)
    low = np.where(above, np.maximum(low, bounds + ROUNDING), low)
    high = np.where(below, np.minimum(high, bounds - ROUNDING), high)
    return low, high


def decide(result: ClaimTest, threshold: float, *, more_is_better: bool) -> Decision:
    """The two gates: the adjusted p, and a ratio beyond 1 + the threshold in either direction (0.01: 1.01x)."""
    margin = math.log1p(threshold) + ROUNDING
    if result.rejected and abs(result.estimate) > margin:
        return "better" if (result.estimate > 0) is more_is_better else "worse"
    within = -margin <= result.low and result.high <= margin
    return "no_difference" if within and (threshold > 0 or result.low == result.high) else "undecided"


def seeds_to_settle(difference: Difference, alpha: float, distance: float) -> int | None:
    """More seeds until a distance so large would be detected with a chance of LIKELY; None: more than MOST_SEEDS.

    `distance`: between the estimate and what it must differ from, as a logarithm. From the observed spread, with
    degrees of freedom that grow with the seeds; `alpha`: the test's own, a family's over its tests.
    """
    error, dof = difference.standard_error, difference.degrees_of_freedom
    if not error or not dof or distance <= 0 or difference.seeds < FEWEST_TO_PROPOSE:
        return None
    seed_error, dof_per_seed = error * math.sqrt(difference.seeds), dof / (difference.seeds - 1)

    def detects(seeds: int) -> bool:
        critical = float(quantile(alpha, dof_per_seed * (seeds - 1)))
        return (critical + Z_LIKELY) * seed_error / math.sqrt(seeds) <= distance

    if not detects(MOST_SEEDS):
        return None
    return bisect_left(range(MOST_SEEDS), True, lo=difference.seeds + 1, key=detects) - difference.seeds


@dataclass(frozen=True)
class Pairs:
    """All pairs of some options, each array (options, options): of the row's option against the column's."""

    names: Sequence[str]
    estimates: Floats
    """Logarithm of the row's over the column's; NaN where no seed has both, and of an option with itself."""
    p: Floats
    """Unadjusted; NaN where there is no measure of spread."""
    p_adjusted: Floats
    """p adjusted for all pairs."""
    half_widths: Floats
    """Half widths of the simultaneous intervals (Bonferroni's over all pairs); NaN: no measure of spread."""
    alpha: float
    """The family's."""
    more_is_better: bool

    @property
    def gains(self) -> Floats:
        """The estimates, above 0 where the row's option is the better one."""
        return self.estimates if self.more_is_better else -self.estimates

    @property
    def known(self) -> Bools:
        """Whether a pair has a measure of spread."""
        known: Bools = ~np.isnan(self.p_adjusted)
        return known

    def beat(self, yardstick: int, threshold: float) -> Bools:
        """Who is shown to be better than the yardstick, adjusted for all options against that one.

        So is who is shown to be better than one that is.
        """
        p, known = self.p[:, yardstick].copy(), self.known[:, yardstick]
        p[known] = holm(p[known])
        beat: Bools = (self.gains[:, yardstick] > math.log1p(threshold) + ROUNDING) & (p <= self.alpha)
        beat |= np.array((self.better(threshold) & beat).any(axis=1))
        beat[yardstick] = False
        return beat

    def better(self, threshold: float, divisor: int = 1) -> Bools:
        """Whether the row's option is better by more than the threshold, significantly so at alpha / divisor."""
        return (self.p_adjusted <= self.alpha / divisor) & (self.gains > math.log1p(threshold) + ROUNDING)

    def same(self, threshold: float) -> Bools:
        """Whether a pair is shown to be equivalent: the whole interval lies within the threshold."""
        within: Bools = np.abs(self.estimates) + self.half_widths <= math.log1p(threshold) + ROUNDING
        return within

    def not_worse(self, threshold: float) -> Bools:
        """Whether the row's option is shown to be worse by less than the threshold, or not at all."""
        return self.gains - self.half_widths >= -math.log1p(threshold) - ROUNDING


def all_pairs(blocks: Blocks, names: Sequence[str], alpha: float, *, more_is_better: bool = True) -> Pairs:
    """Comparisons of all pairs of the named options, in their order, adjusted by Holm."""
    above, places = np.triu_indices(len(names), 1), blocks.places(names)

    def square(upper: Floats, sign: float = 1.0) -> Floats:
        whole = np.full((len(names), len(names)), np.nan)
        whole[above], whole[above[::-1]] = upper, sign * upper
        return whole

    d = blocks.differences(places[above[0]], places[above[1]])
    errors = d.standard_errors
    n_tests = int((errors > 0).sum())
    p, adjusted, half = map(square, _p_and_widths(d.estimates, errors, d.degrees_of_freedom, alpha, n_tests))

    return Pairs(names, square(d.estimates, -1.0), p, adjusted, half, alpha, more_is_better)


def detectable(rounds: int, options: int, tests: int) -> float:
    """The share by which two options must differ to be told apart with a chance of 80 %, at a first judgement.

    Figures spread by DEFAULT_SPREAD, which is pooled over the options. At Bonferroni's level for `tests` it is the
    sum of the t quantile and the normal one of 0.8, in standard errors of a difference (Cohen 1988, chapter 2, in
    its normal approximation).
    """
    dof = max(1, (max(2, options) - 1) * (rounds - 1))
    error = DEFAULT_SPREAD * math.sqrt(2 / rounds)
    return math.expm1((float(quantile(FIRST_LOOK / tests, dof)) + Z_LIKELY) * error)
