"""Whether an option holds the suite's constraints: tests of non-inferiority with three answers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from selectbench import units
from selectbench.analysis.comparison import Settling
from selectbench.analysis.family import HypothesisTest, Judged
from selectbench.analysis.formulas import finite
from selectbench.analysis.row import ConstraintVerdict
from selectbench.analysis.statistics import Blocks, Difference, of_one
from selectbench.analysis.summary import Summary, seeds_words
from selectbench.suite.constraint import Constraint, parse_constraint
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip

FAR = 2.0
"""An absolute bound that all values are so many times away from is decided without a measure of spread: no figure
of one job varies that much from seed to seed."""


@dataclass(frozen=True)
class Asked:
    """A constraint on one option that a test must answer."""

    text: str
    constraint: Constraint
    test: HypothesisTest
    """Against the bound."""
    is_far: bool = False
    """Whether every seed's value lies beyond `FAR` times an absolute bound, or below its inverse."""

    def concluded(self, judged: Judged | None, settling: Settling | None) -> ConstraintVerdict:
        """`judged`: the test among its family; None: no measure of spread."""
        verdict, shown = "undecided", f"{self.constraint.metric} is {self._shown(self.test.difference.estimate)}"
        if judged is None and self.is_far:
            verdict = "holds" if self._holds(self.test.difference.estimate) else "fails"
            return _said(self.text, verdict, f"{shown}, far from the bound")
        if judged is None:
            return _said(self.text, "undecided", f"{shown} with 1 seed, which tells no spread")
        if judged.rejected or judged.is_exact or self.is_far:
            verdict = "holds" if self._holds(judged.estimate) else "fails"
        if judged.low < judged.high:
            shown += f" ({self._end(judged.low)} to {self._end(judged.high)})"
        return ConstraintVerdict.model_validate(
            {"constraint": self.text, "verdict": verdict, "detail": shown, "p_adjusted": judged.p_adjusted,
             "settling": settling if verdict == "undecided" else None}
        )  # fmt: skip

    def _holds(self, estimate: float) -> bool:
        if math.isclose(estimate, self.test.bound, rel_tol=0.0, abs_tol=1e-12):  # the rounding of logarithms
            return self.constraint.operator in ("<=", ">=")
        return _COMPARE[self.constraint.operator](estimate, self.test.bound)

    def _end(self, logarithm: float) -> str:
        value = finite(lambda: math.exp(logarithm))
        if self.constraint.relative:
            return units.DASH if value is None else f"{value:.4g}x"
        return METRICS[self.constraint.metric].show(value)

    def _shown(self, logarithm: float) -> str:
        is_ratio = self.constraint.relative and finite(lambda: math.exp(logarithm)) is not None
        return f"{self._end(logarithm)} {self.constraint.against}" if is_ratio else self._end(logarithm)


@dataclass(frozen=True)
class Judge:
    """Holds what every row is judged against."""

    baseline: Summary
    measures_quality: bool
    """False for a quick run and for `eval: none`: then nothing is said of quality."""
    blocks: Mapping[str, Blocks]
    """By metric, of all comparable options."""

    def ask(self, text: str, summary: Summary) -> Asked | ConstraintVerdict:
        """One constraint of one option that completed a seed: a test, or the answer where none is needed.

        Raises ValueError for a wrong text.
        """
        constraint = parse_constraint(text)
        metric = METRICS[constraint.metric]
        if metric.quality and not self.measures_quality:
            return _said(text, "not_judged", "quality was not measured")
        diverged = [seed for seed, failure in summary.failed.items() if failure.kind == "diverged"]
        if metric.quality and diverged:
            return _said(text, "fails", f"diverged with seed {', '.join(map(str, diverged))}")
        if metric.name == SECONDS_TO_LOSS and summary.not_reached:
            return _said(text, "fails", summary.not_reached_words())
        if summary.only_spoiled(metric.name):
            return _said(text, "not_judged", f"every trial was {summary.unclean_words(metric.name)}")
        if gap := gap_in(text, metric.name, summary):
            return gap
        if "gpu" in metric.needs and not summary.values[metric.name]:
            return _said(text, "not_judged", f"no trial tells its {metric.name}")
        return (self._relative if constraint.relative else _absolute)(text, constraint, summary)

    def _relative(self, text: str, constraint: Constraint, summary: Summary) -> Asked | ConstraintVerdict:
        name = constraint.metric
        if self.baseline.only_spoiled(name):
            words = self.baseline.unclean_words(name)
            return _said(text, "not_judged", f"every trial of the baseline {self.baseline.name} was {words}")
        if not self.baseline.values[name]:
            return _said(text, "not_judged", f"the baseline {self.baseline.name} has no {name}")
        if not summary.values[name]:
            return _without_figure(text, name)
        if constraint.value <= 0:
            return directly(text, constraint, summary)
        if summary.name != self.baseline.name and (
            summary.without_ratio(name) or self.baseline.without_ratio(name)
        ):
            return seed_by_seed(text, constraint, summary, self.baseline)
        found = self._difference(name, summary)
        if found is None and (self.baseline.spoiled[name] or summary.spoiled[name]):
            return _said(text, "not_judged", "no seed was clean with the baseline too")
        if found is None:
            return _said(text, "undecided", "no figure to compare for any seed of the baseline")
        return Asked(text, constraint, HypothesisTest(found, math.log(constraint.value)))

    def _difference(self, metric: str, summary: Summary) -> Difference | None:
        if summary.name == self.baseline.name:
            return Difference(0.0, 0.0, None, len(summary.values[metric]), "none")
        return self.blocks[metric].difference(summary.name, self.baseline.name)


def _absolute(text: str, constraint: Constraint, summary: Summary) -> Asked | ConstraintVerdict:
    values = summary.values[constraint.metric]
    if not values:
        return _without_figure(text, constraint.metric)
    found = of_one(values)
    if found is None or constraint.value <= 0 or min(values.values()) <= 0:
        return directly(text, constraint, summary)
    distances = [math.log(value / constraint.value) for value in values.values()]
    far = min(distances) > math.log(FAR) or max(distances) < -math.log(FAR)
    return Asked(text, constraint, HypothesisTest(found, math.log(constraint.value)), is_far=far)


def gap_in(text: str, metric: str, summary: Summary) -> ConstraintVerdict | None:
    """The answer where completed seeds have no value though others have: the others would flatter the option."""
    if blown := summary.blown_up(metric):
        return _said(text, "fails", f"no finite {metric} with {seeds_words(blown)}")
    if unknown := summary.unknown(metric):
        return _said(text, "undecided", f"no {metric} with {seeds_words(unknown)}")
    return None


def _without_figure(text: str, metric: str) -> ConstraintVerdict:
    if metric == "peak_memory_bytes":
        return _said(text, "not_judged", "memory grew by less than can be measured")
    return _said(text, "fails", f"no finite {metric}")


def seed_by_seed(text: str, constraint: Constraint, ours: Summary, theirs: Summary) -> ConstraintVerdict:
    """Where a value has no logarithm: what all common seeds say, if they agree; below 0 a factor says nothing."""
    metric = constraint.metric
    pairs = [(ours.values[metric][seed], theirs.values[metric][seed]) for seed in ours.common(theirs, metric)]
    answers = {_COMPARE[constraint.operator](mine, constraint.value * other) for mine, other in pairs}
    clear = len(answers) == 1 and min(map(min, pairs)) >= 0
    verdict = ("holds" if True in answers else "fails") if clear else "undecided"
    means = [METRICS[metric].show(summary.mean(metric)) for summary in (ours, theirs)]
    return _said(
        text,
        verdict,
        f"{metric} is {means[0]}, {means[1]} for the {constraint.against}, of which a value is 0 or less",
    )


def directly(text: str, constraint: Constraint, summary: Summary) -> ConstraintVerdict:
    """Where a value or the bound has no logarithm: what all seeds say, if they agree."""
    compare = _COMPARE[constraint.operator]
    answers = {compare(value, constraint.value) for value in summary.values[constraint.metric].values()}
    verdict = "undecided" if len(answers) > 1 else "holds" if True in answers else "fails"
    shown = METRICS[constraint.metric].show(summary.mean(constraint.metric))
    return _said(text, verdict, f"{constraint.metric} is {shown}")


def _said(text: str, verdict: str, detail: str) -> ConstraintVerdict:
    return ConstraintVerdict.model_validate({"constraint": text, "verdict": verdict, "detail": detail})
