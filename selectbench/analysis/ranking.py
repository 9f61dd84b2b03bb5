"""Records to the Ranking: the contest's claims, ranks that ties share, constraints, failures last. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selectbench.analysis.answer import answer
from selectbench.analysis.contest import Contest, Standing, control_warnings, hold_contest, is_control, stand
from selectbench.analysis.factors import factor_view
from selectbench.analysis.hardware import (
    cost_unknown,
    failure_note,
    gpu_row,
    gpu_warnings,
    is_about_scaling,
    memory_by_rank,
    rank_notes,
    rank_warnings,
    ranks_in_answer,
    scaling,
)
from selectbench.analysis.identity import certify
from selectbench.analysis.recommendation import to_loss, verdicts, with_pareto
from selectbench.analysis.result import Certificate, ConstraintVerdict, Failure, MetricValue, Ranking, Row
from selectbench.analysis.scores import score_differences
from selectbench.analysis.summary import (
    Summary,
    gap_warnings,
    mean,
    memory_kinds,
    memory_warnings,
    objective_gap,
    standard_deviation,
    summarise,
    trial_warnings,
)
from selectbench.analysis.watched import plausibility_warnings
from selectbench.record.record import Record
from selectbench.suite.metrics import METRICS
from selectbench.suite.suite import Suite


@dataclass(frozen=True)
class _Ranked:
    """Everything that the parts of a ranking are made from."""

    suite: Suite
    summaries: list[Summary]
    contest: Contest
    rows: list[Row]


def rank(suite: Suite, records: Sequence[Record], warnings: Sequence[str] = ()) -> Ranking:
    """The ranking of a run's records, whatever their order.

    The last attempt of every trial of the contest counts. `warnings` are passed on before those found
    here. Raises ValueError for a constraint that cannot be read.
    """
    summaries, strays = summarise(suite, records)
    found = _rows(suite, summaries)
    kinds = memory_kinds(summaries)
    by_name = {summary.name: summary for summary in summaries}
    named = verdicts(suite, found.rows, by_name, found.contest)
    return Ranking(
        suite=suite.name, baseline=suite.baseline, question=suite.question,
        answer=f"{answer(found.contest, found.rows, by_name)}{ranks_in_answer(suite.device, summaries)}",
        objective=suite.decide.objective, device=suite.device, quick=suite.quick, seeds=list(suite.seeds),
        memory_kind=kinds[0] if len(kinds) == 1 else None, rows=found.rows, family=found.contest.family(),
        verdicts=named, factors=factor_view(suite, by_name, found.rows),
        score_differences=score_differences(found.contest.baseline, found.rows, by_name),
        warnings=[*warnings, *strays, *_found(suite, summaries), *control_warnings(found.contest, by_name)],
    )  # fmt: skip


def _rows(suite: Suite, summaries: list[Summary]) -> _Ranked:
    baseline = next(summary for summary in summaries if summary.name == suite.baseline)
    certificates = certify(suite, summaries, baseline)
    comparable = {name: certificate.comparable is True for name, certificate in certificates.items()}
    contest = hold_contest(suite, summaries, comparable)
    rows = [_row(contest, summary, certificates[summary.name]) for summary in summaries]
    if is_about_scaling(summaries):
        rows = [_scaled(suite, row, summary, baseline) for row, summary in zip(rows, summaries, strict=True)]
    standing = stand(contest, [row.option for row in rows if _placeable(suite, row)])
    rows = _in_order(suite, [_placed(standing, row) for row in rows])
    rows = [_against_best(standing, row, rows[0]) for row in rows]
    by_name = {summary.name: summary for summary in summaries}
    return _Ranked(suite, summaries, contest, with_pareto(contest, rows, by_name))


def _found(suite: Suite, summaries: list[Summary]) -> list[str]:
    absent = sum(len(summary.missing) for summary in summaries)
    missing = [f"the run is incomplete: {absent} trials have no record"] if absent else []
    gloo = rank_warnings(suite.device, summaries)
    metered = gpu_warnings(suite.device, summaries)
    doubtful = trial_warnings(summaries) + plausibility_warnings(suite, summaries) + gap_warnings(suite, summaries)
    return missing + metered + doubtful + gloo + memory_warnings(summaries)


def _scaled(suite: Suite, row: Row, summary: Summary, baseline: Summary) -> Row:
    ratio = row.metrics["tokens_per_second"].ratio_to_baseline
    return row.model_copy(update={"scaling": scaling(suite.device, summary, baseline, ratio)})


def _row(contest: Contest, summary: Summary, identity: Certificate) -> Row:
    suite, judged = contest.suite, identity.comparable is True
    constraints = contest.constraints(summary.name) if judged else []
    broken = [f"{c.constraint}: {c.detail}" for c in constraints if c.verdict == "fails"]
    broken += [gap] if judged and (gap := objective_gap(suite, summary)) else []
    control = is_control(suite, summary.name)
    return Row(
        option=summary.name, rank=None, status=_status(summary, identity), control=control,
        n=len(summary.completed), planned=len(summary.planned), missing_seeds=summary.missing,
        differs_in=summary.option.differs_in,
        eligible=judged and not control and not broken and all(c.verdict != "undecided" for c in constraints),
        constraints=constraints, constraint_failures=broken, identity=identity, notes=rank_notes(summary),
        metrics={name: _metric(name, summary, None if identity.violations else contest) for name in METRICS},
        memory=memory_by_rank(summary), scaling=None, against_baseline=contest.against_baseline(summary.name),
        to_loss=to_loss(summary) if judged else None,
        failures=_failures(summary), gpu=gpu_row(summary), cost_unknown=cost_unknown(summary),
    )  # fmt: skip


def _failures(summary: Summary) -> list[Failure]:
    return [
        Failure(seed=seed, kind=f.kind, detail=f.detail, note=failure_note(f, summary.states.get(seed)))
        for seed, f in summary.failed.items()
    ]


def _status(summary: Summary, identity: Certificate) -> Literal["completed", "partial", "failed", "not_comparable"]:
    if identity.violations:
        return "not_comparable"
    if len(summary.failed) == len(summary.planned):
        return "failed"
    return "completed" if len(summary.completed) == len(summary.planned) else "partial"


def _metric(name: str, summary: Summary, contest: Contest | None) -> MetricValue:
    unclean = summary.only_spoiled(name)
    known = list((summary.spoiled if unclean else summary.values)[name].values())
    ratio, low, high = contest.interval(summary.name, name) if contest else (None, None, None)
    return MetricValue(
        value=mean(known), ratio_to_baseline=ratio, ratio_low=low, ratio_high=high,
        standard_deviation=standard_deviation(known), n=len(known), left_out=list(summary.spoiled[name]),
        unclean=unclean,
    )  # fmt: skip


def _placeable(suite: Suite, row: Row) -> bool:
    """Whether a row can have a rank: eligible, and its figure counts."""
    objective = row.metrics[suite.decide.objective]
    return row.eligible and objective.value is not None and not objective.unclean


def _placed(standing: Standing, row: Row) -> Row:
    if row.option not in standing.ranked:
        return row
    ties = standing.ties(row.option, standing.ranked)
    return row.model_copy(update={"rank": standing.rank(row.option, standing.ranked), "tied_with": ties})


def _against_best(standing: Standing, row: Row, best: Row) -> Row:
    if row.option == best.option or row.rank is None:
        return row
    return row.model_copy(update={"against_best": standing.comparison(row.option, best.option)})


def _in_order(suite: Suite, rows: list[Row]) -> list[Row]:
    """By rank, then by the objective; then what could not be ranked, by how far it came."""
    sign = -1 if METRICS[suite.decide.objective].better == "more" else 1

    def place(row: Row) -> tuple[int, int, float]:
        value = row.metrics[suite.decide.objective].value
        return _group(suite, row), row.rank or 0, 0.0 if value is None else sign * value

    return sorted(rows, key=place)


def _group(suite: Suite, row: Row) -> int:
    if row.rank is not None:
        return 0
    if row.eligible:
        return 1 if _placeable(suite, row) else 2
    if row.control:
        return 8
    if row.n == 0:
        return 7 if row.status == "failed" else 6
    if row.identity.violations:
        return 5
    return 4 if row.constraint_failures else 3


__all__ = ["ConstraintVerdict", "Failure", "MetricValue", "Ranking", "Row", "rank"]
