"""What the job costs at the suite's prices: rent of the GPUs by their time, and the energy that they took."""

from __future__ import annotations

from collections.abc import Callable

from selectbench.analysis.energy import energy, joules_per_token
from selectbench.analysis.formulas import tokens_per_second
from selectbench.analysis.observed import Observed

_JOULES_PER_KWH = 3.6e6
_BILLION = 1e9

RULE = (
    "Cost is the rent of the job's GPUs for their time and the energy that the GPUs took, as far as the suite "
    "gives a price for each. A billion tokens are reckoned at the timed speed; the job at its training time, "
    "warm-up and compilation among it, start-up and evaluation not. Where one of the prices can't be applied, "
    "nothing is said rather than a part."
)


def usd_per_billion_tokens(o: Observed) -> float | None:
    """GPUs x 1e9 / tokens_per_second / 3600 x usd_per_gpu_hour + joules_per_token x 1e9 / 3.6e6 x usd_per_kwh."""
    speed = tokens_per_second(o.measurement)
    return None if not speed else usd_for(o, seconds=lambda: _BILLION / speed, tokens=_BILLION)


def usd_of_job(o: Observed) -> float | None:
    """The same for the job's own training_seconds and its tokens_per_step x (applied + skipped steps)."""
    m = o.measurement
    return usd_for(
        o, seconds=lambda: m.training_seconds, tokens=m.tokens_per_step * (m.steps_applied + m.steps_skipped)
    )


def usd_for(o: Observed, *, seconds: Callable[[], float], tokens: float) -> float | None:
    """Of so many seconds of the trial's GPUs and so many tokens; None where a price can't be applied."""
    if o.cost is None or unpriced(o):
        return None
    rent = electricity = 0.0
    if o.cost.usd_per_gpu_hour is not None:
        assert o.world_size is not None  # else unpriced() had a reason
        rent = o.world_size * seconds() / 3600 * o.cost.usd_per_gpu_hour
    if o.cost.usd_per_kwh is not None:
        each = joules_per_token(o)
        if each is None:
            return None
        electricity = each * tokens / _JOULES_PER_KWH * o.cost.usd_per_kwh
    return rent + electricity


def unpriced(o: Observed) -> str | None:
    """Why one of the suite's prices can't be applied to the trial, or None where each can or there is none."""
    if o.cost is None:
        return None
    if o.device == "cpu":
        return "the job ran on the cpu, and the suite's prices are those of GPUs"
    if o.cost.usd_per_gpu_hour is not None and o.world_size is None:
        return "usd_per_gpu_hour: the trial does not say how many GPUs took part"
    if o.cost.usd_per_kwh is not None and (reason := energy(o.meters).reason):
        return f"usd_per_kwh: the energy is not known: {reason}"
    return None
