"""The live table as rich draws it: never wider or taller than the terminal."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from selectbench import units
from selectbench.launch.display_state import State
from selectbench.report.escape import one_line

_LINES_BESIDE_OPTIONS = 7
"""Heading, "more options", the running trial (2), the bar, and two lines that stay free."""
_NARROW = 48
"""Columns below which the table shows counts only."""


def picture(state: State, width: int, height: int) -> RenderableType:
    """The live table for a terminal of so many columns and lines; at most `height` - 1 lines of it.

    A terminal too low for the table gets the running trial and the bar only.
    """
    lines = [*_running_lines(state, width), _bar(state, width)]
    room = height - _LINES_BESIDE_OPTIONS
    if room < 1:
        return Group(*lines)
    names = _neighbourhood(state, room)
    hidden = len(state.tallies) - len(names)
    more = [_cut(f"  ... {hidden} more options", width, "dim")] if hidden else []
    return Group(_options(state, names, width), *more, *lines)


def _options(state: State, names: list[str], width: int) -> Table:
    heads = ["done", "failed", "tokens/s"] if width >= _NARROW else ["done"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(
        "option", no_wrap=True, overflow="ellipsis", max_width=max(4, width - (30 if len(heads) > 1 else 8))
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name in names:
        tally = state.tallies[name]
        current = state.running is not None and state.running.option == name
        cells = [f"{tally.done}/{state.per_option}", str(tally.failed or ""), units.count(tally.mean_speed())]
        mark = Text("> " if current else "  ") + Text(one_line(name))
        table.add_row(mark, *map(Text, cells[: len(heads)]), style="bold" if current else "")
    return table


def _neighbourhood(state: State, most: int) -> list[str]:
    """At most so many options: all, or those around the running one in the suite's order."""
    names = list(state.tallies)
    at = names.index(state.running.option) if state.running and state.running.option in names else 0
    first = max(0, min(at - most // 2, len(names) - most))
    return names[first : first + most]


def _running_lines(state: State, width: int) -> list[Text]:
    if state.running is None:
        return []
    return [_cut(state.running.name(), width), _cut(state.running.figures(), width)]


def _bar(state: State, width: int) -> RenderableType:
    left = state.left()
    words = _cut(f"{state.done}/{state.planned} trials" + (f", {left}" if left else ""), width)
    running = state.running
    share = running.step / running.steps if running and running.steps else 0.0
    bar_width = min(40, width // 3)
    if cell_len(words.plain) + bar_width >= width:
        return words
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=max(1, state.planned), completed=state.done + share, width=bar_width), words)
    return grid


def _cut(text: str, width: int, style: str = "") -> Text:
    line = Text(text, style=style)
    line.truncate(width, overflow="ellipsis")
    return line
