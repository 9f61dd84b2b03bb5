"""Two runs of a suite side by side: what differs in suite and environment, and how every figure changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from selectbench.analysis.blocks import Difference
from selectbench.analysis.certificate import certify
from selectbench.analysis.changes import changes
from selectbench.analysis.comparison import Decision
from selectbench.analysis.family import ALPHA, HypothesisTest, Judged, decide, judge_all
from selectbench.analysis.formulas import finite
from selectbench.analysis.metrics import METRICS
from selectbench.analysis.shown import Shown
from selectbench.analysis.summary import Summary, summarise
from selectbench.record.record import Record
from selectbench.suite.suite import Suite

COMPARED = (
    "tokens_per_second", "peak_memory_bytes", "peak_device_memory_bytes", "final_loss", "final_perplexity",
    "joules_per_token", "usd_per_billion_tokens",
)  # fmt: skip
"""Metrics whose changes are tested; final_perplexity goes with final_loss and is shown only."""
_SHOWN_ONLY = frozenset({"final_perplexity"})
_PASSING = ("git_", "data.seconds", "kernel", "libc", "memory_total_bytes")
"""Of the environment, by beginning: what moves no figure."""
MACHINE = ("cpu_model", "cores_by_affinity", "cores_by_cgroup", "gpus", "memory_limit_bytes")
"""Of the environment, by beginning: what makes it another machine."""


@dataclass(frozen=True)
class ReadRun:
    """A run to compare."""

    name: str
    suite: Suite
    records: Sequence[Record]
    environment: Mapping[str, Any]

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        """By option."""
        return {summary.name: summary for summary in summarise(self.suite, self.records)[0]}

    def other_jobs(self) -> set[str]:
        """Options that did not do the job of this run's own baseline."""
        summaries = list(self.summaries.values())
        baseline = next(summary for summary in summaries if summary.name == self.suite.baseline)
        found = certify(self.suite, summaries, baseline)
        return {name for name, certificate in found.items() if certificate.violations}


class Differing(Shown):
    """A key with two values."""

    path: str
    reference: str | None
    """None: it has no such key."""
    run: str | None


class Change(Shown):
    """One metric of one option in the run against the reference."""

    option: str
    metric: str
    reference: float | None
    """Mean over the reference's seeds."""
    run: float | None
    ratio: float | None
    """Geometric mean over common seeds of run over reference; of the means' logarithms where none are common."""
    low: float | None
    """Of the interval, simultaneous over all tested changes; None: no measure of spread."""
    high: float | None
    p_adjusted: float | None
    """By Holm over all tested changes; None: shown, not tested, or no measure of spread."""
    decision: Decision
    """For the run: better, worse, no_difference or undecided; by the metric's threshold."""
    seeds: int
    """Common ones; of the smaller run where none are common."""


class Compared(Shown):
    """A run against the reference."""

    run: str
    reference: str
    suite: list[Differing]
    """What differs in the suite; the seeds too."""
    environment: list[Differing]
    """What differs where they ran, but for what moves no figure."""
    changes: list[Change]
    tests: int
    only_in_reference: list[str]
    only_in_run: list[str]
    notes: list[str]
    """What makes the comparison doubtful."""


def compare(run: ReadRun, reference: ReadRun) -> Compared:
    """Every option that both have, by every metric that both know."""
    ours, theirs = run.summaries, reference.summaries
    common = [name for name in theirs if name in ours]
    differences = {metric: _differences(ours, theirs, common, metric) for metric in COMPARED}
    tests = {
        (option, metric): HypothesisTest(difference)
        for metric, found in differences.items() if metric not in _SHOWN_ONLY
        for option, difference in found.items()
    }  # fmt: skip
    judged = judge_all(tests)
    return Compared(
        run=run.name, reference=reference.name, suite=differing(run.suite.resolved, reference.suite.resolved),
        environment=[
            d for d in differing(run.environment, reference.environment) if not d.path.startswith(_PASSING)
        ],
        changes=[
            _change(run.suite, ours[option], theirs[option], metric, differences[metric][option],
                    judged.get((option, metric)))
            for option in common for metric in COMPARED if option in differences[metric]
        ],
        tests=len(judged), only_in_reference=[n for n in theirs if n not in ours],
        only_in_run=[n for n in ours if n not in theirs], notes=_notes(run, reference, ours, theirs),
    )  # fmt: skip


def _differences(
    ours: Mapping[str, Summary], theirs: Mapping[str, Summary], common: Sequence[str], metric: str
) -> dict[str, Difference]:
    return changes({n: ours[n].values[metric] for n in common}, {n: theirs[n].values[metric] for n in common})


def _change(
    suite: Suite, ours: Summary, theirs: Summary, metric: str, difference: Difference, judged: Judged | None
) -> Change:
    better, threshold = METRICS[metric].better == "more", suite.decide.threshold(metric)
    return Change(
        option=ours.name, metric=metric, reference=theirs.mean(metric), run=ours.mean(metric),
        ratio=finite(lambda: math.exp(difference.estimate)),
        low=finite(lambda: math.exp(judged.low)) if judged else None,
        high=finite(lambda: math.exp(judged.high)) if judged else None,
        p_adjusted=judged.p_adjusted if judged else None,
        decision=decide(judged, threshold, more_is_better=better) if judged else "undecided",
        seeds=difference.seeds,
    )  # fmt: skip


def _notes(
    run: ReadRun, reference: ReadRun, ours: Mapping[str, Summary], theirs: Mapping[str, Summary]
) -> list[str]:
    notes = []
    if run.suite.resolved.get("job") != reference.suite.resolved.get("job"):
        notes.append("the jobs differ: the changes are not those of a machine or a version alone")
    if not set(run.suite.seeds) & set(reference.suite.seeds):
        notes.append("no common seeds: initial weights and data order differ, and are part of the spread")
    for read, summaries in ((reference, theirs), (run, ours)):
        failed = [f"{n} ({len(s.failed)} of {len(s.planned)})" for n, s in summaries.items() if s.failed]
        notes += [f"failed trials in {read.name}: {', '.join(failed)}"] if failed else []
        other = sorted(read.other_jobs())
        notes += [f"{read.name}: not the baseline's job: {', '.join(other)}"] if other else []
    return notes


def differing(run: Mapping[str, Any], reference: Mapping[str, Any]) -> list[Differing]:
    """Keys, as dotted paths, whose values are not the same; in the reference's order."""
    ours, theirs = dict(_paths(run)), dict(_paths(reference))
    return [
        Differing(path=path, reference=theirs.get(path), run=ours.get(path))
        for path in dict.fromkeys([*theirs, *ours])
        if theirs.get(path) != ours.get(path)
    ]


def _paths(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _paths(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from _paths(part, f"{path}[{number}]")
    else:
        yield path, str(value)


__all__ = ["ALPHA", "Change", "Compared", "Differing", "ReadRun", "compare", "differing"]
