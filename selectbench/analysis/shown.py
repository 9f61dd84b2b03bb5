"""What every mapping of ranking.json shares."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Shown(BaseModel):
    """A mapping of ranking.json: no NaN, no infinity, unknown is None."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
