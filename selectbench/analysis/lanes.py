"""What it did to the figures that trials ran side by side: whether lanes disturb each other, and how they differ.

Every comparison is within a seed, and a lane runs whole rounds, so that what a lane does to all its trials drops
out of it. What does not is that neighbours may slow one option more than another: speeds measured beside others
count for claims only where the baseline was shown to be as fast beside neighbours as alone, by two one-sided tests
at 5 % (Schuirmann 1987) over pairs of short trials: the 90 % interval of the ratio lies within the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from selectbench import units
from selectbench.analysis.metrics import FORMULAS, finite, observe, spoils, state_of
from selectbench.analysis.result import Beside, Lanes
from selectbench.analysis.statistics import differences_over_seeds, quantile
from selectbench.record.record import Completed, Record, has_ended
from selectbench.record.run_folder import last_attempts
from selectbench.suite.metrics import METRICS
from selectbench.suite.stages import INTERFERENCE_PAIRS, interference_seeds
from selectbench.suite.suite import Suite

BESIDE = "measured beside a neighbour"
"""What a trial was whose speed does not count for that."""
SPEED, MEMORY = "tokens_per_second", "peak_memory_bytes"
LEVEL = 0.05
"""Of each of the two tests."""
FEWEST_PAIRS = 3
Values = Mapping[str, Mapping[int, float]]
"""By option and seed."""


def disturbed(suite: Suite) -> list[str]:
    """Metrics that neighbours may move: of speed, energy and time.

    On a CPU of memory too: a page that processes of several lanes have mapped counts for each by its share.
    """
    memory = {MEMORY} if suite.device == "cpu" else set[str]()
    return [name for name, metric in METRICS.items() if "busy" in metric.spoiled_by or name in memory]


def besides(suite: Suite, records: Sequence[Record]) -> dict[str, Beside]:
    """What the pairs of short trials tell of each metric that all of them know; {}: there were too few."""
    tried = last_attempts([record for record in records if record.phase == "interference"]).values()
    own = {record.trial.seed: record for record in tried if has_ended(record.outcome)}
    most = max((record.neighbours for record in records if record.phase == "contest"), default=1)
    seeds, pairs = interference_seeds(suite), list[tuple[Record, Record]]()
    for alone, beside in zip(seeds[::2], seeds[1::2], strict=True):
        both = [own[seed] for seed in (alone, beside) if seed in own and isinstance(own[seed].outcome, Completed)]
        if len(both) == 2 and not both[0].neighbours and both[1].neighbours >= max(1, most):
            pairs.append((both[0], both[1]))
    found = {}
    for name in disturbed(suite):
        logs = [math.log(b / a) for a, b in ([_value(r, suite, name) for r in pair] for pair in pairs) if a and b]
        if FEWEST_PAIRS <= len(logs) == len(pairs) and suite.threshold(name):
            found[name] = _beside(np.array(logs), suite.threshold(name))
    return found


def _value(record: Record, suite: Suite, metric: str) -> float | None:
    """None: not known, or the state of the GPUs spoils it; a busy CPU may be the neighbours' doing."""
    if metric not in FORMULAS or spoils(state_of(record), metric, counts_busy=True):
        return None
    value = finite(FORMULAS[metric], observe(record, suite))
    return value if value and value > 0 else None


def _beside(logs: np.ndarray, threshold: float) -> Beside:
    found = differences_over_seeds(logs[None, :], np.array([False]), None).one(0)
    assert found is not None
    wide = 0.0
    if found.standard_error:
        wide = found.standard_error * float(quantile(2 * LEVEL, found.degrees_of_freedom or math.inf))
    low, high = found.estimate - wide, found.estimate + wide
    return Beside(
        ratio=math.exp(found.estimate), low=math.exp(low), high=math.exp(high), pairs=len(logs),
        threshold=threshold, equivalent=max(-low, high) <= math.log1p(threshold),
    )  # fmt: skip


def withheld(suite: Suite, records: Sequence[Record]) -> dict[str, str]:
    """By metric that counts for no claim where trials ran beside others: why."""
    if not any(record.neighbours for record in records if record.phase == "contest"):
        return {}
    found = besides(suite, records)
    return {name: why for name in disturbed(suite) if (why := _why(suite, records, found, name)) is not None}


def _why(suite: Suite, records: Sequence[Record], found: Mapping[str, Beside], metric: str) -> str | None:
    """A metric that short trials do not tell is judged by their speed."""
    name = metric if metric in found else SPEED
    if (beside := found.get(name)) is None:
        if not any(record.phase == "interference" for record in records):
            return "it was not tried whether lanes disturb each other"
        few = f"fewer than {FEWEST_PAIRS} of {INTERFERENCE_PAIRS} pairs of short trials are whole"
        return f"whether lanes disturb each other is not known: {few}"
    most = suite.threshold(metric) or beside.threshold
    is_within = max(beside.high, 1 / beside.low) <= (1 + most) * (1 + 1e-12)
    return None if is_within else f"{beside_words(name, beside)}, not shown to be within {units.share(most)}"


def beside_words(metric: str, beside: Beside) -> str:
    """`beside a neighbour the baseline runs at 0.97x (0.95x to 0.99x)`."""
    ratio, ends = units.ratio_and_range(beside.ratio, beside.low, beside.high)
    runs = "the baseline runs at" if metric == SPEED else f"the baseline's {metric} is"
    return f"beside a neighbour {runs} {ratio}{f' ({ends})' if ends else ''}"


def interference_lines(suite: Suite, records: Sequence[Record]) -> list[str]:
    """For who watches the run."""
    beside = besides(suite, records).get(SPEED)
    if beside is None:
        return []
    count = (
        "speeds count" if beside.equivalent else f"not within {units.share(beside.threshold)}: speeds claim nothing"
    )
    return [f"{beside_words(SPEED, beside)}: {count}"]


def lanes_found(suite: Suite, records: Sequence[Record], values: Mapping[str, Values]) -> Lanes | None:
    """What a report says of a run's lanes; None: it had one. `values`: by metric, of all trials that know it."""
    contest = [record for record in last_attempts(list(records)).values() if record.phase == "contest"]
    of_seed = {record.trial.seed: record.lane for record in contest if record.lane is not None}
    if not of_seed:
        return None
    rounds: dict[int, list[int]] = {}
    for seed, lane in of_seed.items():
        rounds.setdefault(lane, []).append(seed)
    reasons = withheld(suite, records)
    told = [name for name in dict.fromkeys((suite.decide.objective, SPEED)) if name in values]
    shares = {name: found for name in told if (found := _share(values[name], list(rounds.values()))) is not None}
    return Lanes(
        rounds={str(lane): sorted(seeds) for lane, seeds in sorted(rounds.items())},
        neighbours=max((record.neighbours for record in contest), default=0),
        beside=besides(suite, records), withheld=list(reasons),
        why=next((reasons[name] for name in (suite.decide.objective, SPEED, *reasons) if name in reasons), ""),
        variance_shares=shares,
    )  # fmt: skip


def _share(values: Values, lanes: Sequence[Sequence[int]]) -> float | None:
    """Of the variance of an option's trials, what lies between lanes; None: a lane has one round, or no spread.

    The estimate of a one-way random effect from mean squares (Searle 1971), of the rounds' means over the options.
    """
    seeds = [seed for lane in lanes for seed in lane]
    whole = [own for own in values.values() if all(own.get(seed, 0.0) > 0 for seed in seeds)]
    if not whole or len(lanes) < 2 or min(map(len, lanes)) < 2:
        return None
    logs = np.log([[own[seed] for seed in seeds] for own in whole])
    logs -= logs.mean(axis=1, keepdims=True)
    sizes = np.array([len(lane) for lane in lanes])
    lane_of = np.repeat(np.arange(len(lanes)), sizes)
    means = np.stack([logs[:, lane_of == lane].mean(axis=1) for lane in range(len(lanes))], axis=1)
    inside = logs - means[:, lane_of]
    free = len(seeds) - len(lanes)
    between = (sizes * means.mean(axis=0) ** 2).sum() / (len(lanes) - 1)
    each = (len(seeds) - (sizes**2).sum() / len(seeds)) / (len(lanes) - 1)
    of_lanes = max(0.0, between - (inside.mean(axis=0) ** 2).sum() / free) / each
    total = of_lanes + (inside**2).sum() / free / len(whole)
    return float(of_lanes / total) if total > 1e-20 else None


def lane_lines(lanes: Lanes | None, objective: str) -> list[str]:
    """Sentences for a report; none where there was one lane."""
    if lanes is None:
        return []
    told = [
        f"lane {int(lane) + 1} ran seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}"
        for lane, s in lanes.rounds.items()
    ]
    lines = [
        f"Rounds ran side by side: {'; '.join(told)}. Options are compared within a round, and so within a lane."
    ]
    if lanes.neighbours:
        many = f"{lanes.neighbours} neighbour{'s' * (lanes.neighbours > 1)}"
        lines.append(f"Speeds were measured with {many}.")
    for name in dict.fromkeys(name for name in (SPEED, objective) if name in lanes.beside):
        beside = lanes.beside[name]
        verdict = "shown to be" if beside.equivalent else "not shown to be"
        said = beside_words(name, beside)
        lines.append(
            f"{said[0].upper()}{said[1:]}, {verdict} within {units.share(beside.threshold)} ({beside.pairs} pairs "
            "of short trials, two one-sided tests at 5 %)."
        )
    if lanes.withheld:
        lines.append(f"Of {_what(lanes)} nothing is claimed: {lanes.why}.")
    lines += [
        f"Between lanes lies {units.whole_percent(share)} of the variance of {name} between an option's trials."
        for name, share in lanes.variance_shares.items()
    ]
    return lines


def lanes_in_answer(lanes: Lanes | None) -> str:
    """Why speeds claim nothing, behind the answer; '' where they may."""
    if lanes is None or not lanes.withheld:
        return ""
    return f" Of {_what(lanes)} nothing is claimed, as trials ran side by side: {lanes.why}."


def _what(lanes: Lanes) -> str:
    """What claims nothing, as a reader calls it."""
    if set(lanes.withheld) == {MEMORY}:
        return "memory"
    return "speed, energy, time and memory" if MEMORY in lanes.withheld else "speed, energy and time"
