"""What is derived from a completed trial's raw values, each metric once: formula, unit, direction.

Whatever cannot be computed (nothing timed, not evaluated, more than a float holds) is None, never
infinity and never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from selectbench import units
from selectbench.record.record import Completed, Measurement, Record

MemoryKind = Literal["cuda_allocated", "cpu_pss_growth"]


@dataclass(frozen=True)
class Metric:
    """One column: its name in ranking.json, its heading, which way is better, and its formula."""

    name: str
    title: str
    better: Literal["more", "less"]
    derive: Callable[[Measurement], float | None]
    show: Callable[[float | None], str]
    superlative: str
    """Completes the sentence "OPTION ..." for the best row."""
    quality: bool = False
    """Whether it says how well the model learnt; such a metric is never claimed by a quick run."""

    def is_better(self, value: float, other: float) -> bool:
        """Whether `value` beats `other`."""
        return value > other if self.better == "more" else value < other


def tokens_per_second(m: Measurement) -> float | None:
    """timed_steps x tokens_per_step / timed_seconds: tokens trained per second by the whole job."""
    return m.timed_steps * m.tokens_per_step / m.timed_seconds if m.timed_steps else None


def peak_memory_bytes(m: Measurement) -> float | None:
    """CUDA: the allocator's peak of allocated bytes. CPU: peak growth of the proportional set size."""
    allocated = m.peak_memory_allocated_bytes
    return allocated if allocated is not None else m.peak_pss_growth_bytes


def memory_kind(m: Measurement) -> MemoryKind | None:
    """Which of the two `peak_memory_bytes` is; None where neither was measured."""
    if m.peak_memory_allocated_bytes is not None:
        return "cuda_allocated"
    return "cpu_pss_growth" if m.peak_pss_growth_bytes is not None else None


def final_perplexity(m: Measurement) -> float | None:
    """exp(final_loss), per token of the job's own tokenizer (Jelinek et al. 1977)."""
    return None if m.final_loss is None else math.exp(m.final_loss)


def bits_per_byte(m: Measurement) -> float | None:
    """final_loss x heldout_tokens / (heldout_bytes x ln 2): bits per UTF-8 byte of held-out text.

    Source: Gao et al. 2020, arXiv:2101.00027, section 3.1; it does not depend on the tokenizer.
    """
    if m.final_loss is None or m.heldout_tokens is None or m.heldout_bytes is None:
        return None
    return m.final_loss * m.heldout_tokens / (m.heldout_bytes * math.log(2))


def skipped_share(m: Measurement) -> float | None:
    """Share of the job's optimizer steps that fp16's gradient scaling skipped, 0 to 1."""
    return m.steps_skipped / (m.steps_applied + m.steps_skipped)


_TABLE = (
    Metric("tokens_per_second", "tokens/s", "more", tokens_per_second, units.count, "is the fastest"),
    Metric("step_time_median_seconds", "median step", "less", lambda m: m.step_time_median_seconds, units.seconds,
           "has the shortest step"),
    Metric("step_time_iqr_seconds", "step IQR", "less", lambda m: m.step_time_iqr_seconds, units.seconds,
           "has the steadiest step"),
    Metric("peak_memory_bytes", "memory", "less", peak_memory_bytes, units.size, "needs the least memory"),
    Metric("peak_memory_reserved_bytes", "reserved", "less", lambda m: m.peak_memory_reserved_bytes, units.size,
           "reserves the least memory"),
    Metric("final_loss", "loss", "less", lambda m: m.final_loss, units.significant,
           "reaches the lowest held-out loss", True),
    Metric("final_perplexity", "perplexity", "less", final_perplexity, units.significant,
           "reaches the lowest perplexity", True),
    Metric("bits_per_byte", "bits/byte", "less", bits_per_byte, units.significant,
           "reaches the fewest bits per byte", True),
    Metric("startup_seconds", "start-up", "less", lambda m: m.startup_seconds, units.seconds, "starts the soonest"),
    Metric("compile_seconds", "compile", "less", lambda m: m.compile_seconds, units.seconds,
           "compiles the fastest"),
    Metric("training_seconds", "training", "less", lambda m: m.training_seconds, units.seconds,
           "trains in the shortest time"),
    Metric("evaluation_seconds", "evaluation", "less", lambda m: m.evaluation_seconds, units.seconds,
           "evaluates the fastest"),
    Metric("skipped_share", "skipped steps", "less", skipped_share, units.significant, "skips the fewest steps"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}
"""Every metric by name, in the order of ranking.json."""


def finite(formula: Callable[[], float | None]) -> float | None:
    """The formula's value, or None where it divides by zero or is more than a float holds."""
    try:
        value = formula()
        return None if value is None or not math.isfinite(value) else float(value)
    except (OverflowError, ZeroDivisionError):
        return None


def derive(record: Record) -> dict[str, float | None]:
    """Every metric of a completed record, by name. Raises ValueError for a failed one."""
    if not isinstance(record.outcome, Completed):
        raise ValueError(f"trial {record.trial.trial_id} failed: it has no metrics")
    measurement = record.outcome.measurement
    return {name: finite(lambda m=metric: m.derive(measurement)) for name, metric in METRICS.items()}  # type: ignore[misc]
