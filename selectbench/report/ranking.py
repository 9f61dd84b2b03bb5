"""The ranking for every medium: its table, what the figures mean, what bars rows, whether they did the same job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from selectbench import units
from selectbench.analysis.lanes import BESIDE, ELSEWHERE
from selectbench.analysis.result import Certificate, Failure, MetricValue, Ranking, Reference, Row, Violation
from selectbench.analysis.screening import ratio_to_baseline, screened_words
from selectbench.analysis.summary import mean
from selectbench.report import document as doc
from selectbench.suite.command import CERTIFIED
from selectbench.suite.metrics import LESS_IS_BETTER, METRICS, SECONDS_TO_LOSS, Report, columns_of
from selectbench.text import first_line, listed, one_line

_UNCLEAN = (
    doc.UNCLEAN_MARK + ": every trial that the figure comes from was {}; it is shown, and compared with nothing"
)
_BRIEF = doc.BRIEF_MARK + (
    ": screened out before the contest: the mean of two short trials, and its ratio to the worse one of the "
    "baseline's two. No claim rests on it, and its tests count among those of the family as if it had run"
)
_DOMINATED = (
    "Dominated: another option is shown to be better in speed, memory, energy or quality, and to be worse in none "
    "of them by more than matters"
)
_MEMORY = {
    "cuda_allocated": "the CUDA allocator's peak of allocated memory while training, and optimizer state in "
    "managed memory, which it does not count",
    "cpu_pss_growth": "the growth of the process's proportional set size up to the first evaluation: "
    "main memory, which says nothing of GPU memory",
}
_OPEN = {"not_judged": "not judged", "undecided": "undecided"}
_TO_LOSS = {"seconds": units.seconds, "tokens": units.count, "joules": units.joules, "usd": units.usd}
_THE_JOB = {
    "initial_weights_sha256": "weights", "token_stream_sha256": "tokens", "evaluation_set_sha256": "evaluation set",
    "learning_rate_shape_sha256": "schedule", "steps_applied": "step count",
}  # fmt: skip
"""What a reader calls the job, by identity field."""
_MOST_NAMES = 12
_NAME_ROOM, _NAME_MOST = 28, 120
"""Characters of a name in the page's table, from which all are shortened, and at most."""
_Made = tuple[doc.Column, Callable[[Row], doc.Cell]]
"""A column and how its cell follows from a row."""


def ranking_table(ranking: Ranking, medium: Report) -> doc.Table:
    """The ranking with the columns of a medium, every metric of it that some row knows."""
    made = {"markdown": _in_markdown, "page": _on_page, "terminal": _in_terminal}[medium](ranking)
    return doc.Table(
        [column for column, _ in made], [[cell(row) for _, cell in made] for row in rows_of(ranking)],
        "Every option, the best first", is_sortable=True, kinds=[_kind(row) for row in rows_of(ranking)],
    )  # fmt: skip


NOT_TRAINED = "reference, not trained here"


def rows_of(ranking: Ranking) -> list[Row]:
    """The options, and below them models behind an API, of which nothing but scores is known."""
    nothing = MetricValue(value=None, ratio_to_baseline=None, standard_deviation=None, n=0)
    unknown = Certificate(comparable=None, compared_with=[], differs_as_declared=[], violations=[], not_verified=[])
    names = ranking.rows[0].metrics if ranking.rows else METRICS
    return [*ranking.rows, *(
        Row(
            option=found.name, rank=None, status="reference", n=0, planned=0, missing_seeds=[], differs_in=[],
            eligible=False, constraints=[], constraint_failures=[], identity=unknown, notes=[], memory=None,
            scaling=None, failures=[], metrics={**dict.fromkeys(names, nothing), **{
                name: nothing.model_copy(update={"value": value}) for name, value in figures_of(found).items()
            }},
        )
        for found in ranking.references
    )]  # fmt: skip


def figures_of(found: Reference) -> dict[str, float]:
    """A reference's figures of quality, by metric."""
    bits = {} if found.bits_per_byte is None else {"bits_per_byte": found.bits_per_byte}
    return {name: score.value for name, score in found.scores.items()} | bits


def reference_words(found: Reference) -> list[str]:
    """What is to be known of a reference beside its figures."""
    unfinished = f"{found.answered} of {found.sentences} answered, so it has no scores: {found.incomplete}"
    refused = found.refused and f"{found.sentences - found.answered} of {found.sentences} refused, scored as empty"
    return [
        *([unfinished] if found.incomplete else []), *([found.no_bits] if found.no_bits else []),
        *([f"{refused} ({found.refused})"] if refused and not found.incomplete else []),
        *([f"answers without any text, scored as they are: {found.empty}"] if found.empty else []),
        *([f"answers cut at max_tokens, scored as they are: {found.cut}"] if found.cut else []),
        *([f"requests without an answer may have cost {units.usd(found.lost_usd)} more"] if found.lost_usd else []),
    ]  # fmt: skip


def _kind(row: Row) -> doc.RowKind:
    if row.status == "reference":
        return "reference"
    if row.rank is not None:
        return "first" if row.rank == 1 else "ranked"
    if row.n == 0 and row.status != "screened_out":
        return "failed"
    is_open = any(c.verdict == "undecided" for c in row.constraints)
    return "undecided" if is_open and not row.constraint_failures else "barred"


def _in_markdown(ranking: Ranking) -> list[_Made]:
    made: list[_Made] = [
        (doc.Column("#"), _place_cell(ranking)),
        (doc.Column("option", names_row=True), lambda row: row.option),
        (doc.Column("differs in"), lambda row: _differs(ranking, row)),
        (doc.Column("seeds"), _seeds),
        (doc.Column(""), state),
    ]
    for name in _metrics(ranking, "markdown"):
        made.append(_metric_column(name))
        if name == ranking.objective or METRICS[name].shows_ratio:
            made.append(_ratio_column(ranking, "vs baseline", name))
    return [*made, *_scaling_columns(ranking)]


def _on_page(ranking: Ranking) -> list[_Made]:
    """The comparison and the state stand beside the objective: all else may run over the edge of a screen."""
    objective, *others = (_metric_column(name, says_not_reached=True) for name in _metrics(ranking, "page"))
    others += _scaling_columns(ranking)
    if ranking.objective != SECONDS_TO_LOSS and any(row.to_loss for row in ranking.rows):
        others.append((doc.Column("to the baseline's loss", "right"), lambda row: to_loss(row, "seconds")))
    short, _ = page_names(ranking)

    def is_dominated(row: Row) -> str:
        return f"dominated {_dominators(row, short)}" if row.dominated_by else ""

    return [
        (doc.Column("#", "right"), _place_cell(ranking)),
        (
            doc.Column("option", names_row=True),
            lambda row: doc.Stack(short[one_line(row.option)], _differs(ranking, row)),
        ),
        objective,
        _ratio_column(ranking, "against the baseline", ranking.objective),
        (doc.Column("state"), lambda row: doc.Stack(state(row), is_dominated(row))),
        *others,
        (doc.Column("seeds", "right"), _seeds),
    ]


def _in_terminal(ranking: Ranking) -> list[_Made]:
    """Few columns: what there is no room for is left out from the end of the metrics."""
    scaling = _scaling_columns(ranking)
    is_speedup = ranking.objective == "tokens_per_second" and bool(scaling)
    objective, *others = _metrics(ranking, "terminal")
    states: list[_Made] = [(doc.Column(""), state)] if any(state(row) for row in rows_of(ranking)) else []
    return [
        (doc.Column("#", "right"), _place_cell(ranking)),
        (doc.Column("option", names_row=True), lambda row: row.option),
        _metric_column(objective),
        _ratio_column(ranking, "speed-up" if is_speedup else "vs base", ranking.objective),
        *(_metric_column(name, droppable=True) for name in others),
        *([scaling[0], scaling[2]] if is_speedup else scaling),
        (doc.Column("n", "right"), lambda row: "" if row.status == "reference" else doc.Amount(row.n, str)),
        *states,
    ]


def _seeds(row: Row) -> doc.Cell:
    """Of a reference there are none."""
    return "" if row.status == "reference" else doc.Amount(row.n, lambda done: f"{done} of {row.planned}")


def _place_cell(ranking: Ranking) -> Callable[[Row], doc.Cell]:
    numbers = {row.option: number for number, row in enumerate(rows_of(ranking), start=1)}
    return lambda row: doc.Amount(numbers[row.option], lambda _: place(row))


def _metric_column(name: str, *, droppable: bool = False, says_not_reached: bool = False) -> _Made:
    """`says_not_reached`: whether there is room to say who never got to a loss."""
    metric, is_told = METRICS[name], says_not_reached and name == SECONDS_TO_LOSS
    column = doc.Column(metric.heading, "right", f"{name}; {metric.better} is better", droppable=droppable)
    return column, lambda row: to_loss(row, "seconds") if is_told else figure(row, name)


def _ratio_column(ranking: Ranking, heading: str, name: str) -> _Made:
    base = value_of(ranking, ranking.baseline, name)

    def ratio(row: Row) -> doc.Ratio:
        if row.screening and row.screening.screened_out:
            ratios = (ratio_to_baseline(bound) for bound in row.screening.bounds if bound.metric == name)
            if (brief := next((found for found in ratios if found is not None), None)) is not None:
                return doc.Ratio(brief, is_brief=True)
        found = row.metrics[name]
        return doc.Ratio(found.ratio_to_baseline, found.ratio_low, found.ratio_high, name, base)

    return doc.Column(heading, "right", has_bars=True), ratio


def value_of(ranking: Ranking, option: str, name: str) -> float | None:
    """An option's figure."""
    return next((row.metrics[name].value for row in ranking.rows if row.option == option), None)


def _scaling_columns(ranking: Ranking) -> list[_Made]:
    """Only where rows have different numbers of ranks."""
    if not any(row.scaling for row in ranking.rows):
        return []
    percent = units.whole_percent
    return [
        (doc.Column("ranks", "right"), lambda r: doc.Amount(getattr(r.scaling, "world_size", None), units.count)),
        (doc.Column("speed-up", "right"), lambda r: doc.Ratio(getattr(r.scaling, "speedup", None))),
        (doc.Column("efficiency", "right"), lambda r: doc.Amount(getattr(r.scaling, "efficiency", None), percent)),
    ]


def _metrics(ranking: Ranking, medium: Report) -> list[str]:
    """Those of the catalogue that are known, the objective in any case; not in Markdown it comes first."""
    own = [name for name in (ranking.rows[0].metrics if ranking.rows else ()) if name not in METRICS]
    known = known_columns(ranking, [*own, *columns_of(medium)])
    if medium == "markdown" and ranking.objective in known:
        return known
    return [ranking.objective, *(name for name in known if name != ranking.objective)]


def known_columns(ranking: Ranking, names: Sequence[str]) -> list[str]:
    """Those that some row knows; of what is the same for all rows by nature, only where it is not."""
    values = {name: {row.metrics[name].value for row in ranking.rows} - {None} for name in names}
    per_bytes = {row.metrics["bytes_per_token"].value for row in ranking.rows} - {None}
    apart = len({round(value, 6) for value in per_bytes if value is not None}) > 1
    return [name for name in names if values[name] and (apart or name != "bytes_per_token")]


def _differs(ranking: Ranking, row: Row) -> str:
    parts = (", ".join(row.differs_in), ", ".join(row.besides_the_rate))
    return "baseline" if row.option == ranking.baseline else "; ".join(filter(None, parts))


def page_names(ranking: Ranking) -> tuple[dict[str, str], str]:
    """Options' names where a page has little room."""
    return doc.labels([row.option for row in rows_of(ranking)], _NAME_ROOM, _NAME_MOST)


def _dominators(row: Row, short: Mapping[str, str] | None = None) -> str:
    """`by a, b`, of four."""
    return f"by {', '.join(short[one_line(name)] if short else name for name in row.dominated_by[:4])}"


def place(row: Row) -> str:
    """Its rank, or all that it may be: tied options may stand in either order."""
    if row.rank is None:
        return units.DASH
    return f"{row.rank}-{row.rank + len(row.tied_with)}" if row.tied_with else str(row.rank)


def figure(row: Row, name: str, *, with_spread: bool = True) -> doc.Figure:
    """A metric of a row; of one that was screened out what its short trials tell."""
    if row.screening and row.screening.screened_out:
        values = [trial.figures.get(name) for trial in row.screening.trials]
        value = mean([value for value in values if value is not None])
        return doc.Figure(name, value, is_brief=value is not None)
    found = row.metrics[name]
    return doc.Figure(name, found.value, found.standard_deviation if with_spread else None, found.unclean)


def to_loss(row: Row, name: str) -> doc.Value:
    """A figure of `to_loss`, or with how many seeds it was not reached."""
    found = row.to_loss
    if found is not None and found.not_reached:
        missed, seeds = len(found.not_reached), len(found.reached) + len(found.not_reached)
        return doc.Amount(None, lambda _: f"not reached with {missed} of {seeds} seeds", is_words=True)
    return doc.Amount(getattr(found, name, None), _TO_LOSS[name])


def state(row: Row) -> str:
    """What is to be known of a row beside its figures: nothing where all went well."""
    if row.status in ("screened_out", "reference"):
        return "screened out" if row.status == "screened_out" else NOT_TRAINED
    kinds, states = [failure.kind for failure in row.failures], row.gpu.states if row.gpu else {}
    is_open = not row.constraint_failures and any(c.verdict == "undecided" for c in row.constraints)
    told = {
        "the baseline again": row.control, "fails constraint": row.constraint_failures,
        "constraint undecided": is_open, "not comparable": row.identity.violations,
        **{f"{kinds.count(kind)} {kind}" if row.n else kind: True for kind in kinds},
        f"{len(row.missing_seeds)} missing": row.missing_seeds,
        **{f"{states.get(verdict)} {verdict}": verdict in states for verdict in ("throttled", "shared")},
        f"{len(row.busy_seeds)} busy": row.busy_seeds,
    }  # fmt: skip
    return ", ".join(words for words, is_so in told.items() if is_so)


_BESIDES = (
    "Optimizers differ in more than the learning rate: beside each stand its other settings, in brackets the "
    "baseline's, and what they do is part of the difference"
)


def besides_note(ranking: Ranking) -> list[str]:
    """For a terminal, whose table has no room for it; nothing where no optimizer differs so."""
    own = [f"{row.option}: {', '.join(row.besides_the_rate)}" for row in ranking.rows if row.besides_the_rate]
    head = "Besides the learning rate, optimizers differ in (the baseline's in brackets): "
    return [head + "; ".join(own)] if own else []


def table_notes(ranking: Ranking) -> list[doc.Text]:
    """What the table's figures mean."""
    objective = METRICS[ranking.objective]
    level = f"{units.confidence(ranking.family.alpha)} " if ranking.family else ""
    lines: list[doc.Text] = [
        f"Ranked by {objective.name} ({objective.better} is better) among the rows that hold every constraint.",
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
        lines.append(f"Dominated over {over}: {'; '.join(dominated)}. {_DOMINATED}.")
    if any(row.besides_the_rate for row in ranking.rows):
        lines.append(f"{_BESIDES}.")
    if ranking.memory_kind:
        lines.append(f"Peak memory is {_MEMORY[ranking.memory_kind]}.")
    if any(row.scaling for row in ranking.rows):
        lines.append("Efficiency is the speed-up over the baseline, divided by the ratio of their ranks.")
    if ranking.lanes and ranking.lanes.neighbours:
        counts = "not shown to be as alone (Side by side)" if ranking.lanes.withheld else "as alone, as was shown"
        many = f"{ranking.lanes.neighbours} neighbour{'s' * (ranking.lanes.neighbours > 1)}"
        lines.append(f"Speed, energy and time, and memory on a CPU, were measured with {many}: {counts}.")
    lines += [f"{row.option}: {note}." for row in ranking.rows for note in row.notes]
    lines += [f"{line}." for row in ranking.rows for line in _screened(row)]
    lines += [f"{note}." for note in _mark_notes(ranking, _metrics(ranking, "markdown"))]
    return [*lines, (doc.Literally(units.DASH), ": not known.")]


def _better_note(ranking: Ranking) -> list[doc.Text]:
    """What better means, and of whom more is shown; nothing where nothing was tested."""
    if ranking.family is None or not ranking.family.tests:
        return []
    matters = units.share(ranking.family.thresholds.get(ranking.objective))
    pairs = [(row.option, row.against_baseline) for row in ranking.rows if row.rank and row.against_baseline]
    shown = [option for option, pair in pairs if pair.exceeds and pair.decision == "better"]
    more = f"Shown to exceed {matters}, too: {listed(shown)}"
    more = more if shown else f"Of no row is it shown to exceed {matters}"
    means = f"Better means shown to differ from the baseline, with a measured difference above {matters}"
    return [f"{means}; the true difference may be smaller. {more}."]


def ties_note(ranking: Ranking) -> list[str]:
    """What a range of ranks means, by the first row that has one."""
    tied = next((place(row) for row in ranking.rows if row.rank is not None and row.tied_with), None)
    return [] if tied is None else [f"{tied}: tied; its rank may be any from {tied.replace('-', ' to ')}"]


def _mark_notes(ranking: Ranking, names: Sequence[str]) -> list[str]:
    unclean = any(row.metrics[name].unclean for row in ranking.rows for name in names)
    screened_out = any(row.status == "screened_out" for row in ranking.rows)
    causes = [BESIDE] if ranking.lanes and ranking.lanes.withheld else []
    causes += [ELSEWHERE] if ranking.nodes and ranking.nodes.elsewhere else []
    how = ", ".join([*causes, "throttled or shared"])
    return [*([_UNCLEAN.format(how)] if unclean else []), *([_BRIEF] if screened_out else [])]


def unknown_states(ranking: Ranking) -> list[str]:
    """A line for each cause why the state of GPUs is not known."""
    states = (state for row in ranking.rows if row.gpu for state in row.gpu.by_seed)
    causes = Counter(state.detail for state in states if state.verdict == "unknown")
    return [
        f"The state of the GPUs is not known in {count} trial{'s' * (count > 1)}: {cause}"
        for cause, count in causes.items()
    ]


def causes(ranking: Ranking) -> list[str]:
    """One line for each cause why an option is not ranked, or not with all its seeds."""
    lines = []
    for row in ranking.rows:
        lines += not_the_same_job(row)
        lines += _screened(row)
        failed = {f"{f.kind}: {first_line(f.detail, 160)}{note_in_brackets(f)}": None for f in row.failures}
        open_ones = [c for c in row.constraints if c.verdict in _OPEN]
        unjudged = [f"{_OPEN[c.verdict]}: {c.constraint}: {c.detail}" for c in open_ones]
        found = (*row.constraint_failures, *failed, *unjudged, *row.notes)
        lines += [f"{one_line(row.option)}: {cause}" for cause in found]
    return [*lines, *unknown_states(ranking), *_mark_notes(ranking, columns_of("terminal"))]


def _screened(row: Row) -> list[str]:
    """By which bound a row was screened out; nothing where it was not."""
    if row.status != "screened_out" or row.screening is None:
        return []
    return [f"{one_line(row.option)}: screened out: {screened_words(row.screening)}"]


def note_in_brackets(failure: Failure) -> str:
    """Its note in brackets, or nothing."""
    return f" ({one_line(failure.note)})" if failure.note else ""


# Whether the rows did the same job, in a few plain lines.


def not_the_same_job(row: Row) -> list[str]:
    """A line for each violation: field and both values."""
    lines = [f"{one_line(row.option)}: not the same job: {violation_text(v)}" for v in row.identity.violations]
    meant = [v.field for v in row.identity.violations if v.asked is None and v.field in CERTIFIED]
    if row.identity.conventions and meant:  # of a script
        lines.append(f"If that is what {one_line(row.option)} is about: may_change: [{', '.join(meant)}]")
    return lines


def violation_text(violation: Violation) -> str:
    """`attention: asked eager, found sdpa (seed 0)`, or the option's value and the one compared with."""
    option, other = _brief(violation.option), _brief(violation.baseline)
    seeds = f"seed{'s' if len(violation.seeds) > 1 else ''} {', '.join(map(str, violation.seeds))}"
    if violation.field == "record":
        return f"its record contradicts itself: {option} ({seeds})"
    if violation.asked is not None:
        return f"{violation.field}: asked {_brief(violation.asked)}, found {option} ({seeds})"
    return f"{violation.field} is {option}, {other} for {one_line(violation.against)} ({seeds})"


def same_job(ranking: Ranking, *, states_conventions: bool = False) -> list[str]:
    """One line for all rows that are comparable, and one for what was not verified."""
    rows = [r for r in ranking.rows if r.identity.comparable is not False and r.identity.compared_with]
    hidden = _united(row.identity.not_verified for row in rows)
    others = {*hidden, *_united(row.identity.differs_as_declared for row in rows)}
    if not any(row.metrics["final_loss"].value is not None for row in ranking.rows):
        others.add("evaluation_set_sha256")
    is_known = not any(entry.startswith("identity:") for entry in others)
    same = [part for field, part in _THE_JOB.items() if is_known and field not in others]
    lines = []
    if rows and same:
        opening = "Same job, as far as verified" if hidden else "Same job"
        verb = "is" if len(same) == 1 else "are"
        lines.append(f"{opening}: {_difference(ranking, rows)}; {listed(same)} {verb} the same.")
    conventions = dict.fromkeys(entry for row in rows for entry in row.identity.conventions.items())
    if conventions and not states_conventions:
        names = dict.fromkeys(_field_words(name) for name, _ in conventions)
        lines.append(f"Verified under conventions that the report states: {', '.join(names)}.")
    elif conventions:
        said = "; ".join(f"{_field_words(name)}: {convention}" for name, convention in conventions)
        lines.append(f"Verified under a stated convention: {said}.")
    if hidden:
        by_entry = {entry: [row for row in rows if entry in row.identity.not_verified] for entry in hidden}
        said = "; ".join(f"{_field_words(entry)} ({_names(of_entry)})" for entry, of_entry in by_entry.items())
        lines.append(f"Not verified: {said}.")
    return lines


def _difference(ranking: Ranking, rows: Sequence[Row]) -> str:
    is_part = any(row.identity.comparable is False for row in ranking.rows)
    every = "every other comparable row" if is_part else "every other row"
    who = one_line(rows[0].option) if len(rows) == 1 else every
    references = _united(row.identity.compared_with for row in rows)
    against = f"{who} differs from {listed([one_line(name) for name in references])}"
    fields = _united(row.identity.differs_as_declared for row in rows)
    if not fields:
        return f"{against} in nothing that was checked"
    alike = all(row.identity.differs_as_declared == fields for row in rows)
    is_baseline = references == [ranking.baseline]
    declared = f" (declared: {', '.join(_dimensions(rows))})" if is_baseline else ", as declared"
    words = listed([_field_words(field) for field in fields])
    return f"{against} {'only' if alike else 'at most'} in {words}{declared}"


def _dimensions(rows: Sequence[Row]) -> list[str]:
    return _united([path.partition(".")[0] for path in row.differs_in] for row in rows)


def _united(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(member for members in lists for member in members))


def _names(rows: Sequence[Row]) -> str:
    names = [one_line(row.option) for row in rows]
    more = len(names) - _MOST_NAMES
    return listed(names) if more <= 0 else f"{', '.join(names[:_MOST_NAMES])} and {more} more"


def _field_words(entry: str) -> str:
    """A field's name as words; a reason stays."""
    name, colon, reason = entry.partition(":")
    return name.removesuffix("_sha256").replace("_", " ") + colon + reason


def _brief(value: object) -> str:
    """Digests by their first twelve digits, lists by their members, the rest whole."""
    if isinstance(value, list):
        return one_line("+".join(map(str, value))) or "none"
    return value[:12] if isinstance(value, str) and len(value) == 64 else one_line(str(value))
