"""The order of the rows by the objective: ranks that ties share.

A second family: all pairs of options besides the baseline. Two options are put in order only where one of them at
least was told from the baseline in the declared family (a gate, so that where all options are equal hardly more
than the declared level of claims is false), or where the pair itself is told apart at a tenth of that level, as a
noisy baseline tells nothing from itself. A pair with the baseline is decided in the declared family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from selectbench.analysis.comparison import Comparison, Decision
from selectbench.analysis.contest import Contest
from selectbench.analysis.family import HypothesisTest, Pairs, agreeing_ends, all_pairs, judge_all
from selectbench.analysis.formulas import finite
from selectbench.analysis.statistics import Bools, Difference
from selectbench.suite.metrics import METRICS

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
            seeds = (~np.isnan(self.contest.blocks[suite.decide.objective].logs)).sum(axis=1)
            known = dict(zip(self.contest.blocks[suite.decide.objective].names, seeds.tolist(), strict=True))
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
        difference = self.contest.blocks[self.contest.suite.decide.objective].difference(option, against)
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
    objective = METRICS[contest.suite.decide.objective]
    threshold = contest.suite.threshold(objective.name)
    baseline = contest.baseline.name
    pairs = all_pairs(contest.blocks[objective.name], [name for name in names if name != baseline])
    more = objective.better == "more"
    verdicts = pairs.better(threshold, more_is_better=more)
    gate = np.array([_told_from_baseline(contest, name) for name in pairs.names], bool)
    beyond = pairs.better(threshold, more_is_better=more, families=PAST_THE_GATE)
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
