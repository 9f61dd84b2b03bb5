"""A nested mapping as dotted paths and values, for tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from selectbench import units
from selectbench.report.escape import one_line


def flat(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Pairs on one line each, not escaped for any language; empty parts left out."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from flat(part, f"{path}[{number}]")
    elif isinstance(value, (list, tuple)):
        yield one_line(path), one_line(", ".join(map(str, value))) or units.DASH
    else:
        yield one_line(path), units.DASH if value is None else one_line(str(value)) or units.DASH
