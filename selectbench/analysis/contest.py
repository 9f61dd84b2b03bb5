"""The contest: every option is tested against the baseline and the suite's constraints, then ranked with ties."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from selectbench import units
from selectbench.analysis.family import (
    ALPHA,
    HypothesisTest,
    Judged,
    Pairs,
    agreeing_ends,
    all_pairs,
    decide,
    judge_all,
    seeds_to_settle,
)
from selectbench.analysis.formulas import finite
from selectbench.analysis.result import Comparison, ConstraintVerdict, Decision, Family, Settling
from selectbench.analysis.statistics import Blocks, Bools, Difference, make_blocks, of_one, quantile, two_sided_p
from selectbench.analysis.summary import Summary, mean, other_tokens, seeds_words
from selectbench.suite.metrics import METRICS, PER_TOKEN, SECONDS_TO_LOSS, Constraint, Metric, parse_constraint
from selectbench.suite.suite import CONTROL, Suite

# Whether an option holds the suite's constraints: tests of non-inferiority with three answers.


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
            why = (
                "1 seed, which tells no spread"
                if self.test.difference.seeds == 1
                else "every seed, maybe by chance"
            )
            return _said(self.text, "undecided", f"{shown} with {why}")
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
    found = of_one(values, is_coarse=METRICS[constraint.metric].scored)
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


# The declared family: every option against the baseline by the objective, and every constraint.


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

    @property
    def tested(self) -> Metric:
        """The metric that claims by the objective rest on."""
        objective = METRICS[self.suite.decide.objective]
        return METRICS[objective.claimed_by] if objective.claimed_by else objective

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
        if judged is None:
            return "undecided"
        threshold = self.suite.threshold(self.tested.name)
        return decide(judged, threshold, more_is_better=self.tested.better == "more")

    def compared(self, against: str, difference: Difference, judged: Judged | None, tests: int) -> Comparison:
        """A difference by the objective in words and figures; `judged` None: no measure of spread."""
        threshold = self.suite.threshold(self.tested.name)
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
        if metric == self.tested.name and judged is not None:
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
    losses = {summary.name: summary.values["final_loss"] for summary in taking_part}
    blocks = {
        name: make_blocks(
            {s.name: s.values[name] for s in (same_tokens if name in PER_TOKEN else taking_part)},
            losses if metric.scored else None,
        )
        for name, metric in METRICS.items()
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
    found = contest.blocks[contest.tested.name].difference(summary.name, suite.baseline)
    if summary.name != suite.baseline and found is not None:
        contest.differences[summary.name] = found
        least_p = _p_of_inferior_loss(contest, summary.name) if METRICS[suite.decide.objective].claimed_by else 0.0
        tests.update({(summary.name, ""): HypothesisTest(found, least_p=least_p)} if candidate else {})


def _p_of_inferior_loss(contest: Contest, option: str) -> float:
    """Of the hypothesis that its final perplexity is above the baseline's by the threshold or more; one-sided.

    No option is called faster to a loss that it is not shown to reach.
    """
    metric = "final_perplexity"
    found = contest.blocks[metric].difference(option, contest.baseline.name)
    if found is None or found.standard_error is None:
        return 1.0
    below = math.log1p(contest.suite.threshold(metric)) - found.estimate
    if found.standard_error == 0:
        return 0.0 if below >= 0 else 1.0
    two_sided = float(two_sided_p(below / found.standard_error, found.degrees_of_freedom or math.inf))
    return two_sided / 2 if below > 0 else 1.0


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


# The order of the rows by the objective: ranks that ties share.
#
# A second family: all pairs of options besides the baseline. Two options are put in order only where one of them at
# least was told from the baseline in the declared family (a gate, so that where all options are equal hardly more
# than the declared level of claims is false), or where the pair itself is told apart at a tenth of that level, as a
# noisy baseline tells nothing from itself. A pair with the baseline is decided in the declared family.


PAST_THE_GATE = 10
"""Share of alpha, as its inverse, at which a pair needs no gate."""


@dataclass(frozen=True)
class Standing:
    """Who is shown to be better than whom."""

    names: Sequence[str]
    better: Bools
    """[i, j]: whether i is shown to be better than j."""
    known: Bools
    """[i, j]: whether there is a measure of spread for the pair."""
    contest: Contest
    pairs: Pairs
    """Of the options besides the baseline."""

    @cached_property
    def ranked(self) -> list[str]:
        """Those with a measure of spread for some pair; one that is alone needs a spread of its own."""
        if len(self.names) == 1:
            suite, (name,) = self.contest.suite, self.names
            blocks = self.contest.blocks[self.contest.tested.name]
            known = dict(zip(blocks.names, (~np.isnan(blocks.logs)).sum(axis=1).tolist(), strict=True))
            return [name] if len(suite.options) == 1 or known[name] > 1 else []
        return [name for i, name in enumerate(self.names) if self.known[i].any()]

    def rank(self, option: str, among: Sequence[str]) -> int:
        """1 and the number of others shown to be better."""
        place, others = self._places(option, among)
        return 1 + int(self.better[others, place].sum())

    def ties(self, option: str, among: Sequence[str]) -> list[str]:
        """Others that it is shown to be neither better nor worse than."""
        place, others = self._places(option, among)
        return [self.names[o] for o in others if not self.better[o, place] and not self.better[place, o]]

    def comparison(self, option: str, against: str) -> Comparison | None:
        """The pair by the objective; with the baseline as the declared family has it. None: no seed of both."""
        if against == self.contest.baseline.name:
            return self.contest.against_baseline(option)
        if option == self.contest.baseline.name:
            found = self.contest.against_baseline(against)
            return None if found is None else _turned(found, against)
        difference = self.contest.blocks[self.contest.tested.name].difference(option, against)
        return None if difference is None else self._ordered(option, against, difference)

    def _ordered(self, option: str, against: str, difference: Difference) -> Comparison:
        """With the interval of Bonferroni's level and the p that Holm adjusts over all pairs."""
        tests = max(1, len(self.pairs.first))
        (judged,) = judge_all({"": HypothesisTest(difference)}, tests).values() or (None,)
        place = self.pairs.place(option, against)
        if judged is not None:
            adjusted = float(self.pairs.p_adjusted[place])
            ends = (np.array(v) for v in (judged.low, judged.high, judged.estimate, 0.0, adjusted))
            low, high = agreeing_ends(*ends)
            judged = replace(judged, p_adjusted=adjusted, low=float(low), high=float(high))
        found = self.contest.compared(against, difference, judged, tests)
        mine, other = self.names.index(option), self.names.index(against)
        if found.decision in ("better", "worse") and not (self.better[mine, other] or self.better[other, mine]):
            return found.model_copy(update={"decision": "undecided"})  # the gate
        return found

    def _places(self, option: str, among: Sequence[str]) -> tuple[int, list[int]]:
        number = {name: i for i, name in enumerate(self.names)}
        return number[option], [number[name] for name in among if name != option]


def stand(contest: Contest, names: Sequence[str]) -> Standing:
    """Of the options of these names, the baseline among them or not."""
    tested = contest.tested
    threshold = contest.suite.threshold(tested.name)
    baseline = contest.baseline.name
    pairs = all_pairs(contest.blocks[tested.name], [name for name in names if name != baseline])
    more = tested.better == "more"
    verdicts = pairs.better(threshold, more_is_better=more)
    gate = np.array([_told_from_baseline(contest, name) for name in pairs.names], bool)
    beyond = pairs.better(threshold, more_is_better=more, families=PAST_THE_GATE)
    if METRICS[contest.suite.decide.objective].claimed_by:
        not_inferior = np.array([_p_of_inferior_loss(contest, name) <= ALPHA for name in pairs.names], bool)
        verdicts, beyond = verdicts & not_inferior[:, None], beyond & not_inferior[:, None]
    return _with_baseline(contest, names, pairs, verdicts & (gate[:, None] | gate[None, :]) | beyond)


def _told_from_baseline(contest: Contest, option: str) -> bool:
    """Whether the declared family tells the two apart; there is no gate where it could not."""
    judged = contest.judged.get((option, ""))
    return judged is None or judged.rejected


def _with_baseline(contest: Contest, names: Sequence[str], pairs: Pairs, verdicts: Bools) -> Standing:
    order = list(names)
    better, known = np.zeros((len(order), len(order)), bool), np.zeros((len(order), len(order)), bool)
    places = [order.index(name) for name in pairs.names]
    better[np.ix_(places, places)] = verdicts
    known[np.ix_(places, places)] = pairs.known()
    if contest.baseline.name in order:
        own = order.index(contest.baseline.name)
        for name, place in zip(pairs.names, places, strict=True):
            found = contest.decision(name)
            known[own, place] = known[place, own] = found is not None and (name, "") in contest.judged
            better[place, own], better[own, place] = found == "better", found == "worse"
    return Standing(order, better, known, contest, pairs)


def _turned(found: Comparison, against: str) -> Comparison:
    """The same pair seen from the other side."""
    turned: dict[Decision, Decision] = {"better": "worse", "worse": "better"}
    return found.model_copy(
        update={
            "against": against, "decision": turned.get(found.decision, found.decision),
            "ratio": _inverse(found.ratio),
            "low": _inverse(found.high), "high": _inverse(found.low),
        }
    )  # fmt: skip


def _inverse(ratio: float | None) -> float | None:
    return None if not ratio else finite(lambda: 1 / ratio)


# The control, the baseline's second row: two names for one thing should not differ.


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
        f"{units.ratio(_control_ratio(one.estimate))}: something besides the options moves the figures, so smaller "
        "differences mean nothing"
        for name, one in judged.items()
        if decide(one, contest.suite.threshold(name), more_is_better=True) in ("better", "worse")
    ]


def _control_ratio(logarithm: float) -> float | None:
    return finite(lambda: math.exp(logarithm))
