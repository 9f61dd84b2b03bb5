"""What the GPUs did: state, clocks, energy, and how much of their arithmetic was used. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from selectbench import units
from selectbench.analysis.energy import Method
from selectbench.analysis.gpu_row import GpuRow, Unknown
from selectbench.analysis.gpu_state import POWER_CAP, state_of
from selectbench.analysis.mfu import Share
from selectbench.analysis.row import Ranking, Row
from selectbench.record.record import Record
from selectbench.report.escape import markdown, table
from selectbench.report.figures import figure

_METHODS: dict[Method, str] = {
    "counter": "energy counter", "instant_power": "instant power", "average_power": "averaged power",
}  # fmt: skip
_SHARES: dict[Share, str] = {
    "mfu": "MFU", "hfu": "HFU", "matmul_rate_share": "share of the measured rate",
}  # fmt: skip


def gpu_section(ranking: Ranking) -> list[str]:
    """The section, or nothing where no trial had GPU meters."""
    rows = [(row, row.gpu) for row in ranking.rows if row.gpu is not None]
    if not rows:
        return []
    names = list(dict.fromkeys(name for _, gpu in rows for name in gpu.names))
    notes = [
        *unknown_states(ranking), *_unknown_energy(rows), *_unknown_shares(rows),
        "Power cap: share of the readings in which the software power cap held the clocks down",
    ]  # fmt: skip
    told = "\n".join(f"- {markdown(note)}." for note in notes)
    trained_on = [f"Trained on {markdown(', '.join(names))}."] if names else []
    return ["## GPU", *trained_on, _conditions(rows), _work(rows), *_arithmetic(rows), told]


def _conditions(rows: Sequence[tuple[Row, GpuRow]]) -> str:
    heads = ["option", "state", "SM clock", "memory clock", "highest temperature", "utilisation", "power cap"]
    cells = [
        [markdown(row.option), states(gpu), units.megahertz(gpu.mean_sm_clock_hertz),
         units.megahertz(gpu.mean_memory_clock_hertz), units.celsius(gpu.highest_temperature_celsius),
         units.share(gpu.mean_utilization), units.share(power_cap(gpu.clock_limit_shares))]
        for row, gpu in rows
    ]  # fmt: skip
    return table(heads, cells, right=2)


def _work(rows: Sequence[tuple[Row, GpuRow]]) -> str:
    heads = ["option", "energy from", "power", "energy/token"]
    shown = ("mean_power_watts", "joules_per_token")
    cells = [
        [markdown(row.option), _METHODS[gpu.energy_method] if gpu.energy_method else "not known",
         *(figure(name, row.metrics[name]) for name in shown)]
        for row, gpu in rows
    ]  # fmt: skip
    return table(heads, cells, right=2)


def _arithmetic(rows: Sequence[tuple[Row, GpuRow]]) -> list[str]:
    """How much of the GPUs' arithmetic was used; nothing where no row's work is known."""
    if not any(gpu.arithmetic.model_flops_per_token for _, gpu in rows):
        return []
    heads = ["option", "products in", "FLOPs/token", "peak", "MFU", "HFU", "measured rate", "share of it"]
    cells = [
        [markdown(row.option), gpu.arithmetic.dtype, units.flops(gpu.arithmetic.model_flops_per_token),
         units.flops_per_second(gpu.arithmetic.peak_flops_per_second),
         *(figure(name, row.metrics[name]) for name in ("mfu", "hfu")),
         units.flops_per_second(gpu.arithmetic.matmul_flops_per_second),
         figure("matmul_rate_share", row.metrics["matmul_rate_share"])]
        for row, gpu in rows
    ]  # fmt: skip
    return [table(heads, cells, right=2)]


def states(gpu: GpuRow) -> str:
    """`4 clean, 1 throttled`."""
    return ", ".join(f"{count} {verdict}" for verdict, count in gpu.states.items())


def power_cap(shares: dict[str, float] | None) -> float | None:
    """Share of the readings under the software power cap; None: not known."""
    return None if shares is None else shares.get(POWER_CAP, 0.0)


def unknown_states(ranking: Ranking) -> list[str]:
    """A line for each cause why the state of GPUs is not known."""
    causes: dict[str, int] = {}
    for row in ranking.rows:
        for state in row.gpu.by_seed if row.gpu else []:
            if state.verdict == "unknown":
                causes[state.detail] = causes.get(state.detail, 0) + 1
    trials = {cause: f"{count} trial{'s' if count > 1 else ''}" for cause, count in causes.items()}
    return [f"The state of the GPUs is not known in {number}: {cause}" for cause, number in trials.items()]


def _unknown_energy(rows: Sequence[tuple[Row, GpuRow]]) -> list[str]:
    """A line for each cause, with the options that it is true of."""
    found = _by_reason((row.option, gpu.energy_unknown) for row, gpu in rows)
    return [f"Energy is not known: {reason} ({'; '.join(trials)})" for reason, trials in found.items()]


def _unknown_shares(rows: Sequence[tuple[Row, GpuRow]]) -> list[str]:
    """The same for the shares of the GPUs' arithmetic; those that one cause hides in the same trials together."""
    lines: dict[tuple[str, str], list[str]] = {}
    for share, name in _SHARES.items():
        found = _by_reason((row.option, gpu.arithmetic.unknown.get(share, [])) for row, gpu in rows)
        for reason, trials in found.items():
            lines.setdefault((reason, "; ".join(trials)), []).append(name)
    return [f"Not known: {', '.join(names)}: {reason} ({trials})" for (reason, trials), names in lines.items()]


def _by_reason(unknown: Iterable[tuple[str, Sequence[Unknown]]]) -> dict[str, list[str]]:
    """By reason, the options with their seeds: `bf16, seed 0, 1`."""
    found: dict[str, list[str]] = {}
    for option, causes in unknown:
        for cause in causes:
            found.setdefault(cause.reason, []).append(f"{option}, seed {', '.join(map(str, cause.seeds))}")
    return found


def gpus_by_seed(done: Sequence[Record]) -> str | None:
    """One option's GPUs, a row for each trial and GPU; None where there were no meters."""
    rows = [
        [str(record.trial.seed), str(number), *_states_of(record), units.megahertz(gpu.mean_sm_clock_hertz),
         units.celsius(gpu.highest_temperature_celsius), units.share(power_cap(gpu.clock_limit_shares)),
         units.size(gpu.peak_device_memory_bytes), units.size(gpu.idle_memory_bytes)]
        for record in done
        for number, gpu in enumerate(record.meters.gpus if record.meters else [])
    ]  # fmt: skip
    heads = ["seed", "GPU", "state", "found", "SM clock", "highest temperature", "power cap", "peak memory in use",
             "in use before"]  # fmt: skip
    return table(heads, rows, right=4) if rows else None


def _states_of(record: Record) -> tuple[str, str]:
    state = state_of(record)
    return (state.verdict, markdown(state.detail)) if state else (units.DASH, "")
