"""Plain data as JSON that people read, indented."""

from __future__ import annotations

import json

import msgspec


def json_text(content: object) -> str:
    """As `json.dumps(content, indent=2)` has it, without its slow indenting, and a line end.

    Raises ValueError for NaN and infinity, which are no JSON, and TypeError for what is no plain data.
    """
    return msgspec.json.format(json.dumps(content, allow_nan=False), indent=2) + "\n"
