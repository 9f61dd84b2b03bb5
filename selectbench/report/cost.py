"""What the job costs at the suite's prices. Pure."""

from __future__ import annotations

from selectbench import units
from selectbench.analysis.cost import RULE
from selectbench.analysis.row import Ranking
from selectbench.report.escape import markdown, table
from selectbench.report.figures import figure
from selectbench.suite.suite import Suite

_SHOWN = ("usd_per_billion_tokens", "usd_of_job")


def cost_section(suite: Suite, ranking: Ranking) -> list[str]:
    """The section, or nothing where the suite names no price."""
    if suite.cost is None:
        return []
    prices = [
        f"{units.usd(suite.cost.usd_per_gpu_hour)} per GPU and hour" if suite.cost.usd_per_gpu_hour else "",
        f"{units.usd(suite.cost.usd_per_kwh)} per kWh" if suite.cost.usd_per_kwh else "",
    ]
    rows = [[markdown(row.option), *(figure(name, row.metrics[name]) for name in _SHOWN)] for row in ranking.rows]
    told = f"Prices: {' and '.join(filter(None, prices))}. {RULE}"
    return ["## Cost", table(["option", "a billion tokens", "the job"], rows, right=1), markdown(told)]
