"""Named verdicts: which option to take, by what is asked, with how sure that is and the settings to take.

An option is named that none is shown to be better than. The baseline stays unless the option that is ahead is
shown to be better than it: a change needs a reason. The objective's claims are the declared family's; every
other question is judged by itself, its pairs adjusted by Holm, so that several questions have several chances of
error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selectbench import units
from selectbench.analysis.comparison import NamedVerdict
from selectbench.analysis.contest import Contest
from selectbench.analysis.family import Pairs, all_pairs
from selectbench.analysis.pareto import counts
from selectbench.analysis.questions import Question, questions
from selectbench.analysis.row import Row
from selectbench.analysis.statistics import Bools
from selectbench.analysis.summary import Summary
from selectbench.suite.metrics import METRICS, QUALITY
from selectbench.suite.suite import Suite

BEST = "best.yaml"
"""The suite of the first row alone."""


def verdicts(
    suite: Suite, rows: Sequence[Row], summaries: Mapping[str, Summary], contest: Contest
) -> list[NamedVerdict]:
    """One for each question that the run has figures for. `rows` in the order of the ranking."""
    asked = questions(suite, rows, summaries, contest)
    found = [_answered(suite, rows, summaries, question) for question in asked]
    objective = next((question.name for question in asked if question.is_objective), None)
    return _with_files(
        suite, rows, objective, [verdict for verdict in found if verdict.option or suite.job.evaluates]
    )


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


def _answered(
    suite: Suite, rows: Sequence[Row], summaries: Mapping[str, Summary], question: Question
) -> NamedVerdict:
    if not question.values:
        return _nobody(question)
    found = _finding(suite, rows, question)
    if question.open and found.best == suite.baseline:
        return _nobody(question)
    row = next(row for row in rows if row.option == found.best)
    own, first = (question.show(name, question.values[name]) for name in (found.best, found.ahead))
    shown = f"{found.best}: {own}{_at_what(suite, question, row)}"
    if not first.looks_like(own):  # else a reader would see the same figure twice
        opening = "none is shown to be better than " if found.best == suite.baseline else ""
        shown = f"{opening}{shown}; ahead by the figures: {found.ahead}, {first}"
    return NamedVerdict(
        name=question.name, title=question.title, option=found.best, sentence=f"{shown}.",
        confidence=f"{_confidence(question, found)}{_outdone(row, found)}",
        sure=found.known and not found.tied and not question.open,
        tied_with=found.tied, choices=summaries[found.best].option.choices.model_dump(mode="json"),
        file=None, command=None,
    )  # fmt: skip


def _finding(suite: Suite, rows: Sequence[Row], question: Question) -> _Finding:
    names = [row.option for row in rows if row.option in question.values]
    pairs = all_pairs(question.blocks, names)
    more = question.more_is_better
    better = pairs.better(question.threshold, more_is_better=more)
    order = [row.option for row in rows if row.rank is not None and row.option in question.values]
    if question.is_objective and order:  # as the ranks have it
        ahead = best = order[0]
    else:
        ahead = names[_leader(pairs, better, more_is_better=more)]
        best = _first_of_equals(pairs, better, ahead, question.threshold)
    if (
        suite.baseline in names
        and best != suite.baseline
        and not _beats_baseline(suite, rows, question, pairs, best)
    ):
        best = suite.baseline
    beaten = better[names.index(best)].tolist()
    tied = [n for n, shown in zip(names, beaten, strict=True) if n != best and (n == ahead or not shown)]
    if question.is_objective and best in order:
        in_rank = next(row for row in rows if row.option == best).tied_with
        tied = [n for n in names if n in in_rank or (n in tied and n not in order)]
    same = pairs.same(question.threshold)[names.index(best)].tolist()
    known = bool(np.any(~np.isnan(pairs.p_adjusted)))
    return _Finding(best, tied, {name for name, alike in zip(names, same, strict=True) if alike}, ahead, known)


def _beats_baseline(suite: Suite, rows: Sequence[Row], question: Question, pairs: Pairs, best: str) -> bool:
    if question.is_objective:
        found = next(row for row in rows if row.option == best).against_baseline
        return found is not None and found.decision == "better"
    return pairs.beats(best, suite.baseline, question.threshold, more_is_better=question.more_is_better)


def _leader(pairs: Pairs, better: Bools, *, more_is_better: bool) -> int:
    """Of those that none is shown to be better than, the one that is ahead of most others within seeds."""
    ahead = pairs.ahead_by_means(more_is_better=more_is_better).sum(axis=1)
    beaten = better.any(axis=0)
    return int(np.argmax(np.where(beaten & ~beaten.all(), -1, ahead)))


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
    ratio = "" if found.ratio_to_baseline is None else f" ({units.ratio(found.ratio_to_baseline)})"
    return f", at {objective.show(found.value)}{objective.after_figure}{ratio}"


def _nobody(question: Question) -> NamedVerdict:
    told = "No option qualifies."
    if question.open:
        told = f"Open: whether {_some(question.open)} {_hold(question.open)} the constraints is undecided."
    return NamedVerdict(
        name=question.name, title=question.title, option=None, sentence=told,
        confidence="", sure=False, tied_with=[], choices={}, file=None, command=None,
    )  # fmt: skip


def _confidence(question: Question, found: _Finding) -> str:
    is_open = question.open and f" Open: whether {_some(question.open)} {_hold(question.open)} the constraints."
    if len(question.values) == 1:
        only = "The only option that qualifies."
        return f"The only option shown to qualify.{is_open}" if is_open else only
    if not found.known:
        return f"No measure of spread: the order may be chance.{is_open or ''}"
    if not found.tied:
        own = "" if question.is_objective else ", by this question's own tests"
        return f"Shown to be better than every other option that qualifies{own}.{is_open or ''}"
    same = [name for name in found.tied if name in found.same]
    undecided = [name for name in found.tied if name not in found.same]
    parts = (
        [f"no difference that matters (less than {units.share(question.threshold)}) to {_some(same)}"]
        if same
        else []
    )
    parts += [f"not shown to differ from {_some(undecided)}"] if undecided else []
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}.{is_open or ''}"


def _outdone(row: Row, found: _Finding) -> str:
    """Who can't be told from the option by what was asked, and dominates it."""
    names = [name for name in found.tied if name in row.dominated_by]
    if not names:
        return ""
    verb = "is" if len(names) == 1 else "are"
    return f" {_some(names)} {verb} shown to be better in another figure and worse in none by more than matters."


def _hold(names: Sequence[str]) -> str:
    return "holds" if len(names) == 1 else "hold"


def _with_files(
    suite: Suite, rows: Sequence[Row], objective: str | None, found: Sequence[NamedVerdict]
) -> list[NamedVerdict]:
    """Each with the file of its option: `best.yaml` for what the objective asks for, one for every other option."""
    memory = dict.fromkeys(("peak_memory_bytes", "peak_device_memory_bytes"), "smallest_memory")
    names = {"tokens_per_second": "fastest", **memory, **dict.fromkeys(QUALITY, "best_quality")}
    asked = names.get(suite.decide.objective, objective)
    first = rows[0].option if rows and rows[0].rank is not None else None
    best = next((v.option for v in found if v.name == asked), first)
    return [_with_file(v, BEST if v.option == best else f"best_{v.name.removeprefix('best_')}.yaml") for v in found]


def _with_file(verdict: NamedVerdict, file: str) -> NamedVerdict:
    if verdict.option is None:
        return verdict
    return verdict.model_copy(update={"file": file, "command": f"selectbench run {file}"})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
