"""What every part of a record is, and of what passes between the bench and a worker."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
"""Of things: tokens, steps, bytes."""
Amount = Annotated[float, msgspec.Meta(ge=0)]
"""Of what is not counted: seconds, joules, hertz, nats of discrete tokens."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping that is written as JSON; later versions' keys are ignored when it is read.

    Making one checks nothing: types, NaN, infinity and what is below 0 where nothing is are refused where it is
    written and read, by `Lines`.
    """
