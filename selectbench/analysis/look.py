"""One look at a race: what the records of its first rounds say of the options that are still in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from selectbench.analysis.certificate import certify
from selectbench.analysis.comparison import Comparison, Decision
from selectbench.analysis.contest import Contest, hold_contest, is_control
from selectbench.analysis.distributions import Bools
from selectbench.analysis.row import Certificate, ConstraintVerdict
from selectbench.analysis.sanity import objective_gap
from selectbench.analysis.standing import Standing, stand
from selectbench.analysis.summary import Summary
from selectbench.suite.constraint import parse_constraint
from selectbench.suite.suite import Suite

TURNED: dict[Decision | None, Decision] = {"better": "worse", "worse": "better"}


@dataclass(frozen=True)
class Look:
    """The contest and the order after so many rounds."""

    rounds: int
    summaries: Mapping[str, Summary]
    """Of these rounds, by option; of those that stopped before, of the rounds that they ran."""
    certificates: Mapping[str, Certificate]
    contest: Contest
    standing: Standing
    """Of the options that did the job, have a figure that counts and fail no constraint."""

    @cached_property
    def constraints(self) -> dict[str, list[ConstraintVerdict]]:
        """Those of each option that was asked."""
        return {name: self.contest.constraints(name) for name in self.summaries if self.comparable(name)}

    def comparable(self, option: str) -> bool:
        """Whether it did the job."""
        return self.certificates[option].comparable is True

    def decision(self, option: str, against: str) -> Decision | None:
        """Of the pair by the objective; None: nothing to compare."""
        baseline = self.contest.baseline.name
        if against == baseline:
            return self.contest.decision(option)
        if option == baseline:
            found = self.contest.decision(against)
            return TURNED.get(found, found)
        if option not in self._places or against not in self._places:
            return None
        return self._in_order(self._places[option], self._places[against])

    def comparison(self, option: str, against: str) -> Comparison | None:
        """The same with its figures."""
        return self.standing.comparison(option, against)

    def _in_order(self, option: int, against: int) -> Decision | None:
        better = self.standing.better
        if better[option, against] or better[against, option]:
            return "better" if better[option, against] else "worse"
        if not self.standing.known[option, against]:
            return None
        first, second = (self._besides.index(self.standing.names[place]) for place in (option, against))
        return "no_difference" if self._same[first, second] else "undecided"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.standing.names)}

    @cached_property
    def _besides(self) -> list[str]:
        """The names of the pairs without the baseline."""
        return list(self.standing.pairs.names)

    @cached_property
    def _same(self) -> Bools:
        suite = self.contest.suite
        return self.standing.pairs.same(suite.threshold(suite.decide.objective))


def take_look(
    suite: Suite, rounds: int, summaries: Mapping[str, Summary], looks: float, barred: frozenset[str]
) -> Look:
    """The look after so many rounds, of which the summaries are.

    `looks`: the inverse of its share of alpha; `barred`: options that an earlier look showed to fail a constraint.
    """
    baseline = summaries[suite.baseline]
    certificates = certify(suite, list(summaries.values()), baseline)
    comparable = {name: certificate.comparable is True for name, certificate in certificates.items()}
    contest = hold_contest(suite, list(summaries.values()), comparable, looks=looks, metrics=_deciding(suite))
    names = [name for name in summaries if comparable[name] and name not in barred]
    names = [name for name in names if _is_candidate(contest, summaries[name])]
    return Look(rounds, summaries, certificates, contest, stand(contest, names))


def _deciding(suite: Suite) -> list[str]:
    asked = [parse_constraint(text).metric for text in suite.decide.constraints]
    return list(dict.fromkeys([suite.decide.objective, *asked]))


def _is_candidate(contest: Contest, summary: Summary) -> bool:
    """Whether it has a figure that counts and no constraint is shown to fail; the control is none."""
    fails = any(found.verdict == "fails" for found in contest.constraints(summary.name))
    known = summary.values[contest.suite.decide.objective]
    whole = bool(known) and objective_gap(contest.suite, summary) is None
    return whole and not fails and not is_control(contest.suite, summary.name)
