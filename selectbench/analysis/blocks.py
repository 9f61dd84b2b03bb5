"""Differences between options within rounds: a seed is a block, every option once in it.

Values are compared as logarithms, so that a difference is a ratio and a spread a share. The additive model is
log(value) = option + seed + chance; chance is what two-way residuals show. Where the options' spreads agree, the
variance is pooled over them, which is what makes few seeds enough; where they do not, each pair falls back on the
spread of its own differences (the blocked counterpart of Welch's test). An option that is noisier than the others
beyond doubt (an F test at 0.001, shared among the options) is no part of the pool, so that it does not widen the
others' intervals; its own pairs have their own spread. So do those of an option with half the seeds of the
others or fewer, or with two where others have more: whether its spread is theirs can't be seen. Between pooled
and own the weights follow the moderated t of Smyth 2004, "Linear models and empirical Bayes methods",
doi:10.2202/1544-6115.1027, section 6: the prior degrees of freedom are estimated from how much more the options'
log variances differ than chance makes them. With few options that estimate says little, so the variance of the
log variances is taken larger by one and a half of its standard errors, a share of
sqrt(2 / (options - 1)) each. What that leaves, with options of equal
speed whose spreads differ up to five times: a false "better" in 1 to 4 % of simulated runs, and any false claim
in 3 to 8 % with five seeds, in 3 to 9 % with three, most where the baseline is the noisy one
(tests/analysis/test_simulations.py). The variance that a pair's own is mixed with is the pooled one, to which the
noisiest contribute most: a pair that shows a thousandth of another's spread still has wide intervals beside it.
Smyth's own prior variance, a geometric mean, would narrow them by a third, and raise the false "better" of three
seeds to 5.5 to 6 % (400 simulated runs each), above what is promised. Correlation between an option's seeds beyond
the block is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selectbench.analysis.comparison import Spread
from selectbench.analysis.distributions import Bools, Floats, digamma, f_tail, trigamma, trigamma_inverse
from selectbench.analysis.least_squares import solve

_EQUAL = 1e-13
"""Differences of logarithms that are closer than this are the same: it is the rounding of the logarithm."""
_CAUTION = 1.5
"""Standard errors by which spreads are taken to differ more than they seem to."""
_BEYOND_DOUBT = 0.001
"""Probability, shared among the options, of leaving one out of the pool though it is as noisy as the others."""
_FAINTEST = 1e-12
"""Of the largest variance: what an option without any spread is taken to have where spreads are compared."""


@dataclass(frozen=True)
class Difference:
    """A logarithm that was estimated over seeds: of a ratio, or of one option's value."""

    estimate: float
    standard_error: float | None
    """None: no measure of spread; 0: all seeds show the very same."""
    degrees_of_freedom: float | None
    seeds: int
    spread: Spread


@dataclass(frozen=True)
class Blocks:
    """The logarithms of one metric with what is known of their spread."""

    names: Sequence[str]
    logs: Floats
    """Options x seeds; NaN where there is no value."""
    variance: float | None
    """Of one value around option + seed, pooled; None where no residual is left."""
    degrees_of_freedom: int
    """Of that variance."""
    prior_degrees_of_freedom: float
    """What the pooled variance weighs against a pair's own; infinite where spreads agree."""
    pool: Bools
    """Which options' spreads are pooled; none where fewer than three would be."""

    def difference(self, option: str, against: str) -> Difference | None:
        """Of `option` over `against`; None where no seed has both."""
        if option not in self.names or against not in self.names:
            return None
        first, second = self.names.index(option), self.names.index(against)
        row = self.logs[first] - self.logs[second]
        found = row[~np.isnan(row)]
        if not len(found):
            return None
        return self._with_spread(found, pooled=bool(self.pool[first] and self.pool[second]))

    def _with_spread(self, found: Floats, *, pooled: bool) -> Difference:
        estimate, seeds = float(found.mean()), len(found)
        if seeds < 2:
            return Difference(estimate, None, None, seeds, "unknown")
        if found.max() - found.min() <= _EQUAL:
            return Difference(float(found[0]), 0.0, None, seeds, "none")
        own, free = float(found.var(ddof=1)), seeds - 1
        if self.variance is None or not pooled:
            return Difference(estimate, math.sqrt(own / seeds), free, seeds, "own")
        prior = self.prior_degrees_of_freedom
        if math.isinf(prior):
            error = math.sqrt(2 * self.variance / seeds)
            return Difference(estimate, error, self.degrees_of_freedom, seeds, "pooled")
        mixed = (prior * 2 * self.variance + free * own) / (prior + free)
        known = min(prior + free, float(self.degrees_of_freedom))
        return Difference(estimate, math.sqrt(mixed / seeds), known, seeds, "moderated")


def make_blocks(values: Mapping[str, Mapping[int, float]]) -> Blocks:
    """From values by option and seed. Values that are not positive have no logarithm and count as holes."""
    names = list(values)
    seeds = sorted(set[int]().union(*values.values()))
    logs = [_logs(map(known.get, seeds)) for known in values.values()]
    return _fitted(names, np.array(logs).reshape(len(names), len(seeds)))


def _logs(values: Iterable[float | None]) -> list[float]:
    return [math.log(value) if value is not None and value > 0 else math.nan for value in values]


def _fitted(names: Sequence[str], logs: Floats) -> Blocks:
    pool, residuals, free = agreeing(logs)
    if free < 1:
        return Blocks(names, logs, None, 0, 0.0, np.zeros(len(names), bool))
    squares = float(np.nansum(residuals**2))
    return Blocks(names, logs, squares / free, free, prior_of(residuals), pool)


def agreeing(logs: Floats) -> tuple[Bools, Floats, int]:
    """Options without those noisier beyond doubt, and the residuals of their fit with the degrees of freedom.

    No degrees of freedom where fewer than three are left.
    """
    seeds = (~np.isnan(logs)).sum(axis=1)
    most = int(seeds.max(initial=0))
    # The spread of an option with far fewer seeds than the others can't be told from theirs, nor lent to it.
    members: Bools = (seeds > 0) & (2 * seeds > most) & (seeds >= min(3, most))
    while members.sum() >= 3:
        residuals, free = residuals_of(logs[members])
        noisy = _noisiest(residuals, free)
        if noisy is None:
            return members, residuals, free
        members[np.flatnonzero(members)[noisy]] = False
    return np.zeros(len(logs), bool), np.empty((0, logs.shape[1])), 0


def _noisiest(residuals: Floats, free: int) -> int | None:
    """The option whose spread around the others is too large to be theirs, or None."""
    squares, own = _around_the_others(residuals)
    total, known = float(np.nansum(residuals**2)), (own >= 1) & (free - own >= 1)
    if not known.any() or total <= 0:
        return None
    rest = np.maximum(total - squares[known], total * _FAINTEST)
    p = f_tail(squares[known] / own[known] / (rest / (free - own[known])), own[known], free - own[known])
    place = int(p.argmin())
    return int(np.flatnonzero(known)[place]) if p[place] < _BEYOND_DOUBT / len(residuals) else None


def residuals_of(logs: Floats) -> tuple[Floats, int]:
    """Of the least-squares fit option + seed, and their degrees of freedom; NaN where there is no value."""
    present = ~np.isnan(logs)
    if present.all():
        return _residuals_of_a_whole(logs)
    if not present.any():
        return np.full(logs.shape, np.nan), 0
    if logs.shape[1] > logs.shape[0]:
        turned, free = _residuals_by_column(logs.T)
        return turned.T, free
    return _residuals_by_column(logs)


def _residuals_of_a_whole(logs: Floats) -> tuple[Floats, int]:
    """Where no value is missing the fit is the two means."""
    options, seeds = logs.shape
    by_option, by_seed = logs.sum(axis=1) / seeds, logs.sum(axis=0) / options
    residuals = logs - by_option[:, None] - (by_seed - by_seed.sum() / seeds)[None, :]
    return residuals, (options - 1) * (seeds - 1)


def _residuals_by_column(logs: Floats) -> tuple[Floats, int]:
    """The normal equations with the rows' effects eliminated: one unknown for each column."""
    present = ~np.isnan(logs)
    counts = present.sum(axis=1)
    shares = present / np.maximum(counts, 1)[:, None]
    y = np.where(present, logs, 0.0)
    centred = np.where(present, y - (y.sum(axis=1) / np.maximum(counts, 1))[:, None], 0.0)
    shared = (present[:, :, None] * shares[:, None, :]).sum(axis=0)
    effects, rank = solve(np.diag(present.sum(axis=0).astype(float)) - shared, centred.sum(axis=0))
    own = (shares * effects[None, :]).sum(axis=1)
    residuals = centred - np.where(present, effects - own[:, None], 0.0)
    free = int(present.sum() - (counts > 0).sum() - rank)
    return np.where(present, residuals, np.nan), free


def prior_of(residuals: Floats) -> float:
    """Prior degrees of freedom of the pooled variance; infinite where the options' variances agree."""
    squares, own = _around_the_others(residuals)
    variances, free = squares[own >= 1] / own[own >= 1], own[own >= 1]
    if len(variances) < 3 or not variances.any():
        return math.inf
    floored = np.maximum(variances, _FAINTEST * variances.max())
    logs = [math.log(v) - digamma(d / 2) + math.log(d / 2) for v, d in zip(floored, free, strict=True)]
    by_chance = float(np.mean([trigamma(d / 2) for d in free]))
    caution = 1 + _CAUTION * math.sqrt(2 / (len(logs) - 1))
    excess = float(np.var(logs, ddof=1)) * caution - by_chance
    return 2 * trigamma_inverse(excess) if excess > 1e-6 else math.inf


def _around_the_others(residuals: Floats) -> tuple[Floats, Floats]:
    """Of each option the squares around the others' seed means, and their degrees of freedom.

    Exact where no value is missing.
    """
    present = ~np.isnan(residuals)
    others = present.sum(axis=0)
    usable = present & (others >= 2)
    weights = np.where(others >= 2, others / np.maximum(others - 1, 1), 0.0)
    squares = np.where(usable, np.where(present, residuals, 0.0) ** 2 * weights, 0.0).sum(axis=1)
    return squares, usable.sum(axis=1) - 1.0


def of_one(values: Mapping[int, float]) -> Difference | None:
    """The logarithm of one option's own value over its seeds; None where none is positive."""
    logs = np.array([math.log(value) for value in values.values() if value > 0])
    if not len(logs):
        return None
    alone = Blocks([""], logs[None, :], None, 0, 0.0, np.zeros(1, bool))
    return alone._with_spread(logs, pooled=False)
