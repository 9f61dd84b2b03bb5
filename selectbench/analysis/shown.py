"""What every mapping of ranking.json shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

SIGNIFICANT_DIGITS = 12


def rounded(value: float) -> float:
    """To what a figure is worth: later digits are rounding, and differ between processors."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


Number = Annotated[float, AfterValidator(rounded)]


class Shown(BaseModel):
    """A mapping of ranking.json: no NaN, no infinity, unknown is None."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
