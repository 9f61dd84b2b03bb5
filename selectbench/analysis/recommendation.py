"""Which option to take by each question that a reader may ask, and which options no other one beats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, get_args

import numpy as np

from selectbench import units
from selectbench.analysis.contest import Contest
from selectbench.analysis.family import Pairs, all_pairs
from selectbench.analysis.hardware import share_main_memory
from selectbench.analysis.metrics import Observed, finite_of_each, joules_per_token, usd_for
from selectbench.analysis.result import NamedVerdict, Row, ToLoss, VerdictName
from selectbench.analysis.statistics import Blocks, Bools
from selectbench.analysis.summary import Summary, centre, other_tokens
from selectbench.suite.metrics import METRICS, PER_TOKEN, QUALITY, SECONDS_TO_LOSS, Metric, parse_constraint
from selectbench.suite.suite import Suite
from selectbench.text import some

# What an option took until its held-out loss was the baseline's final one.


TIME_TO_LOSS_RULE = (
    "Time, tokens, energy and money to the baseline's loss run until an option's held-out loss is the baseline's "
    "final one with the same seed, plus the share of the loss that the suite calls too small to matter; for the "
    "baseline too. Between evaluations the loss is taken to fall in a straight line; where it is there at the "
    "first evaluation already, that one counts. Seconds are of training alone. An option that gets there early "
    "does so in the middle of its own schedule: with a shorter schedule it would take another time."
)


class _Reached(NamedTuple):
    """Where one trial was when its loss was low enough."""

    seconds: float
    tokens: float
    observed: Observed


def to_loss(summary: Summary) -> ToLoss | None:
    """Means over the seeds that the baseline completed too; trials on throttled or shared GPUs are left out.

    A mean is None where one seed's value is not known.
    """
    there = _reached(summary)
    if not there and not summary.not_reached:
        return None
    known = {} if summary.not_reached else {price: price_by_seed(summary, price) for price in PRICES}
    means = {price: centre(list(v.values())) for price, v in known.items() if len(v) == len(there)}
    return ToLoss(
        seconds=means.get("seconds"), tokens=means.get("tokens"), joules=means.get("joules"), usd=means.get("usd"),
        reached=list(there), not_reached=summary.not_reached,
    )  # fmt: skip


def _reached(summary: Summary) -> dict[int, _Reached]:
    """Of the seeds that got there, those whose time counts."""
    return {
        seed: _Reached(*place, summary.observed[seed])
        for seed, place in summary.reached.items()
        if place is not None and seed in summary.values["training_seconds"]
    }


def price_by_seed(summary: Summary, price: str) -> dict[int, float]:
    """`seconds`, `tokens`, `joules` or `usd` of each seed that reached the loss and tells it."""
    return finite_of_each(PRICES[price], _reached(summary))


def _joules(reached: _Reached) -> float | None:
    each = joules_per_token(reached.observed)
    return None if each is None else each * reached.tokens


PRICES: dict[str, Callable[[_Reached], float | None]] = {
    "seconds": lambda reached: reached.seconds, "tokens": lambda reached: reached.tokens, "joules": _joules,
    "usd": lambda reached: usd_for(reached.observed, seconds=reached.seconds, tokens=reached.tokens),
}  # fmt: skip


# Which rows no other row beats: the Pareto set over speed, memory, energy and quality.
#
# A row is dominated only where another is shown to be better in one of them (two-sided tests of all pairs, adjusted
# by Holm for each metric, and the metric's threshold) and is worse in none: not shown to be, and by the means not
# by more than the threshold. Where the intervals leave that open, the row is dominated by the figures. A picture of
# the field beside the declared family, not a claim of it.


_BY_DIMENSION = sorted((m for m in METRICS.values() if m.dimension), key=lambda m: m.dimension or ("speed", 0))
_DIMENSIONS = {
    dimension: [m.name for m in _BY_DIMENSION if m.dimension and m.dimension[0] == dimension]
    for dimension in ("speed", "memory", "energy", "quality")
}
"""Of each the first metric that all rows know."""


def dimensions(rows: Sequence[Row], without: frozenset[str] = frozenset()) -> list[str]:
    """The metrics that the set is over: those that every one of these rows knows; `without`: what tells nothing."""
    known = [
        next((name for name in names if name not in without and all(counts(row, name) for row in rows)), None)
        for names in _DIMENSIONS.values()
    ]
    return [name for name in known if name is not None]


def counts(row: Row, metric: str) -> bool:
    """Whether its figure is known, and of clean trials."""
    found = row.metrics[metric]
    return found.value is not None and not found.unclean


def with_pareto(contest: Contest, rows: Sequence[Row], summaries: Mapping[str, Summary]) -> list[Row]:
    """The rows with `pareto` and who dominates them told for those that completed and did the baseline's job."""
    taking_part = [row for row in rows if _did_the_job(row)]
    apart = any(other_tokens(contest.suite, summary.option) for summary in summaries.values())
    over = dimensions(taking_part, PER_TOKEN if apart else frozenset())
    if share_main_memory(contest.suite.device, list(summaries.values())):
        over = [name for name in over if name != "peak_memory_bytes"]
    if not taking_part or not over:
        return list(rows)
    names = [row.option for row in taking_part]
    shape = (len(names), len(names))
    better_somewhere, worse_somewhere = np.zeros(shape, bool), np.zeros(shape, bool)
    is_shown = np.ones(shape, bool)
    for metric in over:
        threshold, more = contest.suite.threshold(metric), METRICS[metric].better == "more"
        pairs = all_pairs(contest.blocks[metric], names, contest.alpha)
        better = pairs.better(threshold, more_is_better=more)
        better_somewhere |= better
        is_shown &= better | pairs.not_worse(threshold, more_is_better=more)
        worse_somewhere |= better.T | pairs.ahead_by_means(more_is_better=more, by=threshold).T
    # A row of which the lucky seeds alone are left in one of these dominates none.
    flattered = np.array([any(summaries[name].flattered(metric) for metric in over) for name in names])
    dominates = better_somewhere & ~worse_somewhere & ~flattered[:, None]
    told: dict[str, dict[str, object]] = {}
    for i, name in enumerate(names):
        by, by_figures = ([names[j] for j in np.flatnonzero(of[:, i])] for of in (dominates, dominates & ~is_shown))
        told[name] = {"pareto": not by, "dominated_by": by, "dominated_by_figures": by_figures}
    return [row.model_copy(update=told.get(row.option, {})) for row in rows]


# What is asked of a ranking besides its objective: the questions, and which rows may answer each.


@dataclass(frozen=True)
class Figure:
    """An option's figure, with its unit, beside the baseline's."""

    figure: str
    ratio: str = ""
    """Or the difference; empty: the baseline's own, or not known."""
    interval: str = ""
    is_one: bool = False
    """Whether the ratio is shown as 1."""
    is_baseline: bool = False

    def __str__(self) -> str:
        """`200 tokens/s, 1.25x the baseline (1.20x to 1.31x)`."""
        if self.is_baseline:
            return f"{self.figure} (the baseline)"
        if not self.ratio:
            return self.figure
        if self.ratio == units.NOT_MEASURABLE:
            return f"{self.figure}, its ratio to the baseline {self.ratio}"
        against = "the baseline" if self.ratio.endswith("x") else "against the baseline"
        return f"{self.figure}, {self.ratio} {against}{f' ({self.interval})' if self.interval else ''}"

    def looks_like(self, other: Figure) -> bool:
        """Whether a reader would see the same figure twice; a ratio of 1 says no more than the baseline's none."""
        ratios = ["" if one.is_one else one.ratio for one in (self, other)]
        return self.figure == other.figure and ratios[0] == ratios[1]


@dataclass(frozen=True)
class Question:
    """One way of asking which option is best."""

    name: VerdictName
    title: str
    blocks: Blocks
    alpha: float
    threshold: float
    more_is_better: bool
    figures: Mapping[str, Figure]
    """Mean values with their units, of the options that qualify."""
    metric: str
    is_objective: bool = False
    open: Sequence[str] = ()
    """Options with a figure that may qualify: a constraint of theirs is undecided."""


def questions(
    suite: Suite, rows: Sequence[Row], summaries: Mapping[str, Summary], contest: Contest
) -> list[Question]:
    """Those that the run has figures for, or all where nothing was trained. `rows` in the order of the ranking."""
    equal = [row for row in rows if row.eligible and row.n]
    within = [row for row in rows if _within_limits(row)]
    words = _at_equal_quality(suite, equal)
    memory = "peak_device_memory_bytes" if all(counts(r, "peak_device_memory_bytes") for r in equal) else None
    apart = any(other_tokens(suite, summary.option) for summary in summaries.values())
    quality = "bits_per_byte" if apart else "final_loss"
    quality = suite.decide.objective if METRICS[suite.decide.objective].quality else quality
    speed = "bytes_per_second" if apart else "tokens_per_second"

    def unflattered(rows: Sequence[Row], metric: str) -> list[Row]:
        return [row for row in rows if not summaries[row.option].flattered(metric)]

    asked = [_by_metric("fastest", f"Fastest{words}", unflattered(equal, speed), contest, speed)]
    if not share_main_memory(suite.device, list(summaries.values())):
        asked.append(
            _by_metric("smallest_memory", f"Smallest memory{words}", equal, contest, memory or "peak_memory_bytes")
        )
    if METRICS[suite.decide.objective].of_those_that_learnt:
        asked.append(_to_loss(contest, within, summaries))
    asked.append(_by_metric("best_quality", "Best quality", unflattered(within, quality), contest, quality))
    objective = suite.decide.objective
    return [
        replace(q, open=_open(q, unflattered(rows, q.metric)), is_objective=q.metric == objective)
        for q in asked
        if q and (q.figures or any(counts(row, q.metric) for row in rows) or not any(row.n for row in rows))
    ]


def _did_the_job(row: Row) -> bool:
    return bool(row.n and row.identity.comparable and not row.control)


def _within_limits(row: Row) -> bool:
    """Whether it did the job and holds every limit that is not on quality."""
    limits = [c for c in row.constraints if not METRICS[parse_constraint(c.constraint).metric].quality]
    return _did_the_job(row) and all(c.verdict in ("holds", "not_judged") for c in limits)


def _open(question: Question, rows: Sequence[Row]) -> list[str]:
    """Rows that would qualify if it were known that they hold their constraints."""
    return [
        row.option for row in rows
        if row.option not in question.figures and _did_the_job(row) and not row.constraint_failures
        and counts(row, question.metric) and any(c.verdict == "undecided" for c in row.constraints)
    ]  # fmt: skip


def _at_equal_quality(suite: Suite, rows: Sequence[Row]) -> str:
    """What may be said of quality in the titles."""
    if suite.quick or not suite.job.evaluates:
        return " (quality was not measured)"
    held = [c for row in rows for c in row.constraints if METRICS[parse_constraint(c.constraint).metric].quality]
    if any(c.verdict != "holds" for c in held):
        return " (equal quality could not be judged)"
    asked = any(METRICS[parse_constraint(text).metric].quality for text in suite.decide.constraints)
    return " at equal quality" if asked else " (regardless of quality, which no constraint limits)"


def _by_metric(
    name: VerdictName, title: str, rows: Sequence[Row], contest: Contest, metric_name: str
) -> Question | None:
    metric = METRICS[metric_name]

    def has_gap(row: Row) -> bool:
        """Whether seeds that completed lack the figure, which the others would flatter."""
        measured = row.metrics[metric_name]
        return metric.quality and measured.n + len(measured.left_out) < row.n

    known = {row.option: row for row in rows if counts(row, metric_name) and not has_gap(row)}
    if rows and not known:
        return None
    return Question(
        name, title, contest.blocks[metric_name], contest.alpha, contest.suite.threshold(metric_name),
        metric.better == "more",
        {option: with_ratio(contest.suite, metric, row) for option, row in known.items()}, metric_name,
    )  # fmt: skip


def figure(metric: Metric, row: Row) -> str:
    """`11,420 tokens/s`; seconds to the loss alone, as what they are is said where they are named."""
    said_before = metric.name == SECONDS_TO_LOSS
    return metric.show(row.metrics[metric.name].value) + ("" if said_before else metric.after_figure)


def with_ratio(suite: Suite, metric: Metric, row: Row) -> Figure:
    """`11,420 tokens/s, 1.07x the baseline (1.05x to 1.09x)`, without the ratio where there is none."""
    measured = row.metrics[metric.name]
    if row.option == suite.baseline or measured.ratio_to_baseline is None:
        return Figure(figure(metric, row), is_baseline=row.option == suite.baseline)
    ratio, ends = _against(metric, row)
    one, _ = metric.against(1.0, measured.ratio_low, measured.ratio_high, measured.value)
    return Figure(figure(metric, row), ratio, ends, is_one=ratio == one)


def _against(metric: Metric, row: Row) -> tuple[str, str]:
    """How its figure stands to the baseline's, and the interval."""
    found = row.metrics[metric.name]
    base = found.value / found.ratio_to_baseline if found.value and found.ratio_to_baseline else None
    return metric.against(found.ratio_to_baseline, found.ratio_low, found.ratio_high, base)


def _to_loss(contest: Contest, rows: Sequence[Row], summaries: Mapping[str, Summary]) -> Question:
    """By the objective's own claims: where it decides nothing, time to a loss is a figure and no answer."""
    reached = [row.option for row in rows if row.to_loss and not row.to_loss.not_reached]
    means = {name: centre(list(price_by_seed(summaries[name], "seconds").values())) for name in reached}
    return Question(
        "cheapest", "Soonest to the baseline's loss", contest.blocks[SECONDS_TO_LOSS], contest.alpha,
        contest.suite.threshold(SECONDS_TO_LOSS), False,
        {name: Figure(f"{units.seconds(value)} of time") for name, value in means.items() if value is not None},
        SECONDS_TO_LOSS,
    )  # fmt: skip


# Named verdicts: which option to take, by what is asked, with how sure that is and the settings to take.
#
# An option is named that none is shown to be better than. The baseline stays unless the option that is ahead is
# shown to be better than it: a change needs a reason. The objective's claims are the declared family's; every other
# question is judged by itself, its pairs adjusted by Holm, so that several questions have several chances of error.


_some = partial(some, most=6)
BEST = "best.yaml"
"""The suite of the first row alone."""


def file_of(name: str) -> str:
    """The file of a verdict's option where it is not that of the objective."""
    return f"best_{name.removeprefix('best_')}.yaml"


_BETTER: dict[VerdictName, str] = {
    "fastest": "faster", "smallest_memory": "smaller", "cheapest": "sooner", "best_quality": "better",
}  # fmt: skip

BEST_FILES = (BEST, *map(file_of, get_args(VerdictName)))
"""All that there can be."""


def verdicts(
    suite: Suite, rows: Sequence[Row], summaries: Mapping[str, Summary], contest: Contest
) -> list[NamedVerdict]:
    """One for each question that the run has figures for. `rows` in the order of the ranking.

    Each has the file of its option: `best.yaml` for what the objective asks for, one for every other option.
    """
    asked = questions(suite, rows, summaries, contest)
    answers = [_answered(suite, rows, summaries, question) for question in asked]
    answers = [verdict for verdict in answers if verdict.option or suite.job.evaluates]
    memory = dict.fromkeys(("peak_memory_bytes", "peak_device_memory_bytes"), "smallest_memory")
    names = {"tokens_per_second": "fastest", **memory, **dict.fromkeys(QUALITY, "best_quality")}
    by_objective = next((question.name for question in asked if question.is_objective), None)
    decisive = names.get(suite.decide.objective, by_objective)
    first = rows[0].option if rows and rows[0].rank is not None else None
    best = next((v.option for v in answers if v.name == decisive), first)
    files = [BEST if v.option == best else file_of(v.name) for v in answers]
    return [
        v.model_copy(update={"file": file, "command": f"selectbench run {file}"}) if v.option else v
        for v, file in zip(answers, files, strict=True)
    ]


@dataclass(frozen=True)
class _Finding:
    """What the tests say of one question's options."""

    best: str
    tied: list[str]
    """Others that it is not shown to be better than."""
    same: set[str]
    """Those of them that hardly differ."""
    ahead: str
    """The first by the figures, which `best` is not where nothing is shown to be better than the baseline."""
    known: bool
    """Whether there is a measure of spread."""
    open: list[str]
    """Those that may qualify and are not shown to be worse than one that does."""
    open_ahead: list[str]
    """Those of them that the figures have ahead of all that qualify."""


def _answered(
    suite: Suite, rows: Sequence[Row], summaries: Mapping[str, Summary], question: Question
) -> NamedVerdict:
    if not question.figures:
        return _nobody(question, question.open)
    found = _finding(suite, rows, question)
    if found.open_ahead and found.best == suite.baseline:
        return _nobody(question, found.open_ahead, [found.best, *found.tied])
    row = next(row for row in rows if row.option == found.best)
    own, first = (question.figures[name] for name in (found.best, found.ahead))
    shown, headline = f"{found.best}: {own}{_at_what(suite, question, row)}", found.best
    if not first.looks_like(own):  # else a reader would see the same figure twice
        if found.best == suite.baseline:
            shown = f"none is shown to be better than {shown}"
            headline = f"stay with {found.best}, as none is shown to be {_BETTER[question.name]}"
        shown = f"{shown}; best measured: {found.ahead}, {first}"
    return NamedVerdict(
        name=question.name, title=question.title, option=found.best, headline=headline, sentence=f"{shown}.",
        confidence=f"{_confidence(question, found)}{_outdone(row, found)}",
        sure=found.known and not found.tied and not found.open,
        tied_with=found.tied, choices=summaries[found.best].option.choices.model_dump(mode="json"),
        file=None, command=None,
    )  # fmt: skip


def _finding(suite: Suite, rows: Sequence[Row], question: Question) -> _Finding:
    names = [row.option for row in rows if row.option in question.figures]
    pairs = all_pairs(question.blocks, names, question.alpha)
    more = question.more_is_better
    better = pairs.better(question.threshold, more_is_better=more)
    order = [row.option for row in rows if row.rank is not None and row.option in question.figures]
    if question.is_objective and order:  # as the ranks have it
        ahead = best = order[0]
    else:
        # Of those that none is shown to be better than, the one that is ahead of most others within seeds.
        won, lost = pairs.ahead_by_means(more_is_better=more).sum(axis=1), better.any(axis=0)
        ahead = names[int(np.argmax(np.where(lost & ~lost.all(), -1, won)))]
        best = _first_of_equals(pairs, better, ahead, question.threshold)
    if suite.baseline in names and best != suite.baseline:
        best = best if _beats_baseline(suite, rows, question, pairs, best) else suite.baseline
    beaten = better[names.index(best)].tolist()
    tied = [n for n, shown in zip(names, beaten, strict=True) if n != best and (n == ahead or not shown)]
    if question.is_objective and best in order:
        in_rank = next(row for row in rows if row.option == best).tied_with
        tied = [n for n in names if n in in_rank or (n in tied and n not in order)]
    same = pairs.same(question.threshold)[names.index(best)].tolist()
    known = bool(np.any(~np.isnan(pairs.p_adjusted)))
    alike = {name for name, is_same in zip(names, same, strict=True) if is_same}
    return _Finding(best, tied, alike, ahead, known, *_may_lead(question, names, ahead))


def _may_lead(question: Question, names: Sequence[str], ahead: str) -> tuple[list[str], list[str]]:
    """`open` and `open_ahead` of a finding: of options whose constraints are undecided, those that matter here."""
    pairs = all_pairs(question.blocks, [*names, *question.open], question.alpha)
    better = pairs.better(0.0, more_is_better=question.more_is_better)[: len(names)]
    # two without a common seed are ahead of nobody: that is open too
    behind = pairs.ahead_by_means(more_is_better=question.more_is_better)[names.index(ahead)]
    may = [name for place, name in enumerate(pairs.names) if name in question.open and not better[:, place].any()]
    level = [name for name in may if pairs.estimates[pairs.place(name, ahead)] == 0.0]
    return may, [name for name in may if name not in level and not behind[pairs.names.index(name)]]


def _beats_baseline(suite: Suite, rows: Sequence[Row], question: Question, pairs: Pairs, best: str) -> bool:
    if question.is_objective:
        found = next(row for row in rows if row.option == best).against_baseline
        return found is not None and found.decision == "better"
    return pairs.beats(best, suite.baseline, question.threshold, more_is_better=question.more_is_better)


def _first_of_equals(pairs: Pairs, better: Bools, leader: str, threshold: float) -> str:
    """The leader, or an option better in rank that it is ahead of by less than matters."""
    beaten = [bool(better[:, number].any()) for number in range(len(pairs.names))]
    for number, name in enumerate(pairs.names):
        if name == leader:
            break
        distance = abs(float(pairs.estimates[pairs.place(name, leader)]))
        if distance <= math.log1p(threshold) and not beaten[number]:
            return name
    return leader


def _at_what(suite: Suite, question: Question, row: Row) -> str:
    """What the option is by the objective, where something else was asked: `, at 1,040 tokens/s (0.068x)`."""
    objective = METRICS[suite.decide.objective]
    if question.metric == objective.name or not counts(row, objective.name):
        return ""
    found = row.metrics[objective.name]
    is_told = found.ratio_to_baseline is not None and row.option != suite.baseline
    ratio = f" ({_against(objective, row)[0]})" if is_told else ""
    return f", at {objective.show(found.value)}{objective.after_figure}{ratio}"


def _nobody(question: Question, may_lead: Sequence[str], tied: Sequence[str] = ()) -> NamedVerdict:
    """`tied`: those that qualify, which nothing tells apart."""
    headline, told = "none", "No option qualifies."
    if may_lead:
        headline, told = "open", f"Open: whether {_some_hold(may_lead)} the constraints is undecided."
    if len(tied) > 1:
        told += f" Of those that qualify, it is too close to call between {_some(tied)}."
    return NamedVerdict(
        name=question.name, title=question.title, option=None, headline=headline, sentence=told,
        confidence="", sure=False, tied_with=[], choices={}, file=None, command=None,
    )  # fmt: skip


def _confidence(question: Question, found: _Finding) -> str:
    is_open = f" Open: whether {_some_hold(found.open)} the constraints." if found.open else ""
    if len(question.figures) == 1:
        return f"The only option shown to qualify.{is_open}" if is_open else "The only option that qualifies."
    if not found.known:
        return f"No measure of spread: the order may be chance.{is_open}"
    if not found.tied:
        own = "" if question.is_objective else ", by this question's own tests"
        return f"Shown to be better than every other option that qualifies{own}.{is_open}"
    same = [name for name in found.tied if name in found.same]
    undecided = [name for name in found.tied if name not in found.same]
    matters = units.share(question.threshold)
    parts = [f"no difference that matters (less than {matters}) to {_some(same)}"] if same else []
    parts += [f"not shown to differ from {_some(undecided)}"] if undecided else []
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}.{is_open}"


def _outdone(row: Row, found: _Finding) -> str:
    """Who can't be told from the option by what was asked, and dominates it."""
    names = [name for name in found.tied if name in row.dominated_by]
    if not names:
        return ""
    verb = "is" if len(names) == 1 else "are"
    how = ", by the figures," if set(names) & set(row.dominated_by_figures) else ""
    return (
        f" {_some(names)} {verb} shown to be better in another figure and{how} worse in none by more than matters."
    )


def _some_hold(names: Sequence[str]) -> str:
    return f"{_some(names)} {'holds' if len(names) == 1 else 'hold'}"
