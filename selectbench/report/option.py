"""One option in detail: its trials and its curves, as numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selectbench import units
from selectbench.analysis.gpu_state import is_unclean, state_of
from selectbench.analysis.metrics import derive
from selectbench.analysis.observed import observe
from selectbench.analysis.row import Ranking
from selectbench.analysis.summary import summarise
from selectbench.errors import UserError, did_you_mean
from selectbench.record.record import Completed, Failed, Record
from selectbench.report.escape import block, markdown, table
from selectbench.report.gpu import gpus_by_seed
from selectbench.report.identity import not_the_same_job
from selectbench.report.terminal import state
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS
from selectbench.suite.suite import Suite

_CURVE_POINTS = 12


def render(suite: Suite, ranking: Ranking, records: Sequence[Record], name: str) -> str:
    """Markdown: settings, every trial with all attempts, metrics per seed, curves.

    Raises UserError where the suite has no such option.
    """
    row = next((row for row in ranking.rows if row.option == name), None)
    if row is None:
        names = [option.name for option in suite.options]
        raise UserError(f"the run has no option {name!r}{did_you_mean(name, names)}; it has {', '.join(names)}")
    own = sorted((r for r in records if r.trial.option == name), key=lambda r: (r.trial.seed, r.attempt))
    last = {r.trial.seed: r for r in own if r.phase == "contest"}
    done = [r for r in last.values() if isinstance(r.outcome, Completed)]
    ranked = sum(other.rank is not None for other in ranking.rows)
    place = f"rank {row.rank} of {ranked} ranked" if row.rank else f"not ranked ({state(row) or row.status})"
    causes = (*row.constraint_failures, *not_the_same_job(row), *row.notes)
    why = "".join(f"\n- {markdown(text)}" for text in causes)
    differs = markdown(", ".join(row.differs_in)) or "nothing"
    sections = [
        f"# {markdown(ranking.suite)}: {markdown(name)}",
        f"{place[0].upper()}{place[1:]}; differs from the baseline {markdown(ranking.baseline)} in {differs}.{why}",
        "## Trials", _trials(own),
        *_gpus(list(last.values())),
        *(["## Figures by seed", _figures(suite, done, _seconds_to_loss(suite, records, name))] if done else []),
        *(["## Training loss by step", _training(done)] if done else []),
        *(["## Held-out loss by step", _heldout(done)] if any(r.evaluation_curve for r in done) else []),
        *(part for r in own if isinstance(r.outcome, Failed) and "\n" in r.outcome.detail.strip()
          for part in (f"Seed {r.trial.seed}, attempt {r.attempt}, {r.outcome.kind}:", block(r.outcome.detail))),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _gpus(counted: Sequence[Record]) -> list[str]:
    seen = gpus_by_seed(counted)
    return ["## GPUs by trial", seen] if seen else []


def _trials(own: Sequence[Record]) -> str:
    rows = [
        [str(r.trial.seed), str(r.attempt), r.phase, *_outcome(r), units.duration(r.wall_seconds),
         markdown(r.started_at), markdown(r.trial.trial_id)]
        for r in own
    ]  # fmt: skip
    return table(["seed", "attempt", "phase", "outcome", "detail", "wall time", "started", "trial"], rows, right=8)


def _outcome(record: Record) -> tuple[str, str]:
    outcome = record.outcome
    if isinstance(outcome, Failed):
        return outcome.kind, markdown(outcome.detail, 120)
    state = state_of(record) if is_unclean(record) else None
    return "completed", markdown(f"{state.verdict}: {state.detail}", 120) if state else ""


def _seconds_to_loss(suite: Suite, records: Sequence[Record], name: str) -> dict[int, float]:
    """Of each seed that had the baseline's final loss."""
    summary = next(summary for summary in summarise(suite, records)[0] if summary.name == name)
    return {seed: place.seconds for seed, place in summary.reached.items() if place is not None}


def _figures(suite: Suite, done: Sequence[Record], to_loss: Mapping[int, float]) -> str:
    values = [derive(observe(record, suite)) | {SECONDS_TO_LOSS: to_loss.get(record.trial.seed)} for record in done]
    rows = [
        [name, *(METRICS[name].show(found[name]) for found in values)]
        for name in METRICS
        if any(found[name] is not None for found in values)
    ]
    return table(["metric", *_seeds(done)], rows, right=1)


def _training(done: Sequence[Record]) -> str:
    return _curves(done, [dict(record.training_losses()) for record in done])


def _heldout(done: Sequence[Record]) -> str:
    return _curves(done, [{point.step: point.loss for point in record.evaluation_curve} for record in done])


def _curves(done: Sequence[Record], curves: Sequence[dict[int, float]]) -> str:
    """A row per step, a dozen of all steps evenly spaced, nats per token."""
    steps = sorted({step for curve in curves for step in curve})
    if len(steps) > _CURVE_POINTS:
        steps = [steps[round(i * (len(steps) - 1) / (_CURVE_POINTS - 1))] for i in range(_CURVE_POINTS)]
    rows = [[str(step), *(units.significant(curve.get(step)) for curve in curves)] for step in steps]
    return table(["step", *_seeds(done)], rows)


def _seeds(done: Sequence[Record]) -> list[str]:
    return [f"seed {record.trial.seed}" for record in done]
