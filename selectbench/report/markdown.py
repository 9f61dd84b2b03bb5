"""report.md: the answer first, then the table, what failed, how it was measured, and on what. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selectbench import units
from selectbench.analysis.row import Ranking, Row
from selectbench.record.record import Record
from selectbench.report.cost import cost_section
from selectbench.report.counting import counting
from selectbench.report.data import cleaning_lines
from selectbench.report.escape import block, first_line, markdown, one_line, table
from selectbench.report.factors import factor_section
from selectbench.report.figures import (
    DOMINATION_NOTE,
    against_baseline,
    figure,
    known_columns,
    place,
    ties_note,
    unclean_note,
)
from selectbench.report.flat import flat
from selectbench.report.gpu import gpu_section
from selectbench.report.identity import in_full
from selectbench.report.learnt import learnt_section
from selectbench.report.memory import device_memory, memory_by_rank
from selectbench.report.method import method
from selectbench.report.own_best import own_best_section
from selectbench.report.terminal import scaling_cells, scaling_headings, state
from selectbench.report.verdicts import to_loss_section, verdict_section
from selectbench.suite.metrics import METRICS, columns_of
from selectbench.suite.suite import Suite

_COLUMNS = columns_of("markdown")
_RATIOS = [name for name, metric in METRICS.items() if metric.shows_ratio]
_DETAIL_LINES = 20


def render(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any], command: str
) -> str:
    """The whole report. `records`: those that count; `command` repeats the run; `environment`: environment.json.

    The same arguments give the same bytes.
    """
    question = [f"Question: {markdown(ranking.question)}"] if ranking.question else []
    sections = [
        f"# {markdown(ranking.suite)}",
        *question,
        f"**{markdown(ranking.answer)}**",
        "## Ranking", ranking_table(ranking), _table_notes(ranking),
        *verdict_section(ranking),
        *learnt_section(ranking, counting(ranking, records)),
        *factor_section(ranking),
        *own_best_section(ranking),
        *to_loss_section(ranking),
        *_section("## Whether it was the same job", in_full(ranking)),
        *device_memory(ranking),
        *memory_by_rank(ranking),
        *gpu_section(ranking),
        *cost_section(suite, ranking),
        *_failures(ranking),
        *_section("## Warnings", ranking.warnings),
        *_section("## The text", cleaning_lines(environment.get("data") or {})),
        "## How it was measured", method(suite, ranking, records, environment),
        "## Run it again", block(command),
        "## Environment", table(["what", "value"], [list(pair) for pair in _flat(environment)], right=2),
        "## Options", _options(suite),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def ranking_table(ranking: Ranking) -> str:
    """The table of the ranking, every metric that some row knows."""
    shown = _shown(ranking)
    ratios = {*_RATIOS, ranking.objective}
    heads = ["#", "option", "differs in", "seeds", ""]
    for name in shown:
        heads += [METRICS[name].title] + (["vs baseline"] if name in ratios else [])
    heads += scaling_headings(ranking)
    rows = [_cells(ranking, row, shown, ratios) + scaling_cells(ranking, row) for row in ranking.rows]
    return table(heads, rows, right=5)


def _shown(ranking: Ranking) -> list[str]:
    known = known_columns(ranking, _COLUMNS)
    return known if ranking.objective in known else [ranking.objective, *known]


def _cells(ranking: Ranking, row: Row, shown: Sequence[str], ratios: set[str]) -> list[str]:
    differs = "baseline" if row.option == ranking.baseline else markdown(", ".join(row.differs_in))
    cells = [place(row), markdown(row.option), differs]
    cells += [f"{row.n} of {row.planned}", state(row)]
    for name in shown:
        metric = row.metrics[name]
        cells.append(figure(name, metric) + _spread(name, metric.standard_deviation))
        cells += [against_baseline(metric)] if name in ratios else []
    return cells


def _spread(name: str, deviation: float | None) -> str:
    """Two digits are enough where the unit is not part of the figure."""
    if deviation is None:
        return ""
    show = METRICS[name].unit.show
    if deviation == 0 or show in (units.count, units.significant):
        return f" ±{units.significant(deviation, 2)}"
    return f" ±{show(deviation)}"


def _table_notes(ranking: Ranking) -> str:
    objective = METRICS[ranking.objective]
    kind = {
        "cuda_allocated": "the CUDA allocator's peak of allocated memory while training, and optimizer state in "
        "managed memory, which it does not count",
        "cpu_pss_growth": "the growth of the process's proportional set size up to the first evaluation: "
        "main memory, which says nothing of GPU memory",
    }
    lines = [
        f"Ranked by {objective.name} ({objective.better} is better) among the rows that hold every constraint.",
        *(f"{note}." for note in ties_note(ranking)),
        "Figures are means over the completed seeds, ± one standard deviation between seeds.",
        (
            '"vs baseline" is the geometric mean of the ratios within seeds that both completed, with its 95 % '
            "interval: "
            f"of {objective.name} the one that holds for the whole family of tests, of the others each by "
            "itself, with "
            "which nothing is claimed."
        ),
        *_domination(ranking),
    ]
    if ranking.memory_kind:
        lines.append(f"Peak memory is {kind[ranking.memory_kind]}.")
    if scaling_headings(ranking):
        lines.append("Efficiency is the speed-up over the baseline, divided by the ratio of their ranks.")
    lines += [f"{markdown(row.option)}: {markdown(note)}." for row in ranking.rows for note in row.notes]
    lines += [f"{note}." for note in unclean_note(ranking, _shown(ranking))]
    lines += [f"`{units.DASH}`: not known."]
    return "\n".join(f"- {line}" for line in lines)


def _domination(ranking: Ranking) -> list[str]:
    """Rows that another one beats in speed, memory, energy or quality and is worse in none by more than matters."""
    rows = [row for row in ranking.rows if row.dominated_by]
    told = "; ".join(f"{markdown(row.option)} by {markdown(', '.join(row.dominated_by[:4]))}" for row in rows)
    over = "speed, memory, energy and quality, as far as they are known"
    return [f"Dominated over {over}: {told}. {DOMINATION_NOTE}."] if rows else []


def _failures(ranking: Ranking) -> Iterator[str]:
    """Rows that fail constraints, then every failed trial with its detail."""
    barred = [[markdown(row.option), markdown(why)] for row in ranking.rows for why in _why_not(row)]
    failed = [(row.option, failure) for row in ranking.rows for failure in row.failures]
    if barred:
        yield "## Not eligible"
        yield table(["option", "why"], barred, right=2)
    if not failed:
        return
    yield "## Failed trials"
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for name, f in failed:
        note = f" ({f.note})" if f.note else ""
        detail = markdown(first_line(f.detail, 200) + note)
        seeds.setdefault((markdown(name), f.kind, detail), []).append(str(f.seed))
    rows = [[name, ", ".join(numbers), kind, detail] for (name, kind, detail), numbers in seeds.items()]
    yield table(["option", "seeds", "kind", "detail"], rows, right=4)
    for text in dict.fromkeys(f.detail for _, f in failed if one_line(f.detail) != first_line(f.detail, 200)):
        names = dict.fromkeys(f"{markdown(name)}, seed {f.seed}" for name, f in failed if f.detail == text)
        yield f"In full: {'; '.join(names)}"
        yield block("\n".join(text.strip().splitlines()[-_DETAIL_LINES:]))


def _why_not(row: Row) -> list[str]:
    """Constraints that it fails, and those that are undecided."""
    undecided = [f"undecided: {c.constraint}: {c.detail}" for c in row.constraints if c.verdict == "undecided"]
    return [*row.constraint_failures, *undecided]


def _section(heading: str, lines: Sequence[str]) -> list[str]:
    return [heading, "\n".join(f"- {markdown(line)}" for line in lines)] if lines else []


def _flat(value: object) -> Iterator[tuple[str, str]]:
    """A nested mapping as dotted paths and values, escaped."""
    return ((markdown(path), markdown(told)) for path, told in flat(value))


def _options(suite: Suite) -> str:
    """Every setting of every option: a column each where options differ, the shared ones once."""
    settings = {option.name: dict(_flat(option.choices.model_dump(mode="json"))) for option in suite.options}
    paths = list(dict.fromkeys(path for found in settings.values() for path in found))
    differing = [path for path in paths if len({found.get(path) for found in settings.values()}) > 1]
    shared = [[path, settings[suite.options[0].name][path]] for path in paths if path not in differing]
    own = [
        [markdown(name), *(found.get(path, units.DASH) for path in differing)] for name, found in settings.items()
    ]
    tables = [table(["option", *differing], own, right=1 + len(differing))] if differing else []
    return "\n\n".join([*tables, "Every option:", table(["setting", "value"], shared, right=2)])
