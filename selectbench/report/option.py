"""One option in detail: its trials and its curves, as numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from selectbench import units
from selectbench.analysis.metrics import derive, is_unclean, observe, state_of
from selectbench.analysis.result import Ranking, Row
from selectbench.analysis.summary import summarise
from selectbench.errors import UserError, did_you_mean
from selectbench.record.record import Completed, Failed, Record
from selectbench.report.document import (
    Amount,
    Block,
    Cell,
    Code,
    Column,
    Document,
    Figure,
    Listing,
    Paragraph,
    Section,
    Table,
)
from selectbench.report.evidence import gpus_by_seed
from selectbench.report.figures import one_line
from selectbench.report.identity import not_the_same_job
from selectbench.report.ranking import state
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS
from selectbench.suite.suite import Suite

_CURVE_POINTS = 12


def option_report(suite: Suite, ranking: Ranking, records: Sequence[Record], name: str) -> Document:
    """Every trial with all attempts, metrics per seed, curves.

    Raises UserError where the suite has no such option.
    """
    row = next((row for row in ranking.rows if row.option == name), None)
    if row is None:
        names = [option.name for option in suite.options]
        raise UserError(f"the run has no option {name!r}{did_you_mean(name, names)}; it has {', '.join(names)}")
    own = sorted((r for r in records if r.trial.option == name), key=lambda r: (r.trial.seed, r.attempt))
    last = {r.trial.seed: r for r in own if r.phase == "contest"}
    done = [r for r in last.values() if isinstance(r.outcome, Completed)]
    found = _figures(suite, done, _seconds_to_loss(suite, records, name)) if done else []
    sections = [Section("trials", "Trials", [_trials(own)]), *gpus_by_seed(list(last.values())), *found]
    logs = [
        Code(r.outcome.detail, f"Seed {r.trial.seed}, attempt {r.attempt}, {r.outcome.kind}:")
        for r in own if isinstance(r.outcome, Failed) and "\n" in r.outcome.detail.strip()
    ]  # fmt: skip
    sections[-1] = replace(sections[-1], blocks=[*sections[-1].blocks, *logs])
    return Document(f"{one_line(ranking.suite)}: {one_line(name)}", sections, opening=_opening(ranking, row))


def _opening(ranking: Ranking, row: Row) -> list[Block]:
    """Where it stands, and why."""
    ranked = sum(other.rank is not None for other in ranking.rows)
    place = f"Rank {row.rank} of {ranked} ranked" if row.rank else f"Not ranked ({state(row) or row.status})"
    differs = ", ".join(row.differs_in) or "nothing"
    causes = (*row.constraint_failures, *not_the_same_job(row), *row.notes)
    return [
        Paragraph(f"{place}; differs from the baseline {one_line(ranking.baseline)} in {differs}."), Listing(causes)
    ]  # fmt: skip


def _trials(own: Sequence[Record]) -> Table:
    heads = ("seed", "attempt", "phase", "outcome", "detail", "wall time", "started", "trial")
    rows: list[list[Cell]] = [
        [str(r.trial.seed), str(r.attempt), r.phase, *_outcome(r), Amount(r.wall_seconds, units.duration),
         r.started_at, r.trial.trial_id]
        for r in own
    ]  # fmt: skip
    return Table([Column(head) for head in heads], rows, "Every attempt")


def _outcome(record: Record) -> tuple[str, str]:
    outcome = record.outcome
    if isinstance(outcome, Failed):
        return outcome.kind, one_line(outcome.detail, 120)
    found = state_of(record) if is_unclean(record) else None
    return "completed", one_line(f"{found.verdict}: {found.detail}", 120) if found else ""


def _seconds_to_loss(suite: Suite, records: Sequence[Record], name: str) -> dict[int, float]:
    """Of each seed that had the baseline's final loss."""
    summary = next(summary for summary in summarise(suite, records)[0] if summary.name == name)
    return {seed: place.seconds for seed, place in summary.reached.items() if place is not None}


def _figures(suite: Suite, done: Sequence[Record], to_loss: Mapping[int, float]) -> list[Section]:
    """The metrics and the curves of completed trials, a column for each."""
    values = [derive(observe(record, suite)) | {SECONDS_TO_LOSS: to_loss.get(record.trial.seed)} for record in done]
    columns = [Column(f"seed {record.trial.seed}", "right") for record in done]
    rows: list[list[Cell]] = [
        [name, *(Figure(name, found[name]) for found in values)]
        for name in METRICS
        if any(found[name] is not None for found in values)
    ]
    training = [dict(record.training_losses()) for record in done]
    heldout = [{point.step: point.loss for point in record.evaluation_curve} for record in done]
    sections = [
        Section("figures", "Figures by seed", [Table([Column("metric"), *columns], rows, "Figures by seed")]),
        Section("training", "Training loss by step", [_curves(columns, training, "Training loss")]),
    ]
    if any(heldout):
        sections.append(Section("heldout", "Held-out loss by step", [_curves(columns, heldout, "Held-out loss")]))
    return sections


def _curves(columns: Sequence[Column], curves: Sequence[dict[int, float]], caption: str) -> Table:
    """A row per step, a dozen of all steps evenly spaced, nats per token."""
    steps = sorted({step for curve in curves for step in curve})
    if len(steps) > _CURVE_POINTS:
        steps = [steps[round(i * (len(steps) - 1) / (_CURVE_POINTS - 1))] for i in range(_CURVE_POINTS)]
    rows: list[list[Cell]] = [
        [str(step), *(Amount(curve.get(step), units.significant) for curve in curves)] for step in steps
    ]
    return Table([Column("step", "right"), *columns], rows, f"{caption} in nats per token")
