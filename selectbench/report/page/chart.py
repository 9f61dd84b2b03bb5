"""A picture as the page shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """A picture with its heading, its legend and a sentence on how to read it."""

    heading: str
    svg: str
    legend: list[tuple[str, int]]
    note: str
