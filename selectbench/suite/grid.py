"""The rows of a suite: its named options, the full grid of its axes, or both multiplied; searched sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from selectbench.choices import REGISTRY, AnyChoices, Choices
from selectbench.choices.choice import tag_of
from selectbench.errors import did_you_mean, one_of_these, synonyms
from selectbench.suite.command import GIVEN, RESERVED, names_in
from selectbench.suite.document import Node, Place, Problems, merge, merge_by_key, nest, plain, show
from selectbench.suite.problems import validate
from selectbench.suite.suite import AT_MOST, AUTO, MICRO_BATCH_SIZE, PRECISION, LeftOpen, SizeThatFits
from selectbench.text import quoted

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

    def with_choice(self, dimension: str, node: Node) -> Row:
        """The row with this choice put in."""
        return replace(self, choices=self.choices.with_entries(**{dimension: node}))


@dataclass(frozen=True)
class Value:
    """One value of one axis."""

    label: str
    """As the row's name says it."""
    partial: Node
    """The choices that it sets."""


def dimensions(document: Node) -> tuple[str, ...]:
    """What an option may set: dimensions, or of a command the reserved keys and the placeholders."""
    if not document.has_command:
        return DIMENSIONS
    variables = [str(node.value) for node in document.mapping["job"].below("environment").values()]
    names = names_in([str(document.value_at("job", "command")), *variables])
    return tuple(dict.fromkeys([*RESERVED, *(name for name in names if name not in GIVEN)]))


def rows_of(document: Node, problems: Problems) -> list[Row]:
    """Every row in the file's order: options outermost, then the axes as they are written.

    A row's model or tokenizer without a tag (`model.n_layer`) is the job's with those fields changed.
    """
    shared = document.mapping.get("choices", Node({}, document.place, "choices"))
    known = dimensions(document)
    axes = [_values(path, node, known, problems) for path, node in _entries(document, "axes", problems).items()]
    if math.prod(map(len, axes)) > MOST_ROWS:
        problems.at(document.mapping["axes"], f"the grid has more than {MOST_ROWS} rows")
        return []
    options = _options(document, problems)
    if not isinstance(shared.value, dict):
        return []
    named = options or {("" if axes else SINGLE): Node({}, document.place, "choices")}
    job = document.mapping.get("job", document)
    rows: list[Row] = []
    for (name, partial), values in itertools.product(named.items(), itertools.product(*axes)):
        choices = merge_by_key(shared, partial)
        for value in values:
            choices = merge_by_key(choices, value.partial)
        # A model or tokenizer is laid over the job's, which it replaces where it has a tag.
        own = () if document.has_command else JOBS_OWN
        choices = choices.with_entries(**{
            key: merge(job.mapping[key], choices.mapping[key], key)
            for key in own if key in job.mapping and key in choices.mapping
        })  # fmt: skip
        origin = values[-1].partial if values and not name else partial
        label = " + ".join(filter(None, (name, *(value.label for value in values))))
        rows.append(Row(label, choices, origin.place, origin.path))
    return rows


def _entries(document: Node, key: str, problems: Problems) -> dict[str, Node]:
    node = document.mapping.get(key)
    if node is not None and node.value is not None and not isinstance(node.value, dict):
        problems.at(node, "expected a mapping")
    return node.mapping if node is not None else {}


def meant_settings(path: str) -> list[str]:
    """Paths below an option's choices that a path may mean: `optimizer.lr` for `lr`; [] where it means none."""
    head, dot, rest = path.removeprefix("choices.").partition(".")
    if found := synonyms(head, DIMENSIONS):
        return [f"{name}{dot}{rest}" for name in found]
    own = {d: dict.fromkeys(s for kind in kinds for s in kind.model_fields) for d, kinds in REGISTRY.items()}
    found = [f"{d}.{name}" for d, names in own.items() for name in synonyms(head, list(names)) if name != "name"]
    return [f"{setting}{dot}{rest}" for setting in found[:3]]


def _options(document: Node, problems: Problems) -> dict[str, Node]:
    options: dict[str, Node] = {}
    for name, node in _entries(document, "options", problems).items():
        if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > 200:
            problems.at(node, f"{quoted(name)} cannot name an option: use printable text of at most 200 characters")
        elif node.value is not None and not isinstance(node.value, dict):
            problems.at(node, "expected a mapping of choices, as in {precision: fp32}")
        else:
            options[name] = node if node.value is not None else replace(node, value={})
    return options


def _values(path: str, node: Node, known: Sequence[str], problems: Problems) -> list[Value]:
    """The axis's values with their labels; none where something is wrong with it. `known`: dimensions."""
    keys, place = path.split("."), node.key_place or node.place
    if keys[0] not in known or not all(keys):
        near = one_of_these(meant_settings(path)) if known == DIMENSIONS else did_you_mean(keys[-1], known)
        hint = did_you_mean(keys[0], known) or near or f" (known: {', '.join(known)})"
        problems.add(place, node.path, f"unknown dimension {quoted(keys[0])}{hint}")
        return []
    items = [plain(item) for item in node.items]
    labelled = [(_label(keys, value, items), item) for value, item in zip(items, node.items, strict=True)]
    labelled += node.mapping.items()
    if not labelled:
        problems.at(node, "expected a list of values, or a mapping of labels to values")
    unique: dict[str, Value] = {}
    for label, value in labelled:
        if label in unique:
            problems.at(value, f"two values of this axis are called {quoted(label)}")
        unique.setdefault(label, Value(label, nest(keys, value, place)))
    return list(unique.values())


def _label(keys: list[str], value: Any, siblings: list[Any]) -> str:
    """`adamw`, `adamw lr=0.001` where a sibling has the same name, `micro_batch_size=4`, `lr=0.001`."""
    if not isinstance(value, dict):
        says_enough = isinstance(value, str) and value and len(keys) == 1 and keys[0] not in SAY_DIMENSION
        return str(value) if says_enough else f"{keys[-1]}={_text(value)}"
    name = value.get("name")
    head = keys[-1] if name is None else f"{keys[0]}={name}" if keys[0] in SAY_DIMENSION else str(name)
    same = [s for s in siblings if isinstance(s, dict) and s.get("name") == name]
    told: list[str] = []
    if len(same) > 1 or name is None:
        first, *others = same
        shared = {key for key in first if others and all(key in o and o[key] == first[key] for o in others)}
        told = [f"{key}={_text(value[key])}" for key in value if key != "name" and key not in shared]
    return " ".join([head, *told])


def _text(value: Any) -> str:
    return show(value) if value in (None, "") or isinstance(value, bool) else str(value)


def excluded(
    rows: Sequence[tuple[Row, AnyChoices]], document: Node, problems: Problems, *, strict: bool
) -> set[str]:
    """Names of the rows that `exclude` leaves out; `strict`: an entry that leaves none out is a mistake."""
    gone: set[str] = set()
    exclude, known = document.mapping["exclude"], dimensions(document)
    for entry in exclude.items:
        if not entry.mapping:
            problems.at(entry, "expected a mapping of choices, as in {precision: fp32}")
        unknown = entry.mapping.keys() - set(known)
        for key in unknown:
            node = entry.mapping[key]
            problems.add(node.key_place or node.place, node.path, f"unknown key{did_you_mean(key, known)}")
        if unknown or not entry.mapping:
            continue
        pattern = {dimension: _complete(dimension, value) for dimension, value in plain(entry).items()}
        out = {row.name for row, choices in rows if _matches(pattern, choices)}
        gone |= out
        if not out and strict:
            problems.at(entry, "leaves out no row")
    if rows and len(gone) == len(rows):
        problems.at(exclude, "leaves out every row")
    return gone


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


# Shared choices that a suite leaves open: micro-batch sizes that are searched, and what the machine chooses.


def with_sizes_searched(document: Node, problems: Problems) -> Node:
    """The document with `best_of` in place of `micro_batch_size: auto`; an option's own `auto` is a mistake."""
    options = document.below("options")
    own = {name: option for name, option in options.items() if option.value_at(MICRO_BATCH_SIZE) == AUTO}
    if own:
        for name, option in own.items():
            node = option.mapping[MICRO_BATCH_SIZE]
            problems.at(node, "auto is said once for all options: choices: {micro_batch_size: auto}")
            own[name] = option.with_entries(**{MICRO_BATCH_SIZE: replace(node, value=1)})
        document = document.with_entries(options=document.mapping["options"].with_entries(**own))
    if document.value_at("choices", MICRO_BATCH_SIZE) != AUTO:
        return document
    node = document.mapping["choices"].mapping[MICRO_BATCH_SIZE]
    if "best_of" in document.mapping:
        problems.at(node, "auto and best_of say the same twice: leave one out")
        return document
    sizes = replace(node, path=f"best_of.{MICRO_BATCH_SIZE}")
    best_of = Node({MICRO_BATCH_SIZE: sizes}, node.place, "best_of")
    return document.with_entries(choices=document.mapping["choices"].without(MICRO_BATCH_SIZE), best_of=best_of)


def with_first_sizes(rows: Sequence[Row], document: Node) -> list[Row]:
    """Where sizes are searched, rows that set none begin with the least of them that cuts every such row's step.

    With 1 where none does, and for `auto`.
    """
    searched = document.below("best_of").get(MICRO_BATCH_SIZE)
    if searched is None:
        return list(rows)
    unset = [row for row in rows if MICRO_BATCH_SIZE not in row.choices.mapping]
    jobs = number_in(document.value_at("job", "global_batch_size"))

    def cuts(size: int, row: Row) -> bool:
        """Whether whole micro-batches of the size make the row's step, as far as its ranks are known."""
        own = {key: number_in(node.value) for key, node in row.choices.mapping.items()}
        step = own.get("global_batch_size") or jobs
        return step is not None and step % (size * (own.get("world_size") or 1)) == 0

    sizes = sorted(size for item in searched.items if (size := number_in(item.value)))
    first = replace(searched, value=next((size for size in sizes if all(cuts(size, row) for row in unset)), 1))
    return [row.with_choice(MICRO_BATCH_SIZE, first) if row in unset else row for row in rows]


def number_in(value: object) -> int | None:
    """A whole number above 0, where the value is one: it may not have been validated yet."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _leaves_open(setting: str, node: Node) -> bool:
    if setting == PRECISION:
        return plain(node) in (AUTO, {"name": AUTO})
    return setting == MICRO_BATCH_SIZE and isinstance(node.value, dict)


def taken_out(document: Node, problems: Problems) -> tuple[LeftOpen, Node]:
    """What the shared choices leave to the machine, and the document without it; anywhere else it is a mistake."""
    for setting in (PRECISION, MICRO_BATCH_SIZE):
        document = _refused_elsewhere(document, setting, problems)
    found = {key: node for key, node in document.below("choices").items() if _leaves_open(key, node)}
    if not found:
        return LeftOpen(), document
    size = None
    if MICRO_BATCH_SIZE in found:
        size = validate(SizeThatFits, found[MICRO_BATCH_SIZE], problems) or SizeThatFits(at_most=1)
    left_open = LeftOpen(precision=PRECISION in found, micro_batch_size=size)
    return left_open, document.with_entries(choices=document.mapping["choices"].without(*found))


def _refused_elsewhere(document: Node, setting: str, problems: Problems) -> Node:
    """The document without options that leave it open, each told; values of an axis are told."""
    options = document.below("options")
    own = {name: option.mapping[setting] for name, option in options.items() if setting in option.mapping}
    axis = document.below("axes").get(setting)
    values = [] if axis is None else [*axis.mapping.values(), *axis.items]
    said, instead = (
        (AUTO, "name a precision here") if setting == PRECISION else (f"{{{AT_MOST}: ...}}", "give a number here")
    )
    for node in (*own.values(), *values):
        if _leaves_open(setting, node):
            problems.at(node, f"{said} is said once for all options, under choices: {instead}")
    kept = {name: options[name].without(setting) for name, node in own.items() if _leaves_open(setting, node)}
    return document.with_entries(options=document.mapping["options"].with_entries(**kept)) if kept else document


def of_these_rows(asked: LeftOpen, rows: Sequence[Row], document: Node, problems: Problems) -> LeftOpen:
    """Without what every row sets itself; some rows alone may not.

    `rows`: as options and axes have them, without what is left open.
    """
    update: dict[str, object] = {}
    for setting in asked.settings:
        left = f"choices.{setting} leaves it to the machine"
        own = [row.choices.mapping[setting] for row in rows if setting in row.choices.mapping]
        if not own:
            for entry in document.items_below("exclude"):
                if setting in entry.mapping:
                    problems.at(entry.mapping[setting], f"{left}: there is nothing to exclude by it")
            continue
        update[setting] = LeftOpen.model_fields[setting].default
        if len(own) < len(rows):
            problems.at(own[0], f"{left}: set it in every option, or in none of them")
    return asked.but(**update)


def with_placeholders(rows: Sequence[Row], asked: LeftOpen) -> list[Row]:
    """Rows that can be validated: with micro-batches of one sequence, and the default precision."""
    if asked.micro_batch_size is None:
        return list(rows)
    one = f"choices.{MICRO_BATCH_SIZE}"
    return [row.with_choice(MICRO_BATCH_SIZE, Node(1, row.place, one)) for row in rows]
