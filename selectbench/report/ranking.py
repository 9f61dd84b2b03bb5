"""The ranking for every medium: its table, what its figures mean, why rows have no rank, and their certificates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from selectbench import units
from selectbench.analysis.lanes import BESIDE, ELSEWHERE
from selectbench.analysis.result import (
    IDENTITY,
    Certificate,
    Failure,
    MetricValue,
    NotVerified,
    Ranking,
    Reference,
    Row,
    Violation,
)
from selectbench.analysis.screening import ratio_to_baseline, screened_words
from selectbench.analysis.summary import mean
from selectbench.report import document as doc
from selectbench.suite.command import CERTIFIED
from selectbench.suite.metrics import LESS_IS_BETTER, METRICS, SECONDS_TO_LOSS, Report, columns_of
from selectbench.text import first_line, listed, one_line, some

_UNCLEAN_NOTE = (
    doc.UNCLEAN_MARK + ": every trial that the figure comes from was {}; it is shown, and compared with nothing"
)
_BRIEF_NOTE = doc.BRIEF_MARK + (
    ": screened out before the contest: the mean of two short trials, and its ratio to the worse one of the "
    "baseline's two. No claim rests on it, and its tests count among those of the family as if it had run"
)
_DOMINATED_NOTE = (
    "Dominated: another option is shown to be better in one of speed, memory, energy and quality, and shown to be "
    "worse by less than matters, if at all, in all others that are known"
)
_MEMORY_KINDS = {
    "cuda_allocated": "the CUDA allocator's peak of allocated memory while training, and optimizer state in "
    "managed memory, which it does not count",
    "cpu_pss_growth": "the growth of the process's proportional set size up to the first evaluation: "
    "main memory, which says nothing of GPU memory",
}
_OPEN_VERDICTS = {"not_judged": "not judged", "undecided": "undecided"}
_TO_LOSS_UNITS = {"seconds": units.seconds, "tokens": units.count, "joules": units.joules, "usd": units.usd}
_JOB_FIELDS = {
    "initial_weights_sha256": "weights", "token_stream_sha256": "tokens", "evaluation_set_sha256": "evaluation set",
    "learning_rate_shape_sha256": "schedule", "steps_applied": "step count",
}  # fmt: skip
"""What makes two jobs the same, in a reader's words, by identity field."""
_MOST_NAMES = 12
_NAME_ROOM, _NAME_MOST = 28, 120
"""Characters of a name in the page's table, from which all are shortened, and at most."""
Member = TypeVar("Member", bound=Hashable)
_TableColumn = tuple[doc.Column, Callable[[Row], doc.Cell]]
"""A column and how its cell follows from a row."""


def ranking_table(ranking: Ranking, medium: Report) -> doc.Table:
    """The ranking as a table, with the medium's columns for the metrics that some row has a figure of."""
    columns = {"markdown": _markdown_columns, "page": _page_columns, "terminal": _terminal_columns}[medium](ranking)
    return doc.Table(
        [column for column, _ in columns], [[cell(row) for _, cell in columns] for row in table_rows(ranking)],
        "Every option, the best first", is_sortable=True, kinds=[_row_kind(row) for row in table_rows(ranking)],
    )  # fmt: skip


NOT_TRAINED = "reference, not trained here"


def table_rows(ranking: Ranking) -> list[Row]:
    """The options' rows, and below them a row for each model behind an API, which has nothing but scores."""
    no_figure = MetricValue(value=None, ratio_to_baseline=None, standard_deviation=None, n=0)
    unknown = Certificate(comparable=None, compared_with=[], differs_as_declared=[], violations=[], not_verified=[])
    names = ranking.rows[0].metrics if ranking.rows else METRICS
    return [*ranking.rows, *(
        Row(
            option=ref.name, rank=None, status="reference", n=0, planned=0, missing_seeds=[], differs_in=[],
            eligible=False, constraints=[], constraint_failures=[], identity=unknown, notes=[], memory=None,
            scaling=None, failures=[], metrics={**dict.fromkeys(names, no_figure), **{
                name: no_figure.model_copy(update={"value": v}) for name, v in reference_figures(ref).items()
            }},
        )
        for ref in ranking.references
    )]  # fmt: skip


def reference_figures(ref: Reference) -> dict[str, float]:
    """The scores of a reference and its bits per byte, by metric."""
    bits = {} if ref.bits_per_byte is None else {"bits_per_byte": ref.bits_per_byte}
    return {name: score.value for name, score in ref.scores.items()} | bits


def reference_notes(ref: Reference) -> list[str]:
    """What a reader must know of a reference's answers: which were missing, refused, empty, cut or lost."""
    unfinished = f"{ref.answered} of {ref.sentences} answered, so it has no scores: {ref.incomplete}"
    refused = ref.refused and f"{ref.sentences - ref.answered} of {ref.sentences} refused, scored as empty"
    return [
        *([unfinished] if ref.incomplete else []), *([ref.no_bits] if ref.no_bits else []),
        *([f"{refused} ({ref.refused})"] if refused and not ref.incomplete else []),
        *([f"answers without any text, scored as they are: {ref.empty}"] if ref.empty else []),
        *([f"answers cut at max_tokens, scored as they are: {ref.cut}"] if ref.cut else []),
        *([f"requests without an answer may have cost {units.usd(ref.lost_usd)} more"] if ref.lost_usd else []),
    ]  # fmt: skip


def _row_kind(row: Row) -> doc.RowKind:
    if row.status == "reference":
        return "reference"
    if row.rank is not None:
        return "first" if row.rank == 1 else "ranked"
    if row.n == 0 and row.status != "screened_out":
        return "failed"
    is_open = any(c.verdict == "undecided" for c in row.constraints)
    return "undecided" if is_open and not row.constraint_failures else "barred"


def _markdown_columns(ranking: Ranking) -> list[_TableColumn]:
    columns: list[_TableColumn] = [
        (doc.Column("#"), _rank_cell(ranking)),
        (doc.Column("option", names_row=True), lambda row: row.option),
        (doc.Column("differs in"), lambda row: _differences(ranking, row)),
        (doc.Column("seeds"), _seeds_cell),
        (doc.Column(""), state_text),
    ]
    for name in _metric_names(ranking, "markdown"):
        columns.append(_metric_column(name))
        if name == ranking.objective or METRICS[name].shows_ratio:
            columns.append(_ratio_column(ranking, "vs baseline", name))
    return [*columns, *_scaling_columns(ranking)]


def _page_columns(ranking: Ranking) -> list[_TableColumn]:
    """The ratio and the state stand next to the objective: all other columns may run over the edge of a screen."""
    objective, *others = (_metric_column(name, says_not_reached=True) for name in _metric_names(ranking, "page"))
    others += _scaling_columns(ranking)
    if ranking.objective != SECONDS_TO_LOSS and any(row.to_loss for row in ranking.rows):
        others.append((doc.Column("to the baseline's loss", "right"), lambda row: to_loss_value(row, "seconds")))
    short, _ = page_names(ranking)

    def is_dominated(row: Row) -> str:
        return f"dominated {_dominators(row, short)}" if row.dominated_by else ""

    return [
        (doc.Column("#", "right"), _rank_cell(ranking)),
        (
            doc.Column("option", names_row=True),
            lambda row: doc.Stack(short[one_line(row.option)], _differences(ranking, row)),
        ),
        objective,
        _ratio_column(ranking, "against the baseline", ranking.objective),
        (doc.Column("state"), lambda row: doc.Stack(state_text(row), is_dominated(row))),
        *others,
        (doc.Column("seeds", "right"), _seeds_cell),
    ]


def _terminal_columns(ranking: Ranking) -> list[_TableColumn]:
    """Few columns: metrics that there is no room for are dropped, the last ones first."""
    scaling = _scaling_columns(ranking)
    is_speedup = ranking.objective == "tokens_per_second" and bool(scaling)
    objective, *others = _metric_names(ranking, "terminal")
    has_state = any(state_text(row) for row in table_rows(ranking))
    return [
        (doc.Column("#", "right"), _rank_cell(ranking)),
        (doc.Column("option", names_row=True), lambda row: row.option),
        _metric_column(objective),
        _ratio_column(ranking, "speed-up" if is_speedup else "vs base", ranking.objective),
        *(_metric_column(name, droppable=True) for name in others),
        *([scaling[0], scaling[2]] if is_speedup else scaling),
        (doc.Column("n", "right"), lambda row: "" if row.status == "reference" else doc.Amount(row.n, str)),
        *([(doc.Column(""), state_text)] if has_state else []),
    ]


def _seeds_cell(row: Row) -> doc.Cell:
    """Completed seeds of all that were planned; empty for a reference, which has none."""
    return "" if row.status == "reference" else doc.Amount(row.n, lambda done: f"{done} of {row.planned}")


def _rank_cell(ranking: Ranking) -> Callable[[Row], doc.Cell]:
    numbers = {row.option: number for number, row in enumerate(table_rows(ranking), start=1)}
    return lambda row: doc.Amount(numbers[row.option], lambda _: rank_text(row))


def _metric_column(name: str, *, droppable: bool = False, says_not_reached: bool = False) -> _TableColumn:
    """`says_not_reached`: whether there is room to say that a row never reached the baseline's loss."""
    metric, tells_not_reached = METRICS[name], says_not_reached and name == SECONDS_TO_LOSS
    column = doc.Column(metric.heading, "right", f"{name}; {metric.better} is better", droppable=droppable)
    return column, lambda row: to_loss_value(row, "seconds") if tells_not_reached else figure(row, name)


def _ratio_column(ranking: Ranking, heading: str, name: str) -> _TableColumn:
    base = option_value(ranking, ranking.baseline, name)

    def ratio(row: Row) -> doc.Ratio:
        if row.screening and row.screening.screened_out:
            ratios = (ratio_to_baseline(bound) for bound in row.screening.bounds if bound.metric == name)
            if (brief := next((r for r in ratios if r is not None), None)) is not None:
                return doc.Ratio(brief, mark=doc.BRIEF_MARK)
        metric = row.metrics[name]
        return doc.Ratio(metric.ratio_to_baseline, metric.ratio_low, metric.ratio_high, name, base)

    return doc.Column(heading, "right", has_bars=True), ratio


def option_value(ranking: Ranking, option: str, name: str) -> float | None:
    """An option's figure of a metric; None: it is not known, or the ranking has no such option."""
    return next((row.metrics[name].value for row in ranking.rows if row.option == option), None)


def _scaling_columns(ranking: Ranking) -> list[_TableColumn]:
    """Ranks, speed-up and efficiency, where rows have different numbers of ranks."""
    if not any(row.scaling for row in ranking.rows):
        return []
    percent = units.whole_percent
    return [
        (doc.Column("ranks", "right"), lambda r: doc.Amount(getattr(r.scaling, "world_size", None), units.count)),
        (doc.Column("speed-up", "right"), lambda r: doc.Ratio(getattr(r.scaling, "speedup", None))),
        (doc.Column("efficiency", "right"), lambda r: doc.Amount(getattr(r.scaling, "efficiency", None), percent)),
    ]


def _metric_names(ranking: Ranking, medium: Report) -> list[str]:
    """Metrics that some row has a figure of, and the objective: in Markdown at its place, elsewhere first."""
    other_metrics = [name for name in (ranking.rows[0].metrics if ranking.rows else ()) if name not in METRICS]
    names = known_metrics(ranking, [*other_metrics, *columns_of(medium)])
    if medium == "markdown" and ranking.objective in names:
        return names
    return [ranking.objective, *(name for name in names if name != ranking.objective)]


def known_metrics(ranking: Ranking, names: Sequence[str]) -> list[str]:
    """The metrics that some row has a figure of; bytes per token only where rows differ in it."""
    values = {name: {row.metrics[name].value for row in ranking.rows} - {None} for name in names}
    per_bytes = {row.metrics["bytes_per_token"].value for row in ranking.rows} - {None}
    bytes_differ = len({round(value, 6) for value in per_bytes if value is not None}) > 1
    return [name for name in names if values[name] and (bytes_differ or name != "bytes_per_token")]


def _differences(ranking: Ranking, row: Row) -> str:
    parts = (", ".join(row.differs_in), ", ".join(row.besides_the_rate))
    return "baseline" if row.option == ranking.baseline else "; ".join(filter(None, parts))


def page_names(ranking: Ranking) -> tuple[dict[str, str], str]:
    """The options' short names for a page, by name, and a note on what they leave out."""
    return doc.labels([row.option for row in table_rows(ranking)], _NAME_ROOM, _NAME_MOST)


def _dominators(row: Row, short: Mapping[str, str] | None = None) -> str:
    """`by a, b`: at most four of the options that dominate the row."""
    return f"by {', '.join(short[one_line(name)] if short else name for name in row.dominated_by[:4])}"


def rank_text(row: Row) -> str:
    """A row's rank, or the range that it lies in: tied options may stand in either order."""
    if row.rank is None:
        return units.DASH
    return f"{row.rank}-{row.rank + len(row.tied_with)}" if row.tied_with else str(row.rank)


def figure(row: Row, name: str, *, with_spread: bool = True) -> doc.Figure:
    """A row's figure of a metric; for a row that was screened out the mean of its short trials."""
    if row.screening and row.screening.screened_out:
        values = [trial.figures.get(name) for trial in row.screening.trials]
        value = mean([value for value in values if value is not None])
        return doc.Figure(name, value, mark="" if value is None else doc.BRIEF_MARK)
    metric = row.metrics[name]
    mark, deviation = doc.UNCLEAN_MARK if metric.unclean else "", metric.standard_deviation
    return doc.Figure(name, metric.value, deviation if with_spread else None, mark)


def to_loss_value(row: Row, name: str) -> doc.Value:
    """What it takes to reach the baseline's loss (a field of `ToLoss`), or how many seeds did not reach it."""
    to_loss = row.to_loss
    if to_loss is not None and to_loss.not_reached:
        missed, seeds = len(to_loss.not_reached), len(to_loss.reached) + len(to_loss.not_reached)
        return doc.Amount(None, lambda _: f"not reached with {missed} of {seeds} seeds", is_words=True)
    return doc.Amount(getattr(to_loss, name, None), _TO_LOSS_UNITS[name])


def state_text(row: Row) -> str:
    """What sets a row apart, such as failures or a failed constraint, in a few words; empty where nothing does."""
    if row.status in ("screened_out", "reference"):
        return "screened out" if row.status == "screened_out" else NOT_TRAINED
    kinds, states = [failure.kind for failure in row.failures], row.gpu.states if row.gpu else {}
    is_open = not row.constraint_failures and any(c.verdict == "undecided" for c in row.constraints)
    remarks = {
        "the baseline again": row.control, "fails constraint": row.constraint_failures,
        "constraint undecided": is_open, "not comparable": row.identity.violations,
        **{f"{kinds.count(kind)} {kind}" if row.n else kind: True for kind in kinds},
        f"{len(row.missing_seeds)} missing": row.missing_seeds,
        **{f"{states.get(verdict)} {verdict}": verdict in states for verdict in ("throttled", "shared")},
        f"{len(row.busy_seeds)} busy": row.busy_seeds,
    }  # fmt: skip
    return ", ".join(words for words, is_so in remarks.items() if is_so)


_OTHER_SETTINGS = (
    "Optimizers differ in more than the learning rate: beside each stand its other settings, in brackets the "
    "baseline's, and what they do is part of the difference"
)


def other_settings_note(ranking: Ranking) -> list[str]:
    """Optimizers' other settings for a terminal, whose table has no room for them; empty where none differ."""
    settings = [f"{row.option}: {', '.join(row.besides_the_rate)}" for row in ranking.rows if row.besides_the_rate]
    head = "Besides the learning rate, optimizers differ in (the baseline's in brackets): "
    return [head + "; ".join(settings)] if settings else []


def table_notes(ranking: Ranking) -> list[doc.Text]:
    """What the table's figures mean."""
    objective = METRICS[ranking.objective]
    level = f"{units.confidence(ranking.family.alpha)} " if ranking.family else ""
    lines: list[doc.Text] = [
        *_ranked_by(ranking),
        *(f"{note}." for note in ties_note(ranking)),
        *_better_note(ranking),
        ("Figures are geometric means over the completed seeds, ± one standard deviation between seeds. "
        f"{LESS_IS_BETTER}: less is better."),
        ("A ratio to the baseline is the geometric mean of the ratios within the seeds that both completed, with "
        f"its {level}interval. The intervals of {objective.name} and of what a constraint limits hold "
        f"together; any other is for its ratio alone and supports no claim. {units.NOT_MEASURABLE.capitalize()}: "
        f"the interval contains 1 and its ends differ by more than {units.WIDEST:g}x."),
    ]  # fmt: skip
    if dominated := [f"{row.option} {_dominators(row)}" for row in ranking.rows if row.dominated_by]:
        over = "speed, memory, energy and quality, as far as they are known"
        lines.append(f"Dominated over {over}: {'; '.join(dominated)}. {_DOMINATED_NOTE}.")
    if any(row.besides_the_rate for row in ranking.rows):
        lines.append(f"{_OTHER_SETTINGS}.")
    if ranking.memory_kind:
        lines.append(f"Peak memory is {_MEMORY_KINDS[ranking.memory_kind]}.")
    if any(row.scaling for row in ranking.rows):
        lines.append("Efficiency is the speed-up over the baseline, divided by the ratio of their ranks.")
    if ranking.lanes and ranking.lanes.neighbours:
        counts = "not shown to be as alone (Side by side)" if ranking.lanes.withheld else "as alone, as was shown"
        many = f"{ranking.lanes.neighbours} neighbour{'s' * (ranking.lanes.neighbours > 1)}"
        lines.append(f"Speed, energy and time, and memory on a CPU, were measured with {many}: {counts}.")
    lines += [f"{row.option}: {note}." for row in ranking.rows for note in row.notes]
    lines += [f"{line}." for row in ranking.rows for line in _screened_out_lines(row)]
    lines += [f"{note}." for note in _mark_notes(ranking, _metric_names(ranking, "markdown"))]
    return [*lines, (doc.Literally(units.DASH), ": not known.")]


def _ranked_by(ranking: Ranking) -> list[str]:
    """By what the rows are ranked and which of them; empty where none is."""
    if all(row.rank is None for row in ranking.rows):
        return []
    objective = METRICS[ranking.objective]
    among = " among the rows that hold every constraint" if any(row.constraints for row in ranking.rows) else ""
    return [f"Ranked by {objective.name} ({objective.better} is better){among}."]


def _better_note(ranking: Ranking) -> list[doc.Text]:
    """What better means, and which rows are shown to exceed the threshold; empty where nothing was tested."""
    if ranking.family is None or not ranking.family.tests:
        return []
    matters = units.share(ranking.family.thresholds.get(ranking.objective))
    pairs = [(row.option, row.against_baseline) for row in ranking.rows if row.rank and row.against_baseline]
    exceeding = [option for option, pair in pairs if pair.exceeds and pair.decision == "better"]
    who = f"{listed(exceeding)} {'is' if len(exceeding) == 1 else 'are'}" if exceeding else "No row is"
    more = f"{who} shown to be better by more than {matters}"
    means = f"Better means shown to differ from the baseline, with a measured difference above {matters}"
    return [f"{means}; the true difference may be smaller. {more}."]


def ties_note(ranking: Ranking) -> list[str]:
    """What a range of ranks means, by the first row that has one."""
    tied = next((rank_text(row) for row in ranking.rows if row.rank is not None and row.tied_with), None)
    return [] if tied is None else [f"{tied}: tied; its rank may be any from {tied.replace('-', ' to ')}"]


def _mark_notes(ranking: Ranking, names: Sequence[str]) -> list[str]:
    unclean = any(row.metrics[name].unclean for row in ranking.rows for name in names)
    screened_out = any(row.status == "screened_out" for row in ranking.rows)
    causes = [BESIDE] if ranking.lanes and ranking.lanes.withheld else []
    causes += [ELSEWHERE] if ranking.nodes and ranking.nodes.elsewhere else []
    states = ", ".join([*causes, "throttled or shared"])
    return [*([_UNCLEAN_NOTE.format(states)] if unclean else []), *([_BRIEF_NOTE] if screened_out else [])]


def unknown_state_lines(ranking: Ranking) -> list[str]:
    """A line for each cause why the state of GPUs is not known."""
    states = (state for row in ranking.rows if row.gpu for state in row.gpu.by_seed)
    causes = Counter(state.detail for state in states if state.verdict == "unknown")
    return [
        f"The state of the GPUs is not known in {count} trial{'s' * (count > 1)}: {cause}"
        for cause, count in causes.items()
    ]


def constraint_failure_lines(row: Row) -> list[str]:
    """A line for each constraint that the row fails."""
    return [f"{failure.constraint}: {failure.detail}" for failure in row.constraint_failures]


def cause_lines(ranking: Ranking) -> list[str]:
    """One line for each cause why an option is not ranked, or not with all its seeds."""
    lines = []
    for row in ranking.rows:
        lines += violation_lines(row)
        lines += _screened_out_lines(row)
        failures = {f"{f.kind}: {first_line(f.detail, 160)}{note_in_brackets(f)}": None for f in row.failures}
        open_constraints = [c for c in row.constraints if c.verdict in _OPEN_VERDICTS]
        unjudged = [f"{_OPEN_VERDICTS[c.verdict]}: {c.constraint}: {c.detail}" for c in open_constraints]
        causes = (*constraint_failure_lines(row), *failures, *unjudged, *row.notes)
        lines += [f"{one_line(row.option)}: {cause}" for cause in causes]
    return [*lines, *unknown_state_lines(ranking), *_mark_notes(ranking, columns_of("terminal"))]


def _screened_out_lines(row: Row) -> list[str]:
    """The bound by which a row was screened out; empty where it was not."""
    if row.status != "screened_out" or row.screening is None:
        return []
    return [f"{one_line(row.option)}: screened out: {screened_words(row.screening)}"]


def note_in_brackets(failure: Failure) -> str:
    """A failure's note in brackets; '' where it has none."""
    return f" ({one_line(failure.note)})" if failure.note else ""


# The certificates: whether the rows did the same job, in a few plain lines.


def violation_lines(row: Row) -> list[str]:
    """A line for each violation of a row's certificate, and one on how to declare what was meant."""
    lines = [f"{one_line(row.option)}: not the same job: {violation_text(v)}" for v in row.identity.violations]
    to_declare = [v.field for v in row.identity.violations if v.asked is None and v.field in CERTIFIED]
    if row.identity.conventions and to_declare:  # only a script's certificate states conventions
        lines.append(f"If that is what {one_line(row.option)} is about: may_change: [{', '.join(to_declare)}]")
    return lines


def violation_text(violation: Violation) -> str:
    """`attention: asked eager, found sdpa (seed 0)`, or the option's value and the one compared with."""
    option, other = _short_value(violation.option), _short_value(violation.baseline)
    seeds = f"seed{'s' if len(violation.seeds) > 1 else ''} {', '.join(map(str, violation.seeds))}"
    if violation.field == "record":
        return f"its record contradicts itself: {option} ({seeds})"
    if violation.asked is not None:
        return f"{violation.field}: asked {_short_value(violation.asked)}, found {option} ({seeds})"
    return f"{violation.field} is {option}, {other} for {one_line(violation.against)} ({seeds})"


def same_job_lines(ranking: Ranking, *, states_conventions: bool = False) -> list[str]:
    """One line for all rows that are comparable, and one for what was not verified."""
    rows = [r for r in ranking.rows if r.identity.comparable is not False and r.identity.compared_with]
    unverified = _distinct(row.identity.not_verified for row in rows)
    excepted = {
        *(entry.field for entry in unverified),
        *_distinct(row.identity.differs_as_declared for row in rows),
    }
    if not any(row.metrics["final_loss"].value is not None for row in ranking.rows):
        excepted.add("evaluation_set_sha256")
    same = [part for field, part in _JOB_FIELDS.items() if not {field, IDENTITY} & excepted]
    lines = []
    if rows and same:
        opening = "Same job, as far as verified" if unverified else "Same job"
        verb = "is" if len(same) == 1 else "are"
        lines.append(f"{opening}: {_difference_words(ranking, rows)}; {listed(same)} {verb} the same.")
    conventions = dict.fromkeys(entry for row in rows for entry in row.identity.conventions.items())
    if conventions and not states_conventions:
        names = dict.fromkeys(_field_words(name) for name, _ in conventions)
        lines.append(f"Verified under conventions that the report states: {', '.join(names)}.")
    elif conventions:
        words = "; ".join(f"{_field_words(name)}: {convention}" for name, convention in conventions)
        lines.append(f"Verified under a stated convention: {words}.")
    if unverified:
        by_entry = {entry: [row for row in rows if entry in row.identity.not_verified] for entry in unverified}
        words = "; ".join(
            f"{unverified_text(entry, _field_words(entry.field))} ({_listed_names(entry_rows)})"
            for entry, entry_rows in by_entry.items()
        )
        lines.append(f"Not verified: {words}.")
    return lines


def _difference_words(ranking: Ranking, rows: Sequence[Row]) -> str:
    is_part = len(rows) < sum(row.option != ranking.baseline for row in ranking.rows)
    other_rows = "every other comparable row" if is_part else "every other row"
    subject = one_line(rows[0].option) if len(rows) == 1 else other_rows
    references = _distinct(row.identity.compared_with for row in rows)
    against = f"{subject} differs from {listed([one_line(name) for name in references])}"
    fields = _distinct(row.identity.differs_as_declared for row in rows)
    if not fields:
        return f"{against} in nothing that was checked"
    alike = all(row.identity.differs_as_declared == fields for row in rows)
    is_baseline = references == [ranking.baseline]
    dimensions = _distinct([path.partition(".")[0] for path in row.differs_in] for row in rows)
    declared = f" (declared: {', '.join(dimensions)})" if is_baseline else ", as declared"
    words = listed([_field_words(field) for field in fields])
    return f"{against} {'only' if alike else 'at most'} in {words}{declared}"


def unverified_text(entry: NotVerified, name: str | None = None) -> str:
    """`field: reason`, without a reason the field alone; `name` stands for the field."""
    return ": ".join(filter(None, (name or entry.field, entry.reason)))


def _distinct(lists: Iterable[list[Member]]) -> list[Member]:
    return list(dict.fromkeys(member for members in lists for member in members))


def _listed_names(rows: Sequence[Row]) -> str:
    names = [one_line(row.option) for row in rows]
    return listed(names) if len(names) <= _MOST_NAMES else some(names, _MOST_NAMES)


def _field_words(field: str) -> str:
    """An identity field's name as words."""
    return field.removesuffix("_sha256").replace("_", " ")


def _short_value(value: object) -> str:
    """A value of an identity field: the first twelve digits of a digest, a list's members, any other whole."""
    if isinstance(value, list):
        return one_line("+".join(map(str, value))) or "none"
    return value[:12] if isinstance(value, str) and len(value) == 64 else one_line(str(value))
