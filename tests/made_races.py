"""Small races without training, run as a launcher runs them that asks after each round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from made_records import make_record, make_suite, speed
from msgspec.structs import replace

from selectbench.analysis.race import open_trials
from selectbench.analysis.ranking import Ranking, Row
from selectbench.record.record import Record
from selectbench.suite.suite import Suite

SAME = {"compute_dtype": "float32"}


Outcome = Callable[[str, int], Record]


def race_of(*names: str, least: int = 3, most: int = 6, **more: Any) -> Suite:
    """A suite of these options with `repeat`, the first one the baseline; constraints only where asked for."""
    options = [(name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + i)}}) for i, name in enumerate(names)]
    decide = {"constraints": [], **more.pop("decide", {})}
    repeat = {"min": least, "max": most}
    return make_suite(*options, seeds=list(range(most)), repeat=repeat, decide=decide, **more)


def drawn(effects: Mapping[str, float], spread: float = 0.01, seed: int = 7) -> Outcome:
    """Completed trials whose log speeds are effect + chance, the same of a trial however often it is asked."""

    def outcome(name: str, number: int) -> Record:
        chance = np.random.default_rng([seed, number, *name.encode()]).normal(0, spread)
        return make_record(name, number, identity=SAME, **speed(1000 * math.exp(effects[name] + chance)))

    return outcome


def planted(speeds: Mapping[str, list[float]]) -> Outcome:
    """Completed trials of these speeds, by option and seed."""
    return lambda name, seed: make_record(name, seed, identity=SAME, **speed(speeds[name][seed]))


def heavy(made: Outcome, option: str) -> Outcome:
    """The same, but that one option needs nine GiB."""

    def outcome(name: str, seed: int) -> Record:
        found = made(name, seed).outcome
        if name != option:
            return made(name, seed)
        measurement = replace(found.measurement, peak_pss_growth_bytes=9 << 30)
        changed = replace(found, measurement=measurement)
        return replace(made(name, seed), outcome=changed)

    return outcome


def raced(suite: Suite, outcome: Outcome) -> list[Record]:
    """What a launcher runs that asks after each round."""
    records: list[Record] = []
    while trials := open_trials(suite, records):
        records += [outcome(name, seed) for name, seed in trials]
    return records


def rounds_of(records: list[Record]) -> dict[str, int]:
    """How many trials each option has."""
    return {name: sum(r.trial.option == name for r in records) for name in {r.trial.option for r in records}}


def reasons(ranking: Ranking) -> dict[str, str]:
    """Why each option stopped, or what is open of it."""
    assert ranking.race is not None
    return {option.option: option.reason for option in ranking.race.options}


def row(ranking: Ranking, name: str) -> Row:
    """Of one option."""
    return next(row for row in ranking.rows if row.option == name)
