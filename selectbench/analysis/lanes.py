"""Rounds that ran on several lanes of a machine or nodes of a fleet: what it did to figures, and how these differ.

Every comparison is within a seed, and a part (lane or node) runs whole rounds, so what it does to all its trials
drops out. Where one option is slower on one part than the others are, a part's rounds tell the same difference
again: parts are counted then, not rounds (`by_part`). Neighbours on other lanes may slow one option more, too:
speeds measured beside others count for claims only where the baseline was shown to be as fast beside neighbours as
alone, by two one-sided tests at 5 % (Schuirmann 1987) over pairs of short trials: the 90 % interval of the ratio
lies within the threshold.

A node is off where the interval of its speed over the others', of the mean of all options, lies beyond the
threshold, at 95 % for all nodes together (Bonferroni). The one that is furthest beyond goes first, and the rest is
judged without it, so that it makes no other look fast. Chance is what the rounds of one node differ by; where some
node ran one round alone, what the rounds of the other nodes differ by, whichever ran them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selectbench import units
from selectbench.analysis.metrics import figure_of
from selectbench.analysis.result import Interference, Lanes, Nodes, NodeSpeed
from selectbench.analysis.statistics import Floats, Integers, Values, estimate_logs, quantile
from selectbench.record.record import Completed, Record
from selectbench.record.run_folder import last_attempts
from selectbench.suite.metrics import METRICS
from selectbench.suite.stages import INTERFERENCE_PAIRS, interference_seeds
from selectbench.suite.suite import Suite
from selectbench.text import listed, some

BESIDE = "measured beside a neighbour"
"""How a trial was measured whose speed counts for no claim."""
ELSEWHERE = "measured on another node than its round's baseline"
"""Another such reason."""
SPEED, MEMORY = "tokens_per_second", "peak_memory_bytes"
LEVEL = 0.05
"""Level of each of the two one-sided tests of equivalence."""
FEWEST_PAIRS = 3
SUSPECT = 0.2
"""Level of the F test whether options differ between parts: what it misses makes intervals too narrow."""
FEWEST_DOF = 2
"""Fewest degrees of freedom of the variance that a node is tested with."""


def neighbour_metrics(suite: Suite) -> list[str]:
    """Metrics that neighbours may move; memory is one of them on a CPU, as shared pages count by their share."""
    memory = {MEMORY} if suite.device == "cpu" else set[str]()
    return [name for name, metric in METRICS.items() if "busy" in metric.spoiled_by or name in memory]


def interference(suite: Suite, records: Sequence[Record]) -> dict[str, Interference]:
    """The equivalence tests of the pairs of short trials, by metric that all pairs know; {}: too few pairs."""
    last = last_attempts([record for record in records if record.phase == "interference"]).values()
    ran = {record.trial.seed: record for record in last if isinstance(record.outcome, Completed)}
    most = max((record.neighbours for record in records if record.phase == "contest"), default=1)
    seeds, pairs = interference_seeds(suite), list[tuple[Record, Record]]()
    for alone, beside in zip(seeds[::2], seeds[1::2], strict=True):
        both = [ran[seed] for seed in (alone, beside) if seed in ran]
        if len(both) == 2 and not both[0].neighbours and both[1].neighbours >= max(1, most):
            pairs.append((both[0], both[1]))
    effects = {}
    for name in neighbour_metrics(suite):
        values = ([figure_of(record, suite, name) for record in pair] for pair in pairs)
        logs = [math.log(b / a) for a, b in values if a and b and min(a, b) > 0]
        if FEWEST_PAIRS <= len(logs) == len(pairs) and suite.threshold(name):
            effects[name] = _equivalence(logs, suite.threshold(name))
    return effects


def _equivalence(logs: Sequence[float], threshold: float) -> Interference:
    mean_log = estimate_logs(logs)
    assert mean_log is not None
    low, high = mean_log.interval(2 * LEVEL)
    assert low is not None
    assert high is not None
    return Interference(
        ratio=math.exp(mean_log.estimate), low=math.exp(low), high=math.exp(high), pairs=len(logs),
        threshold=threshold, equivalent=max(-low, high) <= math.log1p(threshold),
    )  # fmt: skip


def withheld_metrics(suite: Suite, records: Sequence[Record]) -> dict[str, str]:
    """Why a metric counts for no claim, by metric; {}: no trial of the contest ran beside others."""
    if not any(record.neighbours for record in records if record.phase == "contest"):
        return {}
    effects = interference(suite, records)
    return {m: why for m in neighbour_metrics(suite) if (why := _reason(suite, records, effects, m)) is not None}


def _reason(suite: Suite, records: Sequence[Record], tests: Mapping[str, Interference], metric: str) -> str | None:
    """Why a metric is withheld, None: it is not; one that short trials do not know is judged by their speed."""
    name = metric if metric in tests else SPEED
    if (effect := tests.get(name)) is None:
        if not any(record.phase == "interference" for record in records):
            return "it was not tried whether lanes disturb each other"
        few = f"fewer than {FEWEST_PAIRS} of {INTERFERENCE_PAIRS} pairs of short trials are whole"
        return f"whether lanes disturb each other is not known: {few}"
    most = suite.threshold(metric) or effect.threshold
    is_within = max(effect.high, 1 / effect.low) <= (1 + most) * (1 + 1e-12)
    return None if is_within else f"{interference_words(name, effect)}, not shown to be within {units.share(most)}"


def interference_words(metric: str, effect: Interference) -> str:
    """`beside a neighbour the baseline runs at 0.97x (0.95x to 0.99x)`."""
    ratio, ends = units.ratio_and_range(effect.ratio, effect.low, effect.high)
    runs = "the baseline runs at" if metric == SPEED else f"the baseline's {metric} is"
    return f"beside a neighbour {runs} {ratio}{f' ({ends})' if ends else ''}"


def interference_lines(suite: Suite, records: Sequence[Record]) -> list[str]:
    """What the terminal shows of the check of interference."""
    if (effect := interference(suite, records).get(SPEED)) is None:
        return []
    apart = f"not within {units.share(effect.threshold)}: speeds claim nothing"
    return [f"{interference_words(SPEED, effect)}: {'speeds count' if effect.equivalent else apart}"]


def lane_count(records: Sequence[Record]) -> int:
    """How many lanes the run had, as far as trials ran on them or beside each other."""
    return 1 + max((max(r.lane, r.neighbours) for r in records if r.lane is not None), default=0)


def part_by_seed(baseline: str, records: Iterable[Record]) -> dict[int, str]:
    """By seed, the node of a fleet or the lane of its baseline, else of most of its trials; {}: neither."""
    counts: dict[int, Counter[str]] = {}
    homes: dict[int, str] = {}
    for record in records:
        part = record.node if record.node is not None or record.lane is None else str(record.lane)
        if part is not None:
            counts.setdefault(record.trial.seed, Counter())[part] += 1
            homes.update({record.trial.seed: part} if record.trial.option == baseline else {})
    return {seed: homes.get(seed) or min(c, key=lambda part: (-c[part], part)) for seed, c in counts.items()}


def doubts(suite: Suite, records: Sequence[Record]) -> Callable[[Record], Mapping[str, str]]:
    """A function of a contest's trial: by metric that counts for no claim, how it was measured."""
    by_neighbours = dict.fromkeys(withheld_metrics(suite, records), BESIDE)
    by_node = dict.fromkeys(neighbour_metrics(suite), ELSEWHERE)
    homes = part_by_seed(suite.baseline, _of_contest(records))

    def of_trial(record: Record) -> Mapping[str, str]:
        if record.node is not None and record.node != homes[record.trial.seed]:
            return by_node
        return by_neighbours if record.lane is not None else {}

    return of_trial


def _of_contest(records: Sequence[Record]) -> list[Record]:
    return [record for record in last_attempts(list(records)).values() if record.phase == "contest"]


def _seeds_by_part(part_of: Mapping[int, str]) -> dict[str, list[int]]:
    """Its seeds by part; parts in the order n2, n10."""
    parts = sorted(set(part_of.values()), key=lambda part: (len(part), part))
    return {part: sorted(seed for seed in part_of if part_of[seed] == part) for part in parts}


@dataclass(frozen=True)
class _PartTable:
    """What options that have all rounds tell of parts."""

    options: Sequence[str]
    logs: Floats
    """(options, rounds): of their values, less each option's mean."""
    parts: Mapping[str, Sequence[int]]
    """Seeds by part."""
    part_of: Integers
    """(rounds,): places among the parts."""
    sizes: Integers
    """(parts,): rounds of each."""

    def squares(self, values: Floats) -> tuple[float, float]:
        """Sums of squares of values (rows, rounds) with mean 0: of the parts' means, and around them."""
        means = np.stack([values[..., self.part_of == n].mean(axis=-1) for n in range(len(self.parts))], axis=-1)
        return float((self.sizes * means**2).sum()), float(((values - means[..., self.part_of]) ** 2).sum())


def _part_table(values: Values, part_of: Mapping[int, str]) -> _PartTable | None:
    """None: no option has all rounds, or there is one part."""
    known = {seed: part for seed, part in part_of.items() if any(seed in row for row in values.values())}
    parts = _seeds_by_part(known)
    seeds = [seed for part_seeds in parts.values() for seed in part_seeds]
    whole = {name: row for name, row in values.items() if all(row.get(seed, 0.0) > 0 for seed in seeds)}
    if not whole or len(parts) < 2:
        return None
    logs, sizes = np.log([[row[seed] for seed in seeds] for row in whole.values()]), [*map(len, parts.values())]
    logs -= logs.mean(axis=1, keepdims=True)
    return _PartTable(list(whole), logs, parts, np.repeat(np.arange(len(parts)), sizes), np.array(sizes))


def _variance_share(table: _PartTable | None) -> float | None:
    """Share of a trial's variance between parts, by a one-way random effect (Searle 1971); None: not known."""
    if table is None or table.sizes.min() < 2:
        return None
    rounds, parts = table.logs.shape[1], len(table.parts)
    between, within = table.squares(table.logs.mean(axis=0))
    rounds_per_part = (rounds - (table.sizes**2).sum() / rounds) / (parts - 1)
    of_parts = max(0.0, between / (parts - 1) - within / (rounds - parts)) / rounds_per_part
    total = of_parts + table.squares(table.logs)[1] / (rounds - parts) / len(table.logs)
    return float(of_parts / total) if total > 1e-20 else None


def by_part(values: Values, part_of: Mapping[int, str]) -> Values:
    """Values by part where options' differences vary more between parts than within them; else the given values."""
    from scipy import special

    if (table := _part_table(values, part_of)) is None:
        return values
    (rows, rounds), parts = table.logs.shape, len(table.parts)
    dof = (rows - 1) * (parts - 1), (rows - 1) * (rounds - parts)
    between, within = table.squares(table.logs - table.logs.mean(axis=0))
    if 0 in dof or between / dof[0] <= special.fdtri(*dof, 1 - SUSPECT) * within / dof[1] + 1e-20:
        return values
    return {
        name: {
            number: math.exp(math.fsum(math.log(row[seed]) for seed in seeds) / len(seeds))
            for number, seeds in enumerate(table.parts.values()) if all(row.get(seed, 0.0) > 0 for seed in seeds)
        }
        for name, row in values.items()
    }  # fmt: skip


def _part_fields(suite: Suite, values: Mapping[str, Values], part_of: Mapping[int, str]) -> dict[str, Any]:
    """The fields that lanes and nodes share."""
    names = [name for name in dict.fromkeys((suite.decide.objective, SPEED)) if name in values]
    shares = {name: _variance_share(_part_table(values[name], part_of)) for name in names}
    known = {name: share for name, share in shares.items() if share is not None}
    return {"rounds": _seeds_by_part(part_of), "variance_shares": known}


def describe_lanes(suite: Suite, records: Sequence[Record], values: Mapping[str, Values]) -> Lanes | None:
    """What a report says of lanes; None: the run had one. `values`: by metric, of all trials that know it."""
    contest = _of_contest(records)
    lanes = {record.trial.seed: str(record.lane) for record in contest if record.lane is not None}
    if not lanes:
        return None
    reasons = withheld_metrics(suite, records)
    return Lanes(
        **_part_fields(suite, values, lanes), neighbours=max((record.neighbours for record in contest), default=0),
        beside=interference(suite, records), withheld=list(reasons),
        why=next((reasons[name] for name in (suite.decide.objective, SPEED, *reasons) if name in reasons), ""),
    )  # fmt: skip


def describe_nodes(suite: Suite, records: Sequence[Record], values: Mapping[str, Values]) -> Nodes | None:
    """What a report says of nodes; None: the run had one machine."""
    contest, threshold = _of_contest(records), suite.threshold(SPEED)
    in_fleet, span = [record for record in contest if record.node is not None], _span_sentence(contest)
    if not in_fleet and not span:
        return None
    homes = part_by_seed(suite.baseline, in_fleet)
    elsewhere = [record.trial for record in in_fleet if record.node != homes[record.trial.seed]]
    return Nodes(
        **_part_fields(suite, values, homes), threshold=threshold, span=span,
        speeds=_node_speeds(_part_table(values.get(SPEED, {}), homes), math.log1p(threshold)),
        elsewhere=[f"{trial.option}, seed {trial.seed}" for trial in elsewhere],
    )  # fmt: skip


def _span_sentence(contest: Sequence[Record]) -> str:
    others = [node for record in contest for node in record.nodes]
    if not others:
        return ""
    offset = units.seconds(max(abs(node.clock_offset_seconds) for node in others))
    known = units.seconds(max(node.round_trip_seconds for node in others) / 2)
    drift = units.seconds(max(abs(node.clock_drift_seconds or 0.0) for node in others))
    ranks = listed([f"{count} rank{'s' * (count > 1)}" for count in sorted({node.ranks for node in others})], "or")
    return (
        f"A trial ran over {1 + max(node.node for node in others)} nodes with {ranks} on each; clocks were up to "
        f"{offset} off the first node's (known to {known}), which changed by at most {drift} in a trial."
    )


def _node_speeds(table: _PartTable | None, margin: float) -> dict[str, NodeSpeed]:
    if table is None:
        return {}
    nodes = set(range(len(table.parts)))
    rest = set(nodes)
    while True:
        gaps = [_against_others(table, node, rest - {node} or nodes - {node}) for node in nodes]
        beyond = {node: (round(abs(gaps[node][0]) - gaps[node][1], 12), -gaps[node][0]) for node in rest}
        worst = max(sorted(rest), key=lambda node: beyond[node])  # of two the slower one
        if len(rest) < 2 or beyond[worst][0] <= margin:
            break
        rest.remove(worst)
    return {
        name: NodeSpeed(
            ratio=math.exp(ratio), off=node not in rest, by_option=by_option,
            low=None if math.isinf(half) else math.exp(ratio - half),
            high=None if math.isinf(half) else math.exp(ratio + half),
        )
        for node, (name, (ratio, half, by_option)) in enumerate(zip(table.parts, gaps, strict=True))
    }  # fmt: skip


def _against_others(table: _PartTable, node: int, others: Collection[int]) -> tuple[float, float, dict[str, float]]:
    """Log of a node's speed over the others', half the width of its interval, and the ratio of each option."""
    node_logs = table.logs[:, table.part_of == node]
    others_logs = table.logs[:, np.isin(table.part_of, list(others))]
    if table.sizes.min() > 1:
        dof, squares = len(table.part_of) - len(table.parts), table.squares(table.logs.mean(axis=0))[1]
    else:
        dof = node_logs.shape[1] + others_logs.shape[1] - 2
        squares = sum(float(logs.mean(axis=0).var() * logs.shape[1]) for logs in (node_logs, others_logs))
    half, ratios = math.inf, node_logs.mean(axis=1) - others_logs.mean(axis=1)
    if dof >= FEWEST_DOF:
        error = math.sqrt(squares / dof * (1 / node_logs.shape[1] + 1 / others_logs.shape[1]))
        half = error * float(quantile(LEVEL / len(table.parts), dof))
    return float(ratios.mean()), half, dict(zip(table.options, np.exp(ratios).tolist(), strict=True))


def lane_lines(lanes: Lanes | None, objective: str) -> list[str]:
    """Sentences for a report; [] where there was one lane."""
    if lanes is None:
        return []
    rounds = _rounds_words({f"lane {int(lane) + 1}": seeds for lane, seeds in lanes.rounds.items()})
    lines = [f"Rounds ran side by side: {rounds}. Options are compared within a round, and so within a lane."]
    if lanes.neighbours:
        many = f"{lanes.neighbours} neighbour{'s' * (lanes.neighbours > 1)}"
        lines.append(f"Speeds were measured with {many}.")
    for name in dict.fromkeys(name for name in (SPEED, objective) if name in lanes.beside):
        effect = lanes.beside[name]
        verdict = "shown to be" if effect.equivalent else "not shown to be"
        text = interference_words(name, effect)
        lines.append(
            f"{text[0].upper()}{text[1:]}, {verdict} within {units.share(effect.threshold)} ({effect.pairs} pairs "
            "of short trials, two one-sided tests at 5 %)."
        )
    if lanes.withheld:
        lines.append(f"Of {_withheld_words(lanes)} nothing is claimed: {lanes.why}.")
    return [*lines, *_share_lines("lanes", lanes.variance_shares)]


def _rounds_words(rounds: Mapping[str, Sequence[int]]) -> str:
    parts = [f"{part} ran seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}" for part, s in rounds.items()]
    return "; ".join(parts[:16]) + f"; and {len(parts) - 16} more" * (len(parts) > 16)


def _share_lines(parts: str, shares: Mapping[str, float]) -> list[str]:
    return [
        f"Between {parts} lies {units.whole_percent(share)} of the variance of {name} between an option's trials."
        for name, share in shares.items()
    ]


def node_lines(nodes: Nodes | None) -> list[str]:
    """Sentences for a report; none where all ran on one machine."""
    spans = [nodes.span] if nodes and nodes.span else []
    if nodes is None or not nodes.rounds:
        return spans
    ran = f"Rounds ran on {len(nodes.rounds)} node{'s' * (len(nodes.rounds) > 1)}: {_rounds_words(nodes.rounds)}."
    lines = [*spans, f"{ran} Options are compared within a round, and so within a node."]
    if nodes.elsewhere:
        which = some(nodes.elsewhere, 5)
        lines.append(f"On another node than their round's baseline ran {which}: their speeds claim nothing.")
    lines += _share_lines("nodes", nodes.variance_shares)
    lines += [f"{_off_words(nodes, name, s)} {_off_details(nodes, name, s)}" for name, s in _nodes_off(nodes)]
    others = [s for s in nodes.speeds.values() if not s.off]
    if not nodes.speeds and len(nodes.rounds) > 1:
        lines.append("Whether a node is off is not known: no option has a speed in every round.")
    elif any(s.low is None or (s.high or 1) > units.WIDEST * s.low for s in others):
        lines.append("Whether a node is off is not known: rounds are too few, or too unlike each other, to tell.")
    elif len(others) > 1:
        rest, matters = "other " * (len(others) < len(nodes.speeds)), units.share(nodes.threshold)
        known = units.share(max(math.sqrt((s.high or 1) / (s.low or 1)) for s in others) - 1)
        lines.append(
            f"Of no {rest}node is it shown that it is off by more than {matters}; each is known to ±{known}."
        )
    return lines


def _nodes_off(nodes: Nodes) -> list[tuple[str, NodeSpeed]]:
    """The nodes that are off with their names, the slowest first."""
    return sorted(((n, s) for n, s in nodes.speeds.items() if s.off), key=lambda pair: pair[1].ratio)


def _off_words(nodes: Nodes, name: str, speed: NodeSpeed) -> str:
    least = math.log1p(nodes.threshold)
    sides = {(ratio > 1, abs(math.log(ratio)) > least) for ratio in speed.by_option.values()}
    scope = " in all options" if sides == {(speed.ratio > 1, True)} else ", but not in all options alike"
    return f"{name} is {_gap_words(speed.ratio)} than the other node{'s' * (len(nodes.speeds) > 2)}{scope}."


def _gap_words(ratio: float) -> str:
    return f"{units.share(abs(1 - ratio))} {'slower' if ratio < 1 else 'faster'}"


def _off_details(nodes: Nodes, name: str, speed: NodeSpeed) -> str:
    ends = " to ".join(units.share(gap) for gap in sorted(abs(1 - (end or 1)) for end in (speed.low, speed.high)))
    options = sorted(speed.by_option, key=lambda option: speed.by_option[option])
    span = " to ".join(f"{_gap_words(speed.by_option[option])} ({option})" for option in (options[0], options[-1]))
    moment = " It ran one round, so it may be that moment, not the node." if len(nodes.rounds[name]) == 1 else ""
    pair = " Which of the two is off can't be told." if len(nodes.speeds) == 2 else ""
    return f"By option from {span}; interval of the mean {ends} (95% for all nodes together).{moment}{pair}"


def nodes_in_answer(nodes: Nodes | None, counted: Sequence[str], objective: str) -> str:
    """Which nodes are off, and that comparisons count parts (`counted`: of these metrics), behind the answer."""
    named = "".join(f" {_off_words(nodes, name, speed)}" for name, speed in _nodes_off(nodes)) if nodes else ""
    if objective not in counted:
        return named
    which = "nodes" if nodes and nodes.rounds else "lanes"
    return (
        f"{named} Differences of {objective} between options vary more between {which} than on one: intervals "
        f"count {which}, not rounds."
    )


def lanes_in_answer(lanes: Lanes | None) -> str:
    """Why speeds claim nothing, behind the answer; '' where they may."""
    if lanes is None or not lanes.withheld:
        return ""
    return f" Of {_withheld_words(lanes)} nothing is claimed, as trials ran side by side: {lanes.why}."


def _withheld_words(lanes: Lanes) -> str:
    """The withheld metrics as a reader calls them."""
    if set(lanes.withheld) == {MEMORY}:
        return "memory"
    return "speed, energy, time and memory" if MEMORY in lanes.withheld else "speed, energy and time"
