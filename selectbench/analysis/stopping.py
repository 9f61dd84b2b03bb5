"""Which options stop after a look of a race, and why.

An option stops where the verdict on it is there: it is shown to be worse than the leader or than an eligible
baseline, or to fail a constraint, or all that is asked of it is decided: its comparison with the baseline, its
constraints and its pair with the leader. The leader is the best by the mean of the running options that are
eligible. It runs on while another option is open, the baseline while anything is open against it, the control as
long as the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from selectbench import units
from selectbench.analysis.contest import is_control
from selectbench.analysis.kept import Kept
from selectbench.analysis.look import Look
from selectbench.analysis.metrics import METRICS
from selectbench.analysis.summary import Summary
from selectbench.suite.suite import CONTROL, Suite

_SAID = {
    "better": "better than", "worse": "worse than", "no_difference": "no difference that matters from",
    "undecided": "undecided against",
}  # fmt: skip


@dataclass(frozen=True)
class Stopping:
    """The rule, on what one look and those before it have decided."""

    suite: Suite
    look: Look
    kept: Kept
    running: list[str]
    """Options that ran to this look, in the suite's order."""

    def reasons(self) -> dict[str, str]:
        """A sentence for each option that stops."""
        found = {name: why for name in self.running if (why := self._out(name))}
        others = [name for name in self.running if name not in (self.suite.baseline, self.leader)]
        others = [name for name in others if name not in found and not is_control(self.suite, name)]
        found |= _given({name: self._worse(name) or self._decided(name) for name in others})
        rivals = [name for name in others if name not in found]
        if self.leader and not rivals:
            found |= _given({self.leader: self._first()})
        if self.suite.baseline in self.running and self.suite.baseline not in found:
            found |= _given({self.suite.baseline: self._baseline([n for n in self.running if n not in found])})
        return found | self._control(found)

    def still_open(self, option: str) -> str:
        """What is not decided of an option that runs on."""
        told = [self._pair(option, name) for name in self._yardsticks(option) if self._pair_is_open(option, name)]
        told += [f"undecided: {v.constraint}" for v in self.kept.verdicts(option) if v.verdict == "undecided"]
        return f"open after {self._rounds}: {'; '.join(told) or 'others are, and are compared with it'}"

    @cached_property
    def leader(self) -> str | None:
        """None: no running option is known to be eligible."""
        metric = METRICS[self.suite.decide.objective]
        means = {name: self.look.summaries[name].mean(metric.name) for name in filter(self._eligible, self.running)}
        known = {name: value for name, value in means.items() if value is not None}
        sign = 1 if metric.better == "more" else -1
        return max(known, key=lambda name: sign * known[name], default=None)

    def _eligible(self, option: str) -> bool:
        verdicts = self.kept.verdicts(option)
        return option in self.look.standing.names and all(v.verdict in ("holds", "not_judged") for v in verdicts)

    def _out(self, option: str) -> str | None:
        """Why nothing more is asked of it whatever the others do."""
        summary, violations = self.look.summaries[option], self.look.certificates[option].violations
        if violations:
            return f"not the same job: {', '.join(violation.field for violation in violations)}"
        if not summary.completed:
            kinds = ", ".join(sorted({failure.kind for failure in summary.failed.values()}))
            return f"every trial failed in {self._rounds} ({kinds})"
        failing = [v for v in self.kept.verdicts(option) if v.verdict == "fails"]
        if not failing or option in (self.suite.baseline, self._controlled):
            return None
        return f"shown to fail {failing[0].constraint} after {self._rounds}: {failing[0].detail}"

    def _worse(self, option: str) -> str | None:
        """What it is shown to be worse than: the leader, or the baseline where that is eligible."""
        baseline = self.suite.baseline
        for yardstick in filter(None, (self.leader, baseline if self._eligible(baseline) else None)):
            if yardstick != option and self.kept.decision(option, yardstick) == "worse":
                told = f"shown to be worse than {yardstick} after {self._rounds}"
                return f"{told}: {self._figures(option, yardstick)}{self._left_open(option)}"
        return None

    def _left_open(self, option: str) -> str:
        """What is never known of an option that is out of the race."""
        is_open = option != self.suite.baseline and self._pair_is_open(option, self.suite.baseline)
        return f"; left undecided against the baseline {self.suite.baseline}" if is_open else ""

    def _decided(self, option: str) -> str | None:
        """What is known of it, where all that is asked is."""
        yardsticks = self._yardsticks(option)
        if self._open(option, *yardsticks):
            return None
        told = [self._pair(option, name) for name in yardsticks]
        told += [f"{v.verdict.replace('_', ' ')}: {v.constraint}" for v in self.kept.verdicts(option)]
        return f"decided after {self._rounds}: {'; '.join(told) or 'nothing is asked of it'}"

    def _yardsticks(self, option: str) -> list[str]:
        """What it is compared with: the baseline, and the leader."""
        both = dict.fromkeys(filter(None, (self.suite.baseline, self.leader)))
        return [name for name in both if name != option]

    def _first(self) -> str | None:
        assert self.leader
        if self._open(self.leader, self.suite.baseline):
            return None
        return f"the leader, with no option left that is open after {self._rounds}"

    def _baseline(self, running: list[str]) -> str | None:
        """`running`: options that go on, the baseline among them."""
        baseline = self.suite.baseline
        asking = [n for n in running if n != baseline and not is_control(self.suite, n)]
        if any(self._open(name, baseline) for name in asking) or (asking and self.leader == baseline):
            return None
        failing = any(v.verdict == "fails" for v in self.kept.verdicts(baseline))
        why = None if failing else self._worse(baseline) or self._decided(baseline)
        return why or (f"no option is open against it after {self._rounds}" if failing else None)

    def _control(self, found: dict[str, str]) -> dict[str, str]:
        gone = self.suite.baseline in found or self.suite.baseline not in self.running
        runs = self._controlled in self.running and self._controlled not in found
        why = f"stops with the baseline {self.suite.baseline}, which it repeats"
        return {CONTROL: why} if gone and runs else {}

    @property
    def _controlled(self) -> str | None:
        return CONTROL if self.suite.control else None

    @property
    def _rounds(self) -> str:
        return f"{self.look.rounds} round{'s' if self.look.rounds > 1 else ''}"

    def _open(self, option: str, *against: str) -> bool:
        """Whether one of its constraints is undecided, or a pair that more rounds may decide."""
        if any(v.verdict == "undecided" for v in self.kept.verdicts(option)):
            return True
        return any(self._pair_is_open(option, name) for name in against if name != option)

    def _pair_is_open(self, option: str, against: str) -> bool:
        if self.kept.decision(option, against) not in (None, "undecided"):
            return False
        pair = (self.look.summaries[option], self.look.summaries[against])
        return all(self._may_tell(summary) for summary in pair)

    def _may_tell(self, summary: Summary) -> bool:
        """Whether it has a figure of the objective, or had one but for the state of its GPUs."""
        metric = self.suite.decide.objective
        return bool(summary.values[metric] or summary.spoiled[metric]) and self.look.comparable(summary.name)

    def _pair(self, option: str, against: str) -> str:
        decision = self.kept.decision(option, against)
        role = "the baseline" if against == self.suite.baseline else "the leader"
        if decision is None:
            return f"no figure to compare with {role} {against}"
        return f"{_SAID[decision]} {role} {against}: {self._figures(option, against)}"

    def _figures(self, option: str, against: str) -> str:
        """`0.94x (0.92x to 0.96x), p 0.003 adjusted for the looks and the tests`."""
        found = self.kept.comparison(option, against)
        if found is None or found.ratio is None:
            return units.DASH
        p = "" if found.p_adjusted is None else f", p {found.p_adjusted:.2g} adjusted for the looks and the tests"
        return f"{units.ratio_with_range(found.ratio, found.low, found.high)}{p}"


def _given(found: dict[str, str | None]) -> dict[str, str]:
    return {name: why for name, why in found.items() if why}
