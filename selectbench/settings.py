"""What the mappings of a suite file share, and the texts under their fields.

The texts are read from the source when they are wanted: importing stays quick. A worker in another environment
imports this, so it needs nothing but pydantic.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import ModelSchema


def field_texts(kind: type) -> dict[str, str]:
    """The text under each annotated field of a class whose source is at hand, those it inherits among them."""
    found: dict[str, str] = {}
    for ancestor in reversed([c for c in kind.__mro__ if c.__module__.partition(".")[0] == __package__]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(tree, ast.ClassDef)
        found |= {
            field.target.id: inspect.cleandoc(text.value.value)
            for field, text in pairwise(tree.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }  # fmt: skip
    return found


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


class Strict(BaseModel):
    """Unknown keys, silent conversions, NaN and infinity are refused; texts under fields describe them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class WrongValueError(ValueError):
    """What a class refuses because of the value under one of its keys, where the suite's messages point to."""

    def __init__(self, key: str, reason: str, *, says_key: bool = True) -> None:
        """`key` may have dots; `says_key`: the reason is a sentence that names it already."""
        super().__init__(reason if says_key else f"{key}: {reason}")
        self.key, self.reason = key, reason
