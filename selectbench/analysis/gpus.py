"""What a row says of its GPUs: their state, memory and clocks, and why energy or cost is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from selectbench.analysis.arithmetic import arithmetic, impossible
from selectbench.analysis.cost import unpriced
from selectbench.analysis.energy import BY_TRUST, energy
from selectbench.analysis.gpu_row import DeviceMemory, GpuRow, TrialState, Unknown
from selectbench.analysis.gpu_state import State, Verdict
from selectbench.analysis.observed import Observed
from selectbench.analysis.summary import Summary, mean
from selectbench.record.meters import GpuMeters
from selectbench.record.record import Failed

_MAY_CAUSE = {"shared": ("oom", "timeout", "crashed"), "throttled": ("timeout",)}
"""Failures that are no finding about the option in these states."""

Trials = list[list[GpuMeters]]
"""GPUs by trial."""


def gpu_row(summary: Summary) -> GpuRow | None:
    """None where no trial of the option had GPU meters."""
    if not summary.states:
        return None
    counting = _counting(summary)
    trials = [observed.gpus for observed in counting]
    energies = {seed: energy(o.meters) for seed, o in summary.observed.items() if o.gpus}
    methods = [found.method for found in energies.values() if found.method]
    return GpuRow(
        names=list(dict.fromkeys(gpu.name for trial in trials for gpu in trial)),
        states=_counted(summary.states.values()),
        by_seed=[TrialState(seed=s, verdict=f.verdict, detail=f.detail) for s, f in summary.states.items()],
        energy_method=max(methods, key=BY_TRUST.index) if methods else None,
        energy_unknown=Unknown.by_reason({seed: found.reason for seed, found in energies.items()}),
        memory=_memory(summary), arithmetic=arithmetic(summary, counting),
        mean_utilization=_mean(trials, lambda gpu: gpu.mean_utilization),
        mean_sm_clock_hertz=_mean(trials, lambda gpu: gpu.mean_sm_clock_hertz),
        mean_memory_clock_hertz=_mean(trials, lambda gpu: gpu.mean_memory_clock_hertz),
        highest_temperature_celsius=max(_all(trials, lambda gpu: gpu.highest_temperature_celsius), default=None),
        clock_limit_shares=_limits(trials),
    )  # fmt: skip


def _counted(states: Iterable[State]) -> dict[Verdict, int]:
    found = [state.verdict for state in states]
    order: tuple[Verdict, ...] = ("clean", "throttled", "shared", "unknown")
    return {verdict: found.count(verdict) for verdict in order if verdict in found}


def _counting(summary: Summary) -> list[Observed]:
    """The completed trials that were neither throttled nor shared; all where there is none."""
    metered = {seed: o for seed, o in summary.observed.items() if o.gpus}
    clean = [o for seed, o in metered.items() if summary.states[seed].verdict in ("clean", "unknown")]
    return clean or list(metered.values())


def _memory(summary: Summary) -> DeviceMemory:
    """Of the completed trials that were not shared; of all where there is none."""
    name = "peak_device_memory_bytes"
    over_idle = summary.values[name] or summary.spoiled[name]
    trials = [summary.observed[seed].gpus for seed in over_idle]
    return DeviceMemory(
        peak_bytes=_mean_of_largest(trials, lambda gpu: gpu.peak_device_memory_bytes),
        peak_over_idle_bytes=mean(list(over_idle.values())),
        idle_bytes=_mean_of_largest(trials, lambda gpu: gpu.idle_memory_bytes),
        total_bytes=min(_all(trials, lambda gpu: gpu.memory_total_bytes), default=None),
        driver_reserved_bytes=_mean_of_largest(trials, lambda gpu: gpu.driver_reserved_bytes),
    )


def _limits(trials: Trials) -> dict[str, float] | None:
    """Means over all GPUs; None where any does not tell."""
    shares = [gpu.clock_limit_shares for trial in trials for gpu in trial]
    known = [share for share in shares if share is not None]
    if not known or len(known) < len(shares):
        return None
    reasons = dict.fromkeys(reason for share in known for reason in share)
    return {reason: sum(share.get(reason, 0.0) for share in known) / len(known) for reason in reasons}


def _all(trials: Trials, read: Callable[[GpuMeters], float | None]) -> list[float]:
    found = (read(gpu) for trial in trials for gpu in trial)
    return [value for value in found if value is not None]


def _mean(trials: Trials, read: Callable[[GpuMeters], float | None]) -> float | None:
    return mean(_all(trials, read))


def _mean_of_largest(trials: Trials, read: Callable[[GpuMeters], float | None]) -> float | None:
    """Of each trial the GPU with the most, then the mean; None where one does not tell."""
    if not trials or len(_all(trials, read)) < sum(map(len, trials)):
        return None
    return mean([max(_all([trial], read)) for trial in trials])


def cost_unknown(summary: Summary) -> list[Unknown]:
    """Why a price of the suite can't be applied to some of the option's trials."""
    return Unknown.by_reason({seed: unpriced(observed) for seed, observed in summary.observed.items()})


def failure_note(failed: Failed, state: State | None) -> str | None:
    """Why a failed trial is no finding about the option; None where its GPUs did not cause it."""
    if state is None or failed.kind not in _MAY_CAUSE.get(state.verdict, ()):
        return None
    return f"no finding about the option: the GPU was {state.verdict}: {state.detail}"


def warnings(device: str, summaries: Sequence[Summary]) -> list[str]:
    """What of the GPUs makes figures doubtful."""
    found = [
        line for summary in summaries for line in (*_unclean(summary), *_unsettled(summary), *impossible(summary))
    ]
    return [*(_unmetered(summaries) if device == "cuda" else []), *found, *_without_cost(summaries)]


def _unclean(summary: Summary) -> list[str]:
    """One line with the findings of every seed that was throttled or shared."""
    found = [
        f"seed {seed}{_end(summary, seed)} {state.verdict}: {state.detail}"
        for seed, state in summary.states.items()
        if state.verdict in ("throttled", "shared")
    ]
    return [f"{summary.name}: {'; '.join(found)}{_consequence(summary)}"] if found else []


def _end(summary: Summary, seed: int) -> str:
    return f" ({summary.failed[seed].kind})" if seed in summary.failed else ""


def _consequence(summary: Summary) -> str:
    if not summary.spoiled["tokens_per_second"]:
        return ""
    if summary.only_spoiled("tokens_per_second"):
        return "; as there is no clean trial, its figures of speed, energy and cost are compared with nothing"
    return "; left out of speed, energy and cost"


def _unsettled(summary: Summary) -> list[str]:
    trials = {seed: observed.meters for seed, observed in summary.observed.items()}
    seeds = [str(seed) for seed, meters in trials.items() if meters and meters.settled is False]
    told = "the GPU's memory had not come back before the trial to what it was before the first one"
    return [f"{summary.name}: {told} (seed {', '.join(seeds)})"] if seeds else []


def _unmetered(summaries: Sequence[Summary]) -> list[str]:
    meters = [o.meters for summary in summaries for o in summary.observed.values()]
    problems = dict.fromkeys(m.problem for m in meters if m and m.problem and not m.gpus)
    return [f"no GPU meters, so device memory, energy and the GPUs' state are not known: {p}" for p in problems]


def _without_cost(summaries: Sequence[Summary]) -> list[str]:
    names: dict[str, list[str]] = {}
    for summary in summaries:
        for unknown in cost_unknown(summary):
            names.setdefault(unknown.reason, []).append(summary.name)
    return [f"cost is not known: {reason} ({', '.join(found)})" for reason, found in names.items()]
