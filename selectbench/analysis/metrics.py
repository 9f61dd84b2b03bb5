"""The formula of each metric of the catalogue, and which trials' GPUs were in a state to be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from selectbench.analysis import formulas
from selectbench.analysis.formulas import (
    Observed,
    finite,
    joules_per_token,
    mean_power_watts,
    peak_device_memory_bytes,
    share_of,
    usd_of_job,
    usd_per_billion_tokens,
)
from selectbench.record.record import GpuMeters, Measurement, OtherProcess, Record
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS

SIGNIFICANT_DIGITS = 12


def rounded(value: float) -> float:
    """To what a figure is worth: later digits are rounding, and differ between processors."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


Number = Annotated[float, AfterValidator(rounded)]


class Shown(BaseModel):
    """A mapping of ranking.json: no NaN, no infinity, unknown is None."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


# Whether a trial's GPUs were in a state in which its figures may be believed, by a rule fixed in advance.


Verdict = Literal["clean", "throttled", "shared", "unknown"]

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

GPU_STATE_RULE = (
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


# The formula of each metric, from what a completed trial observed.
#
# Whatever cannot be computed (nothing timed, not evaluated, more than a float holds) is None, never infinity and
# never zero.


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
