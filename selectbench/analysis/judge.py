"""Whether an option holds the suite's constraints, judged on means without a test of significance."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from selectbench.analysis.formulas import finite
from selectbench.analysis.metrics import METRICS
from selectbench.analysis.row import ConstraintVerdict
from selectbench.analysis.summary import Summary
from selectbench.suite.constraint import GPU_METRICS, Constraint, parse_constraint

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """Holds what every row is judged against."""

    baseline: Summary
    measures_quality: bool
    """False for a quick run and for `eval: none`: then nothing is said of quality."""

    def verdict(self, text: str, summary: Summary) -> ConstraintVerdict:
        """One constraint of one option that completed at least a seed. Raises ValueError for a wrong text."""
        constraint = parse_constraint(text)
        metric = METRICS[constraint.metric]
        if metric.quality and not self.measures_quality:
            return _said(text, "not_judged", "quality was not measured")
        diverged = [seed for seed, failure in summary.failed.items() if failure.kind == "diverged"]
        if metric.quality and diverged:
            return _said(text, "fails", f"diverged with seed {', '.join(map(str, diverged))}")
        if summary.only_spoiled(metric.name):
            return _said(text, "not_judged", f"every trial was {summary.unclean_words(metric.name)}")
        if constraint.metric in GPU_METRICS and not summary.values[metric.name]:
            return _said(text, "not_judged", f"no trial tells its {metric.name}")
        judge = self._relative if constraint.relative else _absolute
        return judge(text, constraint, summary)

    def _relative(self, text: str, constraint: Constraint, summary: Summary) -> ConstraintVerdict:
        if self.baseline.only_spoiled(constraint.metric):
            words = self.baseline.unclean_words(constraint.metric)
            return _said(text, "not_judged", f"every trial of the baseline {self.baseline.name} was {words}")
        if not self.baseline.values[constraint.metric]:
            return _said(text, "not_judged", f"the baseline {self.baseline.name} has no {constraint.metric}")
        if not summary.values[constraint.metric]:
            return _said(text, "fails", f"no finite {constraint.metric}")
        found = ratio_to(self.baseline, summary, constraint.metric)
        if found is None and (self.baseline.spoiled[constraint.metric] or summary.spoiled[constraint.metric]):
            return _said(text, "not_judged", "no seed was clean with the baseline too")
        if found is None:
            return _said(text, "fails", "cannot be judged: no figure to compare for any seed of the baseline")
        return _compared(text, constraint, found, f"{found:.4g}x baseline")


def _absolute(text: str, constraint: Constraint, summary: Summary) -> ConstraintVerdict:
    found = summary.mean(constraint.metric)
    if found is None:
        return _said(text, "fails", f"no finite {constraint.metric}")
    return _compared(text, constraint, found, METRICS[constraint.metric].show(found))


def _compared(text: str, constraint: Constraint, found: float, shown: str) -> ConstraintVerdict:
    holds = _COMPARE[constraint.operator](found, constraint.value)
    return _said(text, "holds" if holds else "fails", f"{constraint.metric} is {shown}")


def _said(text: str, verdict: str, detail: str) -> ConstraintVerdict:
    return ConstraintVerdict.model_validate({"constraint": text, "verdict": verdict, "detail": detail})


def ratio_to(baseline: Summary, summary: Summary, metric: str) -> float | None:
    """Ratio of means over the seeds that both know; None where there are none or the baseline's is 0."""
    seeds = summary.common(baseline, metric)
    ours, theirs = summary.mean(metric, seeds), baseline.mean(metric, seeds)
    if ours is None or theirs is None:
        return None
    return finite(lambda: ours / theirs)
