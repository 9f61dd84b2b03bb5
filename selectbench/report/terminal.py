"""The ranking in a terminal: a table that drops columns where there is no room, then the answer."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selectbench import units
from selectbench.analysis.row import Failure, MetricValue, Ranking, Row
from selectbench.report.escape import first_line, one_line
from selectbench.report.factors import factor_lines
from selectbench.report.figures import against_baseline, figure, known_columns, place, ties_note, unclean_note
from selectbench.report.gpu import unknown_states
from selectbench.report.identity import in_short, not_the_same_job
from selectbench.report.own_best import search_lines
from selectbench.report.score_differences import difference_lines
from selectbench.suite.metrics import METRICS, columns_of

_BY_IMPORTANCE = columns_of("terminal")
_NAME_MOST = 40
_OPEN = {"not_judged": "not judged", "undecided": "undecided"}
_INTERVAL_FROM = 100
"""Columns of a terminal from which the ratio has its interval."""


def print_ranking(console: Console, ranking: Ranking) -> None:
    """Table, causes of what was not ranked, warnings, and the answer last, where the eye ends."""
    title = f"{one_line(ranking.suite)}: {one_line(ranking.question)}" if ranking.question else ranking.suite
    console.print(Text(title, style="bold"))
    console.print(_table(ranking, console.width))
    parts = (ties_note, in_short, notes, _verdicts, difference_lines, factor_lines, search_lines)
    for line in (line for part in parts for line in part(ranking)):
        console.print(Text(line, style="dim"))
    for warning in ranking.warnings:
        console.print(Text(f"warning: {one_line(warning)}", style="yellow"))
    console.print()
    console.print(Text(one_line(ranking.answer), style="bold"))


def _verdicts(ranking: Ranking) -> list[str]:
    """A line for each question whose answer is another option than the first row."""
    best = ranking.rows[0].option if ranking.rows and ranking.rows[0].rank is not None else None
    return [
        f"{found.title}: {one_line(found.sentence)} {one_line(found.confidence)}"
        for found in ranking.verdicts
        if found.option not in (None, best)
    ]


def state(row: Row) -> str:
    """What a row's last column says: nothing where all went well."""
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


def notes(ranking: Ranking) -> list[str]:
    """One line for each cause why an option is not ranked, or not with all its seeds."""
    lines = []
    for row in ranking.rows:
        lines += not_the_same_job(row)
        causes = {f"{f.kind}: {first_line(f.detail, 160)}{_noted(f)}": None for f in row.failures}
        unjudged = [
            f"{_OPEN[c.verdict]}: {c.constraint}: {c.detail}" for c in row.constraints if c.verdict in _OPEN
        ]
        lines += [f"{one_line(row.option)}: {cause}" for cause in (*row.constraint_failures, *causes)]
        lines += [f"{one_line(row.option)}: {cause}" for cause in (*unjudged, *row.notes)]
    return [*lines, *unknown_states(ranking), *unclean_note(ranking, list(_BY_IMPORTANCE))]


def _noted(failure: Failure) -> str:
    return f" ({one_line(failure.note)})" if failure.note else ""


def _table(ranking: Ranking, width: int) -> Table:
    shown = _columns(ranking, width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("option", overflow="fold", min_width=6)
    for name in shown:
        table.add_column(METRICS[name].title, justify="right", no_wrap=True)
        if name == ranking.objective:
            table.add_column(_ratio_heading(ranking), justify="right", no_wrap=True)
    for heading in _beside_ratio(ranking, scaling_headings(ranking)):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    if any(state(row) for row in ranking.rows):
        table.add_column("", overflow="fold")
    for row in ranking.rows:
        table.add_row(*_cells(ranking, row, shown, width)[: len(table.columns)], style=_style(row))
    return table


def _cells(ranking: Ranking, row: Row, shown: list[str], width: int) -> list[Text]:
    cells = [place(row), one_line(row.option, _NAME_MOST)]
    for name in shown:
        metric = row.metrics[name]
        cells.append(figure(name, metric))
        if name == ranking.objective:
            cells.append(_ratio(metric, width))
    cells += _beside_ratio(ranking, scaling_cells(ranking, row))
    return [Text(cell) for cell in (*cells, str(row.n), state(row))]


def _ratio(metric: MetricValue, width: int) -> str:
    return against_baseline(metric) if width >= _INTERVAL_FROM else units.ratio(metric.ratio_to_baseline)


def scaling_headings(ranking: Ranking) -> list[str]:
    """Columns that stand there only where rows have different numbers of ranks."""
    return ["ranks", "speed-up", "efficiency"] if any(row.scaling for row in ranking.rows) else []


def scaling_cells(ranking: Ranking, row: Row) -> list[str]:
    """A row's cells under `scaling_headings`."""
    if row.scaling is None:
        return [units.DASH for _ in scaling_headings(ranking)]
    efficiency = row.scaling.efficiency
    shown = units.DASH if efficiency is None else f"{efficiency:.0%}"
    return [str(row.scaling.world_size), units.ratio(row.scaling.speedup), shown]


def _ratio_heading(ranking: Ranking) -> str:
    return "speed-up" if _ratio_is_speedup(ranking) else "vs base"


def _ratio_is_speedup(ranking: Ranking) -> bool:
    return ranking.objective == "tokens_per_second" and bool(scaling_headings(ranking))


def _beside_ratio(ranking: Ranking, scaling: list[str]) -> list[str]:
    """Without the speed-up where the ratio to the baseline is the same figure: a terminal is narrow."""
    return [scaling[0], scaling[2]] if _ratio_is_speedup(ranking) else scaling


def _style(row: Row) -> str:
    return "bold green" if row.rank == 1 else "" if row.rank else "red" if row.n == 0 else "yellow"


def _columns(ranking: Ranking, width: int) -> list[str]:
    """The objective, then what else is known, in order of importance, as far as there is room."""
    wanted = known_columns(ranking, _BY_IMPORTANCE)
    scaling = _beside_ratio(ranking, scaling_headings(ranking))
    left = width - _fixed_width(ranking, width) - sum(len(heading) + 2 for heading in scaling)
    shown = [ranking.objective]
    left -= _width(ranking, ranking.objective)
    for name in (name for name in wanted if name != ranking.objective):
        left -= _width(ranking, name)
        if left < 0:
            break
        shown.append(name)
    return shown


def _fixed_width(ranking: Ranking, width: int) -> int:
    """Of rank, name, ratio, count and state, with the space between columns; long names and states wrap."""
    rank = max([2, *(len(place(row)) for row in ranking.rows)]) + 2
    name = min(18 if width < 100 else 24, max(len(one_line(row.option, _NAME_MOST)) for row in ranking.rows))
    last = max(len(state(row)) for row in ranking.rows)
    cells = [_ratio(row.metrics[ranking.objective], width) for row in ranking.rows]
    ratio = max(len(_ratio_heading(ranking)), *map(len, cells)) + 2
    return rank + max(8, name + 2) + ratio + 3 + (min(10 if width < 100 else 24, last) + 2 if last else 0)


def _width(ranking: Ranking, name: str) -> int:
    cells = [figure(name, row.metrics[name]) for row in ranking.rows]
    return max(len(METRICS[name].title), *map(len, cells)) + 2
