"""Measured rates of matrix products as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from rich.table import Table
from rich.text import Text

from selectbench import units
from selectbench.plan.peaks import MatmulDtype, peak_flops_per_second
from selectbench.record.calibration import Calibration


def calibration_table(calibrations: Sequence[tuple[Calibration, bool]]) -> Table:
    """A row for each device and dtype; the flag says whether later runs will find it."""
    table = Table(title="Large matrix products", title_justify="left", box=None, pad_edge=False)
    for heading in ("device", "dtype", "rate", "of data sheet", "size"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("device", "dtype") else "right")
    for calibration, kept in calibrations:
        name = calibration.name + ("" if kept else " (shown only: shares are of GPUs)")
        for dtype in get_args(MatmulDtype):
            if (rate := calibration.rates.get(dtype)) is not None:
                peak = peak_flops_per_second(calibration.name, dtype)
                share = units.share(None if peak is None else rate.flops_per_second / peak)
                rated = units.flops_per_second(rate.flops_per_second)
                table.add_row(Text(name), dtype, rated, share, str(rate.size))
                name = ""
    return table
