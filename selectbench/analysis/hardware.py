"""What a row of the ranking says of its ranks and of its GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from selectbench import units
from selectbench.analysis import metrics
from selectbench.analysis.result import Arithmetic, DeviceMemory, GpuRow, MemoryByRank, Scaling, TrialState, Unknown
from selectbench.analysis.summary import LEFT_SHARE_TOLERATED, Summary, centre, mean
from selectbench.choices import Choices
from selectbench.planning.memory import expected_states
from selectbench.record.record import Failed, GpuMeters, Identity, RankMemory
from selectbench.suite.metrics import GPU_STATE, GpuFigure

# What a row says of its ranks: how many, the memory of each, how speed grew with them.

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
    sizes = {identity.world_size for identity in _identities(summary)}
    return sizes.pop() if len(sizes) == 1 else None


def _identities(summary: Summary) -> list[Identity]:
    return [record.identity for record in summary.completed.values() if record.identity]


def rank_notes(summary: Summary) -> list[str]:
    """Notes on what cannot be concluded from this row."""
    choices, notes = summary.option.choices, list[str]()
    if not isinstance(choices, Choices) or not summary.measurements:
        return notes
    if choices.strategy.sharded() and world_size(summary) == 1:
        notes.append(ONE_RANK)
    uses = next(iter(summary.measurements.values())).parameters_by_use
    others = {use: count for use, count in uses.items() if use != "matrix" and count}
    if choices.optimizer.name == "muon" and sum(others.values()) > LEFT_SHARE_TOLERATED * sum(uses.values()):
        of_each = ", ".join(f"{use} {units.count(count)}" for use, count in sorted(others.items()))
        muons = f"{units.count(uses.get('matrix', 0))} of {units.count(sum(uses.values()))} parameters"
        notes.append(f"muon trains {muons}, AdamW the others: {of_each}")
    managed = max(m.managed_state_bytes or 0 for m in summary.measurements.values())
    return [*notes, *([MANAGED.format(units.size(managed))] if managed else [])]


def rank_warnings(device: str, summaries: Sequence[Summary]) -> list[str]:
    """One line where ranks shared a CPU."""
    several = any(identity.world_size > 1 for summary in summaries for identity in _identities(summary))
    return [GLOO] if device == "cpu" and several else []


def memory_by_rank(summary: Summary) -> MemoryByRank | None:
    """Means over the seeds; None where nothing was measured by rank."""
    seeds = [m.memory_by_rank for m in summary.measurements.values() if m.memory_by_rank]
    if not seeds:
        return None
    identity, choices = next(iter(_identities(summary)), None), summary.option.choices
    states = None
    if isinstance(choices, Choices) and identity is not None:
        states = expected_states(choices, identity.parameters, identity.world_size)

    def peak(rank: RankMemory) -> int | None:
        allocated = metrics.with_managed_state(rank.peak_memory_allocated_bytes, rank)
        return allocated if allocated is not None else rank.peak_pss_growth_bytes

    def largest_state(ranks: Sequence[RankMemory]) -> int | None:
        """State of the rank that keeps most, in bytes; None where any of them hides a part."""
        parts = [(r.parameter_bytes, r.gradient_bytes, r.optimizer_state_bytes) for r in ranks]
        sums = [sum(known) for rank in parts if len(known := [part for part in rank if part is not None]) == 3]
        return max(sums) if len(sums) == len(parts) else None

    alike = len({len(ranks) for ranks in seeds}) == 1
    return MemoryByRank(
        peak_bytes_by_rank=[_known_mean(map(peak, rank)) for rank in zip(*seeds, strict=True)] if alike else [],
        expected_model_state_bytes=sum(states) if states else None,
        measured_model_state_bytes=_known_mean(map(largest_state, seeds)),
    )


def _known_mean(values: Iterable[float | None]) -> float | None:
    """The mean; None where a value is not known."""
    all_values = list(values)
    known = [value for value in all_values if value is not None]
    return mean(known) if len(known) == len(all_values) else None


def ranks_in_answer(device: str, summaries: Sequence[Summary]) -> str:
    """A sentence for the answer, after a space, that ranks shared a CPU; '' where they did not."""
    sentence = " Over gloo on a CPU: a functional check, which says nothing about GPUs."
    return sentence if rank_warnings(device, summaries) else ""


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
    ranks, baseline_ranks = world_size(summary), world_size(baseline)
    if ranks is None or baseline_ranks is None:
        return None
    shares_cores = device == "cpu" and ranks != baseline_ranks
    efficiency = None if speed_ratio is None or shares_cores else speed_ratio * baseline_ranks / ranks
    return Scaling(world_size=ranks, speedup=speed_ratio, efficiency=efficiency)


def _arithmetic(summary: Summary, counting: Sequence[metrics.Observed]) -> Arithmetic:
    """`counting`: the trials that its figures are means over."""
    unknown = {share: Unknown.by_reason(reasons) for share, reasons in _unknown_reasons(summary).items()}
    return Arithmetic(
        dtype=summary.option.choices.matmul_dtype,
        model_flops_per_token=_known_mean(metrics.flops_per_token(o, "mfu") for o in counting),
        hardware_flops_per_token=_known_mean(metrics.flops_per_token(o, "hfu") for o in counting),
        peak_flops_per_second=_known_mean(metrics.flops_per_second(o, "mfu") for o in counting),
        matmul_flops_per_second=_known_mean(metrics.flops_per_second(o, "matmul_rate_share") for o in counting),
        unknown={share: reasons for share, reasons in unknown.items() if reasons},
    )


def _unknown_reasons(summary: Summary) -> dict[metrics.UtilizationName, dict[int, str | None]]:
    """Why a share is not known, by share and metered seed; None: it is known."""
    metered = {seed: o for seed, o in summary.observed.items() if o.gpus}
    return {
        share: {s: metrics.utilization(o, share).reason for s, o in metered.items()} for share in metrics.SHARES
    }


def impossible_shares(summary: Summary) -> list[str]:
    """One line for each cause of a share above 1, which is withheld."""
    reasons, lines = list(_unknown_reasons(summary).values()), []
    for cause in (metrics.IMPOSSIBLE, metrics.IMPOSSIBLE_RATE):
        seeds = [str(seed) for seed in summary.planned if any(by_seed.get(seed) == cause for by_seed in reasons)]
        if seeds:
            lines.append(f"{summary.name}: utilisation {cause}, so it is withheld (seed {', '.join(seeds)})")
    return lines


# What a row says of its GPUs: their state, memory and clocks, and why energy or cost is not known.

_POSSIBLE_CAUSES = {"shared": ("oom", "timeout", "crashed"), "throttled": ("timeout",)}
"""Failures that are no finding about the option in these states."""

GpusByTrial = list[list[GpuMeters]]
"""GPUs by trial."""


def gpu_row(summary: Summary) -> GpuRow | None:
    """What a row says of its GPUs; None where no trial of the option had GPU meters."""
    states = {seed: state for seed, state in summary.states.items() if state.verdict != "busy"}
    if not states:
        return None
    metered = {seed: o for seed, o in summary.observed.items() if o.gpus}
    clean = [o for seed, o in metered.items() if summary.states[seed].verdict in ("clean", "unknown")]
    counting = clean or list(metered.values())
    trials = [observed.gpus for observed in counting]
    energies = {seed: metrics.energy(o.meters) for seed, o in metered.items()}
    methods = [e.method for e in energies.values() if e.method]
    verdicts = [state.verdict for state in states.values()]
    order: tuple[metrics.Verdict, ...] = ("clean", "throttled", "shared", "unknown")
    return GpuRow(
        names=list(dict.fromkeys(gpu.name for trial in trials for gpu in trial)),
        states={verdict: verdicts.count(verdict) for verdict in order if verdict in verdicts},
        by_seed=[TrialState(seed=s, verdict=state.verdict, detail=state.detail) for s, state in states.items()],
        energy_method=max(methods, key=metrics.BY_TRUST.index) if methods else None,
        energy_unknown=Unknown.by_reason({seed: e.reason for seed, e in energies.items()}),
        memory=_device_memory(summary), arithmetic=_arithmetic(summary, counting),
        state={figure.name: _over_trials(trials, figure) for figure in GPU_STATE},
        clock_limit_shares=_clock_limit_shares(trials),
    )  # fmt: skip


def _device_memory(summary: Summary) -> DeviceMemory:
    """Memory of the completed trials that were not shared; of all where each was shared."""
    name = "peak_device_memory_bytes"
    over_idle = summary.values[name] or summary.spoiled[name]
    trials = [summary.observed[seed].gpus for seed in over_idle]
    return DeviceMemory(
        peak_bytes=_mean_of_largest(trials, "peak_device_memory_bytes"),
        peak_over_idle_bytes=centre(list(over_idle.values())),
        idle_bytes=_mean_of_largest(trials, "idle_memory_bytes"),
        total_bytes=min(_known_figures(trials, "memory_total_bytes"), default=None),
        driver_reserved_bytes=_mean_of_largest(trials, "driver_reserved_bytes"),
    )


def _clock_limit_shares(trials: GpusByTrial) -> dict[str, float] | None:
    """Means over all GPUs; None where one GPU's are not known."""
    shares = [gpu.clock_limit_shares for trial in trials for gpu in trial]
    known = [share for share in shares if share is not None]
    if not known or len(known) < len(shares):
        return None
    reasons = dict.fromkeys(reason for share in known for reason in share)
    return {reason: sum(share.get(reason, 0.0) for share in known) / len(known) for reason in reasons}


def _known_figures(trials: GpusByTrial, figure: str) -> list[float]:
    """A figure of every GPU that has it."""
    return [value for trial in trials for gpu in trial if (value := getattr(gpu, figure)) is not None]


def _over_trials(trials: GpusByTrial, figure: GpuFigure) -> float | None:
    """The figure over GPUs and trials; None: no GPU has it."""
    values = _known_figures(trials, figure.name)
    return mean(values) if figure.of == "mean of timed windows" else max(values, default=None)


def _mean_of_largest(trials: GpusByTrial, figure: str) -> float | None:
    """Mean over trials of the figure of the GPU with the most; None where one GPU's is not known."""
    if not trials or len(_known_figures(trials, figure)) < sum(map(len, trials)):
        return None
    return mean([max(_known_figures([trial], figure)) for trial in trials])


def cost_unknown(summary: Summary) -> list[Unknown]:
    """Why a price of the suite can't be applied to some of the option's trials."""
    return Unknown.by_reason({seed: metrics.why_unpriced(observed) for seed, observed in summary.observed.items()})


def failure_note(failed: Failed, state: metrics.State | None) -> str | None:
    """Why a failed trial is no finding about the option; None where no state of its hardware may have caused it."""
    if state is None or failed.kind not in _POSSIBLE_CAUSES.get(state.verdict, ()):
        return None
    return f"this says nothing about the option: the GPU was {state.verdict}: {state.detail}"


def gpu_warnings(device: str, summaries: Sequence[Summary]) -> list[str]:
    """A line for each cause for which the GPUs make figures doubtful."""
    lines: list[str] = []
    if device == "cuda":
        meters = [o.meters for summary in summaries for o in summary.observed.values()]
        problems = dict.fromkeys(m.problem for m in meters if m and m.problem and not m.gpus)
        text = "no GPU meters, so device memory, energy and the GPUs' state are not known"
        lines += [f"{text}: {problem}" for problem in problems]
    without_cost: dict[str, list[str]] = {}
    for summary in summaries:
        lines += _unclean_line(summary)
        meters_of = {seed: observed.meters for seed, observed in summary.observed.items()}
        if seeds := [str(seed) for seed, meters in meters_of.items() if meters and meters.settled is False]:
            text = "before the trial the GPU's memory was not back to where it was before the first one"
            lines.append(f"{summary.name}: {text} (seed {', '.join(seeds)})")
        lines += impossible_shares(summary)
        for unknown in cost_unknown(summary):
            without_cost.setdefault(unknown.reason, []).append(summary.name)
    return lines + [f"cost is not known: {why} ({', '.join(names)})" for why, names in without_cost.items()]


def _unclean_line(summary: Summary) -> list[str]:
    """One line with the findings of every seed that was throttled or shared."""
    ends = {seed: f" ({failure.kind})" for seed, failure in summary.failed.items()}
    unclean = {seed: state for seed, state in summary.states.items() if state.verdict in ("throttled", "shared")}
    seeds = [f"seed {s}{ends.get(s, '')} {state.verdict}: {state.detail}" for s, state in unclean.items()]
    end = "; left out of speed, energy and cost" if summary.spoiled["tokens_per_second"] else ""
    if summary.only_spoiled("tokens_per_second"):
        end = "; as there is no clean trial, its figures of speed, energy and cost are compared with nothing"
    return [f"{summary.name}: {'; '.join(seeds)}{end}"] if seeds else []
