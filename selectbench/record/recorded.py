"""What every part of a record is, and of what passes between the bench and a worker."""

from __future__ import annotations

import msgspec


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping that is written as JSON; later versions' keys are ignored when it is read.

    Making one checks nothing: types, NaN and infinity are refused where it is written and read, by `Lines`.
    """
