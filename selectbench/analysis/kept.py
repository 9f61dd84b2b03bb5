"""What the looks of a race have decided: once decided it stays so, whatever later rounds would say.

Of each question the look is kept from which its figures are: the latest that both options ran to and that says
what was decided first, or the latest of all where nothing is decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from selectbench.analysis.comparison import Comparison, Decision
from selectbench.analysis.look import Look
from selectbench.analysis.row import ConstraintVerdict

Pair = tuple[str, str]


@dataclass(frozen=True)
class Kept:
    """By question the look that answers it."""

    pairs: dict[Pair, Look] = field(default_factory=dict)
    """Of an option over another, each pair once, in the suite's order."""
    constraints: dict[Pair, Look] = field(default_factory=dict)
    """Of an option and a constraint's text."""

    def note(self, look: Look, running: Iterable[str]) -> None:
        """Adds what a look says of the options that still run."""
        names = [name for name in look.summaries if name in set(running)]
        for number, option in enumerate(names):
            for against in names[number + 1 :]:
                self._note_pair(look, (option, against))
            for verdict in look.constraints.get(option, []):
                self._note_constraint(look, option, verdict)

    def _note_pair(self, look: Look, pair: Pair) -> None:
        now = look.decision(*pair)
        before = self.pairs[pair].decision(*pair) if pair in self.pairs else None
        if now is not None and before in (None, "undecided", now):
            self.pairs[pair] = look

    def _note_constraint(self, look: Look, option: str, now: ConstraintVerdict) -> None:
        before = self.verdict(option, now.constraint)
        # What fails without a test, as a trial diverged, is no matter of chance.
        is_fact = now.verdict == "fails" and now.p_adjusted is None
        if is_fact or before is None or before.verdict not in ("holds", "fails") or before.verdict == now.verdict:
            self.constraints[option, now.constraint] = look

    def decision(self, option: str, against: str) -> Decision | None:
        """Of the pair; None: no look compares them."""
        found = self.look(option, against)
        return found.decision(option, against) if found else None

    def comparison(self, option: str, against: str) -> Comparison | None:
        """The same with its figures."""
        found = self.look(option, against)
        return found.comparison(option, against) if found else None

    def look(self, option: str, against: str) -> Look | None:
        """From which the pair's figures are."""
        return self.pairs.get((option, against)) or self.pairs.get((against, option))

    def verdict(self, option: str, constraint: str) -> ConstraintVerdict | None:
        """Of one constraint; None: it was not asked."""
        look = self.constraints.get((option, constraint))
        return next((v for v in look.constraints[option] if v.constraint == constraint), None) if look else None

    def verdicts(self, option: str) -> list[ConstraintVerdict]:
        """Of every constraint, in the suite's order."""
        found = [self.verdict(name, text) for name, text in self.constraints if name == option]
        return [verdict for verdict in found if verdict is not None]

    def fails(self) -> frozenset[str]:
        """Options that were shown to fail a constraint."""
        return frozenset(name for name, text in self.constraints if self._failed(name, text))

    def _failed(self, option: str, constraint: str) -> bool:
        found = self.verdict(option, constraint)
        return found is not None and found.verdict == "fails"
