"""Where each rank of a trial is, readable from outside while a rank hangs."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Literal

Stage = Literal["set-up", "forward pass", "backward pass", "update", "reading of results", "evaluation"]
STAGES: tuple[Stage, ...] = (
    "set-up", "forward pass", "backward pass", "update", "reading of results", "evaluation",
)  # fmt: skip
CELLS_PER_RANK = 3
"""Stages entered so far, the optimizer step, the number of the stage."""


class Whereabouts:
    """A rank's own note of how far it came, in memory shared with the process that watches the ranks."""

    def __init__(self, cells: MutableSequence[int], rank: int = 0) -> None:
        """`cells`: CELLS_PER_RANK whole numbers per rank, zero at first."""
        self._cells = cells
        self._first = rank * CELLS_PER_RANK

    def enter(self, stage: Stage, step: int) -> None:
        """The rank goes over to a stage of optimizer step `step`."""
        cells, first = self._cells, self._first
        cells[first + 1], cells[first + 2] = step, STAGES.index(stage)
        cells[first] += 1


def nowhere() -> Whereabouts:
    """For a trial without ranks: nobody reads it."""
    return Whereabouts([0] * CELLS_PER_RANK)


def describe(cells: MutableSequence[int]) -> tuple[int | None, str]:
    """The rank that is furthest behind, None where several are, and a sentence on where all ranks are."""
    counts = list(cells[::CELLS_PER_RANK])
    behind = [rank for rank, count in enumerate(counts) if count == min(counts)]
    if len(behind) == len(counts):
        return (0, f"rank 0 is in the {_place(cells, 0)}") if len(counts) == 1 else (
            None, f"no rank is behind the others: all are in the {_place(cells, 0)}"
        )  # fmt: skip
    ahead = counts.index(max(counts))
    named = f"rank {behind[0]} is" if len(behind) == 1 else f"ranks {', '.join(map(str, behind))} are"
    sentence = f"{named} in the {_place(cells, behind[0])}, rank {ahead} waits in the {_place(cells, ahead)}"
    return (behind[0] if len(behind) == 1 else None), sentence


def _place(cells: MutableSequence[int], rank: int) -> str:
    step, stage = cells[rank * CELLS_PER_RANK + 1 : rank * CELLS_PER_RANK + 3]
    return STAGES[stage] if stage == 0 else f"{STAGES[stage]} of step {step}"
