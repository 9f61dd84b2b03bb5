"""The rows of a suite: its named options, the full grid of its axes, or both multiplied; searched sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
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
ALSO_OF_JOB = ("model", "tokenizer")
"""Dimensions that are keys of the job too."""
SAY_DIMENSION = frozenset(d for d, kinds in REGISTRY.items() if any(tag_of(kind) == "off" for kind in kinds))
"""Dimensions whose words (`off`) mean nothing without the dimension's name."""


@dataclass(frozen=True)
class Row:
    """An option before it is validated."""

    name: str
    """Unique among the rows, once checked."""
    choices: Node
    """The shared choices with the row's own laid over them."""
    place: Place
    """The place in the suite that declares the row."""
    path: str
    """The key that declares it."""


def dimensions(document: Node) -> tuple[str, ...]:
    """What an option may set: dimensions, or of a command the reserved keys and the placeholders."""
    if not document.has_command:
        return DIMENSIONS
    variables = [str(node.value) for node in document.mapping["job"].below("environment").values()]
    names = names_in([str(document.value_at("job", "command")), *variables])
    return tuple(dict.fromkeys([*RESERVED, *(name for name in names if name not in GIVEN)]))


def rows_of(document: Node, problems: Problems) -> tuple[list[Row], LeftOpen]:
    """Every row in the file's order, options outermost, then the axes as they are written; and what is left open.

    A row's model or tokenizer without a tag (`model.n_layer`) is the job's with those fields changed.
    """
    left_open, document = _taken_out(document, problems)
    shared = document.mapping.get("choices", Node({}, document.place, "choices"))
    known = dimensions(document)
    axes = [_values(path, node, known, problems) for path, node in document.below("axes").items()]
    if math.prod(map(len, axes)) > MOST_ROWS:
        problems.at(document.mapping["axes"], f"the grid has more than {MOST_ROWS} rows")
        return [], left_open
    options = _options(document, problems)
    if not isinstance(shared.value, dict):
        return [], left_open
    named = options or {("" if axes else SINGLE): Node({}, document.place, "choices")}
    job = document.mapping.get("job", document)
    rows: list[Row] = []
    for (name, partial), *values in itertools.product(named.items(), *(axis.items() for axis in axes)):
        choices = reduce(merge_by_key, [partial, *(value for _, value in values)], shared)
        # A model or tokenizer is laid over the job's, which it replaces where it has a tag.
        keys = () if document.has_command else ALSO_OF_JOB
        choices = choices.with_entries(**{
            key: merge(job.mapping[key], choices.mapping[key], key)
            for key in keys if key in job.mapping and key in choices.mapping
        })  # fmt: skip
        origin = values[-1][1] if values and not name else partial
        label = " + ".join(filter(None, (name, *(label for label, _ in values))))
        rows.append(Row(label, choices, origin.place, origin.path))
    return rows, left_open


def meant_settings(path: str) -> list[str]:
    """Paths below an option's choices that a path may mean: `optimizer.lr` for `lr`; [] where it means none."""
    head, dot, rest = path.removeprefix("choices.").partition(".")
    if meant := synonyms(head, DIMENSIONS):
        return [f"{name}{dot}{rest}" for name in meant]
    settings = {d: dict.fromkeys(s for kind in kinds for s in kind.model_fields) for d, kinds in REGISTRY.items()}
    meant = [f"{d}.{s}" for d, names in settings.items() for s in synonyms(head, list(names)) if s != "name"]
    return [f"{setting}{dot}{rest}" for setting in meant[:3]]


def _options(document: Node, problems: Problems) -> dict[str, Node]:
    options: dict[str, Node] = {}
    for name, node in document.below("options").items():
        if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > 200:
            problems.at(node, f"{quoted(name)} cannot name an option: use printable text of at most 200 characters")
        elif node.value is not None and not isinstance(node.value, dict):
            problems.at(node, "expected a mapping of choices, as in {precision: fp32}")
        else:
            options[name] = node if node.value is not None else replace(node, value={})
    return options


def _values(path: str, node: Node, known: Sequence[str], problems: Problems) -> dict[str, Node]:
    """The choices that the axis's values set, by their labels; {} if the axis is wrong. `known`: dimensions."""
    keys = path.split(".")
    if keys[0] not in known or not all(keys):
        near = one_of_these(meant_settings(path)) if known == DIMENSIONS else did_you_mean(keys[-1], known)
        hint = did_you_mean(keys[0], known) or near or f" (known: {', '.join(known)})"
        problems.at_key(node, f"unknown dimension {quoted(keys[0])}{hint}")
        return {}
    items = [plain(item) for item in node.items]
    labelled = [(_label(keys, value, items), item) for value, item in zip(items, node.items, strict=True)]
    labelled += node.mapping.items()
    if not labelled:
        problems.at(node, "expected a list of values, or a mapping of labels to values")
    unique: dict[str, Node] = {}
    for label, value in labelled:
        if label in unique:
            problems.at(value, f"two values of this axis are called {quoted(label)}")
        unique.setdefault(label, nest(keys, value, node.key_place or node.place))
    return unique


def _label(keys: list[str], value: Any, siblings: list[Any]) -> str:
    """`adamw`, `adamw lr=0.001` where a sibling has the same name, `micro_batch_size=4`, `lr=0.001`."""
    if not isinstance(value, dict):
        says_enough = isinstance(value, str) and value and len(keys) == 1 and keys[0] not in SAY_DIMENSION
        return str(value) if says_enough else f"{keys[-1]}={_text(value)}"
    name = value.get("name")
    head = keys[-1] if name is None else f"{keys[0]}={name}" if keys[0] in SAY_DIMENSION else str(name)
    same = [s for s in siblings if isinstance(s, dict) and s.get("name") == name]
    settings: list[str] = []
    if len(same) > 1 or name is None:
        first, *others = same
        shared = {key for key in first if others and all(key in o and o[key] == first[key] for o in others)}
        settings = [f"{key}={_text(value[key])}" for key in value if key != "name" and key not in shared]
    return " ".join([head, *settings])


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
            problems.at_key(entry.mapping[key], f"unknown key{did_you_mean(key, known)}")
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
    """The mapping that a shorthand stands for."""
    if isinstance(value, bool) and dimension == "activation_checkpointing":
        return {"name": "full" if value else "off"}
    return {"name": value} if isinstance(value, str) and dimension in REGISTRY else value


def _matches(pattern: Any, value: Any) -> bool:
    if isinstance(pattern, dict):
        settings = value.model_dump() if isinstance(value, BaseModel) else value
        if not isinstance(settings, dict):
            return False
        return all(key in settings and _matches(part, settings[key]) for key, part in pattern.items())
    return bool(pattern == value)


def with_sizes_searched(document: Node, problems: Problems) -> Node:
    """The document with `best_of` in place of `micro_batch_size: auto`; an option's own `auto` is a mistake."""
    if document.has_command:
        return document
    wrong = "auto is said once for all options: choices: {micro_batch_size: auto}"
    document = _refused_in_options(document, MICRO_BATCH_SIZE, lambda n: n.value == AUTO, wrong, problems, [1])
    if document.value_at("choices", MICRO_BATCH_SIZE) != AUTO:
        return document
    node = document.mapping["choices"].mapping[MICRO_BATCH_SIZE]
    if "best_of" in document.mapping:
        problems.at(node, "auto and best_of say the same twice: leave one out")
        return document
    sizes = replace(node, path=f"best_of.{MICRO_BATCH_SIZE}")
    best_of = Node({MICRO_BATCH_SIZE: sizes}, node.place, "best_of")
    return document.with_entries(choices=document.mapping["choices"].without(MICRO_BATCH_SIZE), best_of=best_of)


def _refused_in_options(
    document: Node, setting: str, is_open: Callable[[Node], bool], wrong: str, problems: Problems,
    instead: Sequence[int] = (),
) -> Node:  # fmt: skip
    """The document without the setting (or with `instead`) in options that leave it open, a mistake of each."""
    options = dict(document.below("options"))
    for name, option in options.items():
        if (node := option.mapping.get(setting)) is not None and is_open(node):
            problems.at(node, wrong)
            options[name] = option.without(setting)
            for value in instead:
                options[name] = option.with_entries(**{setting: replace(node, value=value)})
    if not options:
        return document
    return document.with_entries(options=replace(document.mapping["options"], value=options))


def number_in(value: object) -> int | None:
    """The value if it is a whole number above 0, else None: it may not have been validated yet."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _taken_out(document: Node, problems: Problems) -> tuple[LeftOpen, Node]:
    """What the shared choices leave to the machine, and the document without that; elsewhere it is a mistake."""
    if document.has_command:  # its placeholders may have these names
        return LeftOpen(), document
    left_open = LeftOpen()
    settings: list[tuple[str, Callable[[Node], bool], str, str]] = [
        (PRECISION, lambda n: plain(n) in (AUTO, {"name": AUTO}), AUTO, "name a precision here"),
        (MICRO_BATCH_SIZE, lambda n: isinstance(n.value, dict), f"{{{AT_MOST}: ...}}", "give a number here"),
    ]
    for setting, is_open, text, instead in settings:
        wrong = f"{text} is said once for all options, under choices: {instead}"
        document = _refused_in_options(document, setting, is_open, wrong, problems)
        axis = document.below("axes").get(setting, Node(None, document.place))
        for node in filter(is_open, (*axis.mapping.values(), *axis.items)):
            problems.at(node, wrong)
        value = document.below("choices").get(setting)
        if value is not None and is_open(value):
            size = validate(SizeThatFits, value, problems) if setting == MICRO_BATCH_SIZE else True
            left_open = left_open.but(**{setting: size or SizeThatFits(at_most=1)})
            document = document.with_entries(choices=document.mapping["choices"].without(setting))
    return left_open, document


def with_placeholders(
    rows: Sequence[Row], left_open: LeftOpen, document: Node, problems: Problems
) -> tuple[list[Row], LeftOpen]:
    """Rows that can be validated, and what of `left_open` stays open.

    A setting that every row sets itself does not stay open; that only some rows set it is a mistake. Meanwhile
    micro-batches are of one sequence. If sizes are searched, rows without a size begin with the least size that
    cuts each such row's step into whole micro-batches, or with 1.
    """
    for setting in left_open.settings:
        left = f"choices.{setting} leaves it to the machine"
        values = [row.choices.mapping[setting] for row in rows if setting in row.choices.mapping]
        if values:
            left_open = left_open.but(**{setting: LeftOpen.model_fields[setting].default})
        for entry in document.items_below("exclude") if not values else ():
            if setting in entry.mapping:
                problems.at(entry.mapping[setting], f"{left}: there is nothing to exclude by it")
        if 0 < len(values) < len(rows):
            problems.at(values[0], f"{left}: set it in every option, or in none of them")
    searched = document.below("best_of").get(MICRO_BATCH_SIZE)
    if left_open.micro_batch_size is None and (searched is None or document.has_command):
        return list(rows), left_open
    unset = [row for row in rows if MICRO_BATCH_SIZE not in row.choices.mapping]
    job_size = number_in(document.value_at("job", "global_batch_size"))

    def cuts(size: int, row: Row) -> bool:
        """Whether whole micro-batches of the size make the row's step, as far as its ranks are known."""
        numbers = {key: number_in(node.value) for key, node in row.choices.mapping.items()}
        step = numbers.get("global_batch_size") or job_size
        return step is not None and step % (size * (numbers.get("world_size") or 1)) == 0

    def filled(row: Row) -> Row:
        size = Node(1, row.place, f"choices.{MICRO_BATCH_SIZE}") if first is None else first
        return replace(row, choices=row.choices.with_entries(**{MICRO_BATCH_SIZE: size}))

    first = None
    if searched is not None and left_open.micro_batch_size is None:
        sizes = sorted(size for item in searched.items if (size := number_in(item.value)))
        first = replace(searched, value=next((size for size in sizes if all(cuts(size, row) for row in unset)), 1))
    return [row if MICRO_BATCH_SIZE in row.choices.mapping else filled(row) for row in rows], left_open
