"""Past runs and measured rates for the terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selectbench import units
from selectbench.plan.duration import MatmulDtype, peak_flops_per_second
from selectbench.record.environment import Calibration
from selectbench.record.run_folder import PastRun
from selectbench.report.document import one_line

_ANSWER_MOST = 150


def print_runs(console: Console, runs: Sequence[PastRun], results: Path) -> None:
    """Each run's folder in one unbroken line, as the other commands take it, then what it was and said."""
    if not runs:
        console.print(f"{results}: no runs yet", markup=False, soft_wrap=True)
    for run in runs:
        console.print(Text(one_line(run.folder, 1000), style="bold"), soft_wrap=True)
        facts = [run.suite, run.started_at, run.hardware, _trials(run)]
        console.print(Text(f"  {', '.join(one_line(fact, 60) for fact in facts if fact)}", style="dim"))
        console.print(Text(f"  {one_line(run.note or run.answer or 'no ranking yet', _ANSWER_MOST)}"))


def _trials(run: PastRun) -> str | None:
    return None if run.trials_done is None else f"{run.trials_done} of {run.trials_planned} trials"


def calibration_table(calibrations: Sequence[tuple[Calibration, bool]]) -> Table:
    """A row for each device and dtype; the flag says whether later runs will find it."""
    table = Table(title="Large matrix products", title_justify="left", box=None, pad_edge=False)
    for heading in ("device", "dtype", "rate", "of data sheet", "size"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("device", "dtype") else "right")
    for calibration, kept in calibrations:
        name = calibration.name + ("" if kept else " (shown only: shares are of GPUs)")
        for dtype in get_args(MatmulDtype):
            if (rate := calibration.rates.get(dtype)) is not None:
                peak = peak_flops_per_second(calibration.name, dtype)
                share = units.share(None if peak is None else rate.flops_per_second / peak)
                rated = units.flops_per_second(rate.flops_per_second)
                table.add_row(Text(name), dtype, rated, share, str(rate.size))
                name = ""
    return table
