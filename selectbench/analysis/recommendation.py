"""Which option to take by each question that a reader may ask, and which options no other one beats."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, get_args

import numpy as np

from selectbench import units
from selectbench.analysis.contest import Contest
from selectbench.analysis.family import Pairs, all_pairs
from selectbench.analysis.hardware import share_main_memory
from selectbench.analysis.metrics import Observed, finite, joules_per_token, usd_for
from selectbench.analysis.result import NamedVerdict, Row, ToLoss, VerdictName
from selectbench.analysis.summary import Crossing, Summary, centre, other_tokens
from selectbench.suite.metrics import METRICS, PER_TOKEN, SECONDS_TO_LOSS, Metric, parse_constraint
from selectbench.suite.suite import Suite
from selectbench.text import some

TIME_TO_LOSS_RULE = (
    "Time, tokens, energy and money to the baseline's loss run until an option's held-out loss is the baseline's "
    "final one with the same seed, plus the share of the loss that the suite calls too small to matter; for the "
    "baseline too. Between evaluations the loss is taken to fall in a straight line; where it is there at the "
    "first evaluation already, that one counts. Seconds are of training alone. An option that gets there early "
    "does so in the middle of its own schedule: with a shorter schedule it would take another time."
)


def to_loss(summary: Summary) -> ToLoss | None:
    """Means over the seeds that reached the loss on clean GPUs; None where one seed's value is not known."""
    clean = summary.values["training_seconds"]
    arrived = {seed: place for seed, place in summary.reached.items() if place is not None and seed in clean}
    if not arrived and not summary.not_reached:
        return None
    costs = [] if summary.not_reached else [_costs(p, summary.observed[seed]) for seed, p in arrived.items()]
    means = dict[str, float | None]()
    for price in ("seconds", "tokens", "joules", "usd"):
        known = [value for cost in costs if (value := cost[price]) is not None]
        means[price] = centre(known) if len(known) == len(costs) else None
    return ToLoss.model_validate({**means, "reached": list(arrived), "not_reached": summary.not_reached})


def _costs(place: Crossing, o: Observed) -> dict[str, float | None]:
    """What a trial had cost, as `ToLoss` names it, when its loss was low enough."""
    per_token = finite(joules_per_token, o)
    joules = None if per_token is None else per_token * place.tokens
    usd = finite(lambda: usd_for(o, seconds=place.seconds, tokens=place.tokens))
    return {"seconds": place.seconds, "tokens": place.tokens, "joules": joules, "usd": usd}


# Which rows no other row beats: the Pareto set over speed, memory, energy and quality.
#
# A row is dominated only where another is shown to be better in one of them (two-sided tests of all pairs, adjusted
# by Holm for each metric, and the metric's threshold) and in each other one is shown to be worse by less than the
# threshold. A picture of the field beside the declared family, not a claim of it.

_DIMENSION_METRICS = sorted((m for m in METRICS.values() if m.dimension), key=lambda m: m.dimension or ("speed", 0))


def _pareto_metrics(rows: Sequence[Row], without: Collection[str]) -> list[str]:
    """The first metric of each dimension that all rows know; `without`: metrics that say nothing here."""
    usable = [m for m in _DIMENSION_METRICS if m.name not in without and all(counts(row, m.name) for row in rows)]
    return list({m.dimension[0]: m.name for m in reversed(usable) if m.dimension}.values())


def counts(row: Row, metric: str) -> bool:
    """Whether the row's figure is known, and from clean trials."""
    measured = row.metrics[metric]
    return measured.value is not None and not measured.unclean


def with_pareto(contest: Contest, rows: Sequence[Row]) -> list[Row]:
    """The rows with `pareto` and who dominates them set for those that completed and did the baseline's job."""
    taking_part = [row for row in rows if _did_the_job(row)]
    summaries = contest.summaries
    apart = any(other_tokens(contest.suite, summary.option) for summary in summaries.values())
    shared = share_main_memory(contest.suite.device, list(summaries.values()))
    used = _pareto_metrics(taking_part, {*(PER_TOKEN if apart else ()), *(["peak_memory_bytes"] if shared else ())})
    if not taking_part or not used:
        return list(rows)
    names = [row.option for row in taking_part]
    shape = (len(names), len(names))
    better_somewhere, worse_nowhere = np.zeros(shape, bool), np.ones(shape, bool)
    for metric in used:
        threshold, more = contest.suite.threshold(metric), METRICS[metric].better == "more"
        pairs = all_pairs(contest.blocks[metric], names, contest.alpha, more_is_better=more)
        better = pairs.better(threshold)
        better_somewhere |= better
        worse_nowhere &= better | pairs.not_worse(threshold)
    # A row of which the lucky seeds alone are left in one of these dominates none.
    flattered = np.array([any(summaries[name].lost_seeds(metric) for metric in used) for name in names])
    dominates = better_somewhere & worse_nowhere & ~flattered[:, None]
    above = {name: [names[j] for j in np.flatnonzero(dominates[:, i])] for i, name in enumerate(names)}
    fields = {name: {"pareto": not better_rows, "dominated_by": better_rows} for name, better_rows in above.items()}
    return [row.model_copy(update=fields.get(row.option, {})) for row in rows]


# What is asked of a ranking besides its objective: the questions, and which rows may answer each.


class Figure(NamedTuple):
    """An option's figure; a reader sees the same one twice where two are equal in all but their words."""

    words: str
    """`200 tokens/s, 1.25x the baseline (1.20x to 1.31x)`."""
    figure: str
    ratio: str = ""
    """The ratio or difference to the baseline as displayed; '' where there is none or it is 1."""
    has_ratio: bool = True
    """False where the words say that the ratio to the baseline is not measurable."""

    def __str__(self) -> str:
        """The words."""
        return self.words


@dataclass(frozen=True)
class Question:
    """One way of asking which option is best."""

    name: VerdictName
    title: str
    metric: str
    contest: Contest
    figures: Mapping[str, Figure]
    """Mean values with their units, of the options that qualify."""
    open: Sequence[str]
    """Options with a figure that may qualify: a constraint of theirs is undecided."""

    @property
    def is_objective(self) -> bool:
        """Whether the ranks answer it."""
        return self.metric == self.contest.objective.name

    @property
    def threshold(self) -> float:
        """Smallest difference that matters: 0.05 is a factor of 1.05 in either direction."""
        return self.contest.suite.threshold(self.metric)

    def pairs(self, names: Sequence[str]) -> Pairs:
        """All pairs of the named options, by the question's metric."""
        more = METRICS[self.metric].better == "more"
        return all_pairs(self.contest.blocks[self.metric], names, self.contest.alpha, more_is_better=more)


def questions(contest: Contest, rows: Sequence[Row]) -> list[Question]:
    """The questions that the run has figures for, or all where nothing was trained; `rows` in ranking order."""
    suite, objective, summaries = contest.suite, contest.objective, contest.summaries
    eligible = [row for row in rows if row.eligible and row.n]
    within = []  # the limits that are not on quality
    for row in rows:
        limits = [c for c in row.constraints if not METRICS[parse_constraint(c.constraint).metric].quality]
        within += [row] if _did_the_job(row) and {c.verdict for c in limits} <= {"holds", "not_judged"} else []
    words = _at_equal_quality(suite, eligible)
    by_device = all(counts(row, "peak_device_memory_bytes") for row in eligible)
    memory = "peak_device_memory_bytes" if by_device else "peak_memory_bytes"
    apart = any(other_tokens(suite, summary.option) for summary in summaries.values())
    quality = objective.name if objective.quality else "bits_per_byte" if apart else "final_loss"
    speed = "bytes_per_second" if apart else "tokens_per_second"
    possible: list[tuple[VerdictName, str, str, Sequence[Row]]] = [("fastest", f"Fastest{words}", speed, eligible)]
    if not share_main_memory(suite.device, list(summaries.values())):
        possible.append(("smallest_memory", f"Smallest memory{words}", memory, eligible))
    if objective.only_if_reached:
        possible.append(("cheapest", "Soonest to the baseline's loss", SECONDS_TO_LOSS, within))
    possible.append(("best_quality", "Best quality", quality, within))
    answerable = []
    for name, title, metric, qualified in possible:
        flattered = {row.option for row in rows if summaries[row.option].lost_seeds(metric)}
        with_gaps = {n for n, summary in summaries.items() if METRICS[metric].quality and summary.unknown(metric)}
        # Time to a loss is a figure and no answer where the objective's own claims decide nothing.
        times = {row.option: row.to_loss.seconds for row in qualified if row.to_loss}
        known_times = {n: f"{units.seconds(mean)} of time" for n, mean in times.items() if mean is not None}
        figures = {n: Figure(words, words) for n, words in known_times.items()}
        if name != "cheapest":
            qualified = [row for row in qualified if row.option not in flattered]
            known = [row for row in qualified if counts(row, metric) and row.option not in with_gaps]
            figures = {row.option: with_ratio(suite, METRICS[metric], row) for row in known}
            if qualified and not known:
                continue
        if figures or any(counts(row, metric) for row in rows) or not any(row.n for row in rows):
            others = [row for row in rows if row.option not in flattered | figures.keys()]
            may_qualify = [row.option for row in others if _is_open(row, metric)]
            answerable.append(Question(name, title, metric, contest, figures, may_qualify))
    return answerable


def _did_the_job(row: Row) -> bool:
    return bool(row.n and row.identity.comparable and not row.control)


def _is_open(row: Row, metric: str) -> bool:
    """Whether it would qualify if it were known that it holds its constraints."""
    undecided = any(c.verdict == "undecided" for c in row.constraints)
    return undecided and _did_the_job(row) and not row.constraint_failures and counts(row, metric)


def _at_equal_quality(suite: Suite, rows: Sequence[Row]) -> str:
    """What may be said of quality in the titles."""
    if suite.quick or not suite.job.evaluates:
        return " (quality was not measured)"
    limits = [c for row in rows for c in row.constraints if METRICS[parse_constraint(c.constraint).metric].quality]
    if any(c.verdict != "holds" for c in limits):
        return " (equal quality could not be judged)"
    is_limited = any(METRICS[parse_constraint(text).metric].quality for text in suite.decide.constraints)
    return " at equal quality" if is_limited else " (regardless of quality, which no constraint limits)"


def figure(metric: Metric, row: Row) -> str:
    """`11,420 tokens/s`; seconds to the loss alone, as what they are is said where they are named."""
    is_time = metric.name == SECONDS_TO_LOSS
    return metric.show(row.metrics[metric.name].value) + ("" if is_time else metric.after_figure)


def with_ratio(suite: Suite, metric: Metric, row: Row) -> Figure:
    """`11,420 tokens/s, 1.07x the baseline (1.05x to 1.09x)`, without the ratio where there is none."""
    measured, words = row.metrics[metric.name], figure(metric, row)
    if row.option == suite.baseline or measured.ratio_to_baseline is None:
        return Figure(f"{words} (the baseline)" if row.option == suite.baseline else words, words)
    ratio, ends = _ratio_words(metric, row)
    if ratio == units.NOT_MEASURABLE:
        return Figure(f"{words}, its ratio to the baseline {ratio}", words, has_ratio=False)
    ratio_of_one, _ = metric.against(1.0, measured.ratio_low, measured.ratio_high, measured.value)
    against = "against the baseline" if metric.difference_in else "the baseline"
    with_ends = f"{words}, {ratio} {against}{f' ({ends})' if ends else ''}"
    return Figure(with_ends, words, "" if ratio == ratio_of_one else ratio)


def _ratio_words(metric: Metric, row: Row) -> tuple[str, str]:
    """A row's ratio or difference to the baseline's figure in words, and the interval."""
    measured = row.metrics[metric.name]
    base = measured.value / measured.ratio_to_baseline if measured.value and measured.ratio_to_baseline else None
    return metric.against(measured.ratio_to_baseline, measured.ratio_low, measured.ratio_high, base)


# An option is named that none is shown to be better than. The baseline stays unless another is shown to be better
# than it: a change needs a reason. The objective's claims are the declared family's. Every other question is judged
# by itself, so that several questions have several chances of error: its options against the baseline, and all its
# pairs, each adjusted by Holm. What the first of the two shows, a verdict's words do not call open.

_some = partial(some, most=6)
BEST = "best.yaml"
"""The suite of the first row alone."""


def _file_of(name: str) -> str:
    """The file of a verdict's option where it is not that of the objective."""
    return f"best_{name.removeprefix('best_')}.yaml"


BEST_FILES = (BEST, *map(_file_of, get_args(VerdictName)))
"""All that there can be."""


def verdicts(contest: Contest, rows: Sequence[Row]) -> list[NamedVerdict]:
    """One for each question that has figures, with its option's file; `rows` in the order of the ranking."""
    to_answer = questions(contest, rows)
    answers = [_verdict(rows, question) for question in to_answer]
    answers = [verdict for verdict in answers if verdict.option or contest.suite.job.evaluates]
    memory = dict.fromkeys(("peak_memory_bytes", "peak_device_memory_bytes"), "smallest_memory")
    names = {**{question.metric: question.name for question in to_answer}, "tokens_per_second": "fastest", **memory}
    decisive = names.get(contest.objective.name)
    first = rows[0].option if rows and rows[0].rank is not None else None
    best = next((v.option for v in answers if v.name == decisive), first)
    files = [BEST if v.option == best else _file_of(v.name) for v in answers]
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
    """The options of `tied` that hardly differ from the best."""
    ahead: str
    """The first by the figures, which `best` may not be where nothing is shown to be better than the baseline."""
    is_near: bool
    """Whether `ahead` is ahead of `best` by less than matters."""
    known: bool
    """Whether there is a measure of spread."""
    open: list[str]
    """Options that may qualify and are not shown to be worse than one that does."""
    open_ahead: list[str]
    """The options of `open` that the figures have ahead of all that qualify."""


def _verdict(rows: Sequence[Row], question: Question) -> NamedVerdict:
    if not question.figures:
        return _no_option(question, question.open)
    finding, baseline = _find_best(rows, question), question.contest.baseline.name
    if finding.open_ahead and finding.best == baseline:
        return _no_option(question, finding.open_ahead, [finding.best, *finding.tied])
    row = next(row for row in rows if row.option == finding.best)
    best_figure, ahead_figure = (question.figures[name] for name in (finding.best, finding.ahead))
    sentence, headline = f"{finding.best}: {best_figure}{_objective_words(question, row)}", finding.best
    if ahead_figure[1:] != best_figure[1:]:  # else a reader would see the same figure twice
        if finding.best == baseline:
            better = {"fastest": "faster", "smallest_memory": "smaller", "cheapest": "sooner"}
            sentence = f"none is shown to be better than {sentence}"
            headline = f"stay with {finding.best}, as none is shown to be {better.get(question.name, 'better')}"
        sentence = _with_ahead(rows, question, finding, sentence)
    return NamedVerdict(
        name=question.name, title=question.title, option=finding.best, headline=headline, sentence=f"{sentence}.",
        confidence=f"{_confidence(question, finding)}{_outdone(row, finding)}",
        sure=finding.known and not finding.tied and not finding.open,
        tied_with=finding.tied,
        choices=question.contest.summaries[finding.best].option.choices.model_dump(mode="json"),
    )  # fmt: skip


def _find_best(rows: Sequence[Row], question: Question) -> _Finding:
    candidates = {row.option: row for row in rows if row.option in question.figures}
    names, baseline = list(candidates), question.contest.baseline.name
    pairs = question.pairs(names)
    better = pairs.better(question.threshold)
    order = [name for name, row in candidates.items() if row.rank is not None]
    if question.is_objective and order:  # as the ranks have it
        ahead = best = order[0]
    else:
        # Of those that none is shown to be better than, the one that is ahead of most others within seeds; or one
        # better in rank that it is ahead of by less than matters. Where the baseline may be named it needs to be
        # shown to be better than that; else the next that is.
        wins, is_beaten = (pairs.gains > 0).sum(axis=1), np.array(better.any(axis=0))
        most_first = np.argsort(-np.where(is_beaten & ~is_beaten.all(), -1, wins), kind="stable").tolist()
        lead = most_first[0]
        near = (np.abs(pairs.estimates[:lead, lead]) <= math.log1p(question.threshold)) & ~is_beaten[:lead]
        preferred = [*np.flatnonzero(near).tolist(), lead, *(i for i in most_first if not is_beaten[i])]
        ahead, best = names[lead], names[preferred[0]]
    if baseline in candidates and question.is_objective and best != baseline:
        against = candidates[best].against_baseline
        best = best if against is not None and against.decision == "better" else baseline
    elif baseline in candidates and not question.is_objective:
        beat = pairs.beat(names.index(baseline), question.threshold)
        best = next((names[i] for i in preferred if beat[i]), baseline)
        better[:, names.index(baseline)] |= beat
    place = names.index(best)
    tied = [n for i, n in enumerate(names) if n != best and (n == ahead or not better[place, i])]
    if question.is_objective and best in order:
        tied = [n for n in names if n in candidates[best].tied_with or (n in tied and n not in order)]
    equivalent = {names[i] for i in np.flatnonzero(pairs.same(question.threshold)[place])}
    is_near = bool(np.abs(pairs.estimates[place, names.index(ahead)]) <= math.log1p(question.threshold))
    return _Finding(
        best, tied, equivalent, ahead, is_near, bool(pairs.known.any()), *_may_lead(question, names, ahead)
    )


def _with_ahead(rows: Sequence[Row], question: Question, finding: _Finding, sentence: str) -> str:
    """The sentence on the named option with the one whose figure is the best, and why that is not named."""
    best_figure, ahead_figure = (question.figures[name] for name in (finding.best, finding.ahead))
    neither = not (best_figure.has_ratio or ahead_figure.has_ratio)
    words = f"{ahead_figure.figure}, whose ratio is not either" if neither else ahead_figure.words
    sentence = f"{sentence}; best measured: {finding.ahead}, {words}"
    if question.is_objective or not finding.known:
        return sentence
    matters, stays = units.share(question.threshold), finding.best == question.contest.baseline.name
    measured = next(row for row in rows if row.option == finding.ahead).metrics[question.metric]
    if stays and units.contains_1(measured.ratio_low, measured.ratio_high):
        return sentence
    if finding.is_near:
        return f"{sentence} (better by less than {matters}{'' if stays else ', and after it in the ranking'})"
    if stays:
        return f"{sentence} (an interval for this ratio alone; for all options together it is not shown)"
    return f"{sentence} (not shown to be better than the baseline)"


def _may_lead(question: Question, names: Sequence[str], ahead: str) -> tuple[list[str], list[str]]:
    """`open` and `open_ahead` of a finding: of options whose constraints are undecided, those that matter here."""
    pairs, leader = question.pairs([*names, *question.open]), names.index(ahead)
    beaten = np.array(pairs.better(0.0)[: len(names)].any(axis=0))
    candidates = {name: i for i, name in enumerate(pairs.names) if name in question.open and not beaten[i]}
    # two without a common seed are ahead of nobody: that is open too
    behind = (pairs.gains[leader] > 0) | (pairs.estimates[leader] == 0.0)
    return list(candidates), [name for name, i in candidates.items() if not behind[i]]


def _objective_words(question: Question, row: Row) -> str:
    """The objective's figure, where another metric was asked for: `, at 1,040 tokens/s (0.068x)`."""
    objective = question.contest.objective
    if question.metric == objective.name or not counts(row, objective.name):
        return ""
    measured = row.metrics[objective.name]
    has_ratio = measured.ratio_to_baseline is not None and row.option != question.contest.baseline.name
    ratio = _ratio_words(objective, row)[0] if has_ratio else ""
    ratio = f"ratio to the baseline {ratio}" if ratio == units.NOT_MEASURABLE else ratio
    ratio = f" ({ratio})" if ratio else ""
    return f", at {objective.show(measured.value)}{objective.after_figure}{ratio}"


def _no_option(question: Question, may_lead: Sequence[str], tied: Sequence[str] = ()) -> NamedVerdict:
    """The verdict without an option; `tied`: those that qualify, which no test tells apart."""
    headline, sentence = "none", "No option qualifies."
    if may_lead:
        headline, sentence = "open", f"Open: whether {_names_hold(may_lead)} the constraints is undecided."
    if len(tied) > 1:
        sentence += f" Of those that qualify, it is too close to call between {_some(tied)}."
    return NamedVerdict(
        name=question.name, title=question.title, option=None, headline=headline, sentence=sentence, sure=False
    )


def _confidence(question: Question, finding: _Finding) -> str:
    is_open = f" Open: whether {_names_hold(finding.open)} the constraints." if finding.open else ""
    if len(question.figures) == 1:
        qualifies = "shown to qualify" if is_open else "that qualifies"
        is_any_out = any(summary.is_screened_out for summary in question.contest.summaries.values())
        return f"The only option {qualifies}{' of those that were not screened out' * is_any_out}.{is_open}"
    if not finding.known:
        return f"No measure of spread: the order may be chance.{is_open}"
    if not finding.tied:
        basis = "" if question.is_objective else ", by this question's own tests"
        return f"Shown to be better than every other option that qualifies{basis}.{is_open}"
    equivalent = [name for name in finding.tied if name in finding.same]
    undecided = [name for name in finding.tied if name not in finding.same]
    matters = units.share(question.threshold)
    baseline = question.contest.baseline.name
    is_a_change = baseline in question.figures and baseline != finding.best
    parts = ["shown to be better than the baseline"] if is_a_change else []
    parts += [f"no difference that matters (less than {matters}) to {_some(equivalent)}"] if equivalent else []
    parts += [f"not shown to differ from {_some(undecided)}"] if undecided else []
    words = "; ".join(parts)
    return f"{words[0].upper()}{words[1:]}.{is_open}"


def _outdone(row: Row, finding: _Finding) -> str:
    """Tied options that dominate the named one."""
    names = [name for name in finding.tied if name in row.dominated_by]
    if not names:
        return ""
    verb = "is" if len(names) == 1 else "are"
    return (
        f" {_some(names)} {verb} shown to be better in another figure, and shown to be worse by less than matters, "
        "if at all, in the rest."
    )


def _names_hold(names: Sequence[str]) -> str:
    return f"{_some(names)} {'holds' if len(names) == 1 else 'hold'}"
