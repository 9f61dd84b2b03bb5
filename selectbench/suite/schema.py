"""The JSON Schema of a suite file, for editors: completion, descriptions and misspelt keys.

A file may say a thing in pieces (shared choices, options, profiles), so a required key may be missing in
any one of them: the schema requires none, and `load` checks the whole after merging.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from selectbench.choices import Choices
from selectbench.documented import DescribedSchema
from selectbench.suite.auto_size import AUTO as SEARCHED
from selectbench.suite.grid import DIMENSIONS
from selectbench.suite.left_open import AUTO as LEFT_TO_THE_MACHINE
from selectbench.suite.left_open import SizeThatFits
from selectbench.suite.suitefile import SuiteFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
_PRECISIONS = (
    "auto: bf16_mixed where the machine has units for it, else fp16_mixed on a GPU and fp32 on a CPU; the same for "
    "every option."
)
_SIZES = (
    "auto: each option at its own fastest, found in short trials. {at_most: 16}: the largest size up to 16 that is "
    "expected to fit into the GPU, the same for every option."
)


def json_schema() -> Schema:
    """The schema as plain data."""
    template = "#/$defs/{model}"
    models = [(SuiteFile, "validation"), (Choices, "validation"), (SizeThatFits, "validation")]
    _, generated = models_json_schema(models, ref_template=template, schema_generator=DescribedSchema)  # type: ignore[arg-type]
    definitions = {name: _in_pieces(definition) for name, definition in generated["$defs"].items()}
    definitions["Choices"]["properties"]["activation_checkpointing"]["anyOf"].append({"type": "boolean"})
    definitions["SharedChoices"] = _shared(definitions["Choices"])
    top = definitions.pop("SuiteFile")
    properties = top["properties"]
    for key, shape in _shapes(definitions["Choices"]).items():
        properties[key] = {**shape, "description": properties[key]["description"]}
    within = {key: value for key, value in properties.items() if key != "profiles"}
    definitions["Profile"] = {"type": "object", "additionalProperties": False, "properties": within}
    return {"$schema": DIALECT, **top, "title": "selectbench suite", "$defs": definitions}


def _shared(choices: Schema) -> Schema:
    """Choices of all options, some of which may be left to the machine or be searched."""
    own = choices["properties"]
    size = {key: value for key, value in own["micro_batch_size"].items() if key != "description"}
    sizes = [size, {"const": SEARCHED}, {"$ref": "#/$defs/SizeThatFits"}]
    precisions = [*own["precision"]["anyOf"], {"const": LEFT_TO_THE_MACHINE}]
    shared = {
        "micro_batch_size": {"description": f"{own['micro_batch_size']['description']} {_SIZES}", "anyOf": sizes},
        "precision": {"description": f"{own['precision']['description']} {_PRECISIONS}", "anyOf": precisions},
    }
    return {**choices, "properties": {**own, **shared}}


def _shapes(choices: Schema) -> dict[str, Schema]:
    """Keys that hold choices in pieces."""
    piece = {"$ref": "#/$defs/Choices"}
    return {
        "choices": {"$ref": "#/$defs/SharedChoices"},
        "options": _mapping_of(_or_null(piece)),
        "axes": _axes(choices),
        "exclude": {"type": "array", "items": piece},
        "profiles": _mapping_of(_or_null({"$ref": "#/$defs/Profile"})),
    }


def _in_pieces(schema: Any) -> Any:
    """The same with no key required, and unions by `anyOf`, as a piece without its tag fits several."""
    if isinstance(schema, list):
        return [_in_pieces(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        k: _in_pieces(v) for k, v in schema.items() if k not in ("required", "discriminator", "oneOf", "default")
    }
    return {**kept, "anyOf": _in_pieces(schema["oneOf"])} if "oneOf" in schema else kept


def _axes(choices: Schema) -> Schema:
    """Each dimension with a list of its values or labelled ones; `dimension.setting` with any values."""
    named = {name: _list_or_labelled(shape) for name, shape in choices["properties"].items()}
    dotted = rf"^({'|'.join(DIMENSIONS)})\.[A-Za-z0-9_.]+$"
    return {
        "type": "object", "properties": named, "patternProperties": {dotted: _list_or_labelled({})},
        "additionalProperties": False,
    }  # fmt: skip


def _list_or_labelled(shape: Schema) -> Schema:
    return {"anyOf": [{"type": "array", "items": shape, "minItems": 1}, _mapping_of(shape)]}


def _mapping_of(shape: Schema) -> Schema:
    return {"type": "object", "additionalProperties": shape}


def _or_null(shape: Schema) -> Schema:
    return {"anyOf": [shape, {"type": "null"}]}
