"""Student's t, with numpy alone: tail probabilities and quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_STEPS = 300
_TINY = 1e-300
_NORMAL = 1e5
"""Degrees of freedom from which the normal distribution is taken."""


def two_sided_p(t: ArrayLike, degrees_of_freedom: ArrayLike) -> Floats:
    """P(|T| >= |t|) of Student's t; infinite degrees of freedom give the normal distribution's.

    It is the regularised incomplete beta function I(df / (df + t^2); df / 2, 1 / 2), Abramowitz and Stegun
    1964, 26.7.1.
    """
    t_, df = np.broadcast_arrays(np.abs(np.asarray(t, float)), np.asarray(degrees_of_freedom, float))
    p = np.empty(t_.shape)
    normal = df > _NORMAL
    p[normal] = [math.erfc(value / math.sqrt(2)) for value in t_[normal]]
    finite = ~normal
    with np.errstate(over="ignore"):
        x = df[finite] / (df[finite] + t_[finite] ** 2)
    p[finite] = _incomplete_beta(x, df[finite] / 2, np.full(x.shape, 0.5))
    return p


def f_tail(f: ArrayLike, numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """P(F >= f) with so many degrees of freedom (Abramowitz and Stegun 1964, 26.6.2)."""
    f_, d1, d2 = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, float)) for v in (f, numerator, denominator)))
    with np.errstate(over="ignore", divide="ignore"):
        x = d2 / (d2 + d1 * f_)
    return _incomplete_beta(x, d2 / 2, d1 / 2)


def quantile(two_sided: ArrayLike, degrees_of_freedom: ArrayLike) -> Floats:
    """`one_quantile`, elementwise."""
    p, df = np.broadcast_arrays(np.asarray(two_sided, float), np.asarray(degrees_of_freedom, float))
    pairs, places = np.unique(np.stack([p.ravel(), df.ravel()]), axis=1, return_inverse=True)
    found = np.array([one_quantile(float(a), float(b)) for a, b in pairs.T])
    return found[places.ravel()].reshape(p.shape)


@lru_cache(maxsize=65536)
def one_quantile(p: float, df: float) -> float:
    """The t that is exceeded, in absolute value, with probability p (0 < p < 1).

    By Newton's method from below, which never oversteps, as the tail is convex in t.
    """
    t = 1.0
    while _one_p(2 * t, df) > p:
        t *= 2
    if _one_p(t, df) < p:
        t = 0.0
    while (step := (_one_p(t, df) - p) / (2 * _density(t, df))) > 1e-14 * t:
        t += step
    return t


def _density(t: float, df: float) -> float:
    if df > _NORMAL:
        return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    front = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(df * math.pi) / 2
    return math.exp(front - (df + 1) / 2 * math.log1p(t * t / df))


def _one_p(t: float, df: float) -> float:
    """`two_sided_p` of one pair, without the cost of arrays."""
    if df > _NORMAL:
        return math.erfc(t / math.sqrt(2))
    x, a, b = df / (df + t * t), df / 2, 0.5
    swap = x > (a + 1) / (a + b + 2)
    at, first, second = (1 - x, b, a) if swap else (x, a, b)
    if at <= 0:
        return 1.0 if swap else 0.0
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + first * math.log(at) + second * math.log1p(-at)
    value = math.exp(front) * _one_fraction(at, first, second) / first
    return 1 - value if swap else value


def _one_fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or _TINY)
    value = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / ((1 + term * d) or _TINY)
            c = (1 + term / c) or _TINY
            step = c * d
            value *= step
        if abs(step - 1) < 1e-14:
            break
    return value


def _incomplete_beta(x: Floats, a: Floats, b: Floats) -> Floats:
    """I(x; a, b), elementwise, by the continued fraction on the side where it converges fast."""
    swap = x > (a + 1) / (a + b + 2)
    first = np.where(swap, b, a)
    second = np.where(swap, a, b)
    at = np.where(swap, 1 - x, x)
    powers = first * _each(_log, at) + second * _each(math.log1p, -at)
    front = _each(math.exp, _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b) + powers)
    value = front * _fraction(at, first, second) / first
    inside: Floats = np.clip(np.where(swap, 1 - value, value), 0.0, 1.0)
    return inside


def _each(function: Callable[[float], float], values: Floats) -> Floats:
    """One by one: numpy's own functions differ in the last digit between processors."""
    return np.array([function(value) for value in values.ravel().tolist()]).reshape(values.shape)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _fraction(x: Floats, a: Floats, b: Floats) -> Floats:
    """Lentz's evaluation of the fraction of Abramowitz and Stegun 1964, 26.5.8."""
    c = np.ones(x.shape)
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d.copy()
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            step = c * d
            value *= step
        if np.all(np.abs(step - 1) < 1e-14):
            break
    return value


def _away_from_zero(values: Floats) -> Floats:
    kept: Floats = np.where(np.abs(values) < _TINY, _TINY, values)
    return kept


def _log_gamma(values: Floats) -> Floats:
    unique, places = np.unique(values, return_inverse=True)
    return np.array([math.lgamma(value) for value in unique])[places.ravel()].reshape(values.shape)


def digamma(x: float) -> float:
    """psi(x), x > 0: recurrence to 10 or more, then the asymptotic series (Abramowitz and Stegun 1964, 6.3.18)."""
    shift = 0.0
    while x < 10:
        shift, x = shift - 1 / x, x + 1
    r = 1 / (x * x)
    return shift + math.log(x) - 0.5 / x - r * (1 / 12 - r * (1 / 120 - r * (1 / 252 - r / 240)))


def trigamma(x: float) -> float:
    """psi'(x), x > 0: recurrence to 10 or more, then the asymptotic series (Abramowitz and Stegun 1964, 6.4.12)."""
    shift = 0.0
    while x < 10:
        shift, x = shift + 1 / (x * x), x + 1
    r = 1 / (x * x)
    return shift + 1 / x + r / 2 + r / x * (1 / 6 - r * (1 / 30 - r * (1 / 42 - r / 30)))


def trigamma_inverse(value: float) -> float:
    """The x > 0 with psi'(x) = `value` > 0, by bisection on its logarithm."""
    low, high = -20.0, 25.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if trigamma(math.exp(middle)) > value else (low, middle)
    return math.exp((low + high) / 2)
