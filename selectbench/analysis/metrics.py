"""What is derived from a completed trial's raw values, each metric once: formula, unit, direction.

Whatever cannot be computed (nothing timed, not evaluated, more than a float holds) is None, never
infinity and never zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from selectbench import units
from selectbench.analysis import formulas
from selectbench.analysis.cost import usd_of_job, usd_per_billion_tokens
from selectbench.analysis.device_memory import peak_device_memory_bytes
from selectbench.analysis.energy import joules_per_token, mean_power_watts
from selectbench.analysis.formulas import finite
from selectbench.analysis.gpu_state import GpuState
from selectbench.analysis.mfu import share_of
from selectbench.analysis.observed import Observed
from selectbench.record.record import Measurement
from selectbench.suite.constraint import SECONDS_TO_LOSS

_CLEAN_ONLY: frozenset[GpuState] = frozenset({"throttled", "shared"})
_UNSHARED: frozenset[GpuState] = frozenset({"shared"})


@dataclass(frozen=True)
class Metric:
    """One column: its name in ranking.json, its heading, which way is better, and its formula."""

    name: str
    title: str
    better: Literal["more", "less"]
    derive: Callable[[Observed], float | None]
    show: Callable[[float | None], str]
    superlative: str
    """Completes the sentence "OPTION ..." for the best row."""
    quality: bool = False
    """Whether it says how well the model learnt; such a metric is never claimed by a quick run."""
    spoiled_by: frozenset[GpuState] = frozenset()
    """States of the GPUs in which a trial's value says nothing of the option."""
    metered: bool = False
    """Whether the GPUs' meters alone tell it."""
    scored: bool = False
    """Whether it is a score of generated text."""

    def is_better(self, value: float, other: float) -> bool:
        """Whether `value` beats `other`."""
        return value > other if self.better == "more" else value < other


def _of(formula: Callable[[Measurement], float | None]) -> Callable[[Observed], float | None]:
    """A formula over the measurement alone."""
    return lambda o: formula(o.measurement)


def _score(name: str) -> Callable[[Observed], float | None]:
    return lambda o: o.measurement.scores.get(name)


def _beside_the_baseline(_: Observed) -> None:
    """No trial tells it alone: `summary` does, once the baseline's are known."""


def _text_speed(value: float | None) -> str:
    return units.DASH if value is None else f"{units.size(value)}/s"


_SPEED = (
    Metric("tokens_per_second", "tokens/s", "more", _of(formulas.tokens_per_second), units.count,
           "is the fastest", spoiled_by=_CLEAN_ONLY),
    Metric("bytes_per_second", "text/s", "more", _of(formulas.bytes_per_second), _text_speed,
           "reads the most text", spoiled_by=_CLEAN_ONLY),
    Metric("step_time_median_seconds", "median step", "less", _of(lambda m: m.step_time_median_seconds),
           units.seconds, "has the shortest step", spoiled_by=_CLEAN_ONLY),
    Metric("step_time_iqr_seconds", "step IQR", "less", _of(lambda m: m.step_time_iqr_seconds), units.seconds,
           "has the steadiest step", spoiled_by=_CLEAN_ONLY),
)  # fmt: skip
_MEMORY = (
    Metric("peak_memory_bytes", "memory", "less", _of(formulas.peak_memory_bytes), units.size,
           "needs the least memory"),
    Metric("peak_memory_reserved_bytes", "reserved", "less", _of(formulas.peak_memory_reserved_bytes),
           units.size, "reserves the least memory"),
    Metric("peak_device_memory_bytes", "device memory", "less", peak_device_memory_bytes, units.size,
           "needs the least memory of a GPU", spoiled_by=_UNSHARED, metered=True),
)  # fmt: skip
_QUALITY = (
    Metric("final_loss", "loss", "less", _of(lambda m: m.final_loss), units.significant,
           "reaches the lowest held-out loss", quality=True),
    Metric("final_perplexity", "perplexity", "less", _of(formulas.final_perplexity), units.significant,
           "reaches the lowest perplexity", quality=True),
    Metric("bits_per_byte", "bits/byte", "less", _of(formulas.bits_per_byte), units.significant,
           "reaches the fewest bits per byte", quality=True),
    Metric("excess_loss", "excess loss", "less", _of(formulas.excess_loss), units.significant,
           "comes closest to the source's entropy", quality=True),
)  # fmt: skip
_SCORES = tuple(
    Metric(name, title, "more", _score(name), units.significant, f"reaches the highest {title}", quality=True,
           scored=True)
    for name, title in (
        ("bleu", "BLEU"), ("chrf", "chrF"), ("rouge_l", "ROUGE-L"), ("exact_match", "exact match"),
        ("token_f1", "token F1"), ("own_score", "own score"),
    )
)  # fmt: skip
_TEXT = (
    Metric("initial_loss", "loss at start", "less", _of(lambda m: m.initial_loss), units.significant,
           "has the lowest loss before training", quality=True),
    Metric("bytes_per_token", "bytes/token", "more", _of(formulas.bytes_per_token), units.significant,
           "packs most text into a token"),
)  # fmt: skip
_TIMES = (
    Metric("startup_seconds", "start-up", "less", _of(lambda m: m.startup_seconds), units.seconds,
           "starts the soonest", spoiled_by=_CLEAN_ONLY),
    Metric("compile_seconds", "compile", "less", _of(lambda m: m.compile_seconds), units.seconds,
           "compiles the fastest", spoiled_by=_CLEAN_ONLY),
    Metric("training_seconds", "training", "less", _of(lambda m: m.training_seconds), units.seconds,
           "trains in the shortest time", spoiled_by=_CLEAN_ONLY),
    Metric(SECONDS_TO_LOSS, "to baseline's loss", "less", _beside_the_baseline, units.seconds,
           "is the first to reach the baseline's loss", spoiled_by=_CLEAN_ONLY),
    Metric("evaluation_seconds", "evaluation", "less", _of(lambda m: m.evaluation_seconds), units.seconds,
           "evaluates the fastest", spoiled_by=_CLEAN_ONLY),
    Metric("skipped_share", "skipped steps", "less", _of(formulas.skipped_share), units.significant,
           "skips the fewest steps"),
)  # fmt: skip
_METERED = (
    Metric("joules_per_token", "energy/token", "less", joules_per_token, units.joules,
           "takes the least energy per token", spoiled_by=_CLEAN_ONLY, metered=True),
    Metric("mean_power_watts", "power", "less", mean_power_watts, units.watts,
           "draws the least power", spoiled_by=_CLEAN_ONLY, metered=True),
    Metric("usd_per_billion_tokens", "cost per 1e9 tokens", "less", usd_per_billion_tokens, units.usd,
           "is the cheapest", spoiled_by=_CLEAN_ONLY),
    Metric("usd_of_job", "cost of the job", "less", usd_of_job, units.usd,
           "makes the job cheapest", spoiled_by=_CLEAN_ONLY),
)  # fmt: skip
# Shown and never decided by: a share of one precision's rate says nothing of a share of another's.
_UTILIZATION = (
    Metric("mfu", "MFU", "more", share_of("mfu"), units.share,
           "uses most of the GPUs' peak", spoiled_by=_CLEAN_ONLY, metered=True),
    Metric("hfu", "HFU", "more", share_of("hfu"), units.share,
           "uses most of the GPUs' peak, recomputation included", spoiled_by=_CLEAN_ONLY, metered=True),
    Metric("matmul_rate_share", "of measured matmul rate", "more", share_of("matmul_rate_share"), units.share,
           "uses most of the measured matmul rate", spoiled_by=_CLEAN_ONLY, metered=True),
)  # fmt: skip

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (*_SPEED, *_MEMORY, *_QUALITY, *_SCORES, *_TEXT, *_TIMES, *_METERED, *_UTILIZATION)
}
"""Every metric by name, in the order of ranking.json."""


def derive(observed: Observed) -> dict[str, float | None]:
    """Every metric of a completed trial, by name."""
    return {name: finite(metric.derive, observed) for name, metric in METRICS.items()}
