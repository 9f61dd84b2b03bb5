"""Sections on what the options ran under: the state of the GPUs, memory, arithmetic, cost. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from selectbench import units
from selectbench.analysis.cost import RULE
from selectbench.analysis.energy import Method
from selectbench.analysis.gpu_row import GpuRow, Unknown
from selectbench.analysis.gpu_state import POWER_CAP, state_of
from selectbench.analysis.mfu import Share
from selectbench.analysis.row import MemoryByRank, Ranking, Row
from selectbench.record.record import Record
from selectbench.report.document import (
    Amount,
    Cell,
    Column,
    Figure,
    Listing,
    Literally,
    Paragraph,
    Section,
    Table,
    Text,
)
from selectbench.report.ranking import figure, unknown_states
from selectbench.suite.suite import Suite

_METHODS: dict[Method, str] = {
    "counter": "energy counter", "instant_power": "instant power", "average_power": "averaged power",
}  # fmt: skip
_SHARES: dict[Share, str] = {
    "mfu": "MFU", "hfu": "HFU", "matmul_rate_share": "share of the measured rate",
}  # fmt: skip
_POWER_CAP = "Power cap: share of the readings in which the software power cap held the clocks down"
_MOST_PEAKS = 8
_MODEL_STATES = (
    "Model states are parameters, gradients and optimizer state of one rank (measured: of the rank that keeps "
    "most). Expected is the formula of Rajbhandari et al. 2020, arXiv:1910.02054: what a strategy shards is "
    "divided by the number of ranks, and gradients have the dtype of the weights that the model computes with; "
    "an implementation may keep them in fp32, or buffers beside them."
)
_MEMORY: Text = (
    ("Allocated and reserved are the CUDA allocator's own peaks, of the rank with most: the tensors, and the "
    "blocks that it keeps for them, each with what optimizer state lies in managed memory beside it. Device peak "
    "is what the GPU itself had in use, the CUDA context, libraries' workspaces and fragments among it, over what "
    "it held right before the trial. All while training, evaluation excluded. "
    "Whether an option fits in so many GiB is told by "), Literally("must fit"), (": the device peak and what the "
    "GPU holds when idle, since both must fit, in the GPU's total less what the driver reserves. A GPU of another "
    "kind, or a fuller one, holds another amount when idle."),
)  # fmt: skip


def _table(caption: str, left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """`left`, `right`: the headings of columns by how they are aligned."""
    return Table([*map(Column, left), *(Column(head, "right") for head in right)], list(rows), caption)


def _mean(row: Row, name: str) -> Figure:
    return figure(row, name, with_spread=False)


def gpu_section(ranking: Ranking) -> list[Section]:
    """State, clocks, energy, and how much of the arithmetic was used; nothing where no trial had GPU meters."""
    rows = [(row, row.gpu) for row in ranking.rows if row.gpu is not None]
    if not rows:
        return []
    names = list(dict.fromkeys(name for _, gpu in rows for name in gpu.names))
    notes = [*unknown_states(ranking), *_unknown_energy(rows), *_unknown_shares(rows), _POWER_CAP]
    trained_on = [Paragraph(f"Trained on {', '.join(names)}.")] if names else []
    tables = [_conditions(rows), _work(rows), *_arithmetic(rows)]
    return [Section("gpu", "GPU", [*trained_on, *tables, Listing([f"{note}." for note in notes])])]


def _conditions(rows: Sequence[tuple[Row, GpuRow]]) -> Table:
    heads = ("SM clock", "memory clock", "highest temperature", "utilisation", "power cap")
    cells: Iterator[list[Cell]] = (
        [row.option, ", ".join(f"{count} {verdict}" for verdict, count in gpu.states.items()),
         Amount(gpu.mean_sm_clock_hertz, units.megahertz), Amount(gpu.mean_memory_clock_hertz, units.megahertz),
         Amount(gpu.highest_temperature_celsius, units.celsius), Amount(gpu.mean_utilization, units.share),
         _power_cap(gpu.clock_limit_shares)]
        for row, gpu in rows
    )  # fmt: skip
    return _table("State and clocks of the GPUs", ("option", "state"), heads, cells)


def _work(rows: Sequence[tuple[Row, GpuRow]]) -> Table:
    cells: Iterator[list[Cell]] = (
        [row.option, _METHODS[gpu.energy_method] if gpu.energy_method else "not known",
         _mean(row, "mean_power_watts"), _mean(row, "joules_per_token")]
        for row, gpu in rows
    )  # fmt: skip
    return _table("Power and energy", ("option", "energy from"), ("power", "energy/token"), cells)


def _arithmetic(rows: Sequence[tuple[Row, GpuRow]]) -> list[Table]:
    """How much of the GPUs' arithmetic was used; nothing where no row's work is known."""
    if not any(gpu.arithmetic.model_flops_per_token for _, gpu in rows):
        return []
    heads = ("FLOPs/token", "peak", "MFU", "HFU", "measured rate", "share of it")
    cells: Iterator[list[Cell]] = (
        [row.option, gpu.arithmetic.dtype, Amount(gpu.arithmetic.model_flops_per_token, units.flops),
         Amount(gpu.arithmetic.peak_flops_per_second, units.flops_per_second),
         _mean(row, "mfu"), _mean(row, "hfu"),
         Amount(gpu.arithmetic.matmul_flops_per_second, units.flops_per_second), _mean(row, "matmul_rate_share")]
        for row, gpu in rows
    )  # fmt: skip
    return [_table("Use of the GPUs' arithmetic", ("option", "products in"), heads, cells)]


def _power_cap(shares: dict[str, float] | None) -> Amount:
    """Share of the readings under the software power cap."""
    return Amount(None if shares is None else shares.get(POWER_CAP, 0.0), units.share)


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


def gpus_by_seed(done: Sequence[Record]) -> list[Section]:
    """One option's GPUs, a row for each trial and GPU; nothing where there were no meters."""
    heads = ("SM clock", "highest temperature", "power cap", "peak memory in use", "in use before")
    rows: list[list[Cell]] = [
        [str(record.trial.seed), str(number), *_state_of(record), Amount(gpu.mean_sm_clock_hertz, units.megahertz),
         Amount(gpu.highest_temperature_celsius, units.celsius), _power_cap(gpu.clock_limit_shares),
         Amount(gpu.peak_device_memory_bytes, units.size), Amount(gpu.idle_memory_bytes, units.size)]
        for record in done
        for number, gpu in enumerate(record.meters.gpus if record.meters else [])
    ]  # fmt: skip
    table = _table("GPUs by trial", ("seed", "GPU", "state", "found"), heads, rows)
    return [Section("gpus", "GPUs by trial", [table])] if rows else []


def _state_of(record: Record) -> tuple[str, str]:
    state = state_of(record)
    return (state.verdict, state.detail) if state else (units.DASH, "")


def memory_section(ranking: Ranking) -> list[Section]:
    """Memory of GPUs, or nothing where no completed trial had GPU meters."""
    rows = [(row, row.gpu.memory) for row in ranking.rows if row.gpu is not None and row.n]
    if not rows:
        return []
    heads = ("allocated", "reserved", "device peak over idle", "idle before", "must fit", "the GPU's total",
             "driver's reserve")  # fmt: skip
    metrics = ("peak_memory_bytes", "peak_memory_reserved_bytes", "peak_device_memory_bytes")
    cells: Iterator[list[Cell]] = (
        [row.option, *(_mean(row, name) for name in metrics),
         *(Amount(size, units.size)
           for size in (m.idle_bytes, m.peak_bytes, m.total_bytes, m.driver_reserved_bytes))]
        for row, m in rows
    )  # fmt: skip
    return [Section("memory", "Memory", [_table("Memory of a GPU", ("option",), heads, cells), Paragraph(_MEMORY)])]


def memory_by_rank(ranking: Ranking) -> list[Section]:
    """A section, or nothing where no trial had several ranks or could see its model states."""
    known = [(row.option, row.memory) for row in ranking.rows if row.memory is not None]
    if not any(len(m.peak_bytes_by_rank) > 1 or m.measured_model_state_bytes is not None for _, m in known):
        return []
    heads = ("ranks", "peak of each rank", "model states, expected / measured")
    rows = (
        [name, str(len(m.peak_bytes_by_rank) or units.DASH), _peaks(m.peak_bytes_by_rank), _states(m)]
        for name, m in known
    )
    table = _table("Peaks and model states of the ranks", ("option",), heads, rows)
    return [Section("ranks", "Memory by rank", [table, Paragraph(_MODEL_STATES)])]


def _peaks(peaks: Sequence[float | None]) -> str:
    """In the order of ranks; of many only the range."""
    known = [peak for peak in peaks if peak is not None]
    if len(peaks) > _MOST_PEAKS and known:
        return f"{units.size(min(known))} to {units.size(max(known))}"
    return ", ".join(map(units.size, peaks)) or units.DASH


def _states(memory: MemoryByRank) -> str:
    expected, measured = memory.expected_model_state_bytes, memory.measured_model_state_bytes
    if expected is None and measured is None:
        return units.DASH
    return f"{units.size(expected)} / {units.size(measured)}"


def cost_section(suite: Suite, ranking: Ranking) -> list[Section]:
    """What the job costs at the suite's prices; nothing where it names none."""
    if suite.cost is None:
        return []
    prices = [
        f"{units.usd(suite.cost.usd_per_gpu_hour)} per GPU and hour" if suite.cost.usd_per_gpu_hour else "",
        f"{units.usd(suite.cost.usd_per_kwh)} per kWh" if suite.cost.usd_per_kwh else "",
    ]
    rows: Iterator[list[Cell]] = (
        [row.option, _mean(row, "usd_per_billion_tokens"), _mean(row, "usd_of_job")] for row in ranking.rows
    )
    table = _table("Cost at the suite's prices", ("option",), ("a billion tokens", "the job"), rows)
    told = Paragraph(f"Prices: {' and '.join(filter(None, prices))}. {RULE}")
    return [Section("cost", "Cost", [table, told])]
