"""How much of the GPUs' arithmetic a trial used: of the data sheet's peak, and of a rate measured on them.

A share of a peak in one precision says nothing of a share in another: it is shown beside the figures and never
decides between options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from selectbench.analysis.flops import hardware_flops_per_token, model_flops_per_token
from selectbench.analysis.formulas import finite, tokens_per_second
from selectbench.analysis.observed import Observed
from selectbench.choices import is_own
from selectbench.plan.peaks import matmul_dtype, peak_flops_per_second
from selectbench.record.meters import GpuMeters

Share = Literal["mfu", "hfu", "matmul_rate_share"]
SHARES: tuple[Share, ...] = ("mfu", "hfu", "matmul_rate_share")

RULE = (
    "MFU is tokens per second x a token's FLOPs, over the sum of the GPUs' peaks in the dtype that the matrix "
    "products run in; HFU counts what activation checkpointing computes again, too. Peaks are those of the data "
    "sheets, dense, without the boost of structured sparsity. The share of the measured rate is the same FLOPs as "
    "MFU's over what large matrix products reached on these very GPUs (doctor --calibrate). Each is a share of "
    "one precision's rate: rows of different precisions are not to be compared by it. Nothing is said above 100 %, "
    "of a slice of a board (MIG) by a data sheet, of a GPU whose sheet is not known, of models whose work does "
    "not follow from their shape, and of own training loops."
)
IMPOSSIBLE = "above 100 %: the peak or the formula does not fit this GPU"
IMPOSSIBLE_RATE = "above 100 %: the measured rate or the formula does not fit this GPU"


@dataclass(frozen=True)
class Utilization:
    """Of one trial's GPUs together: the share, or the reason why it is not known."""

    share: float | None
    reason: str | None


def flops_per_token(o: Observed, share: Share) -> float | None:
    """What a token's training takes; None: the model's work does not follow from its shape."""
    shape = o.measurement.architecture
    if shape is None:
        return None
    if share == "hfu":
        return hardware_flops_per_token(shape, o.choices.activation_checkpointing.enabled)
    return model_flops_per_token(shape)


def flops_per_second(o: Observed, share: Share) -> float | None:
    """The rate that the share is of, all GPUs together; None: one is not known, or there are none."""
    rates = [_rate(o, gpu, share) for gpu in o.gpus]
    known = [rate for rate in rates if rate]
    return sum(known) if known and len(known) == len(rates) else None


def _rate(o: Observed, gpu: GpuMeters, share: Share) -> float | None:
    dtype = matmul_dtype(o.choices)
    if share == "matmul_rate_share":
        return gpu.matmul_flops_per_second.get(dtype)
    return None if gpu.is_mig else peak_flops_per_second(gpu.name, dtype)


def utilization(o: Observed, share: Share) -> Utilization:
    """tokens_per_second x flops_per_token / flops_per_second of the trial."""
    if reason := _unknown_work(o) or _unknown_rate(o, share):
        return Utilization(None, reason)
    speed = finite(lambda: tokens_per_second(o.measurement))
    work, rate = flops_per_token(o, share), flops_per_second(o, share)
    if speed is None or work is None or rate is None:
        return Utilization(None, "no step was timed")
    found = speed * work / rate
    if found > 1:
        return Utilization(None, IMPOSSIBLE_RATE if share == "matmul_rate_share" else IMPOSSIBLE)
    return Utilization(found, None)


def _unknown_work(o: Observed) -> str | None:
    if is_own(o.choices.framework.name):
        return "what an own training loop computes is not seen"
    if o.measurement.architecture is None:
        return "this model's work does not follow from its shape"
    return None


def _unknown_rate(o: Observed, share: Share) -> str | None:
    """Why the rate is not known, or None where it is."""
    if not o.gpus:
        return (o.meters and o.meters.problem) or "the trial's GPUs were not metered"
    if o.world_size is not None and o.world_size != len(o.gpus):
        return f"{len(o.gpus)} GPUs of {o.world_size} ranks were metered"
    return next(filter(None, (_unknown(o, gpu, share) for gpu in o.gpus)), None)


def _unknown(o: Observed, gpu: GpuMeters, share: Share) -> str | None:
    if _rate(o, gpu, share):
        return None
    dtype = matmul_dtype(o.choices)
    if share == "matmul_rate_share":
        return f"no {dtype} rate was measured on {gpu.name} (doctor --calibrate does)"
    if gpu.is_mig:
        return "a MIG slice has no data sheet"
    return f"no data sheet's peak of {gpu.name} in {dtype} is known"


def share_of(share: Share) -> Callable[[Observed], float | None]:
    """The share alone, as a metric's formula."""
    return lambda o: utilization(o, share).share if o.gpus else None
