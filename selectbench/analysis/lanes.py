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
from selectbench.analysis.result import Beside, Lanes, Nodes, NodeSpeed
from selectbench.analysis.statistics import Floats, Integers, Values, of_logs, quantile
from selectbench.record.record import Completed, Record, has_ended
from selectbench.record.run_folder import last_attempts
from selectbench.suite.metrics import METRICS
from selectbench.suite.stages import INTERFERENCE_PAIRS, interference_seeds
from selectbench.suite.suite import Suite
from selectbench.text import listed, some

BESIDE = "measured beside a neighbour"
"""What a trial was whose speed does not count for that."""
ELSEWHERE = "measured on another node than its round's baseline"
"""The same."""
SPEED, MEMORY = "tokens_per_second", "peak_memory_bytes"
LEVEL = 0.05
"""Of each of the two tests."""
FEWEST_PAIRS = 3
SUSPECT = 0.2
"""Level of the F test whether options differ between parts: what it misses makes intervals too narrow."""
FEWEST_FREE = 2
"""Degrees of freedom of what a node is held against."""


def disturbed(suite: Suite) -> list[str]:
    """Metrics that neighbours may move; on a CPU of memory too, as shared pages count by their share."""
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
        values = ([figure_of(record, suite, name) for record in pair] for pair in pairs)
        logs = [math.log(b / a) for a, b in values if a and b and min(a, b) > 0]
        if FEWEST_PAIRS <= len(logs) == len(pairs) and suite.threshold(name):
            found[name] = _beside(logs, suite.threshold(name))
    return found


def _beside(logs: Sequence[float], threshold: float) -> Beside:
    found = of_logs(logs)
    assert found is not None
    low, high = found.interval(2 * LEVEL)
    assert low is not None
    assert high is not None
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
    if (beside := besides(suite, records).get(SPEED)) is None:
        return []
    apart = f"not within {units.share(beside.threshold)}: speeds claim nothing"
    return [f"{beside_words(SPEED, beside)}: {'speeds count' if beside.equivalent else apart}"]


def lanes_of(records: Sequence[Record]) -> int:
    """How many the run had, as far as trials were seen on them or beside each other."""
    return 1 + max((max(r.lane, r.neighbours) for r in records if r.lane is not None), default=0)


def parts_of(baseline: str, records: Iterable[Record]) -> dict[int, str]:
    """By seed, the node of a fleet or the lane of its baseline, else of most of its trials; {}: neither."""
    found: dict[int, Counter[str]] = {}
    homes: dict[int, str] = {}
    for record in records:
        part = record.node if record.node is not None or record.lane is None else str(record.lane)
        if part is not None:
            found.setdefault(record.trial.seed, Counter())[part] += 1
            homes.update({record.trial.seed: part} if record.trial.option == baseline else {})
    return {seed: homes.get(seed) or min(of, key=lambda part: (-of[part], part)) for seed, of in found.items()}


def doubts(suite: Suite, records: Sequence[Record]) -> Callable[[Record], Mapping[str, str]]:
    """Of a trial of the contest: by metric that counts for no claim, how it was measured."""
    beside, elsewhere = dict.fromkeys(withheld(suite, records), BESIDE), dict.fromkeys(disturbed(suite), ELSEWHERE)
    homes = parts_of(suite.baseline, _contest(records))

    def of(record: Record) -> Mapping[str, str]:
        if record.node is not None and record.node != homes[record.trial.seed]:
            return elsewhere
        return beside if record.lane is not None else {}

    return of


def _contest(records: Sequence[Record]) -> list[Record]:
    return [record for record in last_attempts(list(records)).values() if record.phase == "contest"]


def _rounds(part_of: Mapping[int, str]) -> dict[str, list[int]]:
    """By part, n2 before n10, its seeds."""
    parts = sorted(set(part_of.values()), key=lambda part: (len(part), part))
    return {part: sorted(seed for seed in part_of if part_of[seed] == part) for part in parts}


@dataclass(frozen=True)
class _Table:
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


def _table(values: Values, part_of: Mapping[int, str]) -> _Table | None:
    """None: no option has all rounds, or there is one part."""
    known = {seed: part for seed, part in part_of.items() if any(seed in own for own in values.values())}
    parts = _rounds(known)
    seeds = [seed for own in parts.values() for seed in own]
    whole = {name: own for name, own in values.items() if all(own.get(seed, 0.0) > 0 for seed in seeds)}
    if not whole or len(parts) < 2:
        return None
    logs, sizes = np.log([[own[seed] for seed in seeds] for own in whole.values()]), [*map(len, parts.values())]
    logs -= logs.mean(axis=1, keepdims=True)
    return _Table(list(whole), logs, parts, np.repeat(np.arange(len(parts)), sizes), np.array(sizes))


def _share(table: _Table | None) -> float | None:
    """Of a trial's variance what lies between parts, a one-way random effect (Searle 1971); None: not known."""
    if table is None or table.sizes.min() < 2:
        return None
    rounds, parts = table.logs.shape[1], len(table.parts)
    between, inside = table.squares(table.logs.mean(axis=0))
    each = (rounds - (table.sizes**2).sum() / rounds) / (parts - 1)
    of_parts = max(0.0, between / (parts - 1) - inside / (rounds - parts)) / each
    total = of_parts + table.squares(table.logs)[1] / (rounds - parts) / len(table.logs)
    return float(of_parts / total) if total > 1e-20 else None


def by_part(values: Values, part_of: Mapping[int, str]) -> Values:
    """By part, not by seed, where options' differences vary more between parts than within; else as they are."""
    from scipy import special

    if (table := _table(values, part_of)) is None:
        return values
    (rows, rounds), parts = table.logs.shape, len(table.parts)
    free = (rows - 1) * (parts - 1), (rows - 1) * (rounds - parts)
    between, inside = table.squares(table.logs - table.logs.mean(axis=0))
    if 0 in free or between / free[0] <= special.fdtri(*free, 1 - SUSPECT) * inside / free[1] + 1e-20:
        return values
    return {
        name: {
            place: math.exp(math.fsum(math.log(own[seed]) for seed in seeds) / len(seeds))
            for place, seeds in enumerate(table.parts.values()) if all(own.get(seed, 0.0) > 0 for seed in seeds)
        }
        for name, own in values.items()
    }  # fmt: skip


def _of_parts(suite: Suite, values: Mapping[str, Values], part_of: Mapping[int, str]) -> dict[str, Any]:
    """What is told of lanes and of nodes."""
    told = [name for name in dict.fromkeys((suite.decide.objective, SPEED)) if name in values]
    shares = {name: _share(_table(values[name], part_of)) for name in told}
    known = {name: share for name, share in shares.items() if share is not None}
    return {"rounds": _rounds(part_of), "variance_shares": known}


def lanes_found(suite: Suite, records: Sequence[Record], values: Mapping[str, Values]) -> Lanes | None:
    """What a report says of a run's lanes; None: it had one. `values`: by metric, of all trials that know it."""
    contest = _contest(records)
    of_seed = {record.trial.seed: str(record.lane) for record in contest if record.lane is not None}
    if not of_seed:
        return None
    reasons = withheld(suite, records)
    return Lanes(
        **_of_parts(suite, values, of_seed), neighbours=max((record.neighbours for record in contest), default=0),
        beside=besides(suite, records), withheld=list(reasons),
        why=next((reasons[name] for name in (suite.decide.objective, SPEED, *reasons) if name in reasons), ""),
    )  # fmt: skip


def nodes_found(suite: Suite, records: Sequence[Record], values: Mapping[str, Values]) -> Nodes | None:
    """What a report says of nodes; None: it was one machine."""
    contest, threshold = _contest(records), suite.threshold(SPEED)
    in_fleet, span = [record for record in contest if record.node is not None], _span(contest)
    if not in_fleet and not span:
        return None
    homes = parts_of(suite.baseline, in_fleet)
    moved = [record.trial for record in in_fleet if record.node != homes[record.trial.seed]]
    return Nodes(
        **_of_parts(suite, values, homes), threshold=threshold, span=span,
        speeds=_speeds(_table(values.get(SPEED, {}), homes), math.log1p(threshold)),
        elsewhere=[f"{trial.option}, seed {trial.seed}" for trial in moved],
    )  # fmt: skip


def _span(contest: Sequence[Record]) -> str:
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


def _speeds(table: _Table | None, margin: float) -> dict[str, NodeSpeed]:
    if table is None:
        return {}
    every = set(range(len(table.parts)))
    rest = set(every)
    while True:
        found = [_against(table, node, rest - {node} or every - {node}) for node in every]
        beyond = {node: (round(abs(found[node][0]) - found[node][1], 12), -found[node][0]) for node in rest}
        worst = max(sorted(rest), key=lambda node: beyond[node])  # of two the slower one
        if len(rest) < 2 or beyond[worst][0] <= margin:
            break
        rest.remove(worst)
    return {
        name: NodeSpeed(
            ratio=math.exp(ratio), off=node not in rest, by_option=by_option,
            low=None if math.isinf(wide) else math.exp(ratio - wide),
            high=None if math.isinf(wide) else math.exp(ratio + wide),
        )
        for node, (name, (ratio, wide, by_option)) in enumerate(zip(table.parts, found, strict=True))
    }  # fmt: skip


def _against(table: _Table, node: int, others: Collection[int]) -> tuple[float, float, dict[str, float]]:
    """Log of a node's speed over the others', half the width of its interval, and the ratio of each option."""
    own = table.logs[:, table.part_of == node]
    other = table.logs[:, np.isin(table.part_of, list(others))]
    if table.sizes.min() > 1:
        free, squares = len(table.part_of) - len(table.parts), table.squares(table.logs.mean(axis=0))[1]
    else:
        free = own.shape[1] + other.shape[1] - 2
        squares = sum(float(each.mean(axis=0).var() * each.shape[1]) for each in (own, other))
    wide, ratios = math.inf, own.mean(axis=1) - other.mean(axis=1)
    if free >= FEWEST_FREE:
        error = math.sqrt(squares / free * (1 / own.shape[1] + 1 / other.shape[1]))
        wide = error * float(quantile(LEVEL / len(table.parts), free))
    return float(ratios.mean()), wide, dict(zip(table.options, np.exp(ratios).tolist(), strict=True))


def lane_lines(lanes: Lanes | None, objective: str) -> list[str]:
    """Sentences for a report; none where there was one lane."""
    if lanes is None:
        return []
    told = _rounds_words({f"lane {int(lane) + 1}": seeds for lane, seeds in lanes.rounds.items()})
    lines = [f"Rounds ran side by side: {told}. Options are compared within a round, and so within a lane."]
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
    return [*lines, *_share_lines("lanes", lanes.variance_shares)]


def _rounds_words(rounds: Mapping[str, Sequence[int]]) -> str:
    told = [f"{part} ran seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}" for part, s in rounds.items()]
    return "; ".join(told[:16]) + f"; and {len(told) - 16} more" * (len(told) > 16)


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
    told = f"Rounds ran on {len(nodes.rounds)} node{'s' * (len(nodes.rounds) > 1)}: {_rounds_words(nodes.rounds)}."
    lines = [*spans, f"{told} Options are compared within a round, and so within a node."]
    if nodes.elsewhere:
        which = some(nodes.elsewhere, 5)
        lines.append(f"On another node than their round's baseline ran {which}: their speeds claim nothing.")
    lines += _share_lines("nodes", nodes.variance_shares)
    lines += [f"{_off_words(nodes, name, own)} {_in_detail(nodes, name, own)}" for name, own in _off(nodes)]
    others = [own for own in nodes.speeds.values() if not own.off]
    if not nodes.speeds and len(nodes.rounds) > 1:
        lines.append("Whether a node is off is not known: no option has a speed in every round.")
    elif any(own.low is None or (own.high or 1) > units.WIDEST * own.low for own in others):
        lines.append("Whether a node is off is not known: rounds are too few, or too unlike each other, to tell.")
    elif len(others) > 1:
        rest, matters = "other " * (len(others) < len(nodes.speeds)), units.share(nodes.threshold)
        known = units.share(max(math.sqrt((own.high or 1) / (own.low or 1)) for own in others) - 1)
        lines.append(
            f"Of no {rest}node is it shown that it is off by more than {matters}; each is known to ±{known}."
        )
    return lines


def _off(nodes: Nodes) -> list[tuple[str, NodeSpeed]]:
    """Those that are named, the slowest first."""
    return sorted(((name, own) for name, own in nodes.speeds.items() if own.off), key=lambda pair: pair[1].ratio)


def _off_words(nodes: Nodes, name: str, speed: NodeSpeed) -> str:
    least = math.log1p(nodes.threshold)
    sides = {(own > 1, abs(math.log(own)) > least) for own in speed.by_option.values()}
    every = " in all options" if sides == {(speed.ratio > 1, True)} else ", but not in all options alike"
    return f"{name} is {_slower(speed.ratio)} than the other node{'s' * (len(nodes.speeds) > 2)}{every}."


def _slower(ratio: float) -> str:
    return f"{units.share(abs(1 - ratio))} {'slower' if ratio < 1 else 'faster'}"


def _in_detail(nodes: Nodes, name: str, speed: NodeSpeed) -> str:
    ends = " to ".join(units.share(one) for one in sorted(abs(1 - (end or 1)) for end in (speed.low, speed.high)))
    options = sorted(speed.by_option, key=lambda option: speed.by_option[option])
    by = " to ".join(f"{_slower(speed.by_option[option])} ({option})" for option in (options[0], options[-1]))
    moment = " It ran one round, so it may be that moment, not the node." if len(nodes.rounds[name]) == 1 else ""
    pair = " Which of the two is off can't be told." if len(nodes.speeds) == 2 else ""
    return f"By option from {by}; interval of the mean {ends} (95% for all nodes together).{moment}{pair}"


def nodes_in_answer(nodes: Nodes | None, counted: Sequence[str], objective: str) -> str:
    """Which nodes are off, and that comparisons count parts (`counted`: of these metrics), behind the answer."""
    named = "".join(f" {_off_words(nodes, name, own)}" for name, own in _off(nodes)) if nodes else ""
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
    return f" Of {_what(lanes)} nothing is claimed, as trials ran side by side: {lanes.why}."


def _what(lanes: Lanes) -> str:
    """What claims nothing, as a reader calls it."""
    if set(lanes.withheld) == {MEMORY}:
        return "memory"
    return "speed, energy, time and memory" if MEMORY in lanes.withheld else "speed, energy and time"
