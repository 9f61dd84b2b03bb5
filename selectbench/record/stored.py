"""The settings that what is written beside the records shares."""

from pydantic import BaseModel, ConfigDict


class Stored(BaseModel):
    """A mapping that is written to disk: NaN and infinity are refused, later versions' keys are kept out."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="ignore")
