"""Differences between options within rounds, and between runs, with one rule for their variance.

A seed is a block, every option once in it.

Values are compared as logarithms, so that a difference is a ratio and a spread a share. The additive model is
log(value) = option + seed + chance; chance is what two-way residuals show. Where the options' spreads agree, the
variance is pooled over them, which is what makes few seeds enough; where they do not, each pair falls back on the
spread of its own differences (the blocked counterpart of Welch's test). No part of the pool are options that are
noisier than the others beyond doubt (F tests at 0.001, shared among the options, up to half of them together), and
those with half the seeds of the others or fewer, or with two where others have more: their pairs have their own
spread. One that only seems to be noisier (F tests at 0.5, shared) widens the pool, and its pairs have Welch's test,
with its own variance and half the pool's: a noisy baseline is part of every pair, so the pool alone is too narrow.
Between pooled and own the weights follow the moderated t of Smyth 2004, "Linear models and empirical Bayes
methods", doi:10.2202/1544-6115.1027, section 6: the prior degrees of freedom are estimated from how much more the
options' log variances differ than chance makes them. With few options that says little, so the variance of the log
variances is taken larger by two of its standard errors, a share of sqrt(2 / (options - 1)) each. What a pair's own
is mixed with is the pooled variance: Smyth's, a geometric mean, would narrow intervals by a third, and raise the
false "better" of three seeds to 5.5 to 6 %. Of five equal options whose spreads differ up to five times, a false
"better" is left in at most 3 % of simulated runs, and any false claim in at most 6 % with three seeds and 5 % with
five (tests/analysis/test_simulations.py).

Between two runs an option's change is the mean over seeds of log(value in the run / value in the reference with the
same seed): the seed's initial weights and data order drop out. What a run did to all options of a round (a warm
machine, a busy disk) does not, so seeds are a random effect: with MS_seeds and MS_rest of the two-way table options
x seeds, the variance of one difference is (MS_seeds + (options - 1) MS_rest) / options, with Satterthwaite's (1946)
degrees of freedom. Without common seeds it is Welch's test of two samples. What differs between whole runs, such as
the day, is within the change itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from selectbench.analysis.result import Spread

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
Values = Mapping[str, Mapping[int, float]]
"""Values by option and seed."""
_EQUAL = 1e-13
"""Differences of logarithms that are closer than this are the same: it is the rounding of the logarithm."""
_CAUTION_ERRORS = 2.0
"""Standard errors by which spreads are taken to differ more than they seem to."""
_NOISIER_LEVEL = 0.001
"""Probability, shared among the options, of leaving one out of the pool though it is as noisy as the others."""
_OWN_VARIANCE_LEVEL = 0.5
"""Probability, shared too, of giving an option of the pool its own variance though it is as noisy as the others."""
_SINGULAR = 1e-10
"""Share of the largest singular value; smaller ones are rounding."""
_FAINTEST = 1e-12
"""Share of the largest variance that an option without any spread is taken to have where spreads are compared."""


def two_sided_p(t: ArrayLike, degrees_of_freedom: ArrayLike) -> Floats:
    """P(|T| >= |t|) of Student's t; infinite degrees of freedom give the normal distribution's."""
    from scipy import special  # not at import: a plan needs no statistics

    tail: Floats = special.stdtr(degrees_of_freedom, -np.abs(t))
    return 2 * tail


def quantile(two_sided: ArrayLike, degrees_of_freedom: ArrayLike) -> Floats:
    """The t that is exceeded, in absolute value, with probability `two_sided` (above 0, below 1), elementwise."""
    from scipy import special

    lower: Floats = special.stdtrit(degrees_of_freedom, np.asarray(two_sided) / 2)
    return -lower


@dataclass(frozen=True)
class Difference:
    """A logarithm that was estimated over seeds: of a ratio, or of one option's value."""

    estimate: float
    standard_error: float | None
    """None: no measure of spread; 0: all seeds show the very same."""
    degrees_of_freedom: float | None
    seeds: int
    spread: Spread

    @property
    def dof(self) -> float:
        """Degrees of freedom; infinite where there are none."""
        return self.degrees_of_freedom or math.inf

    def p(self, bound: float = 0.0) -> float:
        """Two-sided p of the hypothesis that the true value is the bound; 1: no measure of spread."""
        distance = self.estimate - bound
        if not self.standard_error:
            return 0.0 if self.standard_error == 0 and distance else 1.0
        return float(two_sided_p(distance / self.standard_error, self.dof))

    def interval(self, alpha: float = 0.05) -> tuple[float, float] | tuple[None, None]:
        """Ends of its interval of level 1 - alpha by itself, as logarithms; None: no measure of spread."""
        if self.standard_error is None:
            return None, None
        half = self.standard_error * float(quantile(alpha, self.dof))
        return self.estimate - half, self.estimate + half


@dataclass(frozen=True)
class PooledVariance:
    """The variance of one seed's difference, pooled over the options whose spreads agree."""

    variance: float
    degrees_of_freedom: float
    prior_degrees_of_freedom: float
    """What it weighs against a pair's own variance; infinite where spreads agree."""

    def moderated(self, own: Floats, dof: Floats) -> tuple[Floats, Floats]:
        """Own variances mixed with it by their degrees of freedom, and those of the mixture."""
        prior = self.prior_degrees_of_freedom
        if math.isinf(prior):
            return np.full(own.shape, self.variance), np.full(own.shape, self.degrees_of_freedom)
        mixed = (prior * self.variance + dof * own) / (prior + dof)
        return mixed, np.minimum(prior + dof, self.degrees_of_freedom)


@dataclass(frozen=True)
class Differences:
    """Several differences in arrays of one length."""

    estimates: Floats
    """NaN: no seed has both values."""
    standard_errors: Floats
    """NaN: no measure of spread; 0: all seeds show the very same."""
    degrees_of_freedom: Floats
    seeds: Integers
    pooled: Bools
    """Where the pooled variance had a part in it."""
    moderated: Bools
    """Where it was mixed with a pair's or an option's own."""

    def at(self, place: int) -> Difference | None:
        """The difference at this place; None where no seed has both values."""
        seeds, error = int(self.seeds[place]), float(self.standard_errors[place])
        if not seeds:
            return None
        estimate = float(self.estimates[place])
        if math.isnan(error):
            return Difference(estimate, None, None, seeds, "unknown")
        if error == 0:
            return Difference(estimate, 0.0, None, seeds, "none")
        shared: Spread = "moderated" if self.moderated[place] else "pooled"
        spread = shared if self.pooled[place] else "own"
        return Difference(estimate, error, float(self.degrees_of_freedom[place]), seeds, spread)


def differences_over_seeds(
    gaps: Floats, pooled: Bools, pool: PooledVariance | None, may_be_exact: Bools | bool = True,
    apart: Floats | None = None,
) -> Differences:  # fmt: skip
    """The rule of variance. `gaps`: logarithms, (differences, seeds), NaN where a seed has none.

    `pooled`: (differences,), which of them the pooled variance speaks for. `may_be_exact`: (differences,), where
    equal gaps mean that chance has no part in them; elsewhere they are a coincidence of coarse values. `apart`:
    (2, differences), of the pooled ones the variances of both options where they are not the pool's, else NaN.
    """
    present = ~np.isnan(gaps)
    seeds = present.sum(axis=1)
    values = np.where(present, gaps, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimates = values.sum(axis=1) / seeds
        own_variances = (np.where(present, gaps - estimates[:, None], 0.0) ** 2).sum(axis=1) / (seeds - 1)
        variances, dof = pool.moderated(own_variances, seeds - 1.0) if pool else (own_variances, seeds - 1.0)
        moderated = np.full(len(gaps), pool is not None and not math.isinf(pool.prior_degrees_of_freedom))
        if pool is not None and apart is not None and (known := ~np.isnan(apart)).any():
            # Welch's test: each option's own variance where it is known, else half the pool's.
            both = np.where(known, apart, pool.variance / 2)
            parts = both**2 / np.where(known, seeds - 1.0, pool.degrees_of_freedom)
            at, total = known.any(axis=0), both.sum(axis=0)
            moderated |= at
            variances, dof = np.where(at, total, variances), np.where(at, total**2 / parts.sum(axis=0), dof)
        errors = np.sqrt(np.where(pooled, variances, own_variances) / seeds)
    widest = np.where(present, gaps, -np.inf).max(axis=1, initial=-np.inf)
    narrowest = np.where(present, gaps, np.inf).min(axis=1, initial=np.inf)
    no_spread = np.where(may_be_exact, 0.0, np.where(pooled & (errors > 0), errors, np.nan))
    errors = np.where(widest - narrowest <= _EQUAL, no_spread, errors)
    return Differences(
        estimates, np.where(seeds < 2, np.nan, errors), np.where(pooled, dof, seeds - 1.0), seeds,
        pooled & (pool is not None), moderated,
    )  # fmt: skip


@dataclass(frozen=True)
class Blocks:
    """The logarithms of one metric with what is known of their spread."""

    names: Sequence[str]
    seeds: Sequence[int]
    logs: Floats
    """(options, seeds); NaN where there is no value."""
    members: Bools
    """(options,): whose spreads are pooled; none where fewer than three would be."""
    pool: PooledVariance | None
    """None where no residual is left."""
    apart: Floats
    """(options,): own variance of a pooled option that seems to be noisier than the others; NaN of the others."""
    witness: Floats | None = None
    """(options, seeds), for coarse values: where it is equal too, equal values are no coincidence; else None."""
    _against: dict[str, Differences] = field(default_factory=dict)
    """Differences of all options from one, by its name; filled on demand."""

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def places(self, names: Sequence[str]) -> Integers:
        """The rows of these options. Raises KeyError."""
        return np.array([self._places[name] for name in names], int)

    def differences(self, first: Integers, second: Integers) -> Differences:
        """Differences of the options at the places `first` from those at `second`, arrays of one length."""
        gaps, exact = self.logs[first] - self.logs[second], True
        if self.witness is not None:
            exact = (self.witness[first] == self.witness[second]).all(axis=1)
        pooled = self.members[first] & self.members[second]
        return differences_over_seeds(gaps, pooled, self.pool, exact, self.apart[[first, second]])

    def difference(self, option: str, against: str) -> Difference | None:
        """The difference of `option` from `against`; None where no seed has both."""
        if option not in self._places or against not in self._places:
            return None
        if against not in self._against:
            all_options = np.arange(len(self.names))
            self._against[against] = self.differences(all_options, np.full(len(all_options), self._places[against]))
        return self._against[against].at(self._places[option])


def make_blocks(values: Values, losses: Values | None = None) -> Blocks:
    """Values not above 0 are holes; `losses`, of coarse scores: equal ones are no chance where losses are equal."""
    names, seeds = list(values), _seeds_of(values)
    none_pooled, apart = np.zeros(len(names), bool), np.full(len(names), np.nan)
    witness = None
    if losses is not None:
        witness = _logs_table({name: {seed: losses[name].get(seed, math.nan) for seed in seeds} for name in names})
    known = {name: _logs(by_seed) for name, by_seed in values.items()}
    logs, positive = _logs_table(known), _seeds_of(known)
    members, residuals, dof = agreeing_options(logs)
    if dof < 1:
        return Blocks(names, positive, logs, none_pooled, None, apart, witness)
    variances, p = _variances_and_p(residuals, dof)
    apart[members] = np.where(p < _OWN_VARIANCE_LEVEL / len(p), variances, np.nan)
    pool = PooledVariance(2 * float(np.nansum(residuals**2)) / dof, dof, prior_of(residuals))
    return Blocks(names, positive, logs, members, pool, apart, witness)


STANDS_OUT = 0.01
"""Probability, shared among all trials, of taking one for an outlier in normal noise."""
LEAST_SCALE = 0.01
"""Least robust spread, as speed has it on an idle machine: in quiet runs only what matters is named."""
FEW_SEEDS, OF_FEW = 3, 3.0
"""With FEW_SEEDS a noisy option looks like an outlier: OF_FEW times the distance is required."""


def outlying(logs: Floats) -> Floats:
    """How far each value lies from what its option and its round let expect, NaN where it is as good as any.

    `logs`: (options, seeds), NaN where there is none. Distances are residuals of the median polish (Tukey 1977,
    "Exploratory data analysis", chapter 11), whose scale is the median of those that are free, times 1.4826 as for
    a normal distribution, over all trials or the option's own, whichever is larger. They are held against Student's
    t at STANDS_OUT. Of two options, whose round splits every outlier between them, a value must lie as far from its
    option's median as it does from the other's. Rounds that are slow for all are no outliers.
    """
    outliers = np.full(logs.shape, np.nan)
    rows, columns = (np.flatnonzero((~np.isnan(logs)).sum(axis=axis) >= least) for axis, least in ((1, 3), (0, 2)))
    table = logs[np.ix_(rows, columns)]
    options, seeds = table.shape
    if options < 2 or seeds < FEW_SEEDS:
        return outliers
    around_option = table - np.nanmedian(table, axis=1, keepdims=True)
    residuals = table.copy()
    for _ in range(10):
        residuals -= np.nanmedian(residuals, axis=1, keepdims=True)
        residuals -= np.nanmedian(residuals, axis=0, keepdims=True)
    two = options == 2
    distances = np.abs(around_option if two else residuals)
    dof = 2 * (seeds - 1) if two else (options - 1) * (seeds - 1)
    scale = max(LEAST_SCALE, 1.4826 * float(np.nanmedian(np.sort(distances[~np.isnan(distances)])[-dof:])))
    scales = np.full((options, 1), scale)
    if seeds > FEW_SEEDS:  # all but the smallest, which the polish makes 0
        scales = np.maximum(scales, 1.4826 * np.nanmedian(np.sort(distances, axis=1)[:, 1:], axis=1, keepdims=True))
    other_distances = np.abs(around_option - around_option[::-1]) if two else np.abs(around_option)
    least = float(quantile(STANDS_OUT / table.size, (options - 1) * (seeds - 1))) * scales
    least = least * (OF_FEW if seeds == FEW_SEEDS and not two else 1.0)
    with np.errstate(invalid="ignore"):
        is_out = np.minimum(distances, other_distances) > least
    outliers[np.ix_(rows, columns)] = np.where(is_out, around_option if two else residuals, np.nan)
    return outliers


def _logs(values: Mapping[int, float]) -> dict[int, float]:
    """Logarithms of the values above 0, by seed."""
    return {seed: math.log(value) for seed, value in values.items() if value > 0}


def _logs_table(logs: Values) -> Floats:
    """Logarithms as (options, seeds in their order); NaN where there is none."""
    seeds = _seeds_of(logs)
    rows = [[known.get(seed, math.nan) for seed in seeds] for known in logs.values()]
    return np.array(rows).reshape(len(logs), len(seeds))


def _seeds_of(values: Values) -> list[int]:
    return sorted(set[int]().union(*values.values()))


def agreeing_options(logs: Floats) -> tuple[Bools, Floats, int]:
    """Options without those noisier beyond doubt, and the residuals of their fit with the degrees of freedom.

    Up to half of the options are left out in turn, the noisiest first, and of these the most are excluded whose
    last one was noisier than the rest beyond doubt: the generalized many-outlier procedure of Rosner 1983,
    doi:10.1080/00401706.1983.10487848, on F ratios. A test that stopped at the first that is not beyond doubt
    would keep two noisy options that hide each other. No degrees of freedom where fewer than three are left.
    """
    seeds = (~np.isnan(logs)).sum(axis=1)
    most = int(seeds.max(initial=0))
    # The spread of an option with far fewer seeds than the others can't be told from theirs, nor lent to it.
    members: Bools = (seeds > 0) & (2 * seeds > most) & (seeds >= min(3, most))
    remaining, count = members.copy(), int(members.sum())
    for _ in range(count // 2 if count >= 3 else 0):
        _, p = _variances_and_p(*residuals_of(logs[remaining]))
        remaining[np.flatnonzero(remaining)[p.argmin()]] = False
        if p.min() < _NOISIER_LEVEL / count:
            members = remaining.copy()
    if members.sum() < 3:
        return np.zeros(len(logs), bool), np.empty((0, logs.shape[1])), 0
    return members, *residuals_of(logs[members])


def _variances_and_p(residuals: Floats, dof: int) -> tuple[Floats, Floats]:
    """Each option's variance around the others, and p of the F test whether it is above theirs; 1: unknown."""
    from scipy import special

    squares, own_dof = _squares_around_others(residuals)
    total, known = float(np.nansum(residuals**2)), (own_dof >= 1) & (dof - own_dof >= 1)
    p = np.ones(len(own_dof))
    if total > 0:
        rest = np.maximum(total - squares[known], total * _FAINTEST)
        ratios = squares[known] / own_dof[known] / (rest / (dof - own_dof[known]))
        p[known] = special.fdtrc(own_dof[known], dof - own_dof[known], ratios)
    return squares / np.maximum(own_dof, 1), p


def residuals_of(logs: Floats) -> tuple[Floats, int]:
    """Residuals of the least-squares fit option + seed and their degrees of freedom; NaN where no value is."""
    present = ~np.isnan(logs)
    if present.all():  # then the fit is the two means
        options, seeds = logs.shape
        by_option, by_seed = logs.sum(axis=1) / seeds, logs.sum(axis=0) / options
        residuals = logs - by_option[:, None] - (by_seed - by_seed.sum() / seeds)[None, :]
        return residuals, (options - 1) * (seeds - 1)
    if not present.any():
        return np.full(logs.shape, np.nan), 0
    if logs.shape[1] > logs.shape[0]:
        transposed, dof = residuals_of(logs.T)
        return transposed.T, dof
    # The normal equations with the rows' effects eliminated: one unknown for each column.
    counts = present.sum(axis=1)
    shares = present / np.maximum(counts, 1)[:, None]
    y = np.where(present, logs, 0.0)
    centred = np.where(present, y - (y.sum(axis=1) / np.maximum(counts, 1))[:, None], 0.0)
    shared = (present[:, :, None] * shares[:, None, :]).sum(axis=0)
    products = np.diag(present.sum(axis=0).astype(float)) - shared
    effects, _, rank, _ = np.linalg.lstsq(products, centred.sum(axis=0), rcond=_SINGULAR)
    option_effects = (shares * effects[None, :]).sum(axis=1)
    residuals = centred - np.where(present, effects - option_effects[:, None], 0.0)
    dof = int(present.sum() - (counts > 0).sum() - rank)
    return np.where(present, residuals, np.nan), dof


def prior_of(residuals: Floats) -> float:
    """Prior degrees of freedom of the pooled variance; infinite where the options' variances agree."""
    from scipy import special

    squares, own_dof = _squares_around_others(residuals)
    variances, dof = squares[own_dof >= 1] / own_dof[own_dof >= 1], own_dof[own_dof >= 1]
    if len(variances) < 3 or not variances.any():
        return math.inf
    floored = np.maximum(variances, _FAINTEST * variances.max())
    logs = np.log(floored) - special.digamma(dof / 2) + np.log(dof / 2)
    by_chance = float(special.polygamma(1, dof / 2).mean())
    caution = 1 + _CAUTION_ERRORS * math.sqrt(2 / (len(logs) - 1))
    excess = float(np.var(logs, ddof=1)) * caution - by_chance
    return 2 * trigamma_inverse(excess) if excess > 1e-6 else math.inf


def _squares_around_others(residuals: Floats) -> tuple[Floats, Floats]:
    """Each option's sum of squares around the others' seed means, and its degrees of freedom."""
    present = ~np.isnan(residuals)
    others = present.sum(axis=0)
    usable = present & (others >= 2)
    weights = np.where(others >= 2, others / np.maximum(others - 1, 1), 0.0)
    squares = np.where(usable, np.where(present, residuals, 0.0) ** 2 * weights, 0.0).sum(axis=1)
    return squares, usable.sum(axis=1) - 1.0


def trigamma_inverse(value: float) -> float:
    """The x > 0 with psi'(x) = `value`, for a value from 1e-6 to 1e7, by Newton's method (Smyth 2004, appendix)."""
    from scipy import special

    x = 0.5 + 1 / value
    for _ in range(50):
        slope = float(special.polygamma(1, x))
        step = slope * (1 - slope / value) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-12:
            break
    return x


def estimate_value(values: Mapping[int, float], *, is_coarse: bool = False) -> Difference | None:
    """Mean logarithm of one option's values over its seeds; None where none is positive."""
    return estimate_logs(list(_logs(values).values()), is_coarse=is_coarse)


def estimate_logs(logs: Sequence[float], *, is_coarse: bool = False) -> Difference | None:
    """Mean of one logarithm from each seed; None of an empty list."""
    return differences_over_seeds(np.array([logs]), np.zeros(1, bool), None, not is_coarse).at(0)


def changes(run: Values, reference: Values, *, is_coarse: bool = False) -> dict[str, Difference]:
    """Log ratios of run to reference by option that both have; `is_coarse`: equal values may be a coincidence."""
    new = {name: logs for name in reference if (logs := _logs(run.get(name, {})))}
    old = {name: logs for name in new if (logs := _logs(reference[name]))}
    log_ratios = {
        name: {seed: log - old[name][seed] for seed, log in new[name].items() if seed in old[name]} for name in old
    }
    paired = {name: logs for name, logs in log_ratios.items() if len(logs) > 1}
    table = _logs_table(paired)
    members, pool = _pooled_over_runs(table)
    over_seeds = differences_over_seeds(table, members, pool, not is_coarse)
    estimates = {name: over_seeds.at(place) for place, name in enumerate(paired)}
    return {name: estimates.get(name) or _two_samples(new[name], old[name], is_coarse) for name in old}


def _pooled_over_runs(table: Floats) -> tuple[Bools, PooledVariance | None]:
    """Which options' spreads agree, and their pooled variance; none of fewer than three options."""
    none_pooled = np.zeros(len(table), bool)
    if len(table) < 3:
        return none_pooled, None
    members, residuals, dof = agreeing_options(table)
    residual = float(np.nansum(residuals**2))
    if dof < 1 or not residual:
        return none_pooled, None
    pooled = table[members]
    squares = float(np.nansum((pooled - np.nanmean(pooled, axis=1, keepdims=True)) ** 2))
    total_dof = float((~np.isnan(pooled)).sum() - len(pooled))
    between = max(0.0, squares - residual)
    parts = (between / total_dof) ** 2 / max(1.0, total_dof - dof) + (residual / total_dof) ** 2 / dof
    variance = (between + residual) / total_dof
    return members, PooledVariance(variance, variance**2 / parts, prior_of(residuals))


def _two_samples(run: Mapping[int, float], reference: Mapping[int, float], is_coarse: bool) -> Difference:
    """Difference of two samples without common seeds, by Welch's test (1947) for unequal variances."""
    new, old = (np.array(list(logs.values())) for logs in (run, reference))
    estimate, seeds = float(new.mean() - old.mean()), min(len(new), len(old))
    if seeds < 2:
        return Difference(estimate, None, None, seeds, "unknown")
    new_var, old_var = float(new.var(ddof=1)) / len(new), float(old.var(ddof=1)) / len(old)
    if new_var + old_var <= _EQUAL**2:
        return Difference(estimate, None if is_coarse else 0.0, None, seeds, "unknown" if is_coarse else "none")
    dof = (new_var + old_var) ** 2 / (new_var**2 / (len(new) - 1) + old_var**2 / (len(old) - 1))
    return Difference(estimate, math.sqrt(new_var + old_var), dof, seeds, "own")
