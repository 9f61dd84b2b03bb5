"""The memory of each rank, and of its model states as expected and as measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench import units
from selectbench.analysis.row import MemoryByRank, Ranking
from selectbench.report.escape import markdown, table

_MOST_PEAKS = 8
_NOTE = (
    "Model states are parameters, gradients and optimizer state of one rank (measured: of the rank that keeps "
    "most). Expected is the formula of Rajbhandari et al. 2020, arXiv:1910.02054: what a strategy shards is "
    "divided by the number of ranks, and gradients have the dtype of the weights that the model computes with; "
    "an implementation may keep them in fp32, or buffers beside them."
)


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
