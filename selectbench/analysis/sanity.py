"""What a reader must know before trusting the figures, the certificate apart."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench.analysis.formulas import MemoryKind, excess_loss, memory_kind, skipped_share
from selectbench.analysis.summary import Summary, seeds_words
from selectbench.record.record import Measurement
from selectbench.suite.constraint import parse_constraint
from selectbench.suite.suite import Suite

STALLED_MEAN_OVER_MEDIAN = 1.5
"""Mean over median of a trial's step times from which its timing counts as disturbed."""
SHORTEST_TIMED_SECONDS = 1.0
"""Timed for less, a trial's speed is mostly chance."""
FLOOR_ERRORS = 3.0
"""Standard errors below the source's own loss from which chance is no explanation."""
SKIPPED_SHARE_TOLERATED = 0.01
"""Share of skipped fp16 steps above which a reader is told: such an option trained on less."""


def trial_warnings(summaries: Sequence[Summary]) -> list[str]:
    """What makes single options' figures doubtful, one line per option and cause."""
    return [line for summary in summaries for line in _option_warnings(summary)]


def _option_warnings(summary: Summary) -> list[str]:
    done = summary.measurements.items()
    causes = {
        "a recompilation voided a timed window": [seed for seed, m in done if m.recompilations],
        "the allocator ran short and retried, which slows training": [
            seed for seed, m in done if m.num_alloc_retries
        ],
        "timing disturbed: the mean step took more than "
        f"{STALLED_MEAN_OVER_MEDIAN:g} times the median one; is the machine idle otherwise?": [
            seed for seed, m in done if stalled(m)
        ],
        f"timed for less than {SHORTEST_TIMED_SECONDS:g} s, too short to trust small differences "
        "(job.timing.min_timed_seconds)": [seed for seed, m in done if m.timed_seconds < SHORTEST_TIMED_SECONDS],
        "ALARM: its loss is below the source's own entropy by more than chance makes it: the loss, the optimizer "
        "or the precision is broken": [seed for seed, m in done if below_the_floor(m)],
        f"more than {SKIPPED_SHARE_TOLERATED:.0%} of the optimizer steps were skipped": [
            seed for seed, m in done if _skips(m)
        ],
    }
    return [f"{summary.name}: {text} ({seeds_words(seeds)})" for text, seeds in causes.items() if seeds]


def stalled(measurement: Measurement) -> bool:
    """Whether the mean timed step is so much longer than the median one that something else held it up.

    Steps of one trial do the same work: a mean far above the median comes from a few steps that waited, for
    another process, a disk or a clock, and speed (a mean over time) is then theirs, not the option's.
    """
    median = measurement.step_time_median_seconds
    if not median or not measurement.timed_steps:
        return False
    return measurement.timed_seconds / measurement.timed_steps > STALLED_MEAN_OVER_MEDIAN * median


def below_the_floor(measurement: Measurement) -> bool:
    """Whether a model claims to know more than there is to know, beyond so many standard errors of the sample."""
    excess, error = excess_loss(measurement), measurement.source_loss_error
    return excess is not None and error is not None and excess < -FLOOR_ERRORS * error


def _skips(measurement: Measurement) -> bool:
    steps = measurement.steps_applied + measurement.steps_skipped
    share = skipped_share(measurement) if steps else None
    return share is not None and share > SKIPPED_SHARE_TOLERATED


def objective_gap(suite: Suite, summary: Summary) -> str | None:
    """Why an option can't be ranked by the seeds that have the figure; None: all that completed have one."""
    metric = suite.decide.objective
    if unknown := summary.unknown(metric):
        return f"{metric} of every seed: none with {seeds_words(unknown)}"
    without = summary.without_ratio(metric)
    some = 0 < len(without) < len(summary.values[metric])  # where all are so, nothing is left to rank by
    return f"{metric} above 0 with every seed: not with {seeds_words(without)}" if some else None


def gap_warnings(suite: Suite, summaries: Sequence[Summary]) -> list[str]:
    """What decides and is not known, or has no ratio, of seeds that completed."""
    constraints = [parse_constraint(text).metric for text in suite.decide.constraints]
    deciding = dict.fromkeys([suite.decide.objective, *constraints])
    return [line for summary in summaries for metric in deciding for line in _gaps(summary, metric)]


def _gaps(summary: Summary, metric: str) -> list[str]:
    unknown, without = summary.unknown(metric), summary.without_ratio(metric)
    found = [f"no {metric} with {seeds_words(unknown)}, which completed: no mean has them"] if unknown else []
    found += [f"{metric} is not above 0 with {seeds_words(without)}: no ratio has them"] if without else []
    return [f"{summary.name}: {text}" for text in found]


def memory_warnings(summaries: Sequence[Summary]) -> list[str]:
    """One line where peaks of different kinds stand in one table."""
    kinds = memory_kinds(summaries)
    return [f"peak memory mixes different quantities: {', '.join(kinds)}"] if len(kinds) > 1 else []


def memory_kinds(summaries: Sequence[Summary]) -> list[MemoryKind]:
    """Which kinds of peak memory the completed trials measured, sorted."""
    measurements = [m for summary in summaries for m in summary.measurements.values()]
    return sorted({kind for m in measurements if (kind := memory_kind(m))})
