"""The ranks of a trial, as one of them sees them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=7)
"""Of collectives: a rank that hangs is ended by the bench's limits, which know which one it is."""


@dataclass(frozen=True)
class World:
    """A rank's place. With one rank nothing is exchanged, nor need there be a process group."""

    rank: int
    """From 0."""
    size: int
    """Ranks."""
    device: str
    """`cpu`, or this rank's `cuda:N`."""

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.partition(":")[0]

    @property
    def is_first(self) -> bool:
        """Whether this rank reports for all."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place; waits for the others."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, number: int) -> int:
        """The first rank's number, on all; waits for it."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared)

    def gathered(self, item: object) -> list[object]:
        """Every rank's picklable item, in order, on all; waits for the others."""
        if self.size == 1:
            return [item]
        items: list[object] = [None] * self.size
        dist.all_gather_object(items, item)
        return items


ALONE = World(rank=0, size=1, device="cpu")
