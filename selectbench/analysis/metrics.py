"""The formula of each metric, from what a completed trial observed.

Whatever cannot be computed (nothing timed, not evaluated, more than a float holds) is None, never infinity
and never zero.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from selectbench.analysis import formulas
from selectbench.analysis.cost import usd_of_job, usd_per_billion_tokens
from selectbench.analysis.device_memory import peak_device_memory_bytes
from selectbench.analysis.energy import joules_per_token, mean_power_watts
from selectbench.analysis.formulas import finite
from selectbench.analysis.mfu import share_of
from selectbench.analysis.observed import Observed
from selectbench.record.record import Measurement
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS

Formula = Callable[[Observed], float | None]


def _of(formula: Callable[[Measurement], float | None]) -> Formula:
    """A formula over the measurement alone."""
    return lambda observed: formula(observed.measurement)


def _score(name: str) -> Formula:
    return lambda observed: observed.measurement.scores.get(name)


def _of_no_trial(_: Observed) -> None:
    """No trial tells it alone: `summary` does, once the baseline's are known."""


FORMULAS: dict[str, Formula] = {
    **{name: attrgetter(f"measurement.{m.measured_as}") for name, m in METRICS.items() if m.measured_as},
    **{name: _score(name) for name, metric in METRICS.items() if metric.scored},
    "tokens_per_second": _of(formulas.tokens_per_second), "bytes_per_second": _of(formulas.bytes_per_second),
    "peak_memory_bytes": _of(formulas.peak_memory_bytes),
    "peak_memory_reserved_bytes": _of(formulas.peak_memory_reserved_bytes),
    "peak_device_memory_bytes": peak_device_memory_bytes,
    "final_perplexity": _of(formulas.final_perplexity), "bits_per_byte": _of(formulas.bits_per_byte),
    "excess_loss": _of(formulas.excess_loss), "bytes_per_token": _of(formulas.bytes_per_token),
    "skipped_share": _of(formulas.skipped_share), SECONDS_TO_LOSS: _of_no_trial,
    "joules_per_token": joules_per_token, "mean_power_watts": mean_power_watts,
    "usd_per_billion_tokens": usd_per_billion_tokens, "usd_of_job": usd_of_job,
    "mfu": share_of("mfu"), "hfu": share_of("hfu"), "matmul_rate_share": share_of("matmul_rate_share"),
}  # fmt: skip
"""By metric; a metric of `METRICS` without `measured_as` has its own here."""


def derive(observed: Observed) -> dict[str, float | None]:
    """Every metric of a completed trial, by name."""
    return {name: finite(FORMULAS[name], observed) for name in METRICS}
