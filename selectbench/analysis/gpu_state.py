"""Whether a trial's GPUs were in a state in which its figures may be believed, by a rule fixed in advance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selectbench.record.meters import GpuMeters, OtherProcess
from selectbench.record.record import Record

Verdict = Literal["clean", "throttled", "shared", "unknown"]
GpuState = Literal["throttled", "shared"]

SLOWDOWNS = {
    "hw_slowdown": "hardware slowdown", "hw_thermal_slowdown": "hardware thermal slowdown",
    "sw_thermal_slowdown": "software thermal slowdown", "hw_power_brake_slowdown": "power brake",
}  # fmt: skip
"""Reasons that hold the clocks down from outside the option, by their names in `clock_limit_shares`."""
POWER_CAP = "sw_power_cap"
"""The reason that the option itself brings about."""
THROTTLED_SHARE = 0.02
"""Share of the readings from which one of the slowdowns spoils a trial."""
BUSY_BEFORE = 0.05
"""Utilisation right before a trial from which something else was at work."""

RULE = (
    "A trial is shared where another process computed on one of its GPUs, or the GPU was at work for more than "
    f"{BUSY_BEFORE:.0%} of the time right before it; throttled where one of {', '.join(SLOWDOWNS.values())} held "
    f"the clocks down in more than {THROTTLED_SHARE:.0%} of the readings inside the timed windows (the largest "
    "share of any of them and of any GPU; over the whole trial where it failed); unknown where the driver does not "
    "tell these things; else clean. The software power cap is normal at full load and the option's own doing: it "
    "is shown and excludes nothing."
)

_SEVERITY: tuple[Verdict, ...] = ("shared", "throttled", "unknown", "clean")


@dataclass(frozen=True)
class State:
    """The verdict on one trial."""

    verdict: Verdict
    detail: str
    """What was found, of all its GPUs; '' where they were clean."""


def state_of(record: Record) -> State | None:
    """The state of a trial's GPUs by RULE, the worst of any; None: it had no GPU meters."""
    meters = record.meters
    if meters is None or not meters.gpus:
        return None
    several = len(meters.gpus) > 1
    findings = [
        (verdict, f"GPU {number}: {words}" if several else words)
        for number, gpu in enumerate(meters.gpus)
        for verdict, words in _findings(gpu)
    ]
    if meters.problem:
        findings.append(("unknown", meters.problem))
    findings.sort(key=lambda finding: _SEVERITY.index(finding[0]))
    worst = findings[0][0] if findings else "clean"
    # What is not known is worth a word only where nothing worse was seen.
    told = [words for verdict, words in findings if verdict != "unknown" or worst == "unknown"]
    return State(worst, "; ".join(dict.fromkeys(told)))


def is_unclean(record: Record) -> bool:
    """Whether the trial's GPUs were throttled or shared, so that its speed, energy and cost mean nothing."""
    state = state_of(record)
    return state is not None and state.verdict in ("throttled", "shared")


def _findings(gpu: GpuMeters) -> list[tuple[Verdict, str]]:
    """Everything that speaks against one GPU."""
    found: list[tuple[Verdict, str]] = []
    if gpu.other_processes:
        found.append(("shared", f"also used by {', '.join(map(_process, gpu.other_processes))}"))
    if gpu.idle_utilization is not None and gpu.idle_utilization > BUSY_BEFORE:
        found.append(("shared", f"at work {gpu.idle_utilization:.0%} of the time before the trial"))
    for name, words in SLOWDOWNS.items():
        share = (gpu.clock_limit_shares or {}).get(name, 0.0)
        if share > THROTTLED_SHARE:
            found.append(("throttled", f"{words} in {_percent(share)} of the readings"))
    return found + [("unknown", words) for words in _hidden(gpu)]


def _hidden(gpu: GpuMeters) -> list[str]:
    """What could not be seen of it."""
    gaps = {
        "no readings while it was timed": not gpu.readings,
        "the reasons that hold the clocks down can't be read": gpu.readings > 0 and gpu.clock_limit_shares is None,
        "the list of processes shows not even the trial's own, as in most containers": gpu.other_processes is None,
    }
    return [words for words, missing in gaps.items() if missing] + ([gpu.problem] if gpu.problem else [])


def _process(process: OtherProcess) -> str:
    return f"process {process.pid}" + (f" ({process.name})" if process.name else "")


def _percent(share: float) -> str:
    """So that 2.04 % does not read as if it were within the bound."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
