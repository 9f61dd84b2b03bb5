"""How small a difference a number of rounds tells."""

from __future__ import annotations

import math

from selectbench.analysis.distributions import one_quantile
from selectbench.analysis.family import ALPHA, Z_LIKELY

DEFAULT_SPREAD = 0.01
"""Of one trial's figure, as a share: what speed varies by between runs on an idle machine."""


def detectable(rounds: int, options: int, tests: int, spread: float = DEFAULT_SPREAD) -> float:
    """The share by which two options must differ to be told apart with a chance of 80 %.

    For a variance that is pooled over the options, at Bonferroni's level for `tests`: the sum of the t quantile and
    the normal one of 0.8, in standard errors of a difference (Cohen 1988, chapter 2, in its normal approximation).
    """
    free = max(1, (max(2, options) - 1) * (rounds - 1))
    error = spread * math.sqrt(2 / rounds)
    return math.expm1((one_quantile(ALPHA / tests, free) + Z_LIKELY) * error)
