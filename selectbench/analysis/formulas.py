"""Formulas over what the worker itself measured. What cannot be computed is None, never infinity and never zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from selectbench.record.record import Measurement, RankMemory

T = TypeVar("T")
MemoryKind = Literal["cuda_allocated", "cpu_pss_growth"]


def finite(formula: Callable[..., float | None], *arguments: object) -> float | None:
    """The formula's value, or None where it divides by zero or is more than a float holds."""
    try:
        value = formula(*arguments)
        return float(value) if value is not None and math.isfinite(value) else None
    except (OverflowError, ZeroDivisionError):
        return None


def finite_of_each(formula: Callable[[T], float | None], trials: Mapping[int, T]) -> dict[int, float]:
    """`finite` of each trial by its seed, those without a value left out; quick where nothing goes wrong."""
    try:
        found = {seed: formula(trial) for seed, trial in trials.items()}
    except (OverflowError, ZeroDivisionError):
        found = {seed: finite(formula, trial) for seed, trial in trials.items()}
    return {seed: float(value) for seed, value in found.items() if value is not None and math.isfinite(value)}


def tokens_per_second(m: Measurement) -> float | None:
    """timed_steps x tokens_per_step / timed_seconds: tokens trained per second by the whole job."""
    return m.timed_steps * m.tokens_per_step / m.timed_seconds if m.timed_steps else None


def peak_memory_bytes(m: Measurement) -> float | None:
    """CUDA: the allocator's peak of allocated bytes and managed state. CPU: peak growth of proportional set size.

    No growth at all is less than can be measured, and so not known: a training that takes no memory there is not.
    """
    allocated = with_managed_state(m.peak_memory_allocated_bytes, m)
    return (allocated if allocated is not None else m.peak_pss_growth_bytes) or None


def peak_memory_reserved_bytes(m: Measurement) -> float | None:
    """CUDA: the allocator's peak of reserved bytes, and managed state."""
    return with_managed_state(m.peak_memory_reserved_bytes, m)


def with_managed_state(allocator_bytes: int | None, m: Measurement | RankMemory) -> int | None:
    """A figure of torch's allocator and the optimizer state in managed memory, which it does not count.

    The state is there from the first update on, as an allocator's own would be, and the later steps have the peak.
    """
    return None if allocator_bytes is None else allocator_bytes + (m.managed_state_bytes or 0)


def memory_kind(m: Measurement) -> MemoryKind | None:
    """Which of the two `peak_memory_bytes` is; None where neither was measured."""
    if m.peak_memory_allocated_bytes is not None:
        return "cuda_allocated"
    return "cpu_pss_growth" if m.peak_pss_growth_bytes is not None else None


def final_perplexity(m: Measurement) -> float | None:
    """exp(final_loss), per token of the job's own tokenizer (Jelinek et al. 1977)."""
    return None if m.final_loss is None else math.exp(m.final_loss)


def excess_loss(m: Measurement) -> float | None:
    """final_loss less what the true source has on the same tokens; nats per token.

    Cross-entropy is entropy and divergence (Cover and Thomas 2006, theorem 5.4.3), and a divergence is not below 0:
    on a sample the difference may be, by chance.
    """
    return None if m.final_loss is None or m.source_loss is None else m.final_loss - m.source_loss


def bytes_per_second(m: Measurement) -> float | None:
    """Training tokens per second by the bytes of text that a held-out token stands for."""
    speed, size = tokens_per_second(m), bytes_per_token(m)
    return None if speed is None or size is None else speed * size


def bytes_per_token(m: Measurement) -> float | None:
    """UTF-8 bytes of held-out text that a token stands for: how well the tokenizer fits the text."""
    return None if not m.heldout_bytes or not m.heldout_tokens else m.heldout_bytes / m.heldout_tokens


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
