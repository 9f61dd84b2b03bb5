"""The ranking of a race: each option's figures and claims as the look has them at which they were decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from selectbench.analysis.comparison import Comparison
from selectbench.analysis.contest import Contest, hold_contest, round_seconds
from selectbench.analysis.kept import Kept
from selectbench.analysis.race import Race, has_outcome
from selectbench.analysis.race_row import Raced, RacedOption
from selectbench.analysis.row import ConstraintVerdict
from selectbench.analysis.spending import looks_at, looks_of
from selectbench.analysis.standing import Standing, stand
from selectbench.analysis.stopping import Stopping
from selectbench.analysis.summary import Summary

Told = TypeVar("Told", Comparison, ConstraintVerdict)


@dataclass
class RacedContest(Contest):
    """What the looks have decided, on the records of all rounds for whatever else is shown."""

    kept: Kept = field(default_factory=Kept)

    def constraints(self, option: str) -> list[ConstraintVerdict]:
        """Each as the look has it that decided it."""
        return [self.timed(verdict) for verdict in self.kept.verdicts(option)]

    def against_baseline(self, option: str) -> Comparison | None:
        """By the objective."""
        found = self.kept.comparison(option, self.baseline.name) if option in self.differences else None
        return found and self.timed(found)

    def timed(self, found: Told) -> Told:
        """With the time of one more round as it would be now: a look knew not yet who would stop after it."""
        if found.settling is None:
            return found
        seconds = None if self.round_seconds is None else found.settling.seeds * self.round_seconds
        settling = found.settling.model_copy(update={"seconds": seconds})
        return found.model_copy(update={"settling": settling})


@dataclass(frozen=True)
class RacedStanding(Standing):
    """Who was shown to be better than whom in a look that both ran to."""

    contest: RacedContest

    def comparison(self, option: str, against: str) -> Comparison | None:
        """The pair by the objective; None: no look compares the two."""
        found = self.contest.kept.comparison(option, against)
        return found and self.contest.timed(found)


def raced_contest(race: Race, summaries: Sequence[Summary], comparable: Mapping[str, bool]) -> Contest:
    """`summaries`: of the rounds that each option was asked to run; before the first look as that would judge them.

    What no look judges, such as other metrics than those that decide, is adjusted as in the strictest look.
    """
    held = hold_contest(race.suite, summaries, comparable, looks=looks_at(race.repeat, race.repeat.min))
    if not race.looks:
        return held
    one_round = round_seconds([summary for summary in summaries if summary.name in race.running])
    contest = RacedContest(race.suite, held.baseline, held.blocks, one_round, held.looks, kept=race.kept)
    for option in held.differences:
        if look := race.kept.look(option, contest.baseline.name):
            contest.differences[option] = look.contest.differences[option]
            contest.judged |= {k: v for k, v in look.contest.judged.items() if k == (option, "")}
    for key, look in race.kept.constraints.items():
        contest.judged |= {k: v for k, v in look.contest.judged.items() if k == key and comparable[key[0]]}
    return contest


def raced_standing(race: Race, contest: Contest, names: Sequence[str]) -> Standing:
    """Of the options of these names."""
    held = stand(contest, names)
    if not isinstance(contest, RacedContest):
        return held
    better, known = np.zeros_like(held.better), np.zeros_like(held.known)
    for i, option in enumerate(held.names):
        for j, against in enumerate(held.names):
            found = race.kept.decision(option, against) if i != j else None
            better[i, j], known[i, j] = (
                found == "better",
                found is not None and _has_spread(race.kept, option, against),
            )
    return RacedStanding(held.names, better, known, contest, held.pairs)


def _has_spread(kept: Kept, option: str, against: str) -> bool:
    found = kept.comparison(option, against)
    return found is not None and found.p is not None


def beyond(race: Race, summaries: Sequence[Summary]) -> list[str]:
    """Warnings of records that no look asked for."""
    strays = [
        (summary.name, seed)
        for summary in summaries
        for seed in summary.planned
        if seed not in race.asked(summary.name) and (seed in summary.completed or seed in summary.failed)
    ]
    return [
        f"option {name}, seed {seed}: a record after the option had stopped is left out" for name, seed in strays
    ]


def told(race: Race, summaries: Sequence[Summary]) -> Raced:
    """`summaries`: of the rounds that each option was asked to run."""
    run = {s.name: sum(has_outcome(s, seed) for seed in s.planned) for s in summaries}
    grid = len(summaries) * race.repeat.max
    return Raced(
        min=race.repeat.min, max=race.repeat.max, looks=looks_of(race.repeat), rounds=race.rounds,
        ended=not race.open, open=list(race.running), trials_run=sum(run.values()), trials_planned=grid,
        trials_saved=sum(race.repeat.max - stop.rounds for stop in race.stops.values()),
        options=[_option(race, summary.name, run[summary.name]) for summary in summaries],
    )  # fmt: skip


def _option(race: Race, option: str, rounds: int) -> RacedOption:
    stop = race.stops.get(option)
    if stop:
        return RacedOption(option=option, rounds=rounds, stopped_after=stop.rounds, reason=stop.reason)
    reason = f"not judged yet: the first look is after {race.repeat.min} rounds"
    if race.looks:
        reason = Stopping(race.suite, race.looks[-1], race.kept, race.running).still_open(option)
    return RacedOption(option=option, rounds=rounds, stopped_after=None, reason=reason)
