"""The learning rate over the steps, as a share of its peak."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from struct import pack

from selectbench.suite.job import LrSchedule


def share_of_peak(schedule: LrSchedule, step: int, max_steps: int) -> float:
    """Share of the peak learning rate, in [0, 1], for optimizer step `step` of 0 .. max_steps - 1.

    The warm-up rises as (step + 1) / warmup_steps, so that step 0 already trains and the peak is met at
    its last step. Sources: cosine, Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts;
    warmup_stable_decay, Hu et al. 2024, arXiv:2404.06395, with a linear decay (Haegele et al. 2024,
    arXiv:2405.18392). Decays end at final_fraction in the last step.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    final = schedule.final_fraction
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "cosine":
        done = _progress(step, schedule.warmup_steps, max_steps)
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
    start = schedule.warmup_steps
    if schedule.name == "warmup_stable_decay":
        start = max(start, max_steps - round(schedule.decay_fraction * max_steps))
    return 1 - (1 - final) * _progress(step, start, max_steps)


def _progress(step: int, start: int, max_steps: int) -> float:
    """From 0 at the step before `start` to 1 at the last step."""
    return min(1.0, max(0.0, (step - start + 1) / max(1, max_steps - start)))


def shares(schedule: LrSchedule, max_steps: int) -> list[float]:
    """The share of the peak for every step of the job."""
    return [share_of_peak(schedule, step, max_steps) for step in range(max_steps)]


def distinct_rates(rates: Iterable[float]) -> list[float]:
    """Learning rates by distinct value, sorted; to nine digits, below any effect and above libm's noise."""
    return sorted({float(f"{rate:.9g}") for rate in rates})


def shape_sha256(values: Sequence[float]) -> str:
    """Digest of the schedule's shape; shares are rounded to 1e-9, below any effect and above libm's noise."""
    return hashlib.sha256(b"".join(pack("<d", round(value, 9)) for value in values)).hexdigest()
