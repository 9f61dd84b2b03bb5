"""Parts of a record that are kept as their JSON until they are asked for: a report on thousands never does."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from selectbench.record.lines import Lines

Content = TypeVar("Content")
AsJson = msgspec.Raw


class Kept(Generic[Content]):
    """Parts of one class."""

    def __init__(self, kind: Any) -> None:
        self._lines: Lines[Content] = Lines(kind)

    def keep(self, content: Content) -> AsJson:
        """Raises ValueError where a number is NaN or infinite, or a value of another type."""
        return AsJson(self._lines.write(content))

    def read(self, kept: AsJson) -> Content:
        """Raises ValueError where the JSON is of something else: reading a record does not look into it."""
        return self._lines.read(memoryview(kept))


SETTINGS: Kept[dict[str, Any]] = Kept(dict[str, Any])
"""An option's choices, as a suite writes them."""
SOFTWARE: Kept[dict[str, str | None]] = Kept(dict[str, str | None])
"""Versions by name; None: not installed."""
LOSSES: Kept[list[tuple[int, float]]] = Kept(list[tuple[int, float]])
"""Training loss as (step, nats per token)."""
NOTHING, NO_LOSSES = AsJson(b"{}"), AsJson(b"[]")
