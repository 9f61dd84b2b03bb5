"""A gate's verdict for a terminal and as Markdown. Pure."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from selectbench.analysis.gate import Check, Gate
from selectbench.report.document import Column, Listing, Paragraph, Table
from selectbench.report.escape import one_line
from selectbench.report.markdown import render_blocks
from selectbench.report.terminal import rich_table

_STYLES = {"pass": "green", "regression": "bold red", "inconclusive": "yellow"}
_HEADS = ["option", "limit", "verdict", "found"]


def print_gate(console: Console, gate: Gate) -> None:
    """The checks, worst first, and the verdict last."""
    console.print(rich_table(_table(gate), [_STYLES[check.verdict] for check in _worst_first(gate)]))
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
    return render_blocks([verdict, _table(gate), Listing(gate.notes), Paragraph(told)]) + "\n"


def _table(gate: Gate) -> Table:
    return Table([Column(head) for head in _HEADS], [_cells(check) for check in _worst_first(gate)], "Every check")


def _worst_first(gate: Gate) -> list[Check]:
    order = list(_STYLES)
    ranks = {"regression": 0, "inconclusive": 1, "pass": 2}
    assert set(ranks) == set(order)
    return sorted(gate.checks, key=lambda check: ranks[check.verdict])


def _cells(check: Check) -> list[str]:
    return [one_line(check.option, 60), one_line(check.limit), check.verdict, one_line(check.detail, 200)]
