"""Waiting until the GPUs are as they were before the first trial, so that no trial pays for the one before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selectbench import units
from selectbench.meters.holders import tenants_text
from selectbench.nvml import Gpu
from selectbench.nvml.idle import Use, use_of

TOLERANCE_BYTES = 64 << 20
"""By which a GPU's memory may differ and still be the same: drivers keep a little more or less."""
LOOK_SECONDS = 0.2
"""Between two looks; the driver's utilisation is of up to the last second."""

Clock = Callable[[], float]
Pause = Callable[[float], object]


@dataclass(frozen=True)
class Ready:
    """The GPUs right before a trial."""

    uses: list[Use]
    settled: bool | None
    """Whether their memory was back; None: not known."""
    held: list[str]
    """What holds the memory that is not back, a sentence for each GPU."""


def settle(
    gpus: Sequence[Gpu],
    baseline: Sequence[Use],
    most_seconds: float,
    pause: Pause,
    gave_up: Callable[[], bool],
    clock: Clock = time.monotonic,
) -> Ready:
    """Wait until each GPU's memory is back at its baseline and nothing computes on it that did not before.

    At most `most_seconds`, or until `gave_up`; `pause` waits for so many seconds.
    """
    until = clock() + most_seconds
    while True:
        uses = [use_of(gpu) for gpu in gpus]
        pairs = list(zip(uses, baseline, strict=True))
        waiting = any(_holds_more(*pair) or _computes_now(*pair) for pair in pairs)
        if not waiting or gave_up() or clock() >= until:
            return Ready(uses, _settled(pairs), _held(gpus, pairs))
        pause(LOOK_SECONDS)


def _holds_more(use: Use, baseline: Use) -> bool:
    now, before = use.memory_used_bytes, baseline.memory_used_bytes
    return now is not None and before is not None and now > before + TOLERANCE_BYTES


def _computes_now(use: Use, baseline: Use) -> bool:
    return use.computes and not baseline.computes


def _settled(pairs: Sequence[tuple[Use, Use]]) -> bool | None:
    if any(use.memory_used_bytes is None or before.memory_used_bytes is None for use, before in pairs):
        return None
    return not any(_holds_more(*pair) for pair in pairs)


def _held(gpus: Sequence[Gpu], pairs: Sequence[tuple[Use, Use]]) -> list[str]:
    return [
        f"GPU {gpu.index if gpu.index is not None else gpu.uuid} ({gpu.name}): {units.size(use.memory_used_bytes)} "
        f"of its memory in use, {units.size(before.memory_used_bytes)} before the first trial: {tenants_text(use)}"
        for gpu, (use, before) in zip(gpus, pairs, strict=True)
        if _holds_more(use, before)
    ]
