"""The control, the baseline's second row: two names for one thing should not differ."""

from __future__ import annotations

import math
from collections.abc import Mapping

from selectbench import units
from selectbench.analysis.contest import Contest
from selectbench.analysis.family import HypothesisTest, decide, judge_all
from selectbench.analysis.formulas import finite
from selectbench.analysis.summary import Summary
from selectbench.suite.metrics import METRICS
from selectbench.suite.suite import CONTROL

_WATCHED = tuple(name for name, metric in METRICS.items() if metric.watched)


def control_warnings(contest: Contest, summaries: Mapping[str, Summary]) -> list[str]:
    """A line for each metric in which the control differs from the baseline, by tests that share alpha."""
    if not contest.suite.control or not summaries[CONTROL].completed:
        return []
    names = dict.fromkeys((contest.suite.decide.objective, *_WATCHED))
    found = {name: contest.blocks[name].difference(CONTROL, contest.baseline.name) for name in names}
    tests = {name: HypothesisTest(difference) for name, difference in found.items() if difference}
    judged = judge_all(tests)
    return [
        f"the control, which repeats the baseline, differs from it by {METRICS[name].name} "
        f"{units.ratio(_ratio(one.estimate))}: something besides the options moves the figures, so smaller "
        "differences mean nothing"
        for name, one in judged.items()
        if decide(one, contest.suite.threshold(name), more_is_better=True) in ("better", "worse")
    ]


def _ratio(logarithm: float) -> float | None:
    return finite(lambda: math.exp(logarithm))
