"""The energy of a trial's GPUs inside its timed windows, and which of the driver's figures it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selectbench import units
from selectbench.analysis.formulas import tokens_per_second
from selectbench.analysis.observed import Observed
from selectbench.record.meters import GpuMeters, Meters

Method = Literal["counter", "instant_power", "average_power"]

SHORTEST_SECONDS = 5.0
"""Metered for less, the counter's step of about 0.1 s and the power readings' lag weigh too much."""
AGREEMENT = 0.10
"""Counter and integrated instant power must agree so closely, as a share of the larger."""

RULE = (
    "Energy is what the GPUs' own meters count inside the timed windows, the sum over the trial's GPUs; the "
    "rest of the machine is not in it. It is read from the boards' energy counters; where a board has none its "
    "instant power is integrated, and where it has only the power that the driver averages over about a second, "
    f"that is taken. It is not known where less than {SHORTEST_SECONDS:g} s were metered, where counter and "
    f"integrated power differ by more than {AGREEMENT:.0%}, and on a slice of a board (MIG), whose meters are "
    "the whole board's. Joules per token are the mean power over the tokens per second."
)

BY_TRUST: tuple[Method, ...] = ("counter", "instant_power", "average_power")
"""From the most direct figure to the least."""


@dataclass(frozen=True)
class Energy:
    """Of one trial. Either the figures are known or the reason why not."""

    joules: float | None
    """Sum over the GPUs, each for its metered seconds."""
    mean_power_watts: float | None
    """Sum over the GPUs of joules over metered seconds: the whole job's."""
    method: Method | None
    """The least direct that any GPU's figure comes from."""
    reason: str | None
    """Why nothing is known."""


def energy(meters: Meters | None) -> Energy:
    """The energy that the trial's GPUs took inside the timed windows."""
    gpus = meters.gpus if meters else []
    if not gpus:
        return _unknown((meters and meters.problem) or "the trial's GPUs were not metered")
    reason = next(filter(None, map(_reason, gpus)), None)
    return _unknown(reason) if reason else _known(gpus)


def _known(gpus: Sequence[GpuMeters]) -> Energy:
    found = [(gpu.metered_seconds, *_best(gpu)) for gpu in gpus]
    return Energy(
        joules=sum(joules for _, joules, _ in found),
        mean_power_watts=sum(joules / seconds for seconds, joules, _ in found),
        method=max((method for _, _, method in found), key=BY_TRUST.index),
        reason=None,
    )


def _unknown(reason: str) -> Energy:
    return Energy(None, None, None, reason)


def _figures(gpu: GpuMeters) -> dict[Method, float]:
    """What the driver tells of it, the most direct first."""
    figures = (gpu.counter_joules, gpu.instant_power_joules, gpu.average_power_joules)
    return {method: value for method, value in zip(BY_TRUST, figures, strict=True) if value is not None}


def _best(gpu: GpuMeters) -> tuple[float, Method]:
    method, joules = next(iter(_figures(gpu).items()))
    return joules, method


def _reason(gpu: GpuMeters) -> str | None:
    """Why one GPU's energy is not known, or None where it is."""
    if gpu.is_mig:
        return "a MIG slice has no meters of its own: the board's are for all its slices"
    if gpu.metered_seconds < SHORTEST_SECONDS:
        return f"metered for {units.seconds(gpu.metered_seconds)}, less than {SHORTEST_SECONDS:g} s"
    figures = _figures(gpu)
    if not figures:
        return "the driver tells neither energy nor power"
    counter, power = figures.get("counter"), figures.get("instant_power")
    if counter is not None and power is not None and abs(counter - power) > AGREEMENT * max(counter, power):
        return f"the energy counter says {units.joules(counter)}, integrated power {units.joules(power)}"
    return None


def mean_power_watts(o: Observed) -> float | None:
    """Mean power of all the trial's GPUs inside the timed windows."""
    return energy(o.meters).mean_power_watts if o.gpus else None


def joules_per_token(o: Observed) -> float | None:
    """Mean power over tokens per second: the energy of the metered seconds over the tokens of as many seconds."""
    power = mean_power_watts(o)
    speed = None if power is None else tokens_per_second(o.measurement)
    return None if power is None or speed is None else power / speed
