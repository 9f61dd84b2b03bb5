"""What a suite leaves to the machine, settled for the GPUs that a run has taken: once, for all options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selectbench import units
from selectbench.choices.precision import precision_for
from selectbench.data.prepared import Prepared
from selectbench.errors import UserError
from selectbench.interpreter import machine_for
from selectbench.machine import Machine
from selectbench.plan.configuration import config_of, vocab_size_of
from selectbench.plan.memory import memory_need
from selectbench.suite.left_open import AT_MOST, AUTO, MICRO_BATCH_SIZE, PRECISION, LeftOpen, MachineChoice
from selectbench.suite.suite import Option, Suite

FITTING_SHARE = 0.85
"""Of a GPU's memory, what an option is expected to take at most: the rest is for what formulas do not see, such as
fragments of the allocator's blocks."""


def settled_for(suite: Suite, machine: Machine, prepared: Mapping[str, Prepared] | None) -> Suite:
    """The suite with nothing left open; `prepared`: each option's data, where they could be prepared.

    Raises UserError where nothing tells how much memory a model takes, or an interpreter does not start.
    """
    found: list[MachineChoice] = []
    asked = suite.left_open
    if asked.precision:
        precision, why = precision_for(machine)
        suite = _with(suite, PRECISION, precision, precision.model_dump(mode="json"))
        found.append(MachineChoice(setting=PRECISION, asked=AUTO, taken=precision.name, why=why))
    if asked.micro_batch_size is not None:
        most = asked.micro_batch_size.at_most
        size, why = _size_that_fits(suite, most, machine, prepared)
        suite = _with(suite, MICRO_BATCH_SIZE, size, size)
        words = f"{AT_MOST} {most}"
        found.append(MachineChoice(setting=MICRO_BATCH_SIZE, asked=words, taken=str(size), why=why))
    return suite.model_copy(update={"left_open": LeftOpen(machine_choices=found)}) if found else suite


def _with(suite: Suite, setting: str, value: object, plain: object) -> Suite:
    """Every option with this value, which the shared choices of the resolved file say as `plain`."""
    options = [
        option.model_copy(update={"choices": option.choices.model_copy(update={setting: value})})
        for option in suite.options
    ]
    resolved = {**suite.resolved, "choices": {**suite.resolved.get("choices", {}), setting: plain}}
    return suite.model_copy(update={"options": options, "resolved": resolved})


def expected_peak_bytes(suite: Suite, option: Option, ranks: int, prepared: Prepared | None) -> int | None:
    """Of a GPU's memory; None: on a CPU, or of a model that is not known here."""
    if suite.device != "cuda":
        return None
    job = suite.job.of(option.choices)
    config = config_of(job.model, vocab_size_of(suite, option, prepared), job.seq_len)
    need = None if config is None else memory_need(job, option.choices, config, ranks)
    return None if need is None else need.total


def smallest_gpu(machine: Machine) -> tuple[str, int] | None:
    """Name and memory in bytes of the GPU that has least; None: none tells."""
    known = [(gpu.memory_total_bytes, gpu.name) for gpu in machine.gpus if gpu.memory_total_bytes is not None]
    return min(((name, total) for total, name in known), key=lambda found: found[1], default=None)


@dataclass(frozen=True)
class _Demand:
    """The option that takes most."""

    option: str
    peak_bytes: int


def _size_that_fits(
    suite: Suite, at_most: int, machine: Machine, prepared: Mapping[str, Prepared] | None
) -> tuple[int, str]:
    """The size, and why it is that one."""
    sizes = _sizes(suite, at_most, machine)
    gpu = smallest_gpu(machine) if suite.device == "cuda" else None
    if gpu is None:
        return sizes[0], "on a CPU memory sets no bound" if suite.device == "cpu" else "no GPU tells its memory"
    (name, total), larger = gpu, ""
    bound = f"{FITTING_SHARE:.0%} of the {units.size(total)} of {name}"
    for size in sizes:
        demand = _most_demanding(suite, size, machine, prepared or {})
        if isinstance(demand, str) and prepared is None:
            return sizes[0], f"what {demand} takes is not known before the data are prepared"
        if isinstance(demand, str):
            raise UserError(
                f"suite {suite.name}: option {demand}: choices.micro_batch_size: {{{AT_MOST}: {at_most}}}: how "
                "much memory this model takes is not known: give a number, as in --set choices.micro_batch_size=4, "
                f"or {AUTO}, which tries sizes"
            )
        if demand.peak_bytes <= FITTING_SHARE * total:
            told = f"{demand.option} is expected to take {units.size(demand.peak_bytes)}, at most {bound}"
            return size, f"{told}{larger}"
        many = f"{size} sequence{'s' if size > 1 else ''}"
        larger = f"; with {many} {demand.option} would take {units.size(demand.peak_bytes)}"
    return sizes[-1], f"none fits into {bound}{larger}, so that trials may run out of memory"


def _sizes(suite: Suite, at_most: int, machine: Machine) -> list[int]:
    """Those that cut every option's step into whole micro-batches, the largest first."""
    shares = []
    for option in suite.options:
        step, ranks = suite.job.of(option.choices).global_batch_size, option.choices.ranks(machine)
        shares.append(step // ranks if ranks and step % ranks == 0 else 1)
    common = math.gcd(*shares)
    return [size for size in range(min(at_most, common), 0, -1) if common % size == 0]


def _most_demanding(suite: Suite, size: int, machine: Machine, prepared: Mapping[str, Prepared]) -> _Demand | str:
    """Of those that can run here, of all where none can; or the name of one whose memory is not known."""
    cut: dict[str, Any] = {MICRO_BATCH_SIZE: size}
    options = [o.model_copy(update={"choices": o.choices.model_copy(update=cut)}) for o in suite.options]
    able = [o for o in options if o.choices.unsupported_reason(machine_for(machine, o.choices.python)) is None]
    demands = []
    for option in able or options:
        ranks = option.choices.ranks(machine)
        peak = expected_peak_bytes(suite, option, ranks, prepared.get(option.name))
        if peak is None:
            return option.name
        demands.append(_Demand(option.name, peak))
    return max(demands, key=lambda demand: demand.peak_bytes)
