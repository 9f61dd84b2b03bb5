"""The control, the baseline's second row: two names for one thing should not differ."""

from __future__ import annotations

import math
from collections.abc import Mapping

from selectbench import units
from selectbench.analysis.contest import Contest
from selectbench.analysis.distributions import two_sided_p
from selectbench.analysis.family import ALPHA
from selectbench.analysis.metrics import METRICS
from selectbench.analysis.summary import Summary
from selectbench.suite.suite import CONTROL

_WATCHED = ("tokens_per_second", "peak_memory_bytes", "final_loss", "joules_per_token")


def control_warnings(contest: Contest, summaries: Mapping[str, Summary]) -> list[str]:
    """A line for each metric in which the control differs from the baseline, by its own test at ALPHA."""
    if not contest.suite.control or not summaries[CONTROL].completed:
        return []
    found = [_difference(contest, name) for name in dict.fromkeys((contest.suite.decide.objective, *_WATCHED))]
    return [
        f"the control, which repeats the baseline, differs from it by {line}: something besides the options "
        "moves the "
        "figures, so smaller differences mean nothing"
        for line in found
        if line
    ]


def _difference(contest: Contest, metric: str) -> str | None:
    found = contest.blocks[metric].difference(CONTROL, contest.baseline.name) if metric in contest.blocks else None
    if found is None or found.standard_error is None:
        return None
    matters = abs(found.estimate) > math.log1p(contest.suite.decide.threshold(metric))
    free = found.degrees_of_freedom or math.inf
    chance = float(two_sided_p(found.estimate / found.standard_error, free)) if found.standard_error else 0.0
    if not matters or chance > ALPHA:
        return None
    return f"{METRICS[metric].name} {units.ratio(math.exp(found.estimate))}"
