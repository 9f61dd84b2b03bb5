"""The table of the ranking for every medium, what its figures mean, and what the terminal says below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from selectbench import units
from selectbench.analysis.result import Failure, Ranking, Row
from selectbench.report.document import (
    UNCLEAN_MARK,
    Amount,
    Cell,
    Column,
    Figure,
    Literally,
    NotReached,
    Place,
    Ratio,
    RowKind,
    Seeds,
    Stack,
    Table,
    Text,
    Value,
    first_line,
    one_line,
    shown,
)
from selectbench.report.identity import not_the_same_job
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS, Report, columns_of

_UNCLEAN = (
    f"{UNCLEAN_MARK}: every trial that the figure comes from was throttled or shared; it is shown, and compared "
    "with nothing"
)
_DOMINATED = (
    "Dominated: another option is shown to be better in speed, memory, energy or quality, and is worse in none of "
    "them by more than matters"
)
_MEMORY = {
    "cuda_allocated": "the CUDA allocator's peak of allocated memory while training, and optimizer state in "
    "managed memory, which it does not count",
    "cpu_pss_growth": "the growth of the process's proportional set size up to the first evaluation: "
    "main memory, which says nothing of GPU memory",
}
_OPEN = {"not_judged": "not judged", "undecided": "undecided"}


@dataclass(frozen=True)
class _Made:
    """A column and how its cell follows from a row."""

    column: Column
    cell: Callable[[Row], Cell]


def ranking_table(ranking: Ranking, medium: Report) -> Table:
    """The ranking with the columns of a medium, every metric of it that some row knows."""
    made = list({"markdown": _in_markdown, "page": _on_page, "terminal": _in_terminal}[medium](ranking))
    return Table(
        [one.column for one in made], [[one.cell(row) for one in made] for row in ranking.rows],
        "Every option, the best first", is_sortable=True, kinds=[_kind(row) for row in ranking.rows],
    )  # fmt: skip


def _in_markdown(ranking: Ranking) -> Iterator[_Made]:
    with_ratio = {ranking.objective, *(name for name, metric in METRICS.items() if metric.shows_ratio)}
    yield _place_column(ranking, "left")
    yield _Made(Column("option", names_row=True), lambda row: row.option)
    yield _Made(Column("differs in"), lambda row: _differs(ranking, row))
    yield _Made(Column("seeds"), lambda row: Seeds(row.n, row.planned))
    yield _Made(Column(""), state)
    for name in _metrics(ranking, "markdown"):
        yield _metric_column(name)
        if name in with_ratio:
            yield _ratio_column("vs baseline", name)
    yield from _scaling_columns(ranking)


def _on_page(ranking: Ranking) -> Iterator[_Made]:
    """The comparison and the state stand beside the objective: all else may run over the edge of a screen."""
    yield _place_column(ranking)
    yield _Made(Column("option", names_row=True), lambda row: Stack(row.option, _differs(ranking, row)))
    objective, *others = _metrics(ranking, "page")
    yield _metric_on_page(objective)
    yield _ratio_column("against the baseline", ranking.objective)
    yield _Made(Column("state"), lambda row: Stack(state(row), _dominated(row)))
    yield from map(_metric_on_page, others)
    yield from _scaling_columns(ranking)
    if any(row.to_loss for row in ranking.rows) and ranking.objective != SECONDS_TO_LOSS:
        yield _Made(Column("to the baseline's loss", "right"), lambda row: to_loss(row, "seconds"))
    yield _Made(Column("seeds", "right"), lambda row: Seeds(row.n, row.planned))


def _in_terminal(ranking: Ranking) -> Iterator[_Made]:
    """Few columns: what there is no room for is left out from the end of the metrics."""
    is_speedup = ranking.objective == "tokens_per_second" and any(row.scaling for row in ranking.rows)
    yield _place_column(ranking)
    yield _Made(Column("option", names_row=True), lambda row: row.option)
    objective, *others = _metrics(ranking, "terminal")
    yield _metric_column(objective)
    yield _ratio_column("speed-up" if is_speedup else "vs base", ranking.objective)
    yield from (_metric_column(name, droppable=True) for name in others)
    scaling = list(_scaling_columns(ranking))
    yield from [scaling[0], scaling[2]] if is_speedup else scaling
    yield _Made(Column("n", "right"), lambda row: Seeds(row.n))
    if any(state(row) for row in ranking.rows):
        yield _Made(Column(""), state)


def _place_column(ranking: Ranking, align: Literal["left", "right"] = "right") -> _Made:
    numbers = {row.option: number for number, row in enumerate(ranking.rows, start=1)}
    return _Made(Column("#", align), lambda row: place(row, numbers[row.option]))


def _metric_column(name: str, *, droppable: bool = False) -> _Made:
    metric = METRICS[name]
    column = Column(metric.title, "right", f"{name}; {metric.better} is better", droppable=droppable)
    return _Made(column, lambda row: figure(row, name))


def _metric_on_page(name: str) -> _Made:
    """Where the time to a loss decides, a page has room to say who never got there."""
    made = _metric_column(name)
    return _Made(made.column, lambda row: to_loss(row, "seconds")) if name == SECONDS_TO_LOSS else made


def _ratio_column(heading: str, name: str) -> _Made:
    def ratio(row: Row) -> Ratio:
        found = row.metrics[name]
        return Ratio(found.ratio_to_baseline, found.ratio_low, found.ratio_high)

    return _Made(Column(heading, "right", has_bars=True), ratio)


def _scaling_columns(ranking: Ranking) -> Iterator[_Made]:
    """Only where rows have different numbers of ranks."""
    if not any(row.scaling for row in ranking.rows):
        return
    yield _Made(
        Column("ranks", "right"), lambda r: Amount(r.scaling.world_size if r.scaling else None, units.count)
    )
    yield _Made(Column("speed-up", "right"), lambda row: Ratio(row.scaling.speedup if row.scaling else None))
    yield _Made(
        Column("efficiency", "right"),
        lambda row: Amount(row.scaling.efficiency if row.scaling else None, units.whole_percent),
    )


def _ranks(row: Row) -> Amount:
    return Amount(row.scaling.world_size if row.scaling else None, units.count)


def _metrics(ranking: Ranking, medium: Report) -> list[str]:
    """Those of the catalogue that are known, the objective in any case; not in Markdown it comes first."""
    known = known_columns(ranking, columns_of(medium))
    if medium == "markdown" and ranking.objective in known:
        return known
    return [ranking.objective, *(name for name in known if name != ranking.objective)]


def known_columns(ranking: Ranking, names: Sequence[str]) -> list[str]:
    """Those that some row knows; of what is the same for all rows by nature, only where it is not."""
    values = {name: {row.metrics[name].value for row in ranking.rows} - {None} for name in names}
    per_bytes = {row.metrics["bytes_per_token"].value for row in ranking.rows} - {None}
    apart = len({round(value, 6) for value in per_bytes if value is not None}) > 1
    hidden = set() if apart else {"bytes_per_token"}
    return [name for name in names if values[name] and name not in hidden]


def _kind(row: Row) -> RowKind:
    return "first" if row.rank == 1 else "ranked" if row.rank else "failed" if row.n == 0 else "barred"


def _differs(ranking: Ranking, row: Row) -> str:
    return "baseline" if row.option == ranking.baseline else ", ".join(row.differs_in)


def _dominated(row: Row) -> str:
    return f"dominated by {', '.join(row.dominated_by[:4])}" if row.dominated_by else ""


def place(row: Row, number: int = 0) -> Place:
    """Its rank with those it is tied with; `number`: its own in the table."""
    return Place(number, row.rank, len(row.tied_with))


def figure(row: Row, name: str, *, with_spread: bool = True) -> Figure:
    """A metric of a row."""
    found = row.metrics[name]
    return Figure(name, found.value, found.standard_deviation if with_spread else None, found.unclean)


def to_loss(row: Row, name: str) -> Value:
    """A figure of `to_loss`, or with how many seeds it was not reached."""
    found = row.to_loss
    if found is not None and found.not_reached:
        return NotReached(len(found.not_reached), len(found.reached) + len(found.not_reached))
    show = {"seconds": units.seconds, "tokens": units.count, "joules": units.joules, "usd": units.usd}[name]
    return Amount(getattr(found, name, None), show)


def state(row: Row) -> str:
    """What is to be known of a row beside its figures: nothing where all went well."""
    kinds = [failure.kind for failure in row.failures]
    counted = [f"{kinds.count(kind)} {kind}" if row.n else kind for kind in dict.fromkeys(kinds)]
    if row.missing_seeds:
        counted.append(f"{len(row.missing_seeds)} missing")
    found = row.gpu.states if row.gpu else {}
    counted += [f"{found[verdict]} {verdict}" for verdict in ("throttled", "shared") if verdict in found]
    if row.identity.violations:
        counted.insert(0, "not comparable")
    if row.constraint_failures:
        counted.insert(0, "fails constraint")
    elif any(c.verdict == "undecided" for c in row.constraints):
        counted.insert(0, "constraint undecided")
    if row.control:
        counted.insert(0, "the baseline again")
    return ", ".join(counted)


def table_notes(ranking: Ranking) -> list[Text]:
    """What the table's figures mean."""
    objective = METRICS[ranking.objective]
    lines: list[Text] = [
        f"Ranked by {objective.name} ({objective.better} is better) among the rows that hold every constraint.",
        *(f"{note}." for note in ties_note(ranking)),
        "Figures are means over the completed seeds, ± one standard deviation between seeds.",
        ("A ratio to the baseline is the geometric mean of the ratios within seeds that both completed, with its "
        f"95 % interval: of {objective.name} the one that holds for the whole family of tests, of the others each "
        "by itself, with which nothing is claimed."),
        *_domination(ranking),
    ]  # fmt: skip
    if ranking.memory_kind:
        lines.append(f"Peak memory is {_MEMORY[ranking.memory_kind]}.")
    if any(row.scaling for row in ranking.rows):
        lines.append("Efficiency is the speed-up over the baseline, divided by the ratio of their ranks.")
    lines += [f"{row.option}: {note}." for row in ranking.rows for note in row.notes]
    lines += [f"{note}." for note in _unclean_note(ranking, _metrics(ranking, "markdown"))]
    return [*lines, (Literally(units.DASH), ": not known.")]


def ties_note(ranking: Ranking) -> list[str]:
    """What a range of ranks means, by the first row that has one."""
    tied = next((row for row in ranking.rows if row.rank is not None and row.tied_with), None)
    if tied is None or tied.rank is None:
        return []
    better, others = tied.rank - 1, len(tied.tied_with)
    before = f"{better or 'no'} {'row is' if better == 1 else 'rows are'} shown to be better"
    open_ones = f"{others} {'is' if others == 1 else 'are'} shown to be neither better nor worse"
    return [f"{shown(place(tied))}: {before} and {open_ones}, so its rank may be any of these"]


def _domination(ranking: Ranking) -> list[str]:
    """Rows that another one beats in speed, memory, energy or quality and is worse in none by more than matters."""
    rows = [row for row in ranking.rows if row.dominated_by]
    told = "; ".join(f"{row.option} by {', '.join(row.dominated_by[:4])}" for row in rows)
    over = "speed, memory, energy and quality, as far as they are known"
    return [f"Dominated over {over}: {told}. {_DOMINATED}."] if rows else []


def _unclean_note(ranking: Ranking, names: Sequence[str]) -> list[str]:
    """What the mark means, where one of these figures has it."""
    marked = any(row.metrics[name].unclean for row in ranking.rows for name in names)
    return [_UNCLEAN] if marked else []


def unknown_states(ranking: Ranking) -> list[str]:
    """A line for each cause why the state of GPUs is not known."""
    causes: dict[str, int] = {}
    for row in ranking.rows:
        for found in row.gpu.by_seed if row.gpu else []:
            if found.verdict == "unknown":
                causes[found.detail] = causes.get(found.detail, 0) + 1
    trials = {cause: f"{count} trial{'s' if count > 1 else ''}" for cause, count in causes.items()}
    return [f"The state of the GPUs is not known in {number}: {cause}" for cause, number in trials.items()]


def causes(ranking: Ranking) -> list[str]:
    """One line for each cause why an option is not ranked, or not with all its seeds."""
    lines = []
    for row in ranking.rows:
        lines += not_the_same_job(row)
        failed = {f"{f.kind}: {first_line(f.detail, 160)}{noted(f)}": None for f in row.failures}
        unjudged = [
            f"{_OPEN[c.verdict]}: {c.constraint}: {c.detail}" for c in row.constraints if c.verdict in _OPEN
        ]
        found = (*row.constraint_failures, *failed, *unjudged, *row.notes)
        lines += [f"{one_line(row.option)}: {cause}" for cause in found]
    return [*lines, *unknown_states(ranking), *_unclean_note(ranking, columns_of("terminal"))]


def noted(failure: Failure) -> str:
    """Its note in brackets, or nothing."""
    return f" ({one_line(failure.note)})" if failure.note else ""
