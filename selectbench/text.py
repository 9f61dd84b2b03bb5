"""Plain data as the YAML of suite files and as JSON that people read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from io import StringIO
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

_WIDTH = 110
_INDICATORS = (":", "?", "-")


def suite_yaml(content: Mapping[str, Any]) -> str:
    """A whole suite, every value on a line of its own.

    Written key by key, and each text kept: options of a run share most of their settings.
    """
    return "".join(_block(json.dumps({key: value})) for key, value in content.items())


def choices_yaml(choices: Mapping[str, Any]) -> str:
    """The settings that an option has, below the key `choices`; the small ones on one line each."""
    known = {key: value for key, value in choices.items() if value is not None}
    if not known:
        return "choices: {}\n"
    return "choices:\n" + "".join(_choice(json.dumps({key: value})) for key, value in known.items())


@lru_cache(maxsize=1024)
def _block(entry: str) -> str:
    return _dumped(json.loads(entry), flow=False)


@lru_cache(maxsize=1024)
def _choice(entry: str) -> str:
    choices = CommentedMap(json.loads(entry))
    choices.fa.set_block_style()
    return _dumped({"choices": choices}, flow=None).partition("\n")[2]


def _dumped(content: Any, flow: bool | None) -> str:
    stream, yaml = StringIO(), YAML()
    yaml.default_flow_style, yaml.width = flow, _WIDTH
    yaml.dump(_quoted(content), stream)
    return stream.getvalue()


def _quoted(value: Any) -> Any:
    """With quotes where ruamel leaves them out and then reads a key, or a list's item."""
    if isinstance(value, dict):
        for key, part in value.items():
            value[key] = _quoted(part)
    elif isinstance(value, list):
        return [_quoted(part) for part in value]
    elif isinstance(value, str) and value.startswith(_INDICATORS):
        return DoubleQuotedScalarString(value)
    return value


def json_text(content: object) -> str:
    """As `json.dumps(content, indent=2)` has it, without its slow indenting, and a line end.

    Raises ValueError for NaN and infinity, which are no JSON, and TypeError for what is no plain data.
    """
    return msgspec.json.format(json.dumps(content, allow_nan=False), indent=2) + "\n"
