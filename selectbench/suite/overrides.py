"""What the command line changes in a suite: `--set PATH=VALUE`, `--axis PATH=A,B`, `--seeds 0,1`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from selectbench.errors import did_you_mean
from selectbench.suite.document import Node, Place, Problems, parse_value
from selectbench.suite.merge import merge_document, nest
from selectbench.suite.suitefile import SuiteFile

SETTABLE = tuple(key for key in SuiteFile.model_fields if key not in ("profiles", "device", "profile", "quick"))
"""What `--set` may begin with."""


def apply_settings(document: Node, settings: Iterable[str], problems: Problems) -> Node:
    """Lays each `PATH=VALUE` over the document, in the order given; VALUE is read as YAML."""
    for setting in settings:
        flag = f"--set {setting}"
        keys, text = _split(setting, flag, document, problems)
        if not keys:
            continue
        if keys[0] not in SETTABLE:
            hint = did_you_mean(keys[0], SETTABLE) or f" (known: {', '.join(SETTABLE)})"
            problems.add(Place(flag), "", f"unknown key {keys[0]!r}{hint}")
            continue
        node = parse_value(text, flag, ".".join(keys), problems)
        if node is not None:
            document = merge_document(document, nest(keys, node, Place(flag)))
    return document


def apply_axes(document: Node, axes: Iterable[str], problems: Problems) -> Node:
    """Each `PATH=A,B` takes the place of the file's options and of its axis of that path."""
    for axis in axes:
        flag = f"--axis {axis}"
        path, equals, text = axis.partition("=")
        if not equals or not path.strip() or not text.strip():
            problems.add(Place(flag), "", "expected PATH=VALUE,VALUE as in precision=fp32,bf16_mixed")
            continue
        values = parse_value(f"[{text}]", flag, path.strip(), problems)
        if values is not None:
            values = replace(values, key_place=Place(flag))
            present = document.mapping.get("axes", Node({}, Place(flag)))
            others = present if isinstance(present.value, dict) else Node({}, Place(flag))
            document = document.without("options").with_entries(axes=others.with_entries(**{path.strip(): values}))
    return document


def apply_seeds(document: Node, seeds: str | None, problems: Problems) -> Node:
    """The document with the seeds of `0,1` in place of its own."""
    if seeds is None:
        return document
    node = parse_value(f"[{seeds}]", f"--seeds {seeds}", "seeds", problems)
    return document if node is None else document.with_entries(seeds=node)


def _split(setting: str, flag: str, document: Node, problems: Problems) -> tuple[list[str], str]:
    path, equals, text = setting.partition("=")
    keys = _keys(path.strip(), document)
    if not equals or not all(keys):
        problems.add(Place(flag), "", "expected PATH=VALUE as in job.max_steps=20")
        return [], ""
    return keys, text


def _keys(path: str, document: Node) -> list[str]:
    """The path's keys; an option's name may hold dots of its own."""
    head, _, rest = path.partition(".")
    names = document.at(["options"]).mapping if head == "options" else {}
    for name in sorted(names, key=len, reverse=True):
        if f"{rest}.".startswith(f"{name}."):
            return [head, name, *filter(None, rest[len(name) + 1 :].split("."))]
    return path.split(".")
