"""The declared family: every option against the baseline by the objective, and every constraint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selectbench.analysis.comparison import Comparison, Decision, Family, Settling
from selectbench.analysis.family import ALPHA, HypothesisTest, Judged, decide, judge_all, seeds_to_settle
from selectbench.analysis.formulas import finite
from selectbench.analysis.judge import Asked, Judge
from selectbench.analysis.row import ConstraintVerdict
from selectbench.analysis.statistics import Blocks, Difference, make_blocks, quantile
from selectbench.analysis.summary import Summary, mean, other_tokens
from selectbench.suite.metrics import METRICS, PER_TOKEN
from selectbench.suite.suite import CONTROL, Suite

Key = tuple[str, str]
"""Option and constraint; the objective's constraint is ''."""


@dataclass
class Contest:
    """What is claimed of each option, and what is not."""

    suite: Suite
    baseline: Summary
    blocks: dict[str, Blocks]
    """By metric, of all comparable options."""
    round_seconds: float | None
    """Expected time of one more seed for every option; None: no trial completed."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """By option: the objective over the baseline's."""
    judged: dict[Key, Judged] = field(default_factory=dict)
    asked: dict[Key, Asked | ConstraintVerdict] = field(default_factory=dict)

    def family(self) -> Family:
        """What was declared."""
        decided_by, threshold = self.suite.decide, self.suite.threshold
        metrics = dict.fromkeys([decided_by.objective, *METRICS])
        thresholds = {name: threshold(name) for name in metrics if threshold(name)}
        thresholds.setdefault(decided_by.objective, threshold(decided_by.objective))
        return Family(
            alpha=ALPHA, objective=decided_by.objective, constraints=decided_by.constraints,
            tests=self.tests, thresholds=thresholds,
        )  # fmt: skip

    @property
    def tests(self) -> int:
        """How many share alpha."""
        return sum(not judged.is_exact for judged in self.judged.values())

    def constraints(self, option: str) -> list[ConstraintVerdict]:
        """One each in the suite's order; empty for an option that was not asked."""
        found = [(text, self.asked.get((option, text))) for text in self.suite.decide.constraints]
        return [self._concluded((option, text), asked) for text, asked in found if asked is not None]

    def _concluded(self, key: Key, asked: Asked | ConstraintVerdict) -> ConstraintVerdict:
        if isinstance(asked, ConstraintVerdict):
            return asked
        distance = abs(asked.test.difference.estimate - asked.test.bound)
        return asked.concluded(self.judged.get(key), self._settling(asked.test.difference, distance))

    def against_baseline(self, option: str) -> Comparison | None:
        """By the objective."""
        if option not in self.differences:
            return None
        judged = self.judged.get((option, ""))
        return self.compared(self.baseline.name, self.differences[option], judged, self.tests)

    def decision(self, option: str) -> Decision | None:
        """Of an option against the baseline; None: no seed of both."""
        return self._decided(self.judged.get((option, ""))) if option in self.differences else None

    def _decided(self, judged: Judged | None) -> Decision:
        metric = METRICS[self.suite.decide.objective]
        if judged is None:
            return "undecided"
        return decide(judged, self.suite.threshold(metric.name), more_is_better=metric.better == "more")

    def compared(self, against: str, difference: Difference, judged: Judged | None, tests: int) -> Comparison:
        """A difference by the objective in words and figures; `judged` None: no measure of spread."""
        threshold = self.suite.threshold(self.suite.decide.objective)
        decision, settling = self._decided(judged), None
        if decision == "undecided" and judged is not None:
            settling = self._settling(difference, _open_distance(difference.estimate, threshold), tests)
        return Comparison(
            against=against, ratio=_ratio(difference.estimate),
            low=_ratio(judged.low) if judged else None, high=_ratio(judged.high) if judged else None,
            p=judged.p if judged else None, p_adjusted=judged.p_adjusted if judged else None,
            decision=decision, spread=difference.spread, degrees_of_freedom=difference.degrees_of_freedom,
            seeds=difference.seeds, settling=settling,
        )  # fmt: skip

    def _settling(self, difference: Difference, distance: float, tests: int | None = None) -> Settling | None:
        seeds = seeds_to_settle(difference, max(1, tests or self.tests), distance)
        if seeds is None:
            return None
        return Settling(seeds=seeds, seconds=None if self.round_seconds is None else seeds * self.round_seconds)

    def interval(self, option: str, metric: str) -> tuple[float | None, float | None, float | None]:
        """Ratio to the baseline with its ends: simultaneous for the objective, by itself for all others."""
        if option == self.baseline.name:
            return (1.0 if self.baseline.values[metric] else None), None, None
        found = self.blocks[metric].difference(option, self.baseline.name)
        if found is None:
            return None, None, None
        low, high = self._ends(option, metric, found)
        return _ratio(found.estimate), _ratio(low), _ratio(high)

    def _ends(self, option: str, metric: str, found: Difference) -> tuple[float | None, float | None]:
        judged = self.judged.get((option, ""))
        if metric == self.suite.decide.objective and judged is not None:
            return judged.low, judged.high
        if found.standard_error is None:
            return None, None
        critical = float(quantile(ALPHA, found.degrees_of_freedom or math.inf))
        half = found.standard_error * critical
        return found.estimate - half, found.estimate + half


def hold_contest(suite: Suite, summaries: Sequence[Summary], comparable: Mapping[str, bool]) -> Contest:
    """All tests of the suite's family on the options that did the baseline's job.

    Raises ValueError for a constraint that cannot be read.
    """
    baseline = next(summary for summary in summaries if summary.name == suite.baseline)
    taking_part = [summary for summary in summaries if comparable[summary.name]]
    same_tokens = [summary for summary in taking_part if not other_tokens(suite, summary.option)]
    blocks = {
        name: make_blocks({s.name: s.values[name] for s in (same_tokens if name in PER_TOKEN else taking_part)})
        for name in METRICS
    }
    contest = Contest(suite, baseline, blocks, _round_seconds(summaries))
    judge = Judge(baseline, suite.job.evaluates and not suite.quick, blocks)
    tests: dict[Key, HypothesisTest] = {}
    for summary in taking_part:
        _ask(contest, judge, summary, tests)
    contest.judged.update(judge_all(tests))
    return contest


def _ask(contest: Contest, judge: Judge, summary: Summary, tests: dict[Key, HypothesisTest]) -> None:
    """Puts an option's tests among the family's. The control and the baseline itself are no candidates."""
    suite = contest.suite
    candidate = summary.name != suite.baseline and not is_control(suite, summary.name)
    for text in [] if is_control(suite, summary.name) else suite.decide.constraints:
        contest.asked[summary.name, text] = asked = judge.ask(text, summary)
        if not isinstance(asked, Asked):
            continue
        if summary.name == suite.baseline and asked.constraint.relative:  # to itself
            contest.asked[summary.name, text] = asked.concluded(Judged(0.0, 0.0, 0.0, 1.0, 1.0), None)
        else:
            tests[summary.name, text] = asked.test
    found = contest.blocks[suite.decide.objective].difference(summary.name, suite.baseline)
    if summary.name != suite.baseline and found is not None:
        contest.differences[summary.name] = found
        tests.update({(summary.name, ""): HypothesisTest(found)} if candidate else {})


def is_control(suite: Suite, option: str) -> bool:
    """Whether the option is the baseline's second row."""
    return suite.control and option == CONTROL


def _open_distance(estimate: float, threshold: float) -> float:
    """How far an open difference lies from what it must be told from: from none at all, or from the threshold."""
    matters = math.log1p(threshold)
    return abs(estimate) if abs(estimate) > matters else matters - abs(estimate)


def _round_seconds(summaries: Sequence[Summary]) -> float | None:
    means = [mean([record.wall_seconds for record in s.completed.values()]) for s in summaries if s.completed]
    known = [value for value in means if value is not None]
    return math.fsum(known) if known else None


def _ratio(logarithm: float | None) -> float | None:
    return None if logarithm is None else finite(lambda: math.exp(logarithm))
