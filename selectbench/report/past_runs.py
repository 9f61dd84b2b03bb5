"""Past runs as a table for the terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from selectbench import units
from selectbench.record.past_run import PastRun
from selectbench.report.escape import one_line


def runs_table(runs: Sequence[PastRun]) -> Table:
    """A row for each run with its folder, which the other commands take."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("suite", "started", "on", "trials"):
        table.add_column(heading, overflow="fold")
    table.add_column("answer, folder", overflow="fold", ratio=1)
    for run in runs:
        answer = one_line(run.note or run.answer or "no ranking yet", 110)
        told = Text.assemble(answer, "\n", (one_line(run.folder), "dim"))
        cells = (run.suite, run.started_at or units.DASH, run.hardware or units.DASH, _trials(run))
        table.add_row(*(Text(one_line(cell, 40)) for cell in cells), told)
    return table


def _trials(run: PastRun) -> str:
    return units.DASH if run.trials_done is None else f"{run.trials_done} of {run.trials_planned}"
