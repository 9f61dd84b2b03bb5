"""Whether an option's records were trained with the settings that its suite says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selectbench.analysis.summary import Summary

Differing = list[tuple[str, object, object]]
"""Path, what was recorded, and what the suite says."""


def other_settings(summary: Summary) -> dict[int, Differing]:
    """By completed seed; empty: the records agree, as far as records of their age say.

    Raises UserError where a record's settings are no mapping.
    """
    asked = summary.option.choices.model_dump(mode="json")
    by_text: dict[bytes, Differing] = {}
    for record in summary.completed.values():
        if (text := bytes(record.trial.settings)) not in by_text:
            by_text[text] = list(_differing(record.trial.every_setting(), asked))
    found = {seed: by_text[bytes(record.trial.settings)] for seed, record in summary.completed.items()}
    return {seed: differing for seed, differing in found.items() if differing}


def told(differing: Differing, place: int) -> str:
    """`optimizer.lr 0.001`; place 1: what was recorded, 2: what the suite says."""
    return ", ".join(f"{entry[0]} {_shown(entry[place])}" for entry in differing[:3])


def _differing(
    recorded: Mapping[str, Any], asked: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Of keys that were recorded; later versions have more."""
    for key, value in recorded.items():
        wanted = asked.get(key)
        if isinstance(value, Mapping) and isinstance(wanted, Mapping):
            yield from _differing(value, wanted, f"{path}{key}.")
        elif value != wanted:
            yield f"{path}{key}", value, wanted


def _shown(value: object) -> str:
    named = value.get("name") if isinstance(value, Mapping) else None
    return str(value if named is None else named)
