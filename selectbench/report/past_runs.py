"""Past runs for the terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selectbench.record.past_run import PastRun
from selectbench.report.escape import one_line

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
