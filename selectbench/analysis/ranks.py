"""What a row says of its ranks: how many, the memory of each, how speed grew with them."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench import units
from selectbench.analysis.formulas import with_managed_state
from selectbench.analysis.row import MemoryByRank, Scaling
from selectbench.analysis.summary import Summary, mean
from selectbench.plan.model_states import expected
from selectbench.record.record import Identity, RankMemory

ONE_RANK = "no evidence about sharding at one rank"
MANAGED = (
    "{} of its optimizer's state lies in managed memory, which the driver moves between GPU and host: memory, "
    "allocated and reserved, counts all of it, the device's own figure what was on the GPU"
)
GLOO = (
    "several ranks on a CPU share its cores and exchange gradients over gloo: their speeds are a functional check "
    "and say nothing of NCCL on GPUs"
)


def world_size(summary: Summary) -> int | None:
    """Ranks that took part; None where no trial says so or trials differ."""
    found = {identity.world_size for identity in _identities(summary)}
    return found.pop() if len(found) == 1 else None


def _identities(summary: Summary) -> list[Identity]:
    return [record.identity for record in summary.completed.values() if record.identity]


def notes(summary: Summary) -> list[str]:
    """What a reader of this row must not conclude from it."""
    shards = summary.option.choices.strategy.sharded()
    alone = [ONE_RANK] if shards and world_size(summary) == 1 else []
    managed = max((m.managed_state_bytes or 0 for m in summary.measurements.values()), default=0)
    return [*alone, *([MANAGED.format(units.size(managed))] if managed else [])]


def warnings(device: str, summaries: Sequence[Summary]) -> list[str]:
    """One line where ranks shared a CPU."""
    several = any(identity.world_size > 1 for summary in summaries for identity in _identities(summary))
    return [GLOO] if device == "cpu" and several else []


def memory(summary: Summary) -> MemoryByRank | None:
    """Means over the seeds; None where nothing was measured by rank."""
    seeds = [m.memory_by_rank for m in summary.measurements.values() if m.memory_by_rank]
    if not seeds:
        return None
    identity = next(iter(_identities(summary)), None)
    choices = summary.option.choices
    states = expected(choices, identity.parameters, identity.world_size) if identity else None
    return MemoryByRank(
        peak_bytes_by_rank=_peaks(seeds),
        expected_model_state_bytes=states.total if states else None,
        measured_model_state_bytes=_known_mean([_largest_state(ranks) for ranks in seeds]),
    )


def _peaks(seeds: Sequence[Sequence[RankMemory]]) -> list[float | None]:
    """Of each rank in order; empty where seeds had different numbers of ranks."""
    if len({len(ranks) for ranks in seeds}) > 1:
        return []
    return [_known_mean([_peak(rank) for rank in same]) for same in zip(*seeds, strict=True)]


def _peak(rank: RankMemory) -> int | None:
    allocated = with_managed_state(rank.peak_memory_allocated_bytes, rank)
    return allocated if allocated is not None else rank.peak_pss_growth_bytes


def _largest_state(ranks: Sequence[RankMemory]) -> int | None:
    """Of the rank that keeps most; None where any of them hides a part."""
    parts = [(r.parameter_bytes, r.gradient_bytes, r.optimizer_state_bytes) for r in ranks]
    sums = [sum(known) for rank in parts if len(known := [part for part in rank if part is not None]) == 3]
    return max(sums) if len(sums) == len(parts) else None


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def in_answer(device: str, summaries: Sequence[Summary]) -> str:
    """What the answer must not be read without, with a space before it; '' where there is nothing."""
    return " Over gloo on a CPU: a functional check, no finding about GPUs." if warnings(device, summaries) else ""


def share_main_memory(device: str, summaries: Sequence[Summary]) -> bool:
    """Whether options have different numbers of ranks in one main memory, so that one rank's part says little."""
    return device == "cpu" and len({world_size(summary) for summary in summaries} - {None}) > 1


def is_about_scaling(summaries: Sequence[Summary]) -> bool:
    """Whether rows differ in their number of ranks, and in nothing that would make a speed-up another thing."""
    differing = {name.partition(".")[0] for summary in summaries for name in summary.option.differs_in}
    sizes = {world_size(summary) for summary in summaries} - {None}
    return len(sizes) > 1 and differing <= {"world_size", "micro_batch_size", "strategy"}


def scaling(device: str, summary: Summary, baseline: Summary, speed_ratio: float | None) -> Scaling | None:
    """Speed-up over the baseline, and per rank; None where a number of ranks is not known.

    No efficiency on a CPU, whose ranks share its cores: half of it would be no loss.
    `speed_ratio`: tokens per second over the baseline's, of the same job (strong scaling, Amdahl 1967).
    """
    ours, theirs = world_size(summary), world_size(baseline)
    if ours is None or theirs is None:
        return None
    shares_cores = device == "cpu" and ours != theirs
    efficiency = None if speed_ratio is None or shares_cores else speed_ratio * theirs / ours
    return Scaling(world_size=ours, speedup=speed_ratio, efficiency=efficiency)
