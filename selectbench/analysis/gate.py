"""A run held to limits against a reference: pass, regression or inconclusive, for each option and over all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from selectbench.analysis.compared import MACHINE, Differing, ReadRun, differing, other_data
from selectbench.analysis.family import HypothesisTest, judge_all
from selectbench.analysis.judge import Asked, directly, gap_in, seed_by_seed
from selectbench.analysis.row import ConstraintVerdict
from selectbench.analysis.shown import Number, Shown
from selectbench.analysis.statistics import changes, of_one
from selectbench.analysis.summary import Summary
from selectbench.errors import UserError
from selectbench.suite.constraint import Constraint, parse_constraint

Verdict = Literal["pass", "regression", "inconclusive"]
_VERDICTS: Mapping[str, Verdict] = {"holds": "pass", "fails": "regression"}
_NO_FINDING = frozenset({"interrupted", "timeout"})
"""Failures that may be the machine's doing."""


class Check(Shown):
    """One limit on one option."""

    option: str
    limit: str
    verdict: Verdict
    detail: str
    """The figure with its simultaneous interval, or why there is none."""
    p_adjusted: Number | None = None
    """By Holm over all checks of the gate; None: no test was made."""


class Gate(Shown):
    """The verdict on a run."""

    run: str
    reference: str
    verdict: Verdict
    """regression where any check says so, else inconclusive where any does, else pass."""
    checks: list[Check]
    tests: int
    notes: list[str] = []  # noqa: RUF012 (pydantic copies it)
    """Options that were not gated, and lines of either run's records that could not be used."""


def hold_gate(run: ReadRun, reference: ReadRun, limits: Sequence[str], *, any_machine: bool = False) -> Gate:
    """Every limit on every option that the reference completed.

    Raises UserError for a wrong limit or none, for runs of different jobs, and for different machines unless
    `any_machine`.
    """
    parsed = {text: _parsed(text) for text in limits}
    if not parsed:
        raise UserError(
            "the gate has no limit: give `gate: [tokens_per_second >= 0.97x reference]` in the suite, or "
            "--limit 'tokens_per_second >= 0.97x reference'"
        )
    _refuse_what_does_not_compare(run, reference, any_machine=any_machine)
    ours, theirs = run.summaries, reference.summaries
    held = [option for option, summary in theirs.items() if summary.completed]
    if not held:
        raise UserError(f"{reference.name}: the reference completed no trial, so there is nothing to gate by")
    asked = {
        (option, text): _asked(text, limit, option, ours, theirs)
        for option in held for text, limit in parsed.items()
    }  # fmt: skip
    judged = judge_all({key: found.test for key, found in asked.items() if isinstance(found, Asked)})
    others = run.other_jobs()
    concluded = {key: a.concluded(judged.get(key), None) if isinstance(a, Asked) else a for key, a in asked.items()}
    checks = [_check(option, found, others) for (option, _), found in concluded.items()]
    checks += [failed for option in held if (failed := _failed(option, ours.get(option), theirs[option]))]
    return Gate(
        run=run.name, reference=reference.name, verdict=overall(checks), checks=checks,
        tests=sum(not one.is_exact for one in judged.values()),
        notes=[*_not_held(ours, held), *run.notes, *reference.notes],
    )  # fmt: skip


def _not_held(ours: Mapping[str, Summary], held: Sequence[str]) -> list[str]:
    strangers = [name for name in ours if name not in held]
    return [f"not gated, as the reference completed no trial of them: {', '.join(strangers)}"] if strangers else []


def overall(checks: Sequence[Check]) -> Verdict:
    """The worst, a regression before what is open."""
    found = {check.verdict for check in checks}
    return "regression" if "regression" in found else "pass" if found == {"pass"} else "inconclusive"


def _parsed(text: str) -> Constraint:
    try:
        return parse_constraint(text, "reference")
    except ValueError as error:
        raise UserError(f"limit {text!r}: {error}") from None


def _refuse_what_does_not_compare(run: ReadRun, reference: ReadRun, *, any_machine: bool) -> None:
    jobs = differing(run.suite.resolved.get("job", {}), reference.suite.resolved.get("job", {}))
    if jobs:
        told = "; ".join(f"job.{d.path}: {d.reference} there, {d.run} here" for d in jobs[:3])
        raise UserError(f"not the same job, so there is nothing to gate: {told} (`selectbench compare` shows all)")
    ours, theirs = ({o.name: o.choices for o in read.suite.options} for read in (run, reference))
    changed = [name for name in theirs if name in ours and ours[name] != theirs[name]]
    if changed:
        raise UserError(f"options of other settings than the reference's: {', '.join(changed[:5])}")
    other = other_data(run, reference)
    if other:
        raise UserError(f"not the same data, so there is nothing to gate: {other}")
    machines = [d for d in differing(run.environment, reference.environment) if _is_of_machine(d)]
    if machines and not any_machine:
        told = "; ".join(f"{d.path}: {d.reference} there, {d.run} here" for d in machines[:3])
        raise UserError(f"not the same machine: {told}; --any-machine gates all the same")


def _is_of_machine(found: Differing) -> bool:
    """Older records say nothing of the processor's features."""
    if found.path == "cpu_features" and None in (found.reference, found.run):
        return False
    return found.path.startswith(MACHINE)


def _asked(
    text: str, limit: Constraint, option: str, ours: Mapping[str, Summary], theirs: Mapping[str, Summary]
) -> Asked | ConstraintVerdict:
    values = ours[option].values[limit.metric] if option in ours else {}
    gap = gap_in(text, limit.metric, ours[option]) if option in ours else None
    if gap:
        both = theirs[option].blown_up(limit.metric) == ours[option].blown_up(limit.metric) != []
        return _open(text, f"{gap.detail}, in both runs") if both else gap
    if not values:
        return _open(text, f"the run has no {limit.metric}")
    lost = ours[option].without_ratio(limit.metric)
    if limit.value <= 0 or (lost and not limit.relative):
        return directly(text, limit, ours[option])
    if lost or theirs[option].without_ratio(limit.metric):
        return seed_by_seed(text, limit, ours[option], theirs[option])
    if limit.against is None:
        found = of_one(values)
    else:
        common = [name for name in theirs if name in ours]
        found = changes(
            {n: ours[n].values[limit.metric] for n in common}, {n: theirs[n].values[limit.metric] for n in common}
        ).get(option)
    if found is None:
        return _open(text, f"the reference has no {limit.metric}")
    return Asked(text, limit, HypothesisTest(found, math.log(limit.value)))


def _open(text: str, detail: str) -> ConstraintVerdict:
    return ConstraintVerdict(constraint=text, verdict="undecided", detail=detail)


def _check(option: str, found: ConstraintVerdict, others: set[str]) -> Check:
    verdict = _VERDICTS.get(found.verdict, "inconclusive")
    if option in others:
        return Check(option=option, limit=found.constraint, verdict="inconclusive", detail="not the baseline's job")
    return Check(
        option=option, limit=found.constraint, verdict=verdict, detail=found.detail, p_adjusted=found.p_adjusted
    )


def _failed(option: str, ours: Summary | None, theirs: Summary) -> Check | None:
    """An option that fails with seeds that the reference completed."""
    if ours is None:
        return Check(option=option, limit="completes", verdict="inconclusive", detail="the run does not have it")
    failed = {s: f for s, f in ours.failed.items() if s in theirs.completed}
    missing = [seed for seed in theirs.completed if seed not in ours.completed and seed not in ours.failed]
    if missing and not failed:
        detail = f"no outcome for seed {', '.join(map(str, missing))}, which the reference completed"
        return Check(option=option, limit="completes", verdict="inconclusive", detail=detail)
    if not failed:
        return None
    kinds = ", ".join(sorted({failure.kind for failure in failed.values()}))
    sure = any(failure.kind not in _NO_FINDING for failure in failed.values())
    detail = f"{kinds} with seed {', '.join(map(str, failed))}, which the reference completed"
    return Check(option=option, limit="completes", verdict="regression" if sure else "inconclusive", detail=detail)
