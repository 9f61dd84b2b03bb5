"""The rows of a suite: its named options, the full grid of its axes, or both multiplied; searched sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from selectbench.choices import REGISTRY, Choices
from selectbench.choices.choice import tag_of
from selectbench.errors import did_you_mean
from selectbench.suite.document import Node, Place, Problems, merge, merge_by_key, nest, plain

SINGLE = "job"
"""The name of the only option where a suite names none."""
MOST_ROWS = 10_000
DIMENSIONS = tuple(Choices.model_fields)
JOBS_OWN = ("model", "tokenizer")
"""Dimensions that the job has one of itself."""
SAY_DIMENSION = frozenset(d for d, kinds in REGISTRY.items() if any(tag_of(kind) == "off" for kind in kinds))
"""Dimensions whose words (`off`) say nothing without the dimension's name."""


@dataclass(frozen=True)
class Row:
    """An option before it is validated."""

    name: str
    """Unique among the rows, once checked."""
    choices: Node
    """The shared choices with the row's own laid over them."""
    place: Place
    """Where the row was asked for."""
    path: str
    """The key that asked for it."""


@dataclass(frozen=True)
class Value:
    """One value of one axis."""

    label: str
    """As the row's name says it."""
    partial: Node
    """The choices that it sets."""


def rows_of(document: Node, problems: Problems) -> list[Row]:
    """Every row in the file's order: options outermost, then the axes as they are written.

    A row's model or tokenizer without a tag (`model.n_layer`) is the job's with those fields changed.
    """
    shared = document.mapping.get("choices", Node({}, document.place, "choices"))
    axes = [_values(path, node, problems) for path, node in _entries(document, "axes", problems).items()]
    if math.prod(map(len, axes)) > MOST_ROWS:
        problems.at(document.mapping["axes"], f"the grid has more than {MOST_ROWS} rows")
        return []
    options = _options(document, problems)
    if not isinstance(shared.value, dict):
        return []
    named = options or {("" if axes else SINGLE): Node({}, document.place, "choices")}
    job = document.mapping.get("job", document)
    grid = itertools.product(named.items(), itertools.product(*axes))
    return [_row(name, node, values, shared, job) for (name, node), values in grid]


def _row(name: str, partial: Node, values: tuple[Value, ...], shared: Node, job: Node) -> Row:
    choices = merge_by_key(shared, partial)
    for value in values:
        choices = merge_by_key(choices, value.partial)
    origin = values[-1].partial if values and not name else partial
    label = " + ".join(filter(None, (name, *(value.label for value in values))))
    return Row(label, _over_the_jobs_own(choices, job), origin.place, origin.path)


def _over_the_jobs_own(choices: Node, job: Node) -> Node:
    """The choices, their model and tokenizer laid over those of the job: where they have a tag they replace it."""
    both = {key: merge(job.mapping[key], choices.mapping[key], key) for key in JOBS_OWN
            if key in job.mapping and key in choices.mapping}  # fmt: skip
    return choices.with_entries(**both)


def _entries(document: Node, key: str, problems: Problems) -> dict[str, Node]:
    node = document.mapping.get(key)
    if node is not None and node.value is not None and not isinstance(node.value, dict):
        problems.at(node, "expected a mapping")
    return node.mapping if node is not None else {}


def _options(document: Node, problems: Problems) -> dict[str, Node]:
    options: dict[str, Node] = {}
    for name, node in _entries(document, "options", problems).items():
        if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > 200:
            problems.at(node, f"{name!r} cannot name an option: use printable text of at most 200 characters")
        elif node.value is not None and not isinstance(node.value, dict):
            problems.at(node, "expected a mapping of choices, as in {precision: fp32}")
        else:
            options[name] = node if node.value is not None else replace(node, value={})
    return options


def _values(path: str, node: Node, problems: Problems) -> list[Value]:
    """The axis's values with their labels; none where something is wrong with it."""
    keys, place = path.split("."), node.key_place or node.place
    if keys[0] not in DIMENSIONS or not all(keys):
        hint = did_you_mean(keys[0], DIMENSIONS) or f" (known: {', '.join(DIMENSIONS)})"
        problems.add(place, node.path, f"unknown dimension {keys[0]!r}{hint}")
        return []
    labelled = _labelled(keys, node)
    if not labelled:
        problems.at(node, "expected a list of values, or a mapping of labels to values")
    unique: dict[str, Value] = {}
    for label, value in labelled:
        if label in unique:
            problems.at(value, f"two values of this axis are called {label!r}")
        unique.setdefault(label, Value(label, nest(keys, value, place)))
    return list(unique.values())


def _labelled(keys: list[str], node: Node) -> list[tuple[str, Node]]:
    if isinstance(node.value, dict):
        return list(node.value.items())
    values = [plain(item) for item in node.items]
    return [(_label(keys, value, values), item) for value, item in zip(values, node.items, strict=True)]


def _label(keys: list[str], value: Any, siblings: list[Any]) -> str:
    """`adamw`, `adamw lr=0.001` where a sibling has the same name, `micro_batch_size=4`, `lr=0.001`."""
    if not isinstance(value, dict):
        says_enough = isinstance(value, str) and len(keys) == 1 and keys[0] not in SAY_DIMENSION
        return str(value) if says_enough else f"{keys[-1]}={_text(value)}"
    name = value.get("name")
    head = keys[-1] if name is None else f"{keys[0]}={name}" if keys[0] in SAY_DIMENSION else str(name)
    same = [s for s in siblings if isinstance(s, dict) and s.get("name") == name]
    told = [k for k in value if k != "name" and (len(same) > 1 or name is None) and not _shared(k, same)]
    return " ".join([head, *(f"{k}={_text(value[k])}" for k in told)])


def _shared(key: str, siblings: list[dict[str, Any]]) -> bool:
    first = siblings[0].get(key)
    return len(siblings) > 1 and all(key in s and s[key] == first for s in siblings)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def excluded(rows: list[tuple[Row, Choices]], exclude: Node, problems: Problems, *, strict: bool) -> set[str]:
    """Names of the rows that the list leaves out; `strict`: an entry that leaves none out is a mistake."""
    gone: set[str] = set()
    for entry in exclude.items:
        if not _names_dimensions(entry, problems):
            continue
        pattern = {d: _complete(d, value) for d, value in plain(entry).items()}
        out = {row.name for row, choices in rows if _matches(pattern, choices)}
        gone |= out
        if not out and strict:
            problems.at(entry, "leaves out no row")
    if rows and len(gone) == len(rows):
        problems.at(exclude, "leaves out every row")
    return gone


def _names_dimensions(entry: Node, problems: Problems) -> bool:
    if not entry.mapping:
        problems.at(entry, "expected a mapping of choices, as in {precision: fp32}")
    unknown = [(key, node) for key, node in entry.mapping.items() if key not in DIMENSIONS]
    for key, node in unknown:
        problems.add(node.key_place or node.place, node.path, f"unknown key{did_you_mean(key, DIMENSIONS)}")
    return bool(entry.mapping) and not unknown


def _complete(dimension: str, value: Any) -> Any:
    """A shorthand as the mapping that it stands for."""
    if isinstance(value, bool) and dimension == "activation_checkpointing":
        return {"name": "full" if value else "off"}
    return {"name": value} if isinstance(value, str) and dimension in REGISTRY else value


def _matches(pattern: Any, value: Any) -> bool:
    if isinstance(pattern, dict):
        found = value.model_dump() if isinstance(value, BaseModel) else value
        return isinstance(found, dict) and all(k in found and _matches(p, found[k]) for k, p in pattern.items())
    return bool(pattern == value)


# Micro-batch sizes that are searched: `micro_batch_size: auto`, and what the options begin with.


AUTO = "auto"
_KEY = "micro_batch_size"


def with_sizes_searched(document: Node, problems: Problems) -> Node:
    """The document with `best_of` in place of the word; an option's own `auto` is a mistake."""
    for name in document.at(["options"]).mapping:
        node = document.at(["options", name, _KEY])
        if node.value == AUTO:
            problems.at(node, "auto is said once for all options: choices: {micro_batch_size: auto}")
    node = document.at(["choices", _KEY])
    if node.value != AUTO:
        return document
    if "best_of" in document.mapping:
        problems.at(node, "auto and best_of say the same twice: leave one out")
        return document
    best_of = Node({_KEY: replace(node, path=f"best_of.{_KEY}")}, node.place, "best_of")
    return document.with_entries(choices=document.mapping["choices"].without(_KEY), best_of=best_of)


def with_first_sizes(rows: Sequence[Row], document: Node) -> list[Row]:
    """Where sizes are searched, rows that set none begin with the least of them that cuts every such row's step.

    With 1 where none does, and for `auto`.
    """
    searched = document.mapping.get("best_of", document).mapping.get(_KEY)
    if searched is None:
        return list(rows)
    unset = [row for row in rows if _KEY not in row.choices.mapping]
    sizes = sorted(size for item in searched.items if (size := _number(item)))
    jobs = _number(document.at(["job", "global_batch_size"]))
    first = next((size for size in sizes if all(_cuts(size, row, jobs) for row in unset)), 1)
    begin = replace(searched, value=first)
    return [replace(r, choices=r.choices.with_entries(**{_KEY: begin})) if r in unset else r for r in rows]


def _cuts(size: int, row: Row, jobs: int | None) -> bool:
    """Whether whole micro-batches of the size make the row's step, as far as its ranks are known."""
    own = {key: _number(node) for key, node in row.choices.mapping.items()}
    step = own.get("global_batch_size") or jobs
    return step is not None and step % (size * (own.get("world_size") or 1)) == 0


def _number(node: Node) -> int | None:
    value = node.value
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
