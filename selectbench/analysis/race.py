"""A race: rounds are looked at as they come, options stop once everything about them is decided.

Which options run on follows from the records alone, whatever their order: each look holds the contest on the
outcomes of its rounds, and is taken once every running option has its outcome of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selectbench.analysis.kept import Kept
from selectbench.analysis.look import Look, take_look
from selectbench.analysis.spending import looks_at
from selectbench.analysis.stopping import Stopping
from selectbench.analysis.summary import Summary, summarise
from selectbench.record.record import Record
from selectbench.suite.suite import Repeat, Suite


@dataclass(frozen=True)
class Stop:
    """Why an option ran no more."""

    rounds: int
    """That it ran."""
    reason: str


@dataclass
class Race:
    """How far the records of a suite with `repeat` have brought it."""

    suite: Suite
    repeat: Repeat
    running: list[str]
    """Options that have not stopped, in the suite's order."""
    looks: list[Look] = field(default_factory=list)
    stops: dict[str, Stop] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)

    @property
    def rounds(self) -> int:
        """After which the last look was taken; 0: none yet."""
        return self.looks[-1].rounds if self.looks else 0

    @property
    def open(self) -> list[str]:
        """Options that need another round."""
        return self.running if self.rounds < self.repeat.max else []

    @property
    def next_rounds(self) -> int:
        """Rounds that the open options are asked to have had next."""
        return max(self.repeat.min, min(self.rounds + 1, self.repeat.max))

    def asked(self, option: str) -> list[int]:
        """Seeds that it was asked to run so far."""
        stop = self.stops.get(option)
        return self.suite.seeds[: stop.rounds if stop else self.next_rounds]

    def looked_at(self, option: str, rounds: int) -> list[int]:
        """Seeds of so many rounds, or of those that it ran."""
        stop = self.stops.get(option)
        return self.suite.seeds[: min(rounds, stop.rounds) if stop else rounds]


def open_options(suite: Suite, records: Sequence[Record]) -> list[str]:
    """Options that need another round, in the suite's order.

    All of them before `repeat.min` rounds are complete; none once everything is decided, or after `repeat.max`
    rounds; in the midst of a round those that the round is of.
    """
    return run_race(suite, summarise(suite, records)[0]).open


def open_trials(suite: Suite, records: Sequence[Record]) -> list[tuple[str, int]]:
    """The trials to be run next, as option and seed, by round: those without an outcome that are asked for now.

    An interrupted trial has none. Empty: the race has ended.
    """
    summaries = summarise(suite, records)[0]
    race = run_race(suite, summaries)
    by_name = {summary.name: summary for summary in summaries}
    seeds = suite.seeds[: race.next_rounds]
    return [(name, seed) for seed in seeds for name in race.open if not has_outcome(by_name[name], seed)]


def has_outcome(summary: Summary, seed: int) -> bool:
    """Whether the trial completed, or failed by itself."""
    failure = summary.failed.get(seed)
    return seed in summary.completed or (failure is not None and failure.kind != "interrupted")


def run_race(suite: Suite, summaries: Sequence[Summary]) -> Race:
    """Every look that the outcomes allow. Raises ValueError for a suite without `repeat`."""
    if suite.repeat is None:
        raise ValueError(f"suite {suite.name} does not say `repeat`: nothing stops in it before the last seed")
    race = Race(suite, suite.repeat, [summary.name for summary in summaries])
    by_name = {summary.name: summary for summary in summaries}
    for rounds in range(suite.repeat.min, suite.repeat.max + 1):
        if not race.running or not _complete(race, by_name, rounds):
            break
        _look(race, by_name, rounds)
    return race


def _complete(race: Race, summaries: Mapping[str, Summary], rounds: int) -> bool:
    return all(has_outcome(summaries[name], seed) for name in race.running for seed in race.suite.seeds[:rounds])


def _look(race: Race, summaries: Mapping[str, Summary], rounds: int) -> None:
    cut = {name: summary.within(race.looked_at(name, rounds)) for name, summary in summaries.items()}
    look = take_look(race.suite, rounds, cut, looks_at(race.repeat, rounds), race.kept.fails())
    race.kept.note(look, race.running)
    race.looks.append(look)
    reasons = Stopping(race.suite, look, race.kept, race.running).reasons()
    race.stops |= {name: Stop(rounds, why) for name, why in reasons.items()}
    race.running = [name for name in race.running if name not in reasons]
