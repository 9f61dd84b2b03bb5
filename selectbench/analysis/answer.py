"""The sentence that answers the suite's question, and what it must not claim."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from selectbench import units
from selectbench.analysis.contest import Contest
from selectbench.analysis.family import ALPHA
from selectbench.analysis.result import Failure, Row, Settling
from selectbench.analysis.summary import Summary, stalled
from selectbench.analysis.watched import PROCESS
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS, Metric
from selectbench.suite.suite import Suite


def answer(contest: Contest, rows: Sequence[Row], summaries: Mapping[str, Summary]) -> str:
    """One paragraph: what is best and by how much, how sure that is, and what was left out.

    `rows` in the order of the ranking.
    """
    suite = contest.suite
    metric = METRICS[suite.decide.objective]
    placed = [row for row in rows if row.rank is not None]
    sentences = [
        _unfinished(summaries.values()),
        _verdict(suite, metric, rows, summaries),
        _open(metric, placed, rows),
        _disturbed(metric, summaries.values()),
        _no_baseline(suite, rows),
        _unclean_baseline(summaries[suite.baseline]),
        _quality(suite, rows),
        _certainty(contest, metric, placed or [row for row in rows if row.n]),
        _barred(metric, placed, rows),
        _failed_seeds(placed),
        _seeds_left_out(metric, placed, summaries),
        _left_out(metric, rows, summaries, bool(placed)),
        _own_code(rows),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _unfinished(summaries: Iterable[Summary]) -> str:
    """What an interrupted run's answer begins with."""
    planned, done = 0, 0
    for summary in summaries:
        planned += len(summary.planned)
        interrupted = sum(failure.kind == "interrupted" for failure in summary.failed.values())
        done += len(summary.completed) + len(summary.failed) - interrupted
    return "" if done == planned else f"Incomplete, {done} of {planned} trials have an outcome; so far:"


def _disturbed(metric: Metric, summaries: Iterable[Summary]) -> str:
    """Doubts about speed that a reader must not miss."""
    names = [s.name for s in summaries if any(stalled(s.measurements[seed]) for seed in s.values[metric.name])]
    if not names or metric.name not in ("tokens_per_second", "step_time_median_seconds", SECONDS_TO_LOSS):
        return ""
    return f"The timing of {_and(names)} was disturbed (see the warnings): run again on an idle machine."


def _verdict(suite: Suite, metric: Metric, rows: Sequence[Row], summaries: Mapping[str, Summary]) -> str:
    ranked = [row for row in rows if row.rank is not None]
    if not ranked:
        return _without_ranks(suite, metric, rows, summaries)
    best = ranked[0]
    if len(suite.options) == 1:
        return f"{best.option}: {_figure(metric, best)}; there is no other option to compare it with."
    if len(ranked) == 1:
        return f"{best.option} is the only option that could be ranked: {_figures(suite, metric, best)}."
    tied = [row for row in ranked[1:] if row.option in best.tied_with]
    if tied:
        return _tie(suite, metric, best, tied)
    return (
        f"{best.option} {metric.superlative}{_within(best)}: {_figures(suite, metric, best)}; "
        f"next {ranked[1].option}: {_figures(suite, metric, ranked[1])}."
    )


def _without_ranks(suite: Suite, metric: Metric, rows: Sequence[Row], summaries: Mapping[str, Summary]) -> str:
    """Where there is no measure of spread, or nothing that could be ranked."""
    shown = [row for row in rows if row.n and _counts(row, metric) and not row.identity.violations]
    shown = [row for row in shown if not row.constraint_failures and not row.control]
    eligible = [row for row in shown if row.eligible]
    if not shown:
        clean = "clean " if any(summary.only_spoiled(metric.name) for summary in summaries.values()) else ""
        return f"No answer: no option completed with a {clean}{metric.name} and held the constraints."
    sign = -1 if metric.better == "more" else 1
    order = sorted(shown, key=lambda row: sign * (row.metrics[metric.name].value or 0.0))
    if len(order) == 1:
        return (
            f"{order[0].option} is the only option with a figure that fails no constraint: "
            f"{_figures(suite, metric, order[0])}."
        )
    return (
        f"No verdict: {_no_order(eligible, shown, metric)}. By the figures alone {order[0].option} comes first: "
        f"{_figures(suite, metric, order[0])}; next {order[1].option}: {_figures(suite, metric, order[1])}."
    )


def _no_order(eligible: Sequence[Row], shown: Sequence[Row], metric: Metric) -> str:
    """Why no row has a rank though some have figures."""
    open_constraints = dict.fromkeys(
        c.constraint for row in shown if not row.eligible for c in row.constraints if c.verdict == "undecided"
    )
    if open_constraints and len(eligible) < 2:
        one_seed = max(row.n for row in shown) == 1
        way_out = ", as one seed tells no spread (run with more seeds: --seeds 0,1,2)" if one_seed else ""
        return f"it is open whether the options hold {_and(list(open_constraints))}{way_out}"
    if max(row.n for row in shown) == 1:
        return "one seed tells no spread, so the order may be chance (run with more seeds: --seeds 0,1,2)"
    nothing = [row.option for row in shown if not row.metrics[metric.name].value]
    if nothing:
        return f"{metric.title} is 0 for {_and(nothing)}, and of nothing no ratio can be taken"
    return "no two options share two seeds that both completed, so there is no spread to judge their difference by"


def _tie(suite: Suite, metric: Metric, best: Row, tied: Sequence[Row]) -> str:
    """Rows that share the first rank: because they do not differ, or because that is open."""
    names = _and([best.option, *(row.option for row in tied)])
    figures = "; ".join(f"{row.option} {_figures(suite, metric, row)}" for row in (best, *tied))
    pairs = [row.against_best for row in tied if row.against_best]
    matters = units.share(suite.threshold(metric.name))
    if len(pairs) == len(tied) and all(pair.decision == "no_difference" for pair in pairs):
        return f"No difference that matters between {names}: less than {matters} of {metric.name}: {figures}."
    apart = [row.option for row in tied if row.against_best is None]
    alone = f" {_and(apart)} shared no seed with {best.option}, so the two can't be compared." if apart else ""
    return f"Too close to call between {names}: {figures}.{_settling([pair.settling for pair in pairs])}{alone}"


def _settling(open_questions: Sequence[Settling | None]) -> str:
    known = [settling for settling in open_questions if settling]
    if not known:
        return ""
    least = min(known, key=lambda settling: settling.seeds)
    what = "it" if len(open_questions) == 1 else "one of these pairs"
    return f" If the difference is what it looks like, {_seeds_more(least)} would probably settle {what}."


def _seeds_more(settling: Settling) -> str:
    time = "" if settling.seconds is None else f", about {units.duration(settling.seconds)},"
    return f"{settling.seeds} more seed{'s' if settling.seeds > 1 else ''}{time}"


def _open(metric: Metric, ranked: Sequence[Row], rows: Sequence[Row]) -> str:
    """Rows that might come first, if it were known whether they hold a constraint."""
    if not ranked:
        return ""  # that the constraints are open is said already
    best = ranked[0].metrics[metric.name].value
    lines = []
    for row in rows:
        undecided = [c for c in row.constraints if c.verdict == "undecided"]
        if not undecided or row.constraint_failures or row.control or not _beats(metric, row, best):
            continue
        needed = [c.settling for c in undecided if c.settling]
        most = max(needed, key=lambda s: s.seeds) if len(needed) == len(undecided) else None
        more = f"; {_seeds_more(most)} would probably settle it" if most else ""
        details = _and([f"{c.constraint} ({c.detail})" for c in undecided])
        lines.append(
            f"{row.option} ({_figure(metric, row)}) may be better, but it is open whether it holds {details}{more}."
        )
    return " ".join(lines)


def _counts(row: Row, metric: Metric) -> bool:
    found = row.metrics[metric.name]
    return found.value is not None and not found.unclean


def _within(row: Row) -> str:
    held = [c.constraint for c in row.constraints if c.verdict == "holds"]
    return f" of those that hold {_and(held)}" if held else ""


def _figure(metric: Metric, row: Row) -> str:
    told_before = metric.name == SECONDS_TO_LOSS  # by the superlative
    return metric.show(row.metrics[metric.name].value) + ("" if told_before else metric.after_figure)


def _figures(suite: Suite, metric: Metric, row: Row) -> str:
    """`11,420 tokens/s, 1.07x the baseline (1.05x to 1.09x)`, without the ratio where there is none."""
    found = row.metrics[metric.name]
    if row.option == suite.baseline:
        return f"{_figure(metric, row)} (the baseline)"
    if found.ratio_to_baseline is None:
        return _figure(metric, row)
    ratio, ends = units.ratio_and_range(found.ratio_to_baseline, found.ratio_low, found.ratio_high)
    return f"{_figure(metric, row)}, {ratio} the baseline{f' ({ends})' if ends else ''}"


def _no_baseline(suite: Suite, rows: Sequence[Row]) -> str:
    row = next(row for row in rows if row.option == suite.baseline)
    if row.n:
        return ""
    kinds = sorted({failure.kind for failure in row.failures})
    why = f" ({_and(kinds)})" if kinds else " (it has not run yet)"
    return f"No comparison: the baseline {suite.baseline} did not complete{why}."


def _unclean_baseline(baseline: Summary) -> str:
    """Why nothing that the GPUs' state spoils has a ratio."""
    if not baseline.only_spoiled("tokens_per_second"):
        return ""
    words = baseline.unclean_words("tokens_per_second")
    return (
        f"No ratios of speed, energy or cost: every trial of the baseline {baseline.name} was {words}, so there is "
        "nothing to compare with."
    )


def _quality(suite: Suite, rows: Sequence[Row]) -> str:
    if suite.quick or not suite.job.evaluates:
        return "Speed and memory only: quality was not measured and nothing is said of it."
    unjudged = [c for row in rows if row.eligible for c in row.constraints if c.verdict == "not_judged"]
    if unjudged:
        first = unjudged[0]
        return f"Whether the rows hold {first.constraint} is not known: {first.detail}."
    return ""


def _certainty(contest: Contest, metric: Metric, rows: Sequence[Row]) -> str:
    """What the claims rest on."""
    if not rows:
        return ""
    counts = [row.metrics[metric.name].n for row in rows]
    fewest, most = min(counts), max(counts)
    if most <= 1:
        return "(1 seed: there is no measure of spread, so a difference may be chance.)"
    seeds = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    few = "; with so few only large differences can be told" if most == 2 else ""
    tests = contest.tests
    if not tests:
        return f"({seeds}{few}.)"
    if tests == 1:
        return f"({seeds}{few}; one test, with its {1 - ALPHA:.0%} interval.)"
    return f"({seeds}{few}; {1 - ALPHA:.0%} intervals and claims that hold together for all {tests} tests.)"


def _barred(metric: Metric, ranked: Sequence[Row], rows: Sequence[Row]) -> str:
    """Names rows that would have been first had they held the constraints."""
    best = ranked[0].metrics[metric.name].value if ranked else None
    found = [
        f"{row.option} ({_figure(metric, row)}) fails {_and(row.constraint_failures)}"
        for row in rows
        if row.constraint_failures and _beats(metric, row, best)
    ]
    return f"Better by {metric.name} but not eligible: {'; '.join(found)}." if found else ""


def _failed_seeds(ranked: Sequence[Row]) -> str:
    """Ranked rows that did not complete with every seed: what they reached with the others may flatter them."""
    found = [
        f"{row.option} with {len(row.failures)} of {row.planned} seeds "
        f"({_and(sorted({failure.kind for failure in row.failures}))})"
        for row in ranked
        if row.failures
    ]
    return f"Failed, though ranked: {'; '.join(found)}." if found else ""


def _beats(metric: Metric, row: Row, best: float | None) -> bool:
    found = row.metrics[metric.name]
    value = None if found.unclean else found.value
    return value is not None and (best is None or metric.is_better(value, best))


def _seeds_left_out(metric: Metric, ranked: Sequence[Row], summaries: Mapping[str, Summary]) -> str:
    """Which ranked figures are of fewer trials than there are, as the GPUs' state spoilt the others."""
    found = [
        f"{row.option} {len(row.metrics[metric.name].left_out)} of {row.n} trials "
        f"({summaries[row.option].unclean_words(metric.name)})"
        for row in ranked
        if row.metrics[metric.name].left_out
    ]
    return f"Left out for the state of the GPUs: {'; '.join(found)}." if found else ""


def _own_code(rows: Sequence[Row]) -> str:
    """Rows whose own code may do what nobody counted."""
    names = [row.option for row in rows if PROCESS in row.identity.not_verified]
    return f"Not verified of {_and(names)}: what own code does besides what was counted." if names else ""


def _left_out(
    metric: Metric, rows: Sequence[Row], summaries: Mapping[str, Summary], others_are_ranked: bool
) -> str:
    why = {row.option: _reason(metric, row, summaries[row.option]) for row in rows}
    if others_are_ranked:
        alone = [row for row in rows if row.eligible and row.rank is None and not why[row.option]]
        why |= {
            row.option: f"{row.n} seed{'s' if row.n > 1 else ''}, no spread to tell its rank by" for row in alone
        }
    told = [f"{name} ({reason})" for name, reason in why.items() if reason]
    return f"Not ranked: {', '.join(told)}." if told else ""


def _reason(metric: Metric, row: Row, summary: Summary) -> str:
    """Why a row has no place, where no constraint says so; '' where nothing does."""
    if row.identity.violations:
        return f"not the same job: {_and([violation.field for violation in row.identity.violations])}"
    if row.n == 0:
        return _and(sorted({_failure(failure, summary) for failure in row.failures})) or "not run yet"
    if summary.only_spoiled(metric.name):
        return f"every trial was {summary.unclean_words(metric.name)}"
    if metric.name == SECONDS_TO_LOSS and summary.not_reached:
        return summary.not_reached_words()
    return ""


def _failure(failure: Failure, summary: Summary) -> str:
    if not failure.note:
        return failure.kind
    return f"{failure.kind} on a {summary.states[failure.seed].verdict} GPU, which is no finding"


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
