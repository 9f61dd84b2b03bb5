"""Whether a trial of speed is as fast as the fastest, as far as one short trial of each can tell."""

from __future__ import annotations

import math

from selectbench.analysis.formulas import tokens_per_second
from selectbench.analysis.summary import mean, standard_deviation
from selectbench.record.record import Measurement

SHARE = 0.02
"""Of the fastest's speed: no smaller difference is told apart, however even the steps were."""
ERRORS = 2.0
"""Standard errors of the difference within which it is chance, as in a 95 % interval."""
RULE = (
    "As fast: as far as one short trial can tell. Such a size lies within "
    f"{SHARE:.0%} of the fastest, or within {ERRORS:g} standard errors of the difference by the spread of the step "
    "times where that is more; trials can differ by more, as steps do not show what changes from one trial to the "
    "next. The size that was fastest is taken all the same."
)


def is_as_fast(trial: Measurement, fastest: Measurement) -> bool:
    """Whether their speeds, in tokens per second, lie within what one trial of each leaves open.

    The standard error is that of the difference of two mean step times whose spreads need not be equal (Welch
    1947, Biometrika 34), each as a share of its mean: the least that chance does. In the kept runs of `results/`,
    on CPU cores, two trials of one option, of 27 to 477 timed steps, were as fast by this rule in 130 of 229 pairs;
    by the 2 % alone in 80.
    """
    speeds = tokens_per_second(trial), tokens_per_second(fastest)
    if speeds[0] is None or not speeds[1]:
        return False
    error = math.sqrt(_relative_error(trial) ** 2 + _relative_error(fastest) ** 2)
    return 1 - speeds[0] / speeds[1] <= max(SHARE, ERRORS * error)


def _relative_error(m: Measurement) -> float:
    """Of the mean step time, as a share of it; 0 where fewer than two steps are known."""
    spread, centre = standard_deviation(m.step_seconds), mean(m.step_seconds)
    return spread / centre / math.sqrt(m.timed_steps) if spread and centre else 0.0
