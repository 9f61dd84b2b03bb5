"""Which options take no part in the contest, as two short trials of speed showed them to be hopeless.

Every option runs one short trial, the baseline one before all others and one after them. Only an option whose trial
misses a bound runs a second one, and only one that misses the same bound twice is screened out. A bound that is a
factor of the baseline's value is held against the worse of the baseline's two values. So no single disturbed trial,
whosever it is, screens an option out: where 5 % of short trials are ten times as slow, `>= 0.5x baseline` screens
out an option at 0.9x in 0.2 % of runs (`tests/analysis/test_screening.py`).

What did not complete, or has no figure that counts, misses no bound: such an option goes on to the contest, which
tells what is wrong with it. Speeds of a busy CPU count, as in a contest that has no others: on a machine that stays
busy nothing would be screened out. Whoever is screened out by them is named, and `--rerun-unclean` runs these
trials again.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from selectbench import units
from selectbench.analysis.metrics import figure_of, state_of
from selectbench.analysis.result import ScreenBound, Screening, ScreenTrial
from selectbench.record.record import Completed, Failed, Record, has_ended
from selectbench.record.run_folder import last_attempts
from selectbench.suite.metrics import METRICS, SCREENING, Constraint, parse_constraint
from selectbench.suite.stages import screening_seeds
from selectbench.suite.suite import Suite
from selectbench.text import some

Planned = tuple[str, int, int]
"""Option, seed and round of a screening trial; rounds run one after the other."""


def screening_trials(
    suite: Suite, records: Sequence[Record], able: Sequence[str], *, reruns_busy: bool = False
) -> list[Planned]:
    """Trials of the screening, done or not. `able`: options that can run here.

    Once the contest has begun there are none but, with `reruns_busy`, those of the baseline and of options that a
    busy machine screened out. Whoever takes part in the contest stays in it.
    """
    baseline, trials_of = suite.baseline, _trials_by_option(suite, records)
    others = [option.name for option in suite.without_control if option.name in able and option.name != baseline]
    has_begun = any(record.phase == "contest" for record in records)
    if has_begun:
        out = _screened_out_when_busy(suite, records) if reruns_busy else {}
        others = [name for name in others if name in out]
    if not suite.screen or not others or baseline not in able:
        return []
    first, second = screening_seeds(suite)
    trials = [(baseline, first, 0), *((name, first, 1) for name in others), (baseline, second, 2)]
    if len(trials_of.get(baseline, [])) < 2 or any(name not in trials_of for name in others):
        return trials
    bounds = _testable_bounds(suite, trials_of[baseline])
    missed = [
        name for name in others
        if any(bound.misses(figure_of(trials_of[name][0], suite, bound.constraint.metric)) for bound in bounds)
    ]  # fmt: skip
    return [*trials, *((name, second, 3) for name in missed)]


def screenings(suite: Suite, records: Sequence[Record]) -> dict[str, Screening]:
    """The screening of each option that was tried, by name; the baseline is among them."""
    trials_of = _trials_by_option(suite, records) if suite.screen else {}
    testable = _testable_bounds(suite, trials_of.get(suite.baseline, []))
    results: dict[str, Screening] = {}
    for name, tried in trials_of.items():
        bounds = []
        for bound in testable if name != suite.baseline else ():
            values = [figure_of(record, suite, bound.constraint.metric) for record in tried]
            fields = {"bound": bound.text, "metric": bound.constraint.metric, "against": bound.against}
            missed = [bound.misses(value) for value in values]
            bounds.append(ScreenBound.model_validate({**fields, "values": values, "missed": missed}))
        misses_twice = any(len(bound.missed) == 2 and all(bound.missed) for bound in bounds)
        has_run = any(r.phase == "contest" and r.trial.option == name for r in records)
        trials = [
            ScreenTrial(
                outcome="completed" if isinstance(record.outcome, Completed) else record.outcome.kind,
                figures={metric: figure_of(record, suite, metric) for metric in SCREENING},
                wall_seconds=record.wall_seconds,
            ) for record in tried
        ]  # fmt: skip
        results[name] = Screening(screened_out=misses_twice and not has_run, bounds=bounds, trials=trials)
    return results


def screened_out(suite: Suite, records: Sequence[Record]) -> dict[str, Screening]:
    """Screenings of the options that take no part in the contest."""
    return {name: screening for name, screening in screenings(suite, records).items() if screening.screened_out}


def unscreened(suite: Suite, records: Sequence[Record]) -> list[str]:
    """A line for each bound that no option was held to, with why; empty while trials are still to come."""
    baseline_trials = _trials_by_option(suite, records).get(suite.baseline, []) if suite.screen else []
    failed = [record.outcome.kind for record in baseline_trials if isinstance(record.outcome, Failed)]
    if len(baseline_trials) < 2 and not failed:
        return []
    if failed:
        return [f"no option was screened out: a short trial of the baseline {suite.baseline} failed ({failed[0]})"]
    testable = [bound.text for bound in _testable_bounds(suite, baseline_trials)]
    return [
        f"no option was screened out by {text}: the short trials of the baseline {suite.baseline} miss it or "
        "do not tell the figure"
        for text in suite.screen if text not in testable
    ]  # fmt: skip


def busy_screening_warnings(suite: Suite, records: Sequence[Record]) -> list[str]:
    """One line that names the options that trials of a busy CPU screened out."""
    out = _screened_out_when_busy(suite, records)
    if not out:
        return []
    name, detail = next(iter(out.items()))
    who, they = some(list(out), most=6), "it" if len(out) == 1 else "they"
    line = (
        f"the machine was busy with something else in short trials that screened out {who} ({name}: {detail}): "
        f"on a quiet one {they} might take part. Once it is quiet, `--rerun-unclean` with the same command runs "
        "these short trials again in this run; a run with `--no-screen` screens nothing out"
    )
    return [line]


def _screened_out_when_busy(suite: Suite, records: Sequence[Record]) -> dict[str, str]:
    """By option that is out by a speed of a busy CPU alone, and might not be on a quiet one, how busy it was."""
    trials_of, found = _trials_by_option(suite, records), dict[str, str]()
    for name, screening in screened_out(suite, records).items():
        missed = [bound.metric for bound in screening.bounds if len(bound.missed) == 2 and all(bound.missed)]
        busy = [state for record in trials_of[name] if (state := state_of(record)) and state.verdict == "busy"]
        if busy and all("busy" in METRICS[metric].spoiled_by for metric in missed):
            found[name] = busy[0].detail
    return found


def screened_words(screening: Screening) -> str:
    """`0.068x the baseline's tokens_per_second in two short trials (70.0 and ...`, for each bound missed twice."""
    parts = []
    for bound in (bound for bound in screening.bounds if len(bound.missed) > 1 and all(bound.missed)):
        metric, ratio = METRICS[bound.metric], ratio_to_baseline(bound)
        values = " and ".join(metric.show(value) for value in bound.values)
        against = "" if bound.against is None else f" against {metric.show(bound.against)}"
        words = f"{metric.name} {values}" if ratio is None else f"{units.ratio(ratio)} the baseline's {metric.name}"
        figures = "" if ratio is None else f" ({values}{against})"
        parts.append(f"{words} in two short trials{figures}; asked for: {bound.bound}")
    return "; ".join(parts)


def ratio_to_baseline(bound: ScreenBound) -> float | None:
    """The mean of the option's values over the baseline's worse one; None: the bound is no factor of it."""
    known = [value for value in bound.values if value is not None]
    return fmean(known) / bound.against if known and bound.against else None


def _trials_by_option(suite: Suite, records: Sequence[Record]) -> dict[str, list[Record]]:
    """Each option's trials that have an outcome, the first and perhaps a second one."""
    names = {option.name for option in suite.options}
    by_seed: dict[str, dict[int, Record]] = {}
    ended = [record for record in records if record.phase == "screen" and has_ended(record.outcome)]
    for record in last_attempts(ended).values():
        if record.trial.option in names:  # of another micro-batch size, the later one
            by_seed.setdefault(record.trial.option, {})[record.trial.seed] = record
    return {name: [records_of[seed] for seed in sorted(records_of)] for name, records_of in by_seed.items()}


class _TestableBound(NamedTuple):
    """A bound that options can be tested against."""

    text: str
    constraint: Constraint
    against: float | None
    """The baseline's value that it is a factor of; None: it is no factor."""

    def misses(self, value: float | None) -> bool:
        """Whether a trial with this value misses the bound; None, an unknown value, misses nothing."""
        return not _holds(self.constraint, value, 1.0 if self.against is None else self.against)


def _testable_bounds(suite: Suite, baseline: Sequence[Record]) -> list[_TestableBound]:
    """The bounds of which both trials of the baseline have a figure and, where absolute, hold it."""
    bounds = []
    for text in suite.screen:
        constraint = parse_constraint(text)
        known = [value for r in baseline if (value := figure_of(r, suite, constraint.metric)) is not None]
        if len(known) < 2:
            continue
        worse = min(known) if METRICS[constraint.metric].better == "more" else max(known)
        if constraint.relative or _holds(constraint, worse, 1.0):
            bounds.append(_TestableBound(text, constraint, worse if constraint.relative else None))
    return bounds


def _holds(constraint: Constraint, value: float | None, unit: float) -> bool:
    return value is None or constraint.holds(value, constraint.value * unit)
