"""Pydantic's errors in plain words, with the place in the suite where each was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from selectbench.choices import REGISTRY
from selectbench.choices.choice import OWN, OWN_PATTERN, Choice, is_own, tag_of
from selectbench.choices.model import FAMILIES, AnyTokenizer
from selectbench.errors import did_you_mean
from selectbench.suite.document import Node, Problems, describe, plain
from selectbench.suite.sources import SOURCES, tag_of_source

Location = tuple[str | int, ...]

UNIONS = frozenset(
    {"model", "data", "train", "heldout", "tokenizer", "eval", "world_size"}
    | {d for d, kinds in REGISTRY.items() if len(kinds) > 1}
)
"""Fields after whose name pydantic's location names a branch of the union, which is no key of the file."""

EXPECTED = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "string_type": "text", "bool_type": "true or false", "bool_parsing": "true or false", "list_type": "a list",
    "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping",
}  # fmt: skip
FORMER = {"repeat": " (every option runs one round for each seed: write `seeds: [0, 1, 2]`)"}
"""What is to be written in place of a key that suites once had."""
WORDS = {"eval": "none or ", "world_size": "auto or ", **dict.fromkeys(REGISTRY, "a name or ")}
"""What a field takes besides: said before the rest."""
BOUNDS = {
    "greater_than": ("gt", "more than"), "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"), "less_than_equal": ("le", "at most"),
}  # fmt: skip


def validate(kind: type[BaseModel], node: Node, problems: Problems, *, own_only: bool = False) -> Any:
    """An instance of the class made from the node, or None with the problems noted.

    `own_only`: note only what is wrong in itself, not what another value or a file on this disk decides.
    """
    try:
        return TypeAdapter(kind).validate_python(plain(node))
    except ValidationError as error:
        for detail in _without_union_echo(error.errors()):
            if not (own_only and detail["type"] in ("value_error", "missing")):
                _note(kind, node, detail, problems)
        return None


def _without_union_echo(errors: Sequence[Any]) -> Iterator[Any]:
    """Plain unions fail once per branch: the branches that do not fit the value's kind are left out."""
    for detail in errors:
        if detail["type"] == "literal_error" and detail["loc"][-1] in ("literal['none']", "literal['auto']"):
            if isinstance(detail["input"], str):
                yield detail
        elif not _is_echo(detail):
            yield detail


def _is_echo(detail: Any) -> bool:
    """Whether it says that a value does not fit a branch that it was not meant for."""
    if "scores" in detail["loc"]:
        return is_own(detail["input"]) != bool(detail["type"] == "string_pattern_mismatch")
    return detail["loc"][-1] in ("Eval", "constrained-int", "int") and isinstance(detail["input"], str)


def _note(kind: type[BaseModel], root: Node, detail: Any, problems: Problems) -> None:
    keys = real_keys(detail["loc"])
    node = root.at(keys)
    if detail["type"] == "extra_forbidden":
        place, known = node.key_place or node.place, field_names(kind, detail["loc"][:-1])
        problems.add(place, node.path, f"unknown key{FORMER.get(node.path) or _nearest(keys[-1], known)}")
    elif detail["type"] == "missing":
        problems.at(node, _missing(node, str(keys[-1])))
    elif detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
        blamed, named = _blamed(node, message), _named(node, message)
        problems.at(named or blamed, message.partition(": ")[2] if named else message)
    elif detail["type"] == "union_tag_not_found" and (wrong := _misspelt(detail, node)) is not None:
        problems.add(
            wrong.key_place or wrong.place, wrong.path, f"unknown key{_nearest(_last(wrong), _tags(detail))}"
        )
    else:
        inner = next((node.mapping[k] for k in ("name", "family") if k in node.mapping), node)
        problems.at(inner if detail["type"] == "union_tag_invalid" else node, message_of(detail, node))


def real_keys(location: Location) -> list[str | int]:
    """Pydantic's location without the names of union branches."""
    keys: list[str | int] = []
    after_union = False
    for segment in location:
        if not after_union:
            keys.append(segment)
        after_union = not after_union and segment in UNIONS
    return keys


def message_of(detail: Any, node: Node) -> str:
    """What is wrong, in plain words: what was found and what was expected."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in EXPECTED:
        field = detail["loc"][-2] if detail["loc"][-1] == "Eval" else detail["loc"][-1]
        return f"found {describe(node)}, expected {WORDS.get(str(field), '')}{EXPECTED[kind]}"
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return f"found {describe(node)}, must be {words} {context[key]}"
    if kind == "union_tag_invalid":
        tags = [tag.strip("'") for tag in context["expected_tags"].split(", ")]
        known = FAMILIES if detail["loc"][-1] == "model" else tags
        return f"unknown name {context['tag']!r}{_nearest(context['tag'], known)}"
    if kind == "union_tag_not_found":
        return _untagged(detail, node)
    return _other_message(kind, context, detail, node)


def _other_message(kind: str, context: dict[str, Any], detail: Any, node: Node) -> str:
    if kind == "literal_error":
        known = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        if isinstance(node.value, str):
            return f"unknown value {node.value!r}{_nearest(node.value, known)}"
        words = {"True": "true", "False": "false"}
        return f"found {describe(node)}, expected {_either([words.get(word, word) for word in known])}"
    if kind == "too_short":
        return f"must have at least {context['min_length']} entry"
    if kind == "string_too_short":
        return "is empty"
    if kind == "string_too_long":
        return f"is longer than {context['max_length']} characters"
    if kind == "string_pattern_mismatch" and context["pattern"] == OWN_PATTERN:
        return f"found {describe(node)}, expected {OWN}, a dotted module, a colon and a name in it"
    if kind == "string_pattern_mismatch":
        return f"found {describe(node)}: only letters, digits, dot, underscore and dash, a letter or digit first"
    return str(detail["msg"]).removeprefix("Input ")


def _untagged(detail: Any, node: Node) -> str:
    names = {
        "model": f"family ({_either(FAMILIES)}), config (a file or its folder) or pretrained (a folder or hub id)",
        "data": f"one of {_either([tag_of_source(kind) for kind in SOURCES])}, or train and heldout",
        "tokenizer": "bpe, unigram or wordpiece (a size), bytes (true) or pretrained (a folder or hub id)",
        **dict.fromkeys(("train", "heldout"), f"one of {_either([tag_of_source(kind) for kind in SOURCES])}"),
    }  # fmt: skip
    dimension = str(detail["loc"][-1])
    wanted = names.get(dimension) or f"name ({_either([tag_of(kind) for kind in REGISTRY[dimension]])})"
    if isinstance(node.value, dict):
        return f"required key is missing: {wanted}"
    word = "a name or " if dimension in REGISTRY else ""
    return f"found {describe(node)}, expected {word}a mapping with {wanted}"


def _tags(detail: Any) -> list[str]:
    """Keys that tell the kinds of this field apart."""
    field = detail["loc"][-1]
    if field == "tokenizer":
        return [next(iter(kind.model_fields)) for kind in get_args(AnyTokenizer)]
    if field == "model":
        return ["family", "config", "pretrained"]
    return ["name"] if field in REGISTRY else [tag_of_source(kind) for kind in SOURCES]


def _misspelt(detail: Any, node: Node) -> Node | None:
    """The key that was meant to tell the kind, where one is like it."""
    tags = _tags(detail)
    return next((entry for key, entry in node.mapping.items() if tags and did_you_mean(key, tags)), None)


def _last(node: Node) -> str:
    return node.path.rpartition(".")[2]


def _named(node: Node, message: str) -> Node | None:
    """The key below this node that a message begins with, before a colon; None where there is none."""
    key, colon, _ = message.partition(": ")
    found = node.at(key.split(".")) if colon and " " not in key else node
    return None if found.path == node.path else found


def _missing(node: Node, key: str) -> str:
    if isinstance(node.value, str):
        return f"{node.value!r} needs {key!r}: write {{name: {node.value}, {key}: ...}}"
    named = node.mapping.get("name")
    of = f" of {named.value}" if named is not None and isinstance(named.value, str) and node.path else ""
    return f"required key {key!r}{of} is missing"


def _blamed(node: Node, message: str) -> Node:
    """The key that a sentence begins with, where the mapping has it."""
    return node.at(message.split()[0].split("."))


def _nearest(wrong: object, known: Sequence[str]) -> str:
    return did_you_mean(wrong, known) or f" (known: {', '.join(known)})"


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def field_names(kind: type[BaseModel], location: Location) -> list[str]:
    """The keys of the class that pydantic's location leads to; branch names choose among a union's classes."""
    classes: list[type[BaseModel]] = [kind]
    for segment in location:
        owner = next((c for c in classes if segment in c.model_fields), None)
        chosen = [c for c in classes if _is_branch(c, segment)]
        if chosen and len(classes) > 1:
            classes = chosen
        elif owner is not None:
            classes = list(_classes_in(owner, str(segment)))
    return [name for c in classes[:1] for name in c.model_fields]


def _is_branch(kind: type[BaseModel], segment: str | int) -> bool:
    if issubclass(kind, Choice):
        return segment in (tag_of(kind), kind.__name__)
    family = kind.model_fields.get("family")
    if family is None:
        return segment == kind.__name__ or segment in kind.model_fields
    return segment in (OWN if family.is_required() else family.default, kind.__name__)


def _classes_in(kind: type[BaseModel], name: str) -> Iterator[type[BaseModel]]:
    queue: list[Any] = [kind.model_fields[name].annotation]
    while queue:
        annotation = queue.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        queue.extend(get_args(annotation))
