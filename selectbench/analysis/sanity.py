"""Whether the trials did the same job, and what else a reader must know before trusting their figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from selectbench.analysis.metrics import MemoryKind, memory_kind, skipped_share
from selectbench.analysis.summary import Summary
from selectbench.record.record import Identity, Measurement
from selectbench.suite.suite import Option

MUST_AGREE = (
    "initial_weights_sha256", "token_stream_sha256", "evaluation_set_sha256", "parameters", "tokens_per_step",
    "steps_requested", "steps_applied", "learning_rate_shape_sha256", "parameter_dtype", "gradient_dtype",
    "compute_dtype", "optimizer_state_dtype", "matmul_tf32", "attention", "optimizer", "compiled",
)  # fmt: skip
"""Identity fields that are equal for every option of a seed unless a choice that differs may change them."""

FIRST_LOSS_TOLERANCE = 0.01
"""Relative difference of step 0's loss above which a reader is told; bf16 stays below 0.004 (8 bits)."""

STALLED_MEAN_OVER_MEDIAN = 1.5
"""Mean over median of a trial's step times from which its timing counts as disturbed."""
SHORTEST_TIMED_SECONDS = 1.0
"""Timed for less, a trial's speed is mostly chance."""
SKIPPED_SHARE_TOLERATED = 0.01
"""Share of skipped fp16 steps above which a reader is told: such an option trained on less."""


def may_change(option: Option, other: Option) -> frozenset[str]:
    """Identity fields that the choices in which two options differ may legitimately change."""
    ours, theirs = option.choices.each(), other.choices.each()
    changed = [(ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]]
    return frozenset().union(*(choice.may_change for pair in changed for choice in pair))


def differences(summary: Summary, reference: Summary, seed: int) -> list[str]:
    """Undeclared differences of one seed's job from the reference's, each with field and both values."""
    ours, theirs = summary.completed[seed].identity, reference.completed[seed].identity
    if ours is None or theirs is None:
        return []
    declared = may_change(summary.option, reference.option)
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in MUST_AGREE if name not in declared}
    return [
        f"seed {seed}: {name} is {_brief(mine)}, {_brief(other)} for {reference.name}"
        for name, (mine, other) in pairs.items()
        if mine != other
    ]


def undeclared(summaries: Sequence[Summary], baseline: Summary) -> dict[str, list[str]]:
    """Per option, in what its job was another than the baseline's (or the first one's that completed)."""
    found: dict[str, list[str]] = {summary.name: [] for summary in summaries}
    for seed in baseline.planned:
        done = [s for s in (baseline, *summaries) if seed in s.completed]
        for summary in done[1:]:
            found[summary.name] += differences(summary, done[0], seed)
    return found


def _brief(value: object) -> str:
    """Digests by their first twelve digits, the rest whole."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def trial_warnings(summaries: Sequence[Summary]) -> list[str]:
    """What makes single options' figures doubtful, one line per option and cause."""
    return [line for summary in summaries for line in _option_warnings(summary)]


def _option_warnings(summary: Summary) -> list[str]:
    done = summary.measurements.items()
    causes = {
        "not verified to be the same job: no identity recorded": [
            seed for seed, record in summary.completed.items() if record.identity is None
        ],
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
        f"more than {SKIPPED_SHARE_TOLERATED:.0%} of the optimizer steps were skipped": [
            seed for seed, m in done if _skips(m)
        ],
    }
    return [f"{summary.name}: {text} ({_seeds(seeds)})" for text, seeds in causes.items() if seeds]


def stalled(measurement: Measurement) -> bool:
    """Whether the mean timed step is so much longer than the median one that something else held it up.

    Steps of one trial do the same work: a mean far above the median comes from a few steps that waited, for
    another process, a disk or a clock, and speed (a mean over time) is then theirs, not the option's.
    """
    median = measurement.step_time_median_seconds
    if not median or not measurement.timed_steps:
        return False
    return measurement.timed_seconds / measurement.timed_steps > STALLED_MEAN_OVER_MEDIAN * median


def _skips(measurement: Measurement) -> bool:
    steps = measurement.steps_applied + measurement.steps_skipped
    share = skipped_share(measurement) if steps else None
    return share is not None and share > SKIPPED_SHARE_TOLERATED


def _seeds(seeds: Sequence[int]) -> str:
    shown = ", ".join(str(seed) for seed in islice(seeds, 8))
    return f"seed{'s' if len(seeds) > 1 else ''} {shown}{', ...' if len(seeds) > 8 else ''}"


def first_loss_warnings(summaries: Sequence[Summary], baseline: Summary) -> list[str]:
    """Options whose loss before any update is further from the baseline's than rounding explains."""
    lines = []
    for summary in summaries:
        pairs = {seed: (summary.completed[seed], record) for seed, record in baseline.completed.items()
                 if seed in summary.completed}  # fmt: skip
        far = [seed for seed, (ours, theirs) in pairs.items() if _far(ours.identity, theirs.identity)]
        if far:
            lines.append(
                f"{summary.name}: the loss of step 0 differs from {baseline.name}'s by more than "
                f"{FIRST_LOSS_TOLERANCE:.0%} ({_seeds(far)})"
            )
    return lines


def _far(ours: Identity | None, theirs: Identity | None) -> bool:
    if ours is None or theirs is None:
        return False
    return abs(ours.first_step_loss - theirs.first_step_loss) > FIRST_LOSS_TOLERANCE * abs(theirs.first_step_loss)


def memory_warnings(summaries: Sequence[Summary]) -> list[str]:
    """One line where peaks of different kinds stand in one table."""
    kinds = memory_kinds(summaries)
    return [f"peak memory mixes different quantities: {', '.join(kinds)}"] if len(kinds) > 1 else []


def memory_kinds(summaries: Sequence[Summary]) -> list[MemoryKind]:
    """Which kinds of peak memory the completed trials measured, sorted."""
    measurements = [m for summary in summaries for m in summary.measurements.values()]
    return sorted({kind for m in measurements if (kind := memory_kind(m))})
