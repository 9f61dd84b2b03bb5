"""Records to the Ranking: means over seeds, ratios to the baseline, constraints, failures last. Pure.

A simple first ranking: means decide, and the answer says how they compare with the seeds' spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from selectbench.analysis import gpus, ranks, sanity
from selectbench.analysis.answer import answer
from selectbench.analysis.certificate import certify
from selectbench.analysis.judge import Judge, ratio_to
from selectbench.analysis.metrics import METRICS
from selectbench.analysis.row import Certificate, ConstraintVerdict, Failure, MetricValue, Ranking, Row
from selectbench.analysis.summary import Summary, mean, standard_deviation, summarise
from selectbench.record.record import Record
from selectbench.suite.suite import Suite


def rank(suite: Suite, records: Sequence[Record], warnings: Sequence[str] = ()) -> Ranking:
    """The ranking of a run's records, whatever their order.

    The last attempt of every trial of the contest counts. `warnings` are passed on before those found
    here. Raises ValueError for a constraint that cannot be read.
    """
    summaries, strays = summarise(suite, records)
    baseline = next(summary for summary in summaries if summary.name == suite.baseline)
    certificates = certify(suite, summaries, baseline)
    judge = Judge(baseline, suite.job.evaluates and not suite.quick)
    rows = [_row(suite, summary, baseline, judge, certificates[summary.name]) for summary in summaries]
    if ranks.is_about_scaling(summaries):
        rows = [_scaled(suite, row, summary, baseline) for row, summary in zip(rows, summaries, strict=True)]
    kinds = sanity.memory_kinds(summaries)
    ranked = _in_order(suite, rows)
    return Ranking(
        suite=suite.name, baseline=suite.baseline, question=suite.question,
        answer=f"{answer(suite, ranked, {s.name: s for s in summaries})}{ranks.in_answer(suite.device, summaries)}",
        objective=suite.decide.objective, device=suite.device, quick=suite.quick, seeds=list(suite.seeds),
        memory_kind=kinds[0] if len(kinds) == 1 else None, rows=ranked,
        warnings=[*warnings, *strays, *_found(suite, summaries)],
    )  # fmt: skip


def _found(suite: Suite, summaries: list[Summary]) -> list[str]:
    absent = sum(len(summary.missing) for summary in summaries)
    missing = [f"the run is incomplete: {absent} trials have no record"] if absent else []
    gloo = ranks.warnings(suite.device, summaries)
    metered = gpus.warnings(suite.device, summaries)
    return missing + metered + sanity.trial_warnings(summaries) + gloo + sanity.memory_warnings(summaries)


def _scaled(suite: Suite, row: Row, summary: Summary, baseline: Summary) -> Row:
    ratio = row.metrics["tokens_per_second"].ratio_to_baseline
    return row.model_copy(update={"scaling": ranks.scaling(suite.device, summary, baseline, ratio)})


def _row(suite: Suite, summary: Summary, baseline: Summary, judge: Judge, identity: Certificate) -> Row:
    judged = identity.comparable is True
    constraints = [judge.verdict(text, summary) for text in suite.decide.constraints] if judged else []
    broken = [f"{c.constraint}: {c.detail}" for c in constraints if c.verdict == "fails"]
    return Row(
        option=summary.name, rank=None, status=_status(summary, identity),
        n=len(summary.completed), planned=len(summary.planned), missing_seeds=summary.missing,
        differs_in=summary.option.differs_in, eligible=judged and not broken,
        constraints=constraints, constraint_failures=broken, identity=identity, notes=ranks.notes(summary),
        metrics={name: _metric(name, summary, None if identity.violations else baseline) for name in METRICS},
        memory=ranks.memory(summary), scaling=None,
        failures=_failures(summary), gpu=gpus.gpu_row(summary), cost_unknown=gpus.cost_unknown(summary),
    )  # fmt: skip


def _failures(summary: Summary) -> list[Failure]:
    return [
        Failure(seed=seed, kind=f.kind, detail=f.detail, note=gpus.failure_note(f, summary.states.get(seed)))
        for seed, f in summary.failed.items()
    ]


def _status(summary: Summary, identity: Certificate) -> Literal["completed", "partial", "failed", "not_comparable"]:
    if identity.violations:
        return "not_comparable"
    if len(summary.failed) == len(summary.planned):
        return "failed"
    return "completed" if len(summary.completed) == len(summary.planned) else "partial"


def _metric(name: str, summary: Summary, baseline: Summary | None) -> MetricValue:
    unclean = summary.only_spoiled(name)
    known = list((summary.spoiled if unclean else summary.values)[name].values())
    return MetricValue(
        value=mean(known),
        ratio_to_baseline=ratio_to(baseline, summary, name) if baseline else None,
        standard_deviation=standard_deviation(known),
        n=len(known), left_out=list(summary.spoiled[name]), unclean=unclean,
    )  # fmt: skip


def _in_order(suite: Suite, rows: list[Row]) -> list[Row]:
    """Eligible rows by the objective, numbered, where its figure counts; then the others by how far they came."""
    objective = suite.decide.objective
    sign = -1 if METRICS[objective].better == "more" else 1

    def place(row: Row) -> tuple[int, float]:
        value = row.metrics[objective].value
        return _group(row, objective), 0.0 if value is None else sign * value

    ordered = sorted(rows, key=place)
    return [
        row.model_copy(update={"rank": number}) if _group(row, objective) == 0 else row
        for number, row in enumerate(ordered, start=1)
    ]


def _group(row: Row, objective: str) -> int:
    if row.eligible:
        metric = row.metrics[objective]
        return 0 if metric.value is not None and not metric.unclean else 1
    if row.n == 0:
        return 5 if row.status == "failed" else 4
    return 3 if row.identity.violations else 2


__all__ = ["ConstraintVerdict", "Failure", "MetricValue", "Ranking", "Row", "rank"]
