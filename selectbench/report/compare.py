"""Runs against each other, for a terminal and as Markdown: `compare` with every change, `gate` with its verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from selectbench import units
from selectbench.analysis.gate import Change, Check, Compared, Differing, Gate
from selectbench.report.document import (
    Amount,
    Block,
    Cell,
    Column,
    Figure,
    Listing,
    Paragraph,
    Ratio,
    Table,
    one_line,
)
from selectbench.report.markdown import escape, render_blocks
from selectbench.report.terminal import rich_table
from selectbench.suite.metrics import METRICS

_GATE_STYLES = {"pass": "green", "regression": "bold red", "inconclusive": "yellow"}
_GATE_HEADS = ["option", "limit", "verdict", "found"]
_MOST = 25
_HEADS = ("option", "metric", "reference", "run", "change", "verdict", "seeds")
_WORDED = ("option", "metric", "verdict")
_WORDS = {"better": "better", "worse": "worse", "no_difference": "no difference", "undecided": "undecided"}
MEANS = "Reference and run are geometric means over their common seeds: their ratio is the change"
_STYLES = {"better": "green", "worse": "bold red", "undecided": "yellow", "no_difference": ""}


def print_compared(console: Console, compared: Compared) -> None:
    """The differences around the runs, the table, and a line that sums it up last."""
    console.print(Text(f"{one_line(compared.run)} against {one_line(compared.reference)}", style="bold"))
    for line in _around(compared):
        console.print(Text(line, style="dim"))
    for note in compared.notes:
        console.print(Text(f"note: {one_line(note)}", style="yellow"))
    styles = [_STYLES[change.decision] for change in compared.changes]
    console.print(rich_table(_table(compared), styles))
    console.print(Text(MEANS, style="dim"))
    console.print(Text(summary(compared), style="bold"))


def _around(compared: Compared) -> list[str]:
    lines = []
    for name, found in (("suite", compared.suite), ("environment", compared.environment)):
        lines += [f"{name}: nothing differs"] if not found else []
        lines += [f"{name}: {_told(differing)}" for differing in found[:_MOST]]
        lines += [f"{name}: and {len(found) - _MOST} more"] if len(found) > _MOST else []
    for name, why in compared.lost.items():
        lines.append(f"lost: {one_line(name)} completed in the reference and not in the run ({why})")
    for words, names in (
        ("only in the reference", compared.only_in_reference),
        ("only in the run", compared.only_in_run),
    ):
        lines += [f"{words}: {one_line(', '.join(names))}"] if names else []
    return lines


def _told(differing: Differing) -> str:
    before, after = (units.DASH if v is None else one_line(v, 120) for v in (differing.reference, differing.run))
    return f"{one_line(differing.path)}: {before} -> {after}"


def _table(compared: Compared) -> Table:
    columns = [Column(head, "left" if head in _WORDED else "right") for head in _HEADS]
    return Table(columns, [_cells(change) for change in compared.changes], "Every change")


def _cells(change: Change) -> list[Cell]:
    verdict = _WORDS[change.decision] if change.p_adjusted is not None else _untested(change)
    return [
        one_line(change.option, 40), METRICS[change.metric].title, Figure(change.metric, change.reference),
        Figure(change.metric, change.run), Ratio(change.ratio, change.low, change.high), verdict,
        Amount(change.seeds, units.count),
    ]  # fmt: skip


def _untested(change: Change) -> str:
    return "one seed, no spread" if change.seeds < 2 else "shown only"


def _ratio(change: Change) -> str:
    return units.ratio_with_range(change.ratio, change.low, change.high)


def summary(compared: Compared) -> str:
    """`2 worse, 1 better, 5 undecided of 12 tested changes`."""
    lost = [f"{one_line(name, 40)} ({why})" for name, why in compared.lost.items()]
    gone = f"completed in the reference and not here: {', '.join(lost)}; " if lost else ""
    tested = [change for change in compared.changes if change.p_adjusted is not None]
    if not tested and not compared.changes:
        return f"{gone}nothing to compare: no option has a figure in both runs."
    if not tested:
        return f"{gone}nothing could be tested: one seed tells no spread."
    counts = {kind: sum(change.decision == kind for change in tested) for kind in ("worse", "better", "undecided")}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    worst = [
        f"{one_line(c.option, 40)} {METRICS[c.metric].title} {_ratio(c)}" for c in tested if c.decision == "worse"
    ]
    return f"{gone}{told or 'no change that matters'} of {len(tested)} tested changes" + (
        f"; worse: {'; '.join(worst)}" if worst else ""
    )


def compare_markdown(comparisons: Sequence[Compared]) -> str:
    """All of it to paste into an issue."""
    parts: list[str] = []
    for compared in comparisons:
        title = f"# {escape(compared.run)} against {escape(compared.reference)}"
        around = Listing([*_around(compared), *compared.notes])
        blocks: list[Block] = [Paragraph(summary(compared), is_strong=True), around, _table(compared)]
        parts += [title, render_blocks(blocks)]
    told = (
        f"{MEANS}, with an interval that holds for all tested changes together; p are adjusted by Holm, and a "
        "change must also be larger than the metric's threshold. "
        "What differs between whole runs, such as the day, is part of the change."
    )
    return "\n\n".join([*parts, told]) + "\n"


def print_gate(console: Console, gate: Gate) -> None:
    """The checks, worst first, and the verdict last."""
    console.print(rich_table(_gate_table(gate), [_GATE_STYLES[check.verdict] for check in _worst_first(gate)]))
    for note in gate.notes:
        console.print(Text(f"note: {one_line(note)}", style="yellow"))
    console.print(Text(verdict_line(gate), style="bold"))


def verdict_line(gate: Gate) -> str:
    """`regression: RUN against REFERENCE: 1 of 6 checks fails, ...`."""
    counts = {
        kind: sum(check.verdict == kind for check in gate.checks) for kind in ("regression", "inconclusive", "pass")
    }
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{gate.verdict}: {one_line(gate.run)} against {one_line(gate.reference)}: {told or 'no checks'}"


def gate_markdown(gate: Gate) -> str:
    """For a pull request or a job's summary."""
    told = "A limit holds or fails where the 95 % interval, simultaneous over all checks, lies on one side of it."
    verdict = Paragraph(verdict_line(gate), is_strong=True)
    return render_blocks([verdict, _gate_table(gate), Listing(gate.notes), Paragraph(told)]) + "\n"


def _gate_table(gate: Gate) -> Table:
    return Table(
        [Column(head) for head in _GATE_HEADS], [_gate_cells(check) for check in _worst_first(gate)], "Every check"
    )


def _worst_first(gate: Gate) -> list[Check]:
    order = list(_GATE_STYLES)
    ranks = {"regression": 0, "inconclusive": 1, "pass": 2}
    assert set(ranks) == set(order)
    return sorted(gate.checks, key=lambda check: ranks[check.verdict])


def _gate_cells(check: Check) -> list[str]:
    return [one_line(check.option, 60), one_line(check.limit), check.verdict, one_line(check.detail, 200)]
