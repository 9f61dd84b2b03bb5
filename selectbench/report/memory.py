"""The memory of each GPU and rank, and of its model states as expected and as measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench import units
from selectbench.analysis.row import MemoryByRank, Ranking
from selectbench.report.escape import markdown, table
from selectbench.report.figures import figure

_MOST_PEAKS = 8
_NOTE = (
    "Model states are parameters, gradients and optimizer state of one rank (measured: of the rank that keeps "
    "most). Expected is the formula of Rajbhandari et al. 2020, arXiv:1910.02054: what a strategy shards is "
    "divided by the number of ranks, and gradients have the dtype of the weights that the model computes with; "
    "an implementation may keep them in fp32, or buffers beside them."
)


_FIGURES = (
    "Allocated and reserved are the CUDA allocator's own peaks, of the rank with most: the tensors, and the "
    "blocks that it keeps for them, each with what optimizer state lies in managed memory beside it. Device peak "
    "is what the GPU itself had in use, the CUDA context, libraries' workspaces and fragments among it, over what "
    "it held right before the trial. All while training, evaluation excluded."
)
_FITS = (
    "Whether an option fits in so many GiB is told by `must fit`: the device peak and what the GPU holds when "
    "idle, since both must fit, in the GPU's total less what the driver reserves. A GPU of another kind, or a "
    "fuller one, holds another amount when idle."
)


def device_memory(ranking: Ranking) -> list[str]:
    """The section on GPU memory, or nothing where no completed trial had GPU meters."""
    rows = [(row, row.gpu.memory) for row in ranking.rows if row.gpu is not None and row.n]
    if not rows:
        return []
    heads = ["option", "allocated", "reserved", "device peak over idle", "idle before", "must fit",
             "the GPU's total", "driver's reserve"]  # fmt: skip
    metrics = ("peak_memory_bytes", "peak_memory_reserved_bytes", "peak_device_memory_bytes")
    cells = [
        [markdown(row.option), *(figure(name, row.metrics[name]) for name in metrics), units.size(m.idle_bytes),
         units.size(m.peak_bytes), units.size(m.total_bytes), units.size(m.driver_reserved_bytes)]
        for row, m in rows
    ]  # fmt: skip
    return ["## Memory", table(heads, cells, right=1), f"{_FIGURES} {_FITS}"]


def memory_by_rank(ranking: Ranking) -> list[str]:
    """A section, or nothing where no trial had several ranks or could see its model states."""
    known = [(row.option, row.memory) for row in ranking.rows if row.memory is not None]
    if not any(len(m.peak_bytes_by_rank) > 1 or m.measured_model_state_bytes is not None for _, m in known):
        return []
    heads = ["option", "ranks", "peak of each rank", "model states, expected / measured"]
    rows = [
        [markdown(name), str(len(m.peak_bytes_by_rank) or units.DASH), _peaks(m.peak_bytes_by_rank), _states(m)]
        for name, m in known
    ]
    return ["## Memory by rank", table(heads, rows, right=1), _NOTE]


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
