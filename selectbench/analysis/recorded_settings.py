"""Whether an option's records were trained with the settings that its suite says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selectbench.analysis.summary import Summary

_MOST = 3
"""Settings that are named."""


def other_settings(summary: Summary) -> str | None:
    """What the records say and the suite does not, in words; None: they agree, as far as records of their age say.

    Raises UserError where a record's settings are no mapping.
    """
    asked = summary.option.choices.model_dump(mode="json")
    distinct = {bytes(record.trial.settings): record.trial for record in summary.completed.values()}
    found = [line for trial in distinct.values() for line in _differing(trial.every_setting(), asked)]
    if not found:
        return None
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return f"its trials ran with other settings than the suite says: {'; '.join(found[:_MOST])}{more}"


def _differing(recorded: Mapping[str, Any], asked: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Keys that were recorded; later versions have more."""
    for key, value in recorded.items():
        here, wanted = f"{path}{key}", asked.get(key)
        if isinstance(value, Mapping) and isinstance(wanted, Mapping):
            yield from _differing(value, wanted, f"{here}.")
        elif value != wanted:
            yield f"{here} {_shown(value)}, not {_shown(wanted)}"


def _shown(value: object) -> str:
    named = value.get("name") if isinstance(value, Mapping) else None
    return str(value if named is None else named)
