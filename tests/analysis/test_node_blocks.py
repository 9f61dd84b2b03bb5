"""Fleets, whose nodes run whole rounds: which nodes are named, and that no node makes a false claim; simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from made_records import make_record, make_suite, speed
from msgspec.structs import replace

from selectbench.analysis.contest import Contest
from selectbench.analysis.lanes import describe_nodes, node_lines
from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Comparison, Ranking
from selectbench.analysis.summary import Summary
from selectbench.record.record import OtherNode, Record
from selectbench.suite.metrics import METRICS
from selectbench.suite.suite import Suite

NAMES = ("base", "a", "b", "c", "d")
NOISE, OF_ROUNDS = 0.01, 0.005
"""Of a trial, as plans expect it, and of what a round does to all its trials."""


def suite_of(rounds: int) -> Suite:
    options = [(name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + i)}}) for i, name in enumerate(NAMES)]
    return make_suite(*options, seeds=list(range(rounds)), decide={"constraints": []})


def drawn(
    draw: np.random.Generator, nodes: int, each: int, *, slow: float = 0.0, one_option: float = 0.0,
    between_nodes: float = 0.0, options_by_node: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Speeds, (options, rounds): round r runs on node r % nodes; the first node is `slow`, or is for one option."""
    node = np.arange(nodes * each) % nodes
    logs = draw.normal(0, NOISE, (len(NAMES), len(node))) + draw.normal(0, OF_ROUNDS, len(node))
    logs += draw.normal(0, between_nodes, nodes)[node]
    logs += draw.normal(0, options_by_node, (len(NAMES), nodes))[:, node]
    logs[:, node == 0] += math.log1p(-slow)
    logs[1, node == 0] += math.log1p(-one_option)
    return 1000 * np.exp(logs)


def records_of(nodes: int, speeds: np.ndarray) -> list[Record]:
    return [
        replace(make_record(name, r, **speed(speeds[i, r])), node=f"n{r % nodes + 1}")
        for i, name in enumerate(NAMES) for r in range(speeds.shape[1])
    ]  # fmt: skip


class Judge:
    """Judges many runs of one shape as `rank` does."""

    def __init__(self, nodes: int, each: int) -> None:
        self.nodes, self.suite = nodes, suite_of(nodes * each)
        self.records = records_of(nodes, np.ones((len(NAMES), nodes * each)))

    def claims(self, speeds: np.ndarray) -> dict[str, Comparison]:
        summaries = []
        for place, option in enumerate(self.suite.options):
            values = {name: {} for name in METRICS} | {"tokens_per_second": dict(enumerate(speeds[place].tolist()))}
            own = {record.trial.seed: record for record in self.records if record.trial.option == option.name}
            spoiled = {name: dict[int, float]() for name in METRICS}
            summaries.append(Summary(option, self.suite.seeds, completed=own, values=values, spoiled=spoiled))
        contest = Contest(self.suite, summaries, dict.fromkeys(NAMES, True))
        contest.is_complete = False
        found = {name: contest.against_baseline(name) for name in NAMES[1:]}
        return {name: pair for name, pair in found.items() if pair}

    def named(self, speeds: np.ndarray) -> set[str]:
        values = {name: dict(enumerate(row.tolist())) for name, row in zip(NAMES, speeds, strict=True)}
        found = describe_nodes(self.suite, self.records, {"tokens_per_second": values})
        assert found is not None
        return {name for name, own in found.speeds.items() if own.off}


def share(found: Sequence[bool]) -> tuple[float, float]:
    """With its Monte Carlo error."""
    rate = float(np.mean(found))
    return rate, math.sqrt(max(rate * (1 - rate), 1 / len(found)) / len(found))


def false(claims: dict[str, Comparison]) -> bool:
    return any(pair.decision in ("better", "worse") for pair in claims.values())


def test_the_simulation_judges_as_rank_does() -> None:
    judge, speeds = Judge(4, 2), drawn(np.random.default_rng(1), 4, 2, slow=0.05, options_by_node=0.02)
    ranking = rank(judge.suite, records_of(4, speeds))
    assert {row.option: row.against_baseline for row in ranking.rows if row.option != "base"} == judge.claims(
        speeds
    )
    assert ranking.nodes is not None
    assert {name for name, own in ranking.nodes.speeds.items() if own.off} == judge.named(speeds)


def test_a_slow_node_changes_no_verdict() -> None:
    """Whatever it does to all its trials drops out: with the same draws the verdicts are the same."""
    judge = Judge(4, 2)
    decided = {}
    for slow in (0.0, 0.05, 0.2):
        draw = np.random.default_rng(2)
        runs = [judge.claims(drawn(draw, 4, 2, slow=slow)) for _ in range(100)]
        decided[slow] = [[pair.decision for pair in claims.values()] for claims in runs]
    assert decided[0.0] == decided[0.05] == decided[0.2]
    rate, error = share([bool({"better", "worse"} & set(run)) for run in decided[0.2]])
    assert rate <= 0.04 + 2 * error


@pytest.mark.parametrize(("nodes", "each"), [(2, 4), (4, 2)])
def test_options_that_differ_between_nodes_widen_the_intervals(nodes: int, each: int) -> None:
    """Rounds of one node tell the same difference again: counting them, up to half of such runs claim falsely."""
    judge, draw = Judge(nodes, each), np.random.default_rng(3)
    wide = {}
    for how in ({}, {"options_by_node": 0.02}, {"one_option": 0.05}, {"one_option": 0.2}):
        runs = [judge.claims(drawn(draw, nodes, each, **how)) for _ in range(150)]
        rate, error = share([false(claims) for claims in runs])
        assert rate <= 0.05 + 2 * error, how
        ends = [(pair.low, pair.high) for claims in runs for name, pair in claims.items() if name == "a"]
        wide[str(how)] = float(np.median([math.log(high / low) for low, high in ends if low and high]))
    quiet, *moved = wide.values()
    assert min(moved) > 1.5 * quiet


@pytest.mark.parametrize(
    ("nodes", "each", "slow", "power"),
    [(4, 2, 0.05, 0.95), (4, 2, 0.2, 0.99), (8, 1, 0.05, 0.8), (8, 1, 0.2, 0.99), (2, 2, 0.2, 0.95)],
)
def test_a_slow_node_is_named_and_no_other(nodes: int, each: int, slow: float, power: float) -> None:
    judge, draw = Judge(nodes, each), np.random.default_rng(4)
    found = [judge.named(drawn(draw, nodes, each, slow=slow)) for _ in range(150)]
    assert np.mean([named == {"n1"} for named in found]) >= power
    rate, error = share([bool(named - {"n1"}) for named in found])
    assert rate <= 0.05 + 2 * error


@pytest.mark.parametrize(("nodes", "each"), [(2, 2), (4, 2), (8, 1)])
@pytest.mark.parametrize("between_nodes", [0.0, 0.003])
def test_nodes_of_an_honest_fleet_are_seldom_named(nodes: int, each: int, between_nodes: float) -> None:
    """Nor those that are alike but for less than the threshold."""
    judge, draw = Judge(nodes, each), np.random.default_rng(5)
    found = [judge.named(drawn(draw, nodes, each, between_nodes=between_nodes)) for _ in range(150)]
    rate, error = share([bool(named) for named in found])
    assert rate <= 0.05 + 2 * error


def ranked(nodes: int, each: int, **how: float) -> Ranking:
    return rank(suite_of(nodes * each), records_of(nodes, drawn(np.random.default_rng(6), nodes, each, **how)))


def test_the_report_names_the_node_and_the_rounds_that_it_ran() -> None:
    ranking = ranked(4, 2, slow=0.2)
    lines = node_lines(ranking.nodes)
    assert "n1 ran seeds 0, 4; n2 ran seeds 1, 5; n3 ran seeds 2, 6; n4 ran seeds 3, 7" in lines[0]
    assert any("Between nodes lies 9" in line and "tokens_per_second" in line for line in lines)
    (named,) = (line for line in lines if line.startswith("n1 is "))
    assert "slower than the other nodes in all options." in named
    assert "n1 is" in ranking.answer
    assert lines[-1].startswith("Of no other node is it shown that it is off by more than 1.0%")


def test_a_node_that_slows_one_option_is_not_said_to_slow_all() -> None:
    ranking = ranked(4, 2, one_option=0.2)
    assert "n1 is" in ranking.answer
    assert ", but not in all options alike." in ranking.answer
    assert "intervals count nodes, not rounds" in ranking.answer


def test_what_one_round_on_each_node_can_tell() -> None:
    lines = node_lines(ranked(8, 1, slow=0.2).nodes)
    assert any("It ran one round, so it may be that moment, not the node." in line for line in lines)
    assert not any("of the variance" in line for line in lines)
    assert "rounds are too few" in node_lines(ranked(3, 1, slow=0.2).nodes)[-1]
    holes = [r for r in records_of(4, np.ones((5, 4))) if r.round != NAMES.index(r.trial.option) % 4]
    assert node_lines(rank(suite_of(4), holes).nodes)[-1].endswith("no option has a speed in every round.")
    pair = node_lines(ranked(2, 3, slow=0.2).nodes)
    assert any(
        "than the other node in all" in line and "Which of the two is off can't be told." in line for line in pair
    )


def test_a_round_that_moved_to_another_node_compares_no_speed_across_nodes() -> None:
    """By the figures `d` is a third faster, as its trials ran on a faster node than their rounds' baselines."""
    speeds = drawn(np.random.default_rng(7), 2, 2)
    speeds[4] *= 1.33
    records = [replace(r, node="fast") if r.trial.option == "d" else r for r in records_of(2, speeds)]
    ranking = rank(suite_of(4), records)
    (row,) = (row for row in ranking.rows if row.option == "d")
    assert row.rank is None
    assert row.metrics["tokens_per_second"].unclean
    assert row.metrics["tokens_per_second"].ratio_to_baseline is None
    assert row.metrics["final_loss"].ratio_to_baseline is not None
    assert ranking.nodes is not None
    assert ranking.nodes.rounds == {"n1": [0, 2], "n2": [1, 3]}
    assert any(
        "On another node than their round's baseline ran d, seed 0" in line for line in node_lines(ranking.nodes)
    )


def test_a_trial_over_several_nodes_tells_how_far_their_clocks_were_off() -> None:
    other = OtherNode(
        node=1, ranks=2, clock_offset_seconds=-0.0013, round_trip_seconds=2e-4, clock_drift_seconds=3e-6
    )
    records = [replace(r, node=None, nodes=[other]) for r in records_of(1, np.full((5, 3), 1000.0))]
    (line,) = node_lines(rank(suite_of(3), records).nodes)
    assert (
        "over 2 nodes with 2 ranks on each; clocks were up to 1.30 ms off the first node's (known to 100 us)"
        in line
    )
    assert rank(suite_of(3), [replace(r, nodes=[]) for r in records]).nodes is None
