"""Two runs of a suite compared, and a run held to limits against a reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from selectbench.analysis.contest import BoundTest, answer, gap_answer, ratio_of, untested
from selectbench.analysis.family import ClaimTest, HypothesisTest, alpha_of, decide, judge_all, judgement_number
from selectbench.analysis.identity import certify
from selectbench.analysis.result import ConstraintVerdict, Decision, JsonObject, Number
from selectbench.analysis.screening import screened_words
from selectbench.analysis.statistics import Difference, changes, estimate_value
from selectbench.analysis.summary import Summary, busy_warnings, summarise
from selectbench.errors import UserError
from selectbench.record.record import Failed, Record
from selectbench.record.run_folder import MACHINE
from selectbench.suite.metrics import METRICS, Constraint, parse_constraint
from selectbench.suite.suite import Suite
from selectbench.text import leaves, one_line, quoted

COMPARED = tuple(name for name, metric in METRICS.items() if metric.comparison)
"""Metrics whose changes are shown; all are tested but final_perplexity, which goes with final_loss."""
_SHOWN_ONLY = frozenset(name for name in COMPARED if METRICS[name].comparison == "shown")
_HARMLESS = ("git_", "data.seconds", "memory_total_bytes", "machine_choices")
"""Beginnings of the environment's keys that move no figure, or that the suite tells as well."""


@dataclass(frozen=True)
class ReadRun:
    """A run to compare."""

    name: str
    suite: Suite
    """The suite as its contest ran it: options with the settings that were chosen for them."""
    records: list[Record]
    environment: dict[str, Any]
    notes: Sequence[str] = ()
    """About lines of the records that could not be used."""

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        """The summaries by option."""
        return {summary.name: summary for summary in summarise(self.suite, self.records)[0]}

    @property
    def where(self) -> dict[str, Any]:
        """The environment, with the OpenMP libraries that trials met where records tell. Raises UserError."""
        openmp = {library for record in self.records if (library := record.versions().get("openmp")) is not None}
        return {**self.environment, **({"openmp": ", ".join(sorted(openmp))} if openmp else {})}

    def busy(self) -> list[str]:
        """A machine that was busy in one of two runs makes the other look better, or worse."""
        return [f"{self.name}: {line}" for line in busy_warnings(list(self.summaries.values()))]

    def other_jobs(self) -> set[str]:
        """Options that did not do the job of this run's own baseline."""
        certificates = certify(self.suite, list(self.summaries.values()))
        return {name for name, certificate in certificates.items() if certificate.violations}


class Differing(JsonObject):
    """A key with two values."""

    path: str
    reference: str | None
    """None: it has no such key."""
    run: str | None


def differing_words(differences: Sequence[Differing], there: str, here: str) -> str:
    """`job.max_steps: 6 there, 8 here; ...`, the first few; `there`: where the reference is, `here`: the run."""
    return "; ".join(
        f"{one_line(d.path)}: {one_line(str(d.reference))} {there}, {one_line(str(d.run))} {here}"
        for d in differences[:4]
    )


class Change(JsonObject):
    """One metric of one option in the run against the reference."""

    option: str
    metric: str
    reference: Number | None
    """Geometric mean over the common seeds, over all of the reference's where fewer than two are common: `run` over
    it is `ratio`."""
    run: Number | None
    ratio: Number | None
    """Geometric mean over common seeds of run over reference; of the means' logarithms where none are common."""
    low: Number | None
    high: Number | None
    """Ends of the 95 % interval of this change by itself; None: no measure of spread."""
    p_adjusted: Number | None
    """p adjusted by Holm over all tested changes; None: shown, not tested, or no measure of spread."""
    decision: Decision
    """For the run: better, worse, no_difference or undecided; by the metric's threshold, for all tested changes
    together."""
    seeds: int
    """Number of common seeds; of the smaller run's where none are common."""


class Compared(JsonObject):
    """A run against the reference."""

    run: str
    reference: str
    suite: list[Differing]
    """What differs in the suite; the seeds too."""
    environment: list[Differing]
    """What differs where they ran, but for what moves no figure."""
    changes: list[Change]
    tests: int
    alpha: float
    """Probability that any tested change is no change, at most."""
    only_in_reference: list[str]
    only_in_run: list[str]
    lost: dict[str, str]
    """Options that the reference completed with some seed and the run with none, with why."""
    notes: list[str]
    """What makes the comparison doubtful."""


def compare(run: ReadRun, reference: ReadRun) -> Compared:
    """Every option that both have, by every metric that both know."""
    new, old = run.summaries, reference.summaries
    common = [name for name in old if name in new]
    differences = {metric: _differences(new, old, metric) for metric in COMPARED}
    tests = {
        (option, metric): HypothesisTest(difference)
        for metric, changes_of in differences.items() if metric not in _SHOWN_ONLY
        for option, difference in changes_of.items()
    }  # fmt: skip
    alpha = _comparison_alpha(run, reference)
    judged = judge_all(tests, alpha)
    lost = [name for name in common if old[name].completed and not new[name].completed]
    environment = [d for d in differing(run.where, reference.where) if not d.path.startswith(_HARMLESS)]
    return Compared(
        run=run.name, reference=reference.name, suite=differing(run.suite.resolved, reference.suite.resolved),
        # Records did not always tell the OpenMP library: what one run lacks says nothing.
        environment=[d for d in environment if d.path != "openmp" or None not in (d.reference, d.run)],
        lost={
            n: "screened out" if new[n].is_screened_out else _kinds(new[n].failed.values()) or "no outcome"
            for n in lost
        },
        changes=[
            _change(run.suite, new[option], old[option], metric, differences[metric][option],
                    judged.get((option, metric)))
            for option in common for metric in COMPARED if option in differences[metric]
        ],
        tests=sum(not r.is_exact for r in judged.values()), alpha=alpha,
        only_in_reference=[n for n in old if n not in new],
        only_in_run=[n for n in new if n not in old], notes=_notes(run, reference),
    )  # fmt: skip


def _differences(new: Mapping[str, Summary], old: Mapping[str, Summary], metric: str) -> dict[str, Difference]:
    """The difference of the two runs by option that both have."""
    both = [{name: run[name].values[metric] for name in old if name in new} for run in (new, old)]
    return changes(*both, is_coarse=METRICS[metric].scored)


def _comparison_alpha(run: ReadRun, reference: ReadRun) -> float:
    """Alpha of a comparison; both runs may have been extended after an earlier comparison."""
    return alpha_of(judgement_number(run.suite.looks) + judgement_number(reference.suite.looks) - 1)


def _change(
    suite: Suite, new: Summary, old: Summary, metric: str, difference: Difference, judged: ClaimTest | None
) -> Change:
    better, threshold = METRICS[metric].better == "more", suite.threshold(metric)
    common = new.common(old, metric) if len(new.common(old, metric)) > 1 else None  # as `changes` does
    low, high = map(ratio_of, difference.interval())
    return Change(
        option=new.name, metric=metric, reference=old.mean(metric, common), run=new.mean(metric, common),
        ratio=ratio_of(difference.estimate), low=low, high=high, seeds=difference.seeds,
        p_adjusted=judged.p_adjusted if judged else None,
        decision=decide(judged, threshold, more_is_better=better) if judged else "undecided",
    )  # fmt: skip


def _notes(run: ReadRun, reference: ReadRun) -> list[str]:
    notes = [*_changed_settings(run.suite, reference.suite), *run.busy(), *reference.busy()]
    notes += [*reference.notes, *run.notes]
    if data := other_data(run, reference):
        notes.append(f"the runs did not read the same data: {data}")
    if run.suite.resolved.get("job") != reference.suite.resolved.get("job"):
        notes.append("the jobs differ: the changes are not those of a machine or a version alone")
    if not set(run.suite.seeds) & set(reference.suite.seeds):
        notes.append("no common seeds: initial weights and data order differ, and are part of the spread")
    for r in (reference, run):
        broken = [f"{n} ({len(s.failed)} of {len(s.planned)})" for n, s in r.summaries.items() if s.failed]
        notes += [f"failed trials in {r.name}: {', '.join(broken)}"] if broken else []
        other_jobs = sorted(r.other_jobs())
        notes += [f"{r.name}: not the baseline's job: {', '.join(other_jobs)}"] if other_jobs else []
    return notes


def _kinds(failures: Iterable[Failed]) -> str:
    return ", ".join(sorted({failure.kind for failure in failures}))


def _changed_settings(run: Suite, reference: Suite) -> list[str]:
    """A line for each option whose settings differ between the runs."""
    new, old = ({o.name: o.choices.model_dump(mode="json") for o in suite.options} for suite in (run, reference))
    changed = {name: differing(new[name], old[name]) for name in old if name in new}
    return [
        f"{name} has other settings: {'; '.join(f'{d.path} {d.reference} -> {d.run}' for d in differences[:4])}"
        for name, differences in changed.items() if differences
    ]  # fmt: skip


def other_data(run: ReadRun, reference: ReadRun) -> str | None:
    """How the data of an option with the same seed differ, from the certificates; None where they do not."""
    for name in (name for name in reference.summaries if name in run.summaries):
        new, old = run.summaries[name].completed, reference.summaries[name].completed
        for seed in sorted(old.keys() & new.keys()):
            for field in ("evaluation_set_sha256", "token_stream_sha256"):
                digests = [getattr(records[seed].identity, field, None) for records in (new, old)]
                if None not in digests and digests[0] != digests[1]:
                    return f"{field} of {name} with seed {seed}"
    return None


def differing(run: Mapping[str, Any], reference: Mapping[str, Any]) -> list[Differing]:
    """Keys, as dotted paths, whose values are not the same; in the reference's order."""
    new, old = ({path: str(leaf) for path, leaf in leaves(tree)} for tree in (run, reference))
    return [
        Differing(path=path, reference=old.get(path), run=new.get(path))
        for path in dict.fromkeys([*old, *new])
        if old.get(path, "None") != new.get(path, "None")  # a key that a version knows not says nothing
    ]


# A run held to limits against a reference: pass, regression or inconclusive, for each option and over all.

Verdict = Literal["pass", "regression", "inconclusive"]
_VERDICTS: Mapping[str, Verdict] = {"holds": "pass", "fails": "regression"}
_NO_FINDING = frozenset({"interrupted", "timeout"})
"""Failures that may be the machine's doing."""


class Check(JsonObject):
    """One limit on one option."""

    option: str
    limit: str
    verdict: Verdict
    detail: str
    """The figure with the interval that `compare` shows of it, or why there is none."""
    p_adjusted: Number | None = None
    """p adjusted by Holm over all checks of the gate, which decides; None: no test was made."""


class Gate(JsonObject):
    """The verdict on a run."""

    run: str
    reference: str
    verdict: Verdict
    """regression where any check says so, else inconclusive where any does, else pass."""
    checks: list[Check]
    tests: int
    alpha: float
    """Probability that any check that passes or regresses is wrong, at most."""
    notes: list[str] = []  # noqa: RUF012 (pydantic copies it)
    """Options that were not gated, and lines of either run's records that could not be used."""


def hold_gate(run: ReadRun, reference: ReadRun, limits: Sequence[str], *, any_machine: bool = False) -> Gate:
    """Every limit on every option that the reference completed. Raises UserError where it can't be judged."""
    parsed = dict[str, Constraint]()
    for text in limits:
        try:
            parsed[text] = parse_constraint(text, "reference")
        except ValueError as error:
            raise UserError(f"limit {quoted(text)}: {error}") from None
    if not parsed:
        raise UserError(
            "the gate has no limit: give `gate: [tokens_per_second >= 0.97x reference]` in the suite, or "
            "--limit 'tokens_per_second >= 0.97x reference'"
        )
    _refuse_incomparable(run, reference, any_machine=any_machine)
    new, old = run.summaries, reference.summaries
    gated = [option for option, summary in old.items() if summary.completed]
    if not gated:
        raise UserError(f"{reference.name}: the reference completed no trial, so there is nothing to gate by")
    answers = {
        (option, text): _check(text, limit, option, new, old)
        for option in gated for text, limit in parsed.items()
    }  # fmt: skip
    not_gated = ", ".join(name for name in new if name not in gated)
    notes = [f"not gated, as the reference completed no trial of them: {not_gated}"] if not_gated else []
    alpha = _comparison_alpha(run, reference)
    judged = judge_all({key: check.test for key, check in answers.items() if isinstance(check, BoundTest)}, alpha)
    tests = sum(not r.is_exact for r in judged.values())
    other_jobs, checks = run.other_jobs(), list[Check]()
    for (option, text), check in answers.items():
        if isinstance(check, BoundTest):
            r, (low, high) = judged.get((option, text)), check.test.difference.interval()
            # What is shown is the interval of `compare`: the families differ, and so would their intervals.
            if r is not None and low is not None and high is not None:
                r = replace(r, low=low, high=high)
            check = check.conclude(r, None)
        verdict, detail, p = _VERDICTS.get(check.verdict, "inconclusive"), check.detail, check.p_adjusted
        if option in other_jobs:
            verdict, detail, p = "inconclusive", "not the baseline's job", None
        checks.append(Check(option=option, limit=text, verdict=verdict, detail=detail, p_adjusted=p))
    checks += [failed for option in gated if (failed := _completion_check(option, new.get(option), old[option]))]
    verdicts = {check.verdict for check in checks}
    otherwise: Verdict = "pass" if verdicts == {"pass"} else "inconclusive"
    return Gate(
        run=run.name, reference=reference.name, verdict="regression" if "regression" in verdicts else otherwise,
        checks=checks, tests=tests, alpha=alpha,
        notes=[*notes, *run.busy(), *reference.busy(), *run.notes, *reference.notes],
    )  # fmt: skip


def _refuse_incomparable(run: ReadRun, reference: ReadRun, *, any_machine: bool) -> None:
    new, old = ({"job": r.suite.resolved.get("job", {})} for r in (run, reference))
    if jobs := differing(new, old):
        words = differing_words(jobs[:3], "there", "here")
        raise UserError(f"not the same job, so there is nothing to gate: {words} (`selectbench compare` shows all)")
    new, old = ({o.name: o.choices for o in r.suite.options} for r in (run, reference))
    if changed := [name for name in old if name in new and new[name] != old[name]]:
        raise UserError(f"options whose settings differ from the reference's: {', '.join(changed[:5])}")
    if data := other_data(run, reference):
        raise UserError(f"not the same data, so there is nothing to gate: {data}")
    # Older records say nothing of the processor's features.
    machines = [
        d for d in differing(run.environment, reference.environment)
        if d.path.startswith(MACHINE) and not (d.path == "cpu_features" and None in (d.reference, d.run))
    ]  # fmt: skip
    if machines and not any_machine:
        words = differing_words(machines[:3], "there", "here")
        raise UserError(f"not the same machine: {words}; --any-machine gates them anyway")


def _check(
    text: str, limit: Constraint, option: str, run: Mapping[str, Summary], reference: Mapping[str, Summary]
) -> BoundTest | ConstraintVerdict:
    new, old, name = run.get(option), reference[option], limit.metric
    if new is not None and (gap := gap_answer(text, name, new)):
        in_both = old.overflowing(name) == new.overflowing(name) != []
        return answer(text, "undecided", f"{gap.detail}, in both runs") if in_both else gap
    if new is None or not new.values[name]:
        return answer(text, "undecided", f"the run has no {name}")
    if verdict := untested(text, limit, new, old if limit.relative else None):
        return verdict
    if limit.relative:
        estimate = _differences(run, reference, name).get(option)
    else:
        estimate = estimate_value(new.values[name], is_coarse=METRICS[name].scored)
    if estimate is None:
        return answer(text, "undecided", f"the reference has no {name}")
    return BoundTest(text, limit, HypothesisTest(estimate, math.log(limit.value)))


def _completion_check(option: str, new: Summary | None, old: Summary) -> Check | None:
    """The check of an option that fails with seeds that the reference completed; None: it does not."""
    sure = False
    if new is None:
        detail = "the run does not have it"
    elif new.screening and new.is_screened_out:
        detail = f"screened out, so it is not known: {screened_words(new.screening)}"
    else:
        failed = {s: f for s, f in new.failed.items() if s in old.completed}
        missing = [seed for seed in old.completed if seed not in new.completed and seed not in new.failed]
        if not failed and not missing:
            return None
        seeds = f"{'with ' if failed else ''}seed {', '.join(map(str, failed or missing))}"
        sure = any(failure.kind not in _NO_FINDING for failure in failed.values())
        detail = f"{_kinds(failed.values()) or 'no outcome for'} {seeds}, which the reference completed"
    return Check(option=option, limit="completes", verdict="regression" if sure else "inconclusive", detail=detail)
