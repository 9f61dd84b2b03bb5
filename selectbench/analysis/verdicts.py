"""Named verdicts: which option to take, by what is asked, with how sure that is and the settings to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selectbench import units
from selectbench.analysis.blocks import Blocks, make_blocks
from selectbench.analysis.comparison import NamedVerdict, VerdictName
from selectbench.analysis.contest import Contest
from selectbench.analysis.metrics import METRICS
from selectbench.analysis.pairs import all_pairs
from selectbench.analysis.row import Row
from selectbench.analysis.summary import Summary, mean
from selectbench.analysis.to_loss import price_by_seed
from selectbench.suite.constraint import QUALITY_METRICS, parse_constraint
from selectbench.suite.suite import Suite

BEST = "best.yaml"
"""The suite of the first row alone."""
_UNIT = {"tokens_per_second": " tokens/s", "final_loss": " nats per token"}
_PRICES: dict[str, tuple[str, Callable[[float | None], str], str]] = {
    "usd": ("Cheapest", units.usd, "money"), "joules": ("Least energy", units.joules, "energy"),
    "seconds": ("Soonest", units.seconds, "time"),
}  # fmt: skip


@dataclass(frozen=True)
class _Question:
    """One way of asking which option is best."""

    name: VerdictName
    title: str
    rows: Sequence[Row]
    """Those that qualify."""
    blocks: Blocks
    threshold: float
    more_is_better: bool
    show: Callable[[str, float], str]
    """Option and mean value to a figure with its unit."""
    values: Mapping[str, float]
    """Means, by option."""
    metric: str | None = None
    """None: none of a trial's own."""


def verdicts(
    suite: Suite, rows: Sequence[Row], summaries: Mapping[str, Summary], contest: Contest
) -> list[NamedVerdict]:
    """One for each question that the run has figures for. `rows` in the order of the ranking."""
    equal = [row for row in rows if row.eligible and row.n]
    done = [row for row in rows if row.n and row.identity.comparable and not row.control]
    words = _at_equal_quality(suite)
    memory = "peak_device_memory_bytes" if all(_counts(r, "peak_device_memory_bytes") for r in equal) else None
    questions = [
        _by_metric("fastest", f"Fastest{words}", equal, contest, "tokens_per_second"),
        _by_metric("smallest_memory", f"Smallest memory{words}", equal, contest, memory or "peak_memory_bytes"),
        _to_loss(suite, done, summaries, contest),
        _by_metric("best_quality", "Best quality", done, contest, "final_loss"),
    ]
    found = [_answered(suite, rows, summaries, question) for question in questions if question]
    return [verdict for verdict in found if verdict.option is not None or suite.job.evaluates]


def _at_equal_quality(suite: Suite) -> str:
    """What may be said of quality in the titles."""
    if suite.quick or not suite.job.evaluates:
        return " (quality was not measured)"
    held = [text for text in suite.decide.constraints if parse_constraint(text).metric in QUALITY_METRICS]
    return " at equal quality" if held else " (whatever the quality: no constraint is on it)"


def _counts(row: Row, metric: str) -> bool:
    found = row.metrics[metric]
    return found.value is not None and not found.unclean


def _by_metric(
    name: VerdictName, title: str, rows: Sequence[Row], contest: Contest, metric_name: str
) -> _Question | None:
    known = [row for row in rows if _counts(row, metric_name)]
    if rows and not known:
        return None
    metric = METRICS[metric_name]

    def show(option: str, value: float) -> str:
        row = next(row for row in known if row.option == option)
        return f"{metric.show(value)}{_UNIT.get(metric_name, '')}{_against(contest, row, metric_name)}"

    values = {row.option: value for row in known if (value := row.metrics[metric_name].value) is not None}
    threshold = contest.suite.decide.threshold(metric_name)
    return _Question(
        name,
        title,
        known,
        contest.blocks[metric_name],
        threshold,
        metric.better == "more",
        show,
        values,
        metric_name,
    )


def _against(contest: Contest, row: Row, metric: str) -> str:
    """`, 1.25x the baseline (1.20x to 1.31x)`."""
    found = row.metrics[metric]
    if row.option == contest.baseline.name:
        return " (the baseline)"
    if found.ratio_to_baseline is None:
        return ""
    ends = "" if found.ratio_low is None else f" ({units.ratio_range(found.ratio_low, found.ratio_high)})"
    return f", {units.ratio(found.ratio_to_baseline)} the baseline{ends}"


def _to_loss(
    suite: Suite, rows: Sequence[Row], summaries: Mapping[str, Summary], contest: Contest
) -> _Question | None:
    """By money where it is known, else by energy, else by time."""
    there = [row for row in rows if row.to_loss and row.to_loss.seconds is not None]
    for price, (title, show, noun) in _PRICES.items():
        known = [row for row in there if getattr(row.to_loss, price) is not None]
        if known:
            found = {r.option: price_by_seed(suite, summaries[r.option], contest.baseline, price) for r in known}
            values = {
                option: average for option, v in found.items() if (average := mean(list(v.values()))) is not None
            }
            return _Question(
                "cheapest", f"{title} to the baseline's loss", known, make_blocks(found), 0.01, False,
                lambda _, value, show=show, noun=noun: f"{show(value)} of {noun}", values,  # type: ignore[misc]
            )  # fmt: skip
    return None


def _answered(
    suite: Suite, rows: Sequence[Row], summaries: Mapping[str, Summary], question: _Question
) -> NamedVerdict:
    if not question.values:
        return _nobody(question)
    pick = max if question.more_is_better else min
    best = pick(question.values, key=lambda option: question.values[option])
    tied, same, known = _tied(question, best)
    row = next(row for row in rows if row.option == best)
    if question.metric == suite.decide.objective and row.rank is not None:  # as the ranks have it
        tied = [name for name in row.tied_with if name in question.values]
    file = (
        BEST
        if rows[0].option == best and rows[0].rank is not None
        else f"best_{question.name.removeprefix('best_')}.yaml"
    )
    return NamedVerdict(
        name=question.name, title=question.title, option=best,
        sentence=f"{best}: {question.show(best, question.values[best])}{_at_what(suite, question, row)}.",
        confidence=_confidence(question, tied, same, known), sure=known and not tied, tied_with=tied,
        choices=summaries[best].option.choices.model_dump(mode="json"), file=file,
        command=f"selectbench run {file}",
    )  # fmt: skip


def _at_what(suite: Suite, question: _Question, row: Row) -> str:
    """What the option is by the objective, where something else was asked: `, at 1,040 tokens/s (0.068x)`."""
    objective = METRICS[suite.decide.objective]
    if question.metric == objective.name or not _counts(row, objective.name):
        return ""
    found = row.metrics[objective.name]
    ratio = "" if found.ratio_to_baseline is None else f" ({units.ratio(found.ratio_to_baseline)})"
    return f", at {objective.show(found.value)}{_UNIT.get(objective.name, '')}{ratio}"


def _nobody(question: _Question) -> NamedVerdict:
    return NamedVerdict(
        name=question.name, title=question.title, option=None, sentence="No option qualifies.",
        confidence="", sure=False, tied_with=[], choices={}, file=None, command=None,
    )  # fmt: skip


def _tied(question: _Question, best: str) -> tuple[list[str], set[str], bool]:
    """Others that it was not shown to be better than, those of them that hardly differ, whether spread is known."""
    names = list(question.values)
    pairs = all_pairs(question.blocks, names)
    place = names.index(best)
    better = pairs.better(question.threshold, more_is_better=question.more_is_better)[place]
    same = pairs.same(question.threshold)[place]
    tied = [name for name, shown in zip(names, better, strict=True) if name != best and not shown]
    return tied, {names[j] for j in np.flatnonzero(same)}, bool(np.any(~np.isnan(pairs.p_adjusted)))


def _confidence(question: _Question, tied: Sequence[str], same: set[str], known: bool) -> str:
    if len(question.values) == 1:
        return "The only option that qualifies."
    if not known:
        return "One seed tells no spread: the order may be chance."
    if not tied:
        return "Shown to be better than every other option that qualifies (all pairs, adjusted by Holm)."
    equal, undecided = [name for name in tied if name in same], [name for name in tied if name not in same]
    matters = units.share(question.threshold)
    parts = [f"no difference that matters (less than {matters}) to {_some(equal)}"] if equal else []
    parts += [f"ahead by the means only, not shown to be better than {_some(undecided)}"] if undecided else []
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
