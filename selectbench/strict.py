"""The settings that every mapping of a suite file shares."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Unknown keys, silent conversions, NaN and infinity are refused; texts under fields describe them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
