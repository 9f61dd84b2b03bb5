"""What a machine did to single trials: which were busy, stand out, or were run again, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selectbench import units
from selectbench.analysis.contest import Contest, hold_contest
from selectbench.analysis.metrics import is_unclean, state_of
from selectbench.analysis.summary import Summary, busy_warnings, centre, contest_trials, seeds_words, summarise
from selectbench.record.record import Completed, Record
from selectbench.suite.metrics import METRICS, parse_constraint
from selectbench.suite.suite import Suite


def disturbances(
    suite: Suite, records: Sequence[Record], contest: Contest, summaries: Sequence[Summary],
    comparable: Mapping[str, bool],
) -> list[str]:  # fmt: skip
    """Lines for the warnings. `comparable`: whether an option did the baseline's job."""
    lines = [*busy_warnings(summaries), *_out_of_line(contest)]
    if first := _run_again(records):
        before, _ = summarise(suite, list(first.values()), is_all_clean=True)
        lines += _replaced(first, contest, summaries, hold_contest(suite, before, comparable), before)
    return lines


def _out_of_line(contest: Contest) -> list[str]:
    """A line for each trial that stands out by what decides or by speed."""
    decide = contest.suite.decide
    asked = [parse_constraint(text).metric for text in decide.constraints]
    lines = []
    for metric in dict.fromkeys([decide.objective, "tokens_per_second", *asked]):
        for (option, seed), factor in contest.out_of_line(metric).items():
            lines.append(
                f"{option}, seed {seed} stands out: its {metric} is {units.ratio(factor)} of what its option and "
                "round let expect. It counts and widens the intervals, so more seeds are no remedy: look into its "
                "log for the cause"
            )
    return lines


def _run_again(records: Sequence[Record]) -> dict[str, Record]:
    """All trials of the contest with the first attempts of those that were run again; empty where none was."""
    counting = {record.trial.trial_id: record for record in contest_trials(records)}
    first: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: record.attempt):
        later = counting.get(record.trial.trial_id)
        is_earlier = later is not None and record.phase == "contest" and record.attempt < later.attempt
        if is_earlier and isinstance(record.outcome, Completed) and is_unclean(record):
            first.setdefault(record.trial.trial_id, record)
    return {**counting, **first} if first else {}


def _replaced(
    first: Mapping[str, Record], contest: Contest, summaries: Sequence[Summary],
    before_contest: Contest, before: Sequence[Summary],
) -> list[str]:  # fmt: skip
    """A line for each option with trials that were run again, with the figures that their first attempts give."""
    metric, lines = contest.suite.decide.objective, []
    for summary, other in zip(summaries, before, strict=True):
        own = [record for record in first.values() if record.trial.option == summary.name]
        again = {r.trial.seed: r for r in own if r is not summary.completed.get(r.trial.seed) and is_unclean(r)}
        if not again:
            continue
        state = state_of(again[min(again)])
        assert state is not None, "only a state makes a trial unclean"
        sides = ((before_contest, other), (contest, summary))
        figures = [_figure(held, one, metric) for held, one in sides if one.values[metric]]
        lines.append(
            f"{summary.name}, {seeds_words(sorted(again))}: run again, as {state.words}. "
            f"By {metric} with what was replaced {', without it '.join(figures)}"
        )
    return lines


def _figure(contest: Contest, summary: Summary, name: str) -> str:
    """`129 tokens/s (against the baseline: 1.29x, 1.28x to 1.30x)`."""
    metric, value = METRICS[name], centre(list(summary.values[name].values()))
    shown = f"{metric.show(value)}{metric.after_figure}"
    ratio, low, high = contest.interval(summary.name, name)
    if ratio is None or summary.name == contest.baseline.name:
        return shown
    found = metric.against(ratio, low, high, value / ratio if value else None)
    return f"{shown} (against the baseline: {', '.join(filter(None, found))})"
