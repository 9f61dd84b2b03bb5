"""Pydantic's errors in plain words, with the place in the suite where each was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from selectbench.choices import REGISTRY, Choices
from selectbench.choices.choice import OWN, OWN_PATTERN, Choice, WrongValueError, is_own, tag_of
from selectbench.choices.model import FAMILIES
from selectbench.errors import did_you_mean, nearest, one_of_these, plain_word, synonyms
from selectbench.suite.command import NO_VALUE, RESERVED
from selectbench.suite.document import KINDS, Node, Problems, describe, plain, show
from selectbench.suite.suite import SuiteFile
from selectbench.text import listed, quoted, visible

Location = tuple[str | int, ...]

UNIONS = frozenset(
    {*KINDS, "eval", "world_size"} | {dimension for dimension, kinds in REGISTRY.items() if len(kinds) > 1}
)
"""Fields after whose name pydantic's location names a branch of the union, which is no key of the file."""

EXPECTED = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "string_type": "text", "bool_type": "true or false", "bool_parsing": "true or false", "list_type": "a list",
    "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping",
}  # fmt: skip
WRITE_INSTEAD = {
    "repeat": "every option runs one round for each seed: write `seeds: [0, 1, 2]`",
    "tokenizer.vocab_size": "the size stands under the tokenizer's kind: write `{bpe: 2048}`",
    "gradient_accumulation_steps": "it follows: global_batch_size / (micro_batch_size x world_size)",
    **dict.fromkeys(
        ("num_train_epochs", "num_epochs", "max_epochs", "epochs"),
        "write `max_steps` under job, in optimizer steps; `selectbench plan` says how many epochs they are",
    ),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler"),
                    "write `lr_schedule: {name: cosine}` under job"),
    "bf16": "write `precision: bf16_mixed`", "fp16": "write `precision: fp16_mixed`",
    "tf32": "write `precision: tf32`", "fp32": "write `precision: fp32`",
    "ddp": "write `strategy: ddp`", "fsdp": "write `strategy: fsdp`",
    **dict.fromkeys(("deepspeed", "zero", "zero_stage"), "write `strategy: {name: zero, stage: 2}`"),
    "lora": "write `adaptation: lora`", "qlora": "write `adaptation: qlora`",
}  # fmt: skip
"""What is to be written in place of a key that suites once had, or that others' configurations have."""
FORMS = {
    "options": "a mapping: for each a line with its name and what it sets, `NAME: {...}`",
    "axes": "a mapping: for each a line with what it sets and its values, `KEY: [...]`",
}
"""What a key takes, where the kind of its value alone does not tell how to write it."""
_either = partial(listed, last="or")
_FEW = 3
"""Most mappings with a key that a hint names; if more have it, the hint names none."""
OTHER_FORMS = {"eval": ["a mapping"], "world_size": ["a whole number"], "micro_batch_size": ["a list of sizes"]}
"""What a field takes besides its words, which messages name first."""
WORDS_BEFORE_FORM = {"eval": "none or ", "world_size": "auto or ", **dict.fromkeys(REGISTRY, "a name or ")}
"""The words that a field takes besides what messages name after them."""
SENTENCES = {
    "greater_than": "found {found}, must be more than {gt}", "less_than": "found {found}, must be less than {lt}",
    "greater_than_equal": "found {found}, must be at least {ge}",
    "less_than_equal": "found {found}, must be at most {le}",
    "too_short": "must have at least {min_length} entry", "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
}  # fmt: skip


def validate(kind: type[BaseModel], node: Node, problems: Problems, *, own_only: bool = False) -> Any:
    """An instance of the class made from the node, or None with the problems noted.

    `own_only`: note only what is wrong in itself, not what another value or a file on this disk decides.
    """
    try:
        return TypeAdapter(kind).validate_python(plain(node))
    except ValidationError as error:
        for detail in error.errors():
            if not _is_echo(detail) and not (own_only and detail["type"] in ("value_error", "missing")):
                _note(kind, node, detail, problems)
        return None


def _is_echo(detail: Any) -> bool:
    """Whether it says of a plain union, which fails once per branch, that a value fits a branch of no like kind."""
    is_text, branch = isinstance(detail["input"], str), (*detail["loc"][-1:], "")[0]
    if detail["type"] == "literal_error" and branch in ("literal['none']", "literal['auto']"):
        return not is_text
    if "scores" in detail["loc"][:-1]:
        return is_own(detail["input"]) != bool(detail["type"] == "string_pattern_mismatch")
    return is_text and (branch in ("Eval", "constrained-int", "int") or "HeldOut" in str(branch))


def _note(kind: type[BaseModel], root: Node, detail: Any, problems: Problems) -> None:
    location, field = detail["loc"], str((*detail["loc"][-1:], "")[0])
    keys = real_keys(location)
    node = root.at(keys)
    match detail["type"]:
        case "extra_forbidden":
            known = list(_types_at(kind, location[:-1])[0][0].model_fields)
            problems.at_key(node, f"unknown key{_key_hint(node.path, str(keys[-1]), known)}")
        case "missing":
            known = list(_types_at(kind, location[:-1])[0][0].model_fields)
            others = [key for key in node.mapping if key not in known]
            if not any(keys[-1] in nearest(other, known) for other in others):  # else it is told as misspelt
                problems.at(node, _missing(node, str(keys[-1])))
        case "value_error" if str(detail["ctx"]["error"]) == NO_VALUE and (near := did_you_mean(field, RESERVED)):
            problems.at_key(node, f"unknown key{near}")
        case "value_error":
            error = detail["ctx"]["error"]
            blamed = node.at(error.key.split(".")) if isinstance(error, WrongValueError) else node
            problems.at(blamed, str(error) if blamed.path == node.path else error.reason)
        case "union_tag_invalid":
            known = list(FAMILIES) if field == "model" else [tag_of(choice) for choice in REGISTRY[field]]
            named = next((node.mapping[k] for k in ("name", "family") if k in node.mapping), node)
            tag = detail["ctx"]["tag"]
            called = [c.also_called.get(plain_word(tag)) for c in REGISTRY.get(field, ())]
            hint = f": write {next(filter(None, called))}" if any(called) else _nearest(tag, known)
            problems.at(named, f"unknown name {quoted(tag)}{hint}")
        case "union_tag_not_found":
            tags = KINDS.get(field, ["name"])
            wrong = next((entry for key, entry in node.mapping.items() if did_you_mean(key, tags)), None)
            if wrong is None:
                problems.at(node, _untagged(field, node))
            else:
                hint = _nearest(wrong.path.rpartition(".")[2], tags)
                problems.at_key(wrong, f"unknown key{hint}")
        case "literal_error":
            words = _words_of(kind, location)
            texts = [word if isinstance(word, str) else show(word) for word in words]
            hint = did_you_mean(node.value, texts)
            if isinstance(node.value, str) and (hint or (len(words) > 1 and isinstance(words[0], str))):
                problems.at(node, f"unknown value {quoted(node.value)}{hint or _known(texts)}")
            else:
                expected = _either([*texts, *OTHER_FORMS.get(str(keys[-1]), ())])
                problems.at(node, f"found {describe(node)}, expected {expected}")
        case _:
            problems.at(node, _message(detail, node))


def real_keys(location: Location) -> list[str | int]:
    """Pydantic's location without the names of union branches."""
    keys: list[str | int] = []
    after_union = False
    for segment in location:
        if not after_union:
            keys.append(segment)
        after_union = not after_union and segment in UNIONS
    return keys


def _message(detail: Any, node: Node) -> str:
    """What is wrong, in plain words: what was found and what was expected."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in EXPECTED:
        field = detail["loc"][-2] if detail["loc"][-1] == "Eval" else detail["loc"][-1]
        form = FORMS.get(str(field), EXPECTED[kind])
        return f"found {describe(node)}, expected {WORDS_BEFORE_FORM.get(str(field), '')}{form}"
    if kind in SENTENCES:
        return SENTENCES[kind].format(found=describe(node), **context)
    if kind == "string_pattern_mismatch" and context["pattern"] == OWN_PATTERN:
        return f"found {describe(node)}, expected {OWN}, a dotted module, a colon and a name in it"
    if kind == "string_pattern_mismatch":
        return f"found {describe(node)}: only letters, digits, dot, underscore and dash, a letter or digit first"
    return str(detail["msg"])


def _untagged(field: str, node: Node) -> str:
    """The sentence where no key tells which class is meant, with the keys that would."""
    if field == "model":
        wanted = f"family ({_either(FAMILIES)}), config (a file or its folder) or pretrained (a folder or hub id)"
    elif field == "tokenizer":
        wanted = "bpe, unigram or wordpiece (a size), bytes (true) or pretrained (a folder or hub id)"
    elif field in KINDS:
        wanted = f"one of {_either(KINDS[field])}{', or train and heldout' if field == 'data' else ''}"
    else:
        wanted = f"name ({_either([tag_of(choice) for choice in REGISTRY[field]])})"
    if isinstance(node.value, dict):
        return f"required key is missing: {wanted}"
    return f"found {describe(node)}, expected {'a name or ' if field in REGISTRY else ''}a mapping with {wanted}"


def _missing(node: Node, key: str) -> str:
    if isinstance(node.value, str):
        return f"{quoted(node.value)} needs {quoted(key)}: write {{name: {visible(node.value)}, {key}: ...}}"
    named = node.mapping.get("name")
    of = f" of {visible(named.value)}" if named is not None and isinstance(named.value, str) and node.path else ""
    return f"required key {quoted(key)}{of} is missing"


def _key_hint(path: str, key: str, known: Sequence[str]) -> str:
    """What to write in place of an unknown key: another one here or elsewhere in a suite, or what is known here."""
    here = path.rpartition(".")[0].rpartition(".")[2]
    if meant := synonyms(key, known):
        return one_of_these(meant)
    if key == "betas" and "beta1" in known:
        return ": write " + " and ".join(f"`{name}`" for name in known if name.startswith("beta"))
    if advice := WRITE_INSTEAD.get(f"{here}.{key}") or WRITE_INSTEAD.get(key):
        return f": {advice}"
    for elsewhere in synonyms(key, list(_mappings_by_key())) if "command" not in known else ():
        mappings = [path for path in _mappings_by_key()[elsewhere] if path.rpartition(".")[2] != here]
        if 0 < len(mappings) <= _FEW:
            return f": write `{elsewhere}` under {_either(mappings)}"
    return _nearest(key, known)


@cache
def _mappings_by_key() -> dict[str, list[str]]:
    """By key, the mappings of a suite that have it, as dotted paths; keys at the top are left out."""
    mappings: dict[str, dict[str, None]] = {}

    def look_into(kind: type[BaseModel], path: str) -> None:
        for key, field in kind.model_fields.items():
            if path:
                mappings.setdefault(key, {})[path] = None
            for model in _models_in(field.annotation):
                look_into(model, f"{path}.{key}" if path else key)

    look_into(SuiteFile, "")
    look_into(Choices, "choices")
    return {key: list(paths) for key, paths in mappings.items()}


def _nearest(wrong: object, known: Sequence[str]) -> str:
    return did_you_mean(wrong, known) or _known(known)


def _known(words: Sequence[str]) -> str:
    return f" (known: {', '.join(words)})"


def _words_of(kind: type[BaseModel], location: Location) -> list[object]:
    """The words that the last field of pydantic's location may be."""
    literals = [part for part in _parts(_types_at(kind, location)[1]) if get_origin(part) is Literal]
    return [word for part in literals for word in get_args(part)]


def _types_at(kind: type[BaseModel], location: Location) -> tuple[list[type[BaseModel]], Any]:
    """The classes that a location leads to, where branch names choose a class, and the type of its last field."""
    classes: list[type[BaseModel]] = [kind]
    annotation: Any = None
    for segment in location:
        chosen = [c for c in classes if _is_branch(c, segment)]
        having = [c.model_fields[str(segment)] for c in classes if segment in c.model_fields]
        if chosen and len(classes) > 1:
            classes = chosen
        elif having:
            annotation = having[0].annotation
            classes = _models_in(annotation)
    return classes, annotation


def _is_branch(kind: type[BaseModel], segment: str | int) -> bool:
    """Whether pydantic calls this class of a union so: by its tag, or by its own name."""
    if issubclass(kind, Choice):
        return segment in (tag_of(kind), kind.__name__)
    tag, field = next((name, f) for name, f in kind.model_fields.items() if name in kind.__annotations__)
    if tag == "family":
        tag = OWN if field.is_required() else field.default
    return segment in (tag, kind.__name__)


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is made of."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _parts(part)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    return [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
