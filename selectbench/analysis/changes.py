"""How one run's values differ from another's, option by option: differences within seeds, pooled where they agree.

An option's change is the mean over seeds of log(value in the run / value in the reference with the same seed): the
seed's initial weights and data order drop out. What a run did to all options of a round (a warm machine, a busy
disk) does not, so seeds are a random effect: with MS_seeds and MS_rest of the two-way table options x seeds, the
variance of one difference is (MS_seeds + (options - 1) MS_rest) / options, with Satterthwaite's (1946) degrees of
freedom. Options whose spreads disagree lean on their own, by the weights of `blocks`. Without common seeds it is
Welch's test of two samples. What differs between whole runs, such as the day, is within the change itself: one
run of each tells nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from selectbench.analysis.blocks import Difference, agreeing, prior_of
from selectbench.analysis.distributions import Floats

Values = Mapping[str, Mapping[int, float]]
_EQUAL = 1e-13


def changes(run: Values, reference: Values) -> dict[str, Difference]:
    """By option that both know; values that are not positive count as holes."""
    options = [name for name in reference if _logs(reference[name]) and _logs(run.get(name, {}))]
    table = {name: _within_seeds(run[name], reference[name]) for name in options}
    paired = {name: found for name, found in table.items() if len(found) > 1}
    members, pooled = _pooled(paired)
    return {
        name: _change(name, run, reference, table[name], pooled if name in members else None) for name in options
    }


def _logs(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: math.log(value) for seed, value in values.items() if value > 0}


def _within_seeds(run: Mapping[int, float], reference: Mapping[int, float]) -> dict[int, float]:
    ours, theirs = _logs(run), _logs(reference)
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def _change(
    name: str,
    run: Values,
    reference: Values,
    within: Mapping[int, float],
    pooled: tuple[float, float, float] | None,
) -> Difference:
    if len(within) < 2:
        return _two_samples(
            np.array(list(_logs(run[name]).values())), np.array(list(_logs(reference[name]).values()))
        )
    found = np.array(list(within.values()))
    estimate, seeds, free = float(found.mean()), len(found), len(found) - 1
    if found.max() - found.min() <= _EQUAL:
        return Difference(float(found[0]), 0.0, None, seeds, "none")
    own = float(found.var(ddof=1))
    if pooled is None:
        return Difference(estimate, math.sqrt(own / seeds), free, seeds, "own")
    variance, known, prior = pooled
    if math.isinf(prior):
        return Difference(estimate, math.sqrt(variance / seeds), known, seeds, "pooled")
    mixed = (prior * variance + free * own) / (prior + free)
    return Difference(estimate, math.sqrt(mixed / seeds), min(prior + free, known), seeds, "moderated")


def _pooled(paired: Mapping[str, Mapping[int, float]]) -> tuple[set[str], tuple[float, float, float] | None]:
    """Options whose spreads agree; variance of one difference, its degrees of freedom, those of the prior.

    None for fewer than three.
    """
    if len(paired) < 3:
        return set(), None
    seeds = sorted({seed for found in paired.values() for seed in found})
    whole = np.array([[found.get(seed, np.nan) for seed in seeds] for found in paired.values()])
    pool, residuals, rest = agreeing(whole)
    if rest < 1 or not np.nansum(residuals**2):
        return set(), None
    members = {name for name, taken in zip(paired, pool.tolist(), strict=True) if taken}
    table = whole[pool]
    around_own = float(np.nansum((table - np.nanmean(table, axis=1, keepdims=True)) ** 2))
    total = float((~np.isnan(table)).sum() - len(table))
    within = float(np.nansum(residuals**2))
    between = max(0.0, around_own - within)
    parts = (between / total) ** 2 / max(1.0, total - rest) + (within / total) ** 2 / rest
    variance = (between + within) / total
    return members, (variance, variance**2 / parts, prior_of(residuals))


def _two_samples(run: Floats, reference: Floats) -> Difference:
    """Welch 1947: unequal variances, no pairs."""
    estimate, seeds = float(run.mean() - reference.mean()), min(len(run), len(reference))
    if seeds < 2:
        return Difference(estimate, None, None, seeds, "unknown")
    first, second = float(run.var(ddof=1)) / len(run), float(reference.var(ddof=1)) / len(reference)
    if first + second <= _EQUAL**2:
        return Difference(estimate, 0.0, None, seeds, "none")
    free = (first + second) ** 2 / (first**2 / (len(run) - 1) + second**2 / (len(reference) - 1))
    return Difference(estimate, math.sqrt(first + second), free, seeds, "own")
