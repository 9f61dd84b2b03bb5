"""Writes docs/reference.md anew from the schema and the catalogues: `python tests/evidence/reference.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evidence.readme_table import ROOT

from selectbench.choices import REGISTRY
from selectbench.launch.site import Site
from selectbench.suite.load import DescribedSchema, json_schema
from selectbench.suite.metrics import METRICS

PATH = ROOT / "docs" / "reference.md"
_HEAD = """# Reference

Generated from the schema of suite files (`selectbench schema`) and the catalogue of metrics.
"""
_SITE = """
## Site file

`--site FILE`: what of a run is the machine's and not the question's.
"""
_STATUSES = """
## Exit statuses

| status | means |
| ---: | --- |
| 0 | `run`: every trial has an outcome, the baseline completed, and no trial crashed or timed out. `gate`: pass |
| 1 | `gate`: regression |
| 2 | a wrong suite, command, device or folder; the message says what to change |
| 3 | `run`: a trial crashed or timed out, or the baseline never completed |
| 4 | `gate`: inconclusive |
| 70 | a bug of selectbench |
| 130 | interrupted; the same line resumes the run |

The status stays the same where a reader leaves (`selectbench gate ... | head -1`) or nothing can be said. Where the
output cannot be written, as on a full disk, a command that is all output (`report`, `list`, `schema`) ends with 2.
"""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]


def _kind(schema: Mapping[str, Any]) -> str:
    """What may be written for a key, in a few words."""
    if "$ref" in schema and "anyOf" not in schema:
        return f"[{schema['$ref'].split('/')[-1]}](#{schema['$ref'].split('/')[-1].lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(choice) for choice in choices))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return {"object": "mapping", None: "any"}.get(schema.get("type"), str(schema.get("type")))


def _name(choice: Mapping[str, Any]) -> str:
    name = choice["properties"]["name"]
    return f"`{name['const']}`" if "const" in name else "`package.module:Name`"


def _keys(properties: Mapping[str, Any]) -> list[str]:
    rows = [[f"`{key}`", _kind(value), value.get("description", "")] for key, value in properties.items()]
    return _table(("key", "value", "meaning"), rows)


def _lines() -> Iterator[str]:
    schema = json_schema()
    built, command = schema["else"]["properties"], schema["then"]["properties"]
    both = {key: {**shape, "anyOf": [shape, command[key]]} for key, shape in built.items()}
    yield from (_HEAD, "## Suite", "", *_keys({**schema["properties"], **both}), "", "## Choices", "")
    rows = [
        (f"`{dimension}`", _name(schema["$defs"][choice.__name__]), choice.source)
        for dimension, choices in REGISTRY.items()
        for choice in choices
    ]
    yield from (*_table(("dimension", "name", "source"), rows), "", "## Metrics", "")
    metrics = [
        (f"`{name}`", metric.title, metric.better, "yes" if metric.decides else "no")
        for name, metric in METRICS.items()
    ]
    yield from (*_table(("name", "column", "better", "may decide"), metrics), _SITE)
    yield from _keys(Site.model_json_schema(schema_generator=DescribedSchema)["properties"])
    yield from (_STATUSES, "## Mappings")
    for name, definition in sorted(schema["$defs"].items()):
        if "properties" in definition and name != "CommandProfile":
            yield from ("", f"### {name}", "", _cell(definition.get("description", "")), "")
            yield from _keys(definition["properties"])
            if isinstance(others := definition.get("additionalProperties"), dict):
                yield f"| any placeholder of the command | {_kind(others)} | Its value, one word of the command. |"


def reference() -> str:
    """The whole page."""
    return "\n".join(_lines()) + "\n"


if __name__ == "__main__":
    PATH.write_text(reference())
