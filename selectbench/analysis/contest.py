"""The contest: every option is tested against the baseline and the suite's constraints, then ranked with ties."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from selectbench import units
from selectbench.analysis import family
from selectbench.analysis.family import ClaimTest
from selectbench.analysis.lanes import by_part, neighbour_metrics, part_by_seed
from selectbench.analysis.metrics import finite
from selectbench.analysis.result import Comparison, ConstraintVerdict, Decision, ExtraSeeds, Family
from selectbench.analysis.statistics import Blocks, Bools, Difference, estimate_value, make_blocks, outlying
from selectbench.analysis.summary import Summary, other_tokens, outcomes, seeds_words
from selectbench.suite.metrics import METRICS, PER_TOKEN, SECONDS_TO_LOSS, Constraint, metrics_of, parse_constraint
from selectbench.suite.suite import CONTROL, Suite

# Whether an option holds the suite's constraints: tests of non-inferiority with three answers.

FAR = 2.0
"""An absolute bound that all values are so many times away from is decided without a measure of spread: no figure
of one job varies that much from seed to seed."""


@dataclass(frozen=True)
class BoundTest:
    """The test of one option against the bound of a constraint."""

    text: str
    constraint: Constraint
    test: family.HypothesisTest
    """Against the bound."""
    is_far: bool = False
    """Whether every seed's value lies beyond `FAR` times an absolute bound, or below its inverse."""

    def conclude(self, result: ClaimTest | None, settling: ExtraSeeds | None) -> ConstraintVerdict:
        """The verdict from the test's result among its family; `result` None: there is no measure of spread."""
        estimate = self.test.difference.estimate
        verdict, detail = "undecided", f"{self.constraint.metric} is {self._estimate_words(estimate)}"
        if self.is_far or (result and (result.rejected or result.is_exact)):
            verdict = "holds" if self._holds(estimate) else "fails"
        if result is None:
            is_one = self.test.difference.seeds == 1
            why = " with one seed, which shows no spread" if is_one else " with every seed, maybe by chance"
            return answer(self.text, verdict, f"{detail}{', far from the bound' if self.is_far else why}")
        if result.low < result.high:
            detail = self._with_interval(detail, result)
        settling = settling if verdict == "undecided" else None
        return answer(self.text, verdict, detail, p_adjusted=result.p_adjusted, settling=settling)

    def _with_interval(self, detail: str, result: ClaimTest) -> str:
        around = 0.0 if self.constraint.relative else result.estimate
        low, high = ratio_of(result.low - around), ratio_of(result.high - around)
        if result.rejected or units.is_measurable(low, high):
            return f"{detail} ({self._words(result.low)} to {self._words(result.high)})"
        if against := self.constraint.against:
            return f"{self.constraint.metric} against the {against} is {units.NOT_MEASURABLE}"
        return f"{detail}, too noisy to tell"

    def _holds(self, estimate: float) -> bool:
        if math.isclose(estimate, self.test.bound, rel_tol=0.0, abs_tol=1e-12):  # the rounding of logarithms
            return self.constraint.operator in ("<=", ">=")
        return self.constraint.holds(estimate, self.test.bound)

    def _words(self, logarithm: float) -> str:
        value = ratio_of(logarithm)
        if self.constraint.relative:
            return units.DASH if value is None else f"{value:.4g}x"
        return METRICS[self.constraint.metric].show(value)

    def _estimate_words(self, logarithm: float) -> str:
        is_ratio = self.constraint.relative and ratio_of(logarithm) is not None
        return f"{self._words(logarithm)} {self.constraint.against}" if is_ratio else self._words(logarithm)


def _absolute(text: str, constraint: Constraint, summary: Summary) -> BoundTest | ConstraintVerdict:
    values = summary.values[constraint.metric]
    if not values:
        return _no_figure_answer(text, constraint.metric)
    if verdict := untested(text, constraint, summary):
        return verdict
    estimate = estimate_value(values, is_coarse=METRICS[constraint.metric].scored)
    assert estimate is not None
    distances = [math.log(value / constraint.value) for value in values.values()]
    far = min(distances) > math.log(FAR) or max(distances) < -math.log(FAR)
    return BoundTest(text, constraint, family.HypothesisTest(estimate, math.log(constraint.value)), is_far=far)


def gap_answer(text: str, metric: str, summary: Summary) -> ConstraintVerdict | None:
    """The answer where completed seeds lack a value that others have: these would flatter the option."""
    if blown := summary.overflowing(metric):
        return answer(text, "fails", f"no finite {metric} with {seeds_words(blown)}")
    if unknown := summary.unknown(metric):
        return answer(text, "undecided", f"no {metric} with {seeds_words(unknown)}")
    return None


def _no_figure_answer(text: str, metric: str) -> ConstraintVerdict:
    if metric == "peak_memory_bytes":
        return answer(text, "not_judged", "memory grew by less than can be measured")
    return answer(text, "fails", f"no finite {metric}")


def untested(
    text: str, constraint: Constraint, option: Summary, other: Summary | None = None
) -> ConstraintVerdict | None:
    """The answer where bound or values have no logarithm to test: what all seeds say, if they agree; else None.

    `other`: what a relative constraint is a factor of.
    """
    name = constraint.metric
    if constraint.value <= 0:
        other = None
    elif not option.without_ratio(name) and (other is None or not other.without_ratio(name)):
        return None
    others = dict.fromkeys(option.values[name], 1.0) if other is None else other.values[name]
    pairs = [(value, others[seed]) for seed, value in option.values[name].items() if seed in others]
    answers = {constraint.holds(value, constraint.value * other_value) for value, other_value in pairs}
    is_clear = len(answers) == 1 and (other is None or min(map(min, pairs)) >= 0)
    verdict = ("holds" if True in answers else "fails") if is_clear else "undecided"
    detail = f"{name} is {METRICS[name].show(option.mean(name))}"
    if other is not None:
        against = METRICS[name].show(other.mean(name))
        detail += f", {against} for the {constraint.against}, of which a value is 0 or less"
    return answer(text, verdict, detail)


def answer(text: str, verdict: str, detail: str, **more: Any) -> ConstraintVerdict:
    """The answer to a constraint; `more`: further fields of `ConstraintVerdict`."""
    return ConstraintVerdict.model_validate({"constraint": text, "verdict": verdict, "detail": detail, **more})


# The declared family: every option against the baseline by the objective, and every constraint.

Key = tuple[str, str]
"""Option and constraint; the objective's constraint is ''."""


class Contest:
    """All tests of the suite's family on the options that did the baseline's job: what is claimed of each."""

    def __init__(self, suite: Suite, summaries: Sequence[Summary], comparable: Mapping[str, bool]) -> None:
        """Raises ValueError for a constraint that cannot be read."""
        self.suite, self.objective = suite, METRICS[suite.decide.objective]
        self.summaries, self.comparable = {summary.name: summary for summary in summaries}, comparable
        self.threshold = suite.threshold(self.objective.name)
        self.alpha = family.alpha_of(family.judgement_number(suite.looks))
        """Probability of any false claim at this judgement of the run."""
        self.baseline = self.summaries[suite.baseline]
        taking_part = [summary for summary in summaries if comparable[summary.name]]
        same_tokens = [summary for summary in taking_part if not other_tokens(suite, summary.option)]
        losses = {summary.name: summary.values["final_loss"] for summary in taking_part}
        parts = part_by_seed(suite.baseline, [record for s in summaries for record in s.completed.values()])
        moved = neighbour_metrics(suite) if parts else []
        self.blocks = dict[str, Blocks]()
        """By metric, the values of all comparable options."""
        self.of_rounds = dict[str, Blocks]()
        """The blocks of seeds, by metric whose `blocks` are of nodes or lanes."""
        for name in metrics_of(suite.job):
            values = {s.name: s.values[name] for s in (same_tokens if name in PER_TOKEN else taking_part)}
            self.blocks[name] = make_blocks(values, losses if METRICS[name].scored else None)
            if name in moved and (counted := by_part(values, parts)) is not values:
                self.of_rounds[name], self.blocks[name] = self.blocks[name], make_blocks(counted)
        done, planned = outcomes(summaries)
        self.is_complete = done == planned
        """Whether every trial has an outcome: no more seeds are proposed before."""
        means = [fmean(r.wall_seconds for r in s.completed.values()) for s in summaries if s.completed]
        self.round_seconds = math.fsum(means) if means else None
        """Expected time of one more seed for every option; None: no trial completed."""
        self.with_lost_seeds = {s.name for s in summaries if s.lost_seeds(self.objective.name)}
        """Options of which some seeds failed for what the objective measures: those left may be the lucky ones."""
        self.is_busy = any(s.counts_busy and s.busy for s in summaries)
        """Whether trials of a busy CPU count."""
        self._outliers = dict[str, dict[tuple[str, int], float]]()
        self.checks = dict[Key, BoundTest | ConstraintVerdict]()
        tests = {key: test for summary in taking_part for key, test in self._declared_tests(summary)}
        # Those of options that were screened out are not made: what the family was declared to be does not shrink.
        out = sum(summary.is_screened_out for summary in summaries) * (1 + len(suite.decide.constraints))
        self.results = family.judge_all(tests, self.alpha, further=out)
        made = sum(not result.is_exact for result in self.results.values())
        self.tests = made + out if made else 0
        """Number of tests that share alpha."""
        self.simultaneous_ends = dict[tuple[str, str], tuple[float, float]]()
        """By option and metric, ends of the ratio's simultaneous interval, where a test is on it; logarithms."""
        self._give_each_ratio_one_interval()

    def _declared_tests(self, summary: Summary) -> Iterator[tuple[Key, family.HypothesisTest]]:
        """An option's tests among the family's. The control and the baseline itself are no candidates."""
        is_baseline, control = summary is self.baseline, is_control(self.suite, summary.name)
        for text in [] if control else self.suite.decide.constraints:
            self.checks[summary.name, text] = check = self.check(text, summary)
            if isinstance(check, BoundTest) and is_baseline and check.constraint.relative:  # to itself
                itself = ClaimTest(0.0, 0.0, 0.0, 1.0, 1.0, self.alpha)
                self.checks[summary.name, text] = check.conclude(itself, None)
            elif isinstance(check, BoundTest):
                yield (summary.name, text), check.test
        difference = self.blocks[self.objective.name].difference(summary.name, self.baseline.name)
        if difference is not None and not (is_baseline or control):
            yield (summary.name, ""), family.HypothesisTest(difference, least_p=self.p_of_lucky_seeds(summary.name))

    def _give_each_ratio_one_interval(self) -> None:
        """Several tests of one ratio have their ends moved each to its own bound: all of it holds together."""
        of_ratio: dict[tuple[str, str], list[Key]] = {}
        for option, text in self.results:
            check = self.checks.get((option, text))
            if not text or (isinstance(check, BoundTest) and check.constraint.relative):
                metric = check.constraint.metric if isinstance(check, BoundTest) else self.objective.name
                of_ratio.setdefault((option, metric), []).append((option, text))
        for place, keys in of_ratio.items():
            results = [self.results[key] for key in keys]
            low, high = self.simultaneous_ends[place] = max(r.low for r in results), min(r.high for r in results)
            self.results.update({key: replace(self.results[key], low=low, high=high) for key in keys})

    def outliers(self, metric: str) -> dict[tuple[str, int], float]:
        """Trials that are outliers by a metric, by option and seed, with the factor to the expected value."""
        if metric not in self._outliers:
            blocks = self.of_rounds.get(metric) or self.blocks[metric]
            distances = outlying(blocks.logs)
            self._outliers[metric] = {
                (blocks.names[place], blocks.seeds[column]): math.exp(distances[place, column])
                for place, column in np.argwhere(~np.isnan(distances)).tolist()
            }
        return self._outliers[metric]

    def p_of_lucky_seeds(self, option: str, metric: str | None = None) -> float:
        """The p of the hypothesis that an option reaches the loss sooner by the luck of its seeds that reach it.

        It is rejected where the final loss is shown to be lower than the baseline's, or where speed is shown to be
        higher and the final loss not to be above the baseline's by the threshold, which is what reaching it means
        (`summary._add_crossings`). 0 where the metric (None: the objective) is known for every trial, so that luck
        is no explanation.
        """
        if not (METRICS[metric] if metric else self.objective).only_if_reached:
            return 0.0
        margin = math.log1p(self.suite.threshold("final_loss"))
        faster = self._p_beyond("tokens_per_second", option, 0.0, more=True)
        as_good = self._p_beyond("final_loss", option, margin, more=False)
        return min(max(faster, as_good), self._p_beyond("final_loss", option, 0.0, more=False))

    def _p_beyond(self, metric: str, option: str, bound: float, *, more: bool) -> float:
        """Two-sided p of a difference from the baseline that lies above the bound (`more`) or below; else 1."""
        d = self.blocks[metric].difference(option, self.baseline.name)
        is_beyond = d is not None and (d.estimate > bound if more else d.estimate < bound)
        return d.p(bound) if d is not None and is_beyond else 1.0

    def declared(self) -> Family:
        """The declared family of tests."""
        metrics = dict.fromkeys([self.objective.name, *metrics_of(self.suite.job)])
        shares = {name: self.suite.threshold(name) for name in metrics}
        thresholds = {name: share for name, share in shares.items() if share or name == self.objective.name}
        return Family(
            alpha=self.alpha, looks=self.suite.looks, objective=self.objective.name, tests=self.tests,
            constraints=self.suite.decide.constraints, thresholds=thresholds,
        )  # fmt: skip

    def check(self, text: str, summary: Summary) -> BoundTest | ConstraintVerdict:
        """The test of a constraint on an option that completed a seed, or its answer. Raises ValueError."""
        constraint = parse_constraint(text)
        metric = METRICS[constraint.metric]
        if metric.quality and (self.suite.quick or not self.suite.job.evaluates):
            return answer(text, "not_judged", "quality was not measured")
        diverged = [seed for seed, failure in summary.failed.items() if failure.kind == "diverged"]
        if metric.quality and diverged:
            return answer(text, "fails", f"diverged with seed {', '.join(map(str, diverged))}")
        if metric.name == SECONDS_TO_LOSS and summary.not_reached:
            return answer(text, "fails", summary.not_reached_words())
        if summary.only_spoiled(metric.name):
            return answer(text, "not_judged", f"every trial was {summary.unclean_words(metric.name)}")
        if gap := gap_answer(text, metric.name, summary):
            return gap
        if lost := summary.lost_words(metric.name):
            return answer(text, "undecided", f"{lost}: the other seeds may flatter it")
        if "gpu" in metric.needs and not summary.values[metric.name]:
            return answer(text, "not_judged", f"no trial measured {metric.name}")
        return (self._relative if constraint.relative else _absolute)(text, constraint, summary)

    def _relative(self, text: str, constraint: Constraint, summary: Summary) -> BoundTest | ConstraintVerdict:
        name, baseline = constraint.metric, self.baseline
        if baseline.only_spoiled(name):
            words = baseline.unclean_words(name)
            return answer(text, "not_judged", f"every trial of the baseline {baseline.name} was {words}")
        if not baseline.values[name]:
            return answer(text, "not_judged", f"the baseline {baseline.name} has no {name}")
        if not summary.values[name]:
            return _no_figure_answer(text, name)
        if summary.name == baseline.name and constraint.value > 0:
            difference: Difference | None = Difference(0.0, 0.0, None, len(summary.values[name]), "none")
        elif verdict := untested(text, constraint, summary, baseline):
            return verdict
        else:
            difference = self.blocks[name].difference(summary.name, baseline.name)
        if difference is None and (baseline.spoiled[name] or summary.spoiled[name]):
            return answer(text, "not_judged", "no seed was clean with the baseline too")
        if difference is None:
            return answer(text, "undecided", "no figure to compare for any seed of the baseline")
        least_p = self.p_of_lucky_seeds(summary.name, name)
        return BoundTest(text, constraint, family.HypothesisTest(difference, math.log(constraint.value), least_p))

    def constraints(self, option: str) -> list[ConstraintVerdict]:
        """The verdicts in the suite's order; [] for an option that is not tested."""
        verdicts = []
        for text in self.suite.decide.constraints:
            check = self.checks.get((option, text))
            if isinstance(check, BoundTest):
                distance = abs(check.test.difference.estimate - check.test.bound)
                settling = self._settling(check.constraint.metric, check.test.difference, distance, self.tests)
                flattering = check.constraint.relative and self.baseline.lost_words(check.constraint.metric)
                check = check.conclude(self.results.get((option, text)), settling)
                if flattering and check.verdict == "fails":
                    check = answer(text, "undecided", f"{check.detail}, but of the baseline {flattering}")
            verdicts += [check] if check is not None else []
        return verdicts

    def against_baseline(self, option: str) -> Comparison | None:
        """The comparison by the objective; None: the baseline itself, or no seed of both."""
        difference = self.blocks[self.objective.name].difference(option, self.baseline.name)
        if difference is None or option == self.baseline.name:
            return None
        # Decisions that may not be made, as one of the two has lucky seeds alone left.
        excluded: set[Decision] = {"better"} if option in self.with_lost_seeds else set()
        excluded |= {"worse"} if self.baseline.name in self.with_lost_seeds else set()
        excluded |= {"no_difference"} if excluded else set()
        return self.comparison(self.baseline.name, difference, self.results.get((option, "")), self.tests, excluded)

    def comparison(
        self, against: str, difference: Difference, result: ClaimTest | None, tests: int,
        excluded: Collection[Decision],
    ) -> Comparison:  # fmt: skip
        """A comparison by the objective; `result` None: no spread; `excluded`: decisions that become undecided."""
        more, settling = self.objective.better == "more", None
        decision = family.decide(result, self.threshold, more_is_better=more) if result else "undecided"
        is_excluded = decision in excluded
        matters = math.log1p(self.threshold)
        low, high = (ratio_of(result.low), ratio_of(result.high)) if result else (None, None)
        if decision == "undecided" and result and units.is_measurable(low, high):
            estimate = abs(difference.estimate)
            # It must be told from none at all, or from the threshold.
            distance = estimate if estimate > matters else matters - estimate
            settling = self._settling(self.objective.name, difference, distance, tests)
        return Comparison(
            against=against, ratio=ratio_of(difference.estimate), low=low, high=high,
            p=result.p if result else None, p_adjusted=result.p_adjusted if result else None,
            decision="undecided" if is_excluded else decision, spread=difference.spread,
            degrees_of_freedom=difference.degrees_of_freedom, seeds=difference.seeds, settling=settling,
            exceeds=bool(result and max(result.low, -result.high) > matters + family.ROUNDING and not is_excluded),
        )  # fmt: skip

    def _settling(self, metric: str, difference: Difference, distance: float, tests: int) -> ExtraSeeds | None:
        looks = self.suite.looks or [len(self.suite.seeds)]
        following = family.judgement_number([*looks, family.MOST_SEEDS])
        level = family.alpha_of(following) / max(1, tests)
        seeds = family.seeds_to_settle(difference, level, distance)
        # More seeds are no remedy where a busy machine, a node or a single trial made the spread.
        is_disturbed = (self.is_busy and "busy" in METRICS[metric].spoiled_by) or metric in self.of_rounds
        if seeds is None or not self.is_complete or is_disturbed or self.outliers(metric):
            return None
        return ExtraSeeds(seeds=seeds, seconds=None if self.round_seconds is None else seeds * self.round_seconds)

    def interval(self, option: str, metric: str) -> tuple[float | None, float | None, float | None]:
        """Ratio to the baseline with its ends: simultaneous where the family has a test of it, else by itself."""
        if option == self.baseline.name:
            return (1.0 if self.baseline.values[metric] else None), None, None
        difference = self.blocks[metric].difference(option, self.baseline.name)
        if difference is None:
            return None, None, None
        low, high = self.simultaneous_ends.get((option, metric)) or difference.interval(self.alpha)
        return ratio_of(difference.estimate), ratio_of(low), ratio_of(high)


def is_control(suite: Suite, option: str) -> bool:
    """Whether the option is the baseline's second row."""
    return suite.control and option == CONTROL


def ratio_of(logarithm: float | None) -> float | None:
    """The ratio of a logarithm; None where a float cannot hold it."""
    return None if logarithm is None else finite(math.exp, logarithm)


# The order of the rows by the objective: ranks that ties share.
#
# A second family: all pairs of options besides the baseline. Two options are put in order only where one of them at
# least was told from the baseline in the declared family (a gate, so that where all options are equal hardly more
# than the declared level of claims is false), or where the pair itself is told apart at a tenth of that level, as a
# noisy baseline tells nothing from itself. A pair with the baseline is decided in the declared family.

UNGATED_DIVISOR = 10
"""A pair needs no gate where it is told apart at alpha divided by this."""


class Ranks:
    """Who is shown to be better than whom: of the options of some names, the baseline among them or not."""

    def __init__(self, contest: Contest, names: Sequence[str]) -> None:
        objective, baseline, threshold = contest.objective, contest.baseline.name, contest.threshold
        self.contest, self.names, more = contest, list(names), objective.better == "more"
        others = [name for name in self.names if name != baseline]
        pairs = family.all_pairs(contest.blocks[objective.name], others, contest.alpha, more_is_better=more)
        self.pairs = pairs
        """All pairs of the options besides the baseline."""
        results = [contest.results.get((name, "")) for name in others]
        # Who is told from the baseline by the declared family; there is no gate where it could not tell.
        gate = np.array([r is None or r.rejected for r in results], bool)
        past_the_gate = pairs.better(threshold, divisor=UNGATED_DIVISOR)
        gated = pairs.better(threshold) & (gate[:, None] | gate[None, :])
        self.better: Bools = np.zeros((len(self.names), len(self.names)), bool)
        """[i, j]: whether i is shown to be better than j."""
        self.known: Bools = np.zeros((len(self.names), len(self.names)), bool)
        """[i, j]: whether there is a measure of spread for the pair."""
        places = [self.names.index(name) for name in others]
        learnt = np.array([contest.p_of_lucky_seeds(name) <= contest.alpha for name in others], bool)
        self.better[np.ix_(places, places)] = (gated | past_the_gate) & learnt[:, None]
        self.known[np.ix_(places, places)] = pairs.known
        if baseline in self.names:
            row = self.names.index(baseline)
            for name, place, r in zip(others, places, results, strict=True):
                comparison = contest.against_baseline(name)
                decision = comparison.decision if comparison else "undecided"
                self.known[row, place] = self.known[place, row] = r is not None
                self.better[place, row], self.better[row, place] = decision == "better", decision == "worse"

    @cached_property
    def ranked(self) -> list[str]:
        """The options with a measure of spread for some pair; one that is alone needs a spread of its own."""
        if len(self.names) == 1:
            (name,), blocks = self.names, self.contest.blocks[self.contest.objective.name]
            known = dict(zip(blocks.names, (~np.isnan(blocks.logs)).sum(axis=1).tolist(), strict=True))
            return [name] if len(self.contest.suite.options) == 1 or known[name] > 1 else []
        return [name for i, name in enumerate(self.names) if self.known[i].any()]

    def rank(self, option: str) -> int:
        """1 and the number of others shown to be better."""
        return 1 + int(self.better[:, self.names.index(option)].sum())

    def ties(self, option: str) -> list[str]:
        """Others with a rank that it is shown to be neither better nor worse than."""
        place = self.names.index(option)
        told_apart = dict(zip(self.names, (self.better[place] | self.better[:, place]).tolist(), strict=True))
        return [name for name in self.ranked if name != option and not told_apart[name]]

    def comparison(self, option: str, against: str) -> Comparison | None:
        """A pair by the objective: with the baseline as the declared family has it, else by Holm over all pairs."""
        if against == self.contest.baseline.name:
            return self.contest.against_baseline(option)
        if option == self.contest.baseline.name:
            other_way = self.contest.against_baseline(against)
            return None if other_way is None else _reversed(other_way, against)
        difference = self.contest.blocks[self.contest.objective.name].difference(option, against)
        if difference is None:
            return None
        others, alpha = self.pairs.names, self.contest.alpha
        tests, result = max(1, math.comb(len(others), 2)), None
        if difference.standard_error is not None:
            adjusted = float(self.pairs.p_adjusted[others.index(option), others.index(against)])
            low, high, estimate = map(np.array, (*difference.interval(alpha / tests), difference.estimate))
            low, high = family.agreeing_ends(low, high, estimate, np.array(0.0), np.array(adjusted <= alpha))
            ends = float(low), float(high)
            result = ClaimTest(difference.estimate, *ends, difference.p(), adjusted, alpha)
        row, column = self.names.index(option), self.names.index(against)
        told_apart = self.better[row, column] or self.better[column, row]
        excluded: tuple[Decision, ...] = () if told_apart else ("better", "worse")  # by the gate
        return self.contest.comparison(against, difference, result, tests, excluded)


def _reversed(pair: Comparison, against: str) -> Comparison:
    """The same pair seen from the other side."""
    decisions: dict[Decision, Decision] = {"better": "worse", "worse": "better"}
    ratio, high, low = (finite(lambda v: 1 / v, v) if v else None for v in (pair.ratio, pair.low, pair.high))
    decision = decisions.get(pair.decision, pair.decision)
    return pair.model_copy(
        update={"against": against, "decision": decision, "ratio": ratio, "low": low, "high": high}
    )


def control_warnings(contest: Contest) -> list[str]:
    """A line for each metric in which the control differs from the baseline, by tests that share alpha."""
    if not contest.suite.control or not contest.summaries[CONTROL].completed:
        return []
    names = dict.fromkeys((contest.objective.name, *(name for name, metric in METRICS.items() if metric.watched)))
    differences = {name: contest.blocks[name].difference(CONTROL, contest.baseline.name) for name in names}
    tests = {name: family.HypothesisTest(difference) for name, difference in differences.items() if difference}
    return [
        f"the control, which repeats the baseline, differs from it by {METRICS[name].name} "
        f"{units.ratio(ratio_of(r.estimate))}: something besides the options moves the figures, so smaller "
        "differences mean nothing"
        for name, r in family.judge_all(tests, contest.alpha).items()
        if family.decide(r, contest.suite.threshold(name), more_is_better=True) in ("better", "worse")
    ]
