"""How a race went: which option stopped when and why, how the error is held, and what it took."""

from __future__ import annotations

from selectbench.analysis.race_row import Raced
from selectbench.analysis.row import Ranking
from selectbench.analysis.spending import rule
from selectbench.report.escape import markdown, one_line, table
from selectbench.suite.suite import Repeat, Suite

HEADS = ["option", "rounds", "stopped", "why"]
_OWN_ROUNDS = (
    "Means are over the rounds that each option ran, which differ: ratios, which are taken within rounds, tell the "
    "options apart, and order the rows of one rank."
)


def race_section(suite: Suite, ranking: Ranking) -> list[str]:
    """In Markdown; nothing of a suite without `repeat`."""
    if ranking.race is None or suite.repeat is None:
        return []
    rows = [[markdown(cell) for cell in cells] for cells in race_rows(ranking.race)]
    notes = "\n".join(f"- {markdown(line)}" for line in race_notes(suite.repeat, ranking.race))
    return ["## How the race went", markdown(race_summary(ranking.race)), table(HEADS, rows, right=4), notes]


def race_rows(race: Raced) -> list[list[str]]:
    """One for each option, under HEADS."""
    return [
        [one_line(o.option), str(o.rounds), f"after {o.stopped_after}" if o.stopped_after else "no", o.reason]
        for o in race.options
    ]


def race_notes(repeat: Repeat, race: Raced) -> list[str]:
    """How the error is held, and how not to read the means."""
    apart = len({option.rounds for option in race.options}) > 1
    return [rule(repeat), *([_OWN_ROUNDS] if apart else [])]


def race_summary(race: Raced) -> str:
    """How many trials were run of how many, and where it stands."""
    share = race.trials_run / race.trials_planned
    grid = f"{race.trials_planned} trials ({share:.0%}) that {race.max} rounds of every option have"
    open_ = ", ".join(one_line(name, 40) for name in race.open)
    if not race.ended:
        return f"So far {race.trials_run} of the {grid} were run; the race goes on with {open_}."
    left = f"open after the last round: {open_}" if open_ else f"after {race.rounds} rounds nothing was left to ask"
    return f"{race.trials_run} of the {grid} were run; {left}."


def race_lines(ranking: Ranking) -> list[str]:
    """For a terminal: what it took, and who stopped when."""
    race = ranking.race
    if race is None:
        return []
    stopped: dict[int, list[str]] = {}
    for option in race.options:
        if option.stopped_after:
            stopped.setdefault(option.stopped_after, []).append(one_line(option.option, 40))
    told = [f"{', '.join(names)} after {rounds}" for rounds, names in sorted(stopped.items())]
    return [race_summary(race), *([f"stopped: {'; '.join(told)} rounds"] if told else [])]
