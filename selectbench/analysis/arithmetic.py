"""What a row says of its matrix products: their work, the GPUs' rates, and why a share of these is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from selectbench.analysis.gpu_row import Arithmetic, Unknown
from selectbench.analysis.mfu import (
    IMPOSSIBLE,
    IMPOSSIBLE_RATE,
    SHARES,
    Share,
    flops_per_second,
    flops_per_token,
    utilization,
)
from selectbench.analysis.observed import Observed
from selectbench.analysis.summary import Summary, mean
from selectbench.plan.peaks import matmul_dtype


def arithmetic(summary: Summary, counting: Sequence[Observed]) -> Arithmetic:
    """Of an option with GPU meters; `counting`: the trials that its figures are means over."""
    unknown = {share: Unknown.by_reason(reasons) for share, reasons in _reasons(summary).items()}
    return Arithmetic(
        dtype=matmul_dtype(summary.option.choices),
        model_flops_per_token=_of_all(flops_per_token(o, "mfu") for o in counting),
        hardware_flops_per_token=_of_all(flops_per_token(o, "hfu") for o in counting),
        peak_flops_per_second=_of_all(flops_per_second(o, "mfu") for o in counting),
        matmul_flops_per_second=_of_all(flops_per_second(o, "matmul_rate_share") for o in counting),
        unknown={share: found for share, found in unknown.items() if found},
    )


def _reasons(summary: Summary) -> dict[Share, dict[int, str | None]]:
    """By share and seed that was metered, why it is not known."""
    metered = {seed: o for seed, o in summary.observed.items() if o.gpus}
    return {share: {seed: utilization(o, share).reason for seed, o in metered.items()} for share in SHARES}


def _of_all(values: Iterable[float | None]) -> float | None:
    """The mean; None where one is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return mean(known) if len(known) == len(found) else None


def impossible(summary: Summary) -> list[str]:
    """One line for each cause of a share above 1, which is withheld."""
    reasons = list(_reasons(summary).values())
    metered = [seed for seed in summary.planned if any(seed in found for found in reasons)]
    lines = []
    for cause in (IMPOSSIBLE, IMPOSSIBLE_RATE):
        seeds = [str(seed) for seed in metered if any(found[seed] == cause for found in reasons)]
        if seeds:
            lines.append(f"{summary.name}: utilisation {cause}, so it is withheld (seed {', '.join(seeds)})")
    return lines
