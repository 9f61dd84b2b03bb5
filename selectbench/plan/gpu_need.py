"""How many GPUs a suite takes."""

from __future__ import annotations

from dataclasses import dataclass

from selectbench.interpreter import machine_for
from selectbench.machine import Machine
from selectbench.plan.plan import Plan
from selectbench.suite.suite import Option, Suite


@dataclass(frozen=True)
class GpuNeed:
    """Whole numbers of GPUs."""

    least: int
    """Without so many some option that could run here would not."""
    most: int | None
    """None: as many as there are (`world_size: auto`)."""


def gpu_need(suite: Suite, machine: Machine) -> GpuNeed:
    """What the options take that can run where all of this machine's GPUs are free; at least one."""
    wanted = [option.choices.world_size for option in suite.options if _runs(option, machine)]
    least = max((ranks for ranks in wanted if ranks != "auto"), default=1)
    return GpuNeed(least, None if "auto" in wanted else least)


def _runs(option: Option, machine: Machine) -> bool:
    return option.choices.unsupported_reason(machine_for(machine, option.choices.python)) is None


def gpus_used(plan: Plan) -> int:
    """The most that one of the plan's trials takes; at least one."""
    return max((planned.world_size for planned in plan.options if planned.unsupported is None), default=1)
