"""Plain data as the YAML that a suite file is written in.

Written key by key, and each text kept: options of a run share most of their settings.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from functools import lru_cache
from io import StringIO
from itertools import pairwise
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import ModelSchema
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

_WIDTH = 110
_INDICATORS = (":", "?", "-")


def suite_yaml(content: Mapping[str, Any]) -> str:
    """A whole suite, every value on a line of its own."""
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


# Plain data as JSON that people read, indented.


def json_text(content: object) -> str:
    """As `json.dumps(content, indent=2)` has it, without its slow indenting, and a line end.

    Raises ValueError for NaN and infinity, which are no JSON, and TypeError for what is no plain data.
    """
    return msgspec.json.format(json.dumps(content, allow_nan=False), indent=2) + "\n"


# The texts under a class's fields, read from its source when they are wanted: importing stays quick.


def field_texts(kind: type) -> dict[str, str]:
    """The text under each annotated field of a class whose source is at hand, those it inherits among them."""
    found: dict[str, str] = {}
    for ancestor in reversed([c for c in kind.__mro__ if c.__module__.partition(".")[0] == __package__]):
        found |= _own_texts(ancestor)
    return found


def _own_texts(kind: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }  # fmt: skip


class DescribedSchema(GenerateJsonSchema):
    """Pydantic's JSON Schema of a model with those texts as descriptions."""

    def model_schema(self, schema: ModelSchema) -> dict[str, Any]:
        """One model's schema; a field that is described already keeps its description."""
        found = super().model_schema(schema)
        texts: Mapping[str, str] = field_texts(schema["cls"])
        for name, shape in found.get("properties", {}).items():
            if name in texts:
                shape.setdefault("description", texts[name])
        return found


# The settings that every mapping of a suite file shares.


class Strict(BaseModel):
    """Unknown keys, silent conversions, NaN and infinity are refused; texts under fields describe them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
