"""All pairs of options of one metric at once: the tests of `blocks`, as matrices, adjusted by Holm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selectbench.analysis.blocks import Blocks
from selectbench.analysis.distributions import Bools, Floats, quantile
from selectbench.analysis.family import ALPHA, ROUNDING, holm, p_values

_EQUAL = 1e-13


@dataclass(frozen=True)
class Pairs:
    """Of n options the n (n - 1) / 2 pairs, each as (first, second) with first < second."""

    names: Sequence[str]
    first: np.ndarray
    second: np.ndarray
    estimates: Floats
    """Logarithm of first over second; NaN where no seed has both."""
    p: Floats
    """Of each by itself; NaN where there is no measure of spread."""
    p_adjusted: Floats
    """The same adjusted for all pairs."""
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
        return float(holm(np.array(known))[known.index(p)]) <= ALPHA

    def better(self, threshold: float, *, more_is_better: bool, families: int = 1) -> Bools:
        """[i, j]: whether i is shown to be better than j by both gates; `families` share alpha."""
        told = self.p_adjusted <= ALPHA / families
        told &= np.abs(self.estimates) > math.log1p(threshold) + ROUNDING
        ahead = (self.estimates > 0) == more_is_better
        found = np.zeros((len(self.names), len(self.names)), bool)
        found[self.first[told & ahead], self.second[told & ahead]] = True
        found[self.second[told & ~ahead], self.first[told & ~ahead]] = True
        return found

    def same(self, threshold: float) -> Bools:
        """[i, j]: whether the whole interval lies within the threshold."""
        with np.errstate(invalid="ignore"):
            told = np.abs(self.estimates) + self.half_widths <= math.log1p(threshold) + ROUNDING
        found = np.zeros((len(self.names), len(self.names)), bool)
        found[self.first[told], self.second[told]] = found[self.second[told], self.first[told]] = True
        return found

    def known(self) -> Bools:
        """[i, j]: whether there is a measure of spread."""
        found = np.zeros((len(self.names), len(self.names)), bool)
        told = ~np.isnan(self.p_adjusted)
        found[self.first[told], self.second[told]] = found[self.second[told], self.first[told]] = True
        return found

    def ahead_by_means(self, *, more_is_better: bool, by: float = 0.0) -> Bools:
        """[i, j]: whether i's estimate is better than j's by more than the share `by`; no claim."""
        signed = self.estimates if more_is_better else -self.estimates
        found = np.zeros((len(self.names), len(self.names)), bool)
        found[self.first, self.second] = signed > math.log1p(by)
        found[self.second, self.first] = -signed > math.log1p(by)
        return found


def all_pairs(blocks: Blocks, names: Sequence[str]) -> Pairs:
    """Among the options of these names, in their order."""
    places = {name: number for number, name in enumerate(blocks.names)}
    logs = blocks.logs[[places[name] for name in names]]
    first, second = np.triu_indices(len(names), 1)
    pool = blocks.pool[[places[name] for name in names]]
    estimates, errors, free = _differences(blocks, logs, pool, first, second)
    adjusted = np.full(len(first), np.nan)
    known = ~np.isnan(errors)
    spread = known & (errors > 0)
    p = np.full(len(first), np.nan)
    p[known] = adjusted[known] = p_values(estimates[known], errors[known], free[known])
    adjusted[spread] = holm(p[spread])
    widths = np.full(len(first), np.nan)
    widths[known] = 0.0
    widths[spread] = quantile(ALPHA / max(1, int(spread.sum())), free[spread]) * errors[spread]
    return Pairs(names, first, second, estimates, p, adjusted, widths)


def _differences(
    blocks: Blocks, logs: Floats, pool: Bools, first: np.ndarray, second: np.ndarray
) -> tuple[Floats, Floats, Floats]:
    """Estimates, standard errors and degrees of freedom by the rules of `Blocks.difference`; NaN: not known."""
    present = ~np.isnan(logs)
    values = np.where(present, logs, 0.0)
    both = present[first] & present[second]
    gaps = np.where(both, values[first] - values[second], 0.0)
    seeds = both.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimates = gaps.sum(axis=1) / seeds
        own = (np.where(both, gaps - estimates[:, None], 0.0) ** 2).sum(axis=1) / (seeds - 1)
        variances, free = _mixed(blocks, own, seeds - 1.0, pool[first] & pool[second])
        errors = np.sqrt(variances / seeds)
    widest = np.where(both, gaps, -np.inf).max(axis=1, initial=-np.inf)
    narrowest = np.where(both, gaps, np.inf).min(axis=1, initial=np.inf)
    errors = np.where(widest - narrowest <= _EQUAL, 0.0, errors)
    return estimates, np.where(seeds < 2, np.nan, errors), free


def _mixed(blocks: Blocks, own: Floats, free: Floats, pooled: Bools) -> tuple[Floats, Floats]:
    """Variance of one seed's difference, and its degrees of freedom."""
    if blocks.variance is None:
        return own, free
    variance, total = 2 * blocks.variance, float(blocks.degrees_of_freedom)
    prior = blocks.prior_degrees_of_freedom
    if math.isinf(prior):
        return np.where(pooled, variance, own), np.where(pooled, total, free)
    mixed, known = (prior * variance + free * own) / (prior + free), np.minimum(prior + free, total)
    return np.where(pooled, mixed, own), np.where(pooled, known, free)
