"""How the job is laid out over ranks."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from selectbench.choices.choice import Choice
from selectbench.machine import Machine

MicroBatchSize = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
WorldSize = Annotated[int, Field(strict=True, ge=1, le=1 << 16)] | Literal["auto"]


class StrategyChoice(Choice):
    """A way of sharing the work between ranks."""

    def unsupported_world_size(self, world_size: int, machine: Machine) -> str | None:
        """Why this strategy can't run so many ranks here, or None."""
        raise NotImplementedError


class Single(StrategyChoice):
    """One process on one device."""

    source: ClassVar[str] = "a plain PyTorch training loop"
    name: Literal["single"] = "single"

    def unsupported_world_size(self, world_size: int, machine: Machine) -> str | None:
        """Only one rank."""
        return None if world_size == 1 else f"strategy single runs one rank, world_size is {world_size}"
