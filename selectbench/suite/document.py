"""A YAML document whose every value knows where it was written; how files merge and paths become absolute."""

from __future__ import annotations

import contextlib
import glob
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from selectbench.choices.model import MODEL_TAGS, TOKENIZER_TAGS
from selectbench.errors import UserError
from selectbench.suite.sources import PATHS, TAGS, PathKind
from selectbench.text import MOST_SHOWN, quoted, unwritable, visible

MOST_NODES = 100_000
"""Values that a suite may have; aliases of aliases can ask for billions."""
MOST_LEVELS = 50
"""Levels of mappings and lists in each other; code that walks them recurses once for each."""
TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written: a file's line and column, or an option of the command line."""

    source: str
    """The file as the user named it, or `--set job.max_steps=x`."""
    line: int = 0
    """From 1; 0 on the command line."""
    column: int = 0
    """From 1; 0 on the command line."""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Node:
    """A value with its place: a mapping of nodes, a list of nodes, or a scalar."""

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    place: Place
    path: str = ""
    """Dotted keys from the top of what was written: `profiles.cpu.job.max_steps`."""
    key_place: Place | None = None
    """Where its key was written; None for list items and the top."""

    @property
    def mapping(self) -> dict[str, Node]:
        """The entries of a mapping; none where it is something else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The items of a list; none where it is something else."""
        return self.value if isinstance(self.value, list) else []

    def at(self, keys: Sequence[str | int]) -> Node:
        """The node under these keys, or the nearest one above where a key is absent."""
        node = self
        for key in keys:
            if isinstance(node.value, list):
                child = node.items[key] if isinstance(key, int) and key < len(node.items) else None
            else:
                child = node.mapping.get(str(key))
            if child is None:
                return node
            node = child
        return node

    @property
    def has_command(self) -> bool:
        """Whether the suite's job is a training command."""
        return "command" in self.below("job")

    def value_at(self, *keys: str) -> object:
        """The value under these keys; None where one is absent."""
        node: Node | None = self
        for key in keys:
            node = node.mapping.get(key) if node is not None else None
        return None if node is None else node.value

    def below(self, key: str) -> dict[str, Node]:
        """The entries of the mapping under this key; none where there is no such mapping."""
        return self.mapping[key].mapping if key in self.mapping else {}

    def items_below(self, key: str) -> list[Node]:
        """The items of the list under this key; none where there is no such list."""
        return self.mapping[key].items if key in self.mapping else []

    def with_entries(self, /, **entries: Node) -> Node:
        """A mapping with these entries put in."""
        return replace(self, value={**self.mapping, **entries})

    def without(self, *keys: str) -> Node:
        """A mapping without these entries."""
        return replace(self, value={k: v for k, v in self.mapping.items() if k not in keys})


def plain(node: Node) -> Any:
    """The value as plain Python data, places left out."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


@dataclass
class Problems:
    """Mistakes collected on the way, so that all are reported at once."""

    mistakes: dict[tuple[Place, str], None] = field(default_factory=dict)
    """Place and message of each, in the order in which they were noted."""

    def add(self, place: Place, path: str, message: str) -> None:
        """Note one mistake; the same one is reported once."""
        self.mistakes[place, f"{visible(path)}: {message}" if path else message] = None

    def at(self, node: Node, message: str) -> None:
        """Note a mistake in this node."""
        self.add(node.place, node.path, message)

    def at_key(self, node: Node, message: str) -> None:
        """Note a mistake in the key of this node."""
        self.add(node.key_place or node.place, node.path, message)

    def lines(self) -> Iterator[str]:
        """One line per mistake, in the order of the file."""
        return (f"{place}: {text}" for place, text in sorted(self.mistakes))

    def raise_if_any(self) -> None:
        """Raises UserError with one line per mistake, if there is any."""
        if self.mistakes:
            raise UserError(*self.lines())


@dataclass(frozen=True)
class Written:
    """A suite that is no file: YAML text, or a mapping as JSON, whose line numbers mean nothing to the user."""

    text: str
    has_lines: bool = True

    def __str__(self) -> str:
        """The source of its places, as messages name it."""
        return "suite"


def read_document(path: Path | Written, needs: str = "a suite needs at least `job`") -> Node:
    """The file's top mapping. Raises UserError where it cannot be read, is empty or does not parse."""
    text = path.text if isinstance(path, Written) else _text_of(path)
    problems, source = Problems(), str(path)
    top = _Reader(problems, source, on_command_line=isinstance(path, Written) and not path.has_lines).parse(text)
    if top is not None and top.value is None:
        problems.add(Place(source, 1, 1), "", f"the file is empty: {needs}")
    elif top is not None and not isinstance(top.value, dict):
        problems.add(top.place, "", f"expected a mapping at the top, found {describe(top)}")
    problems.raise_if_any()
    assert top is not None
    return top


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise UserError(f"{path}:{line}:{column}: the file is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from None


def parse_value(text: str, source: str, path: str, problems: Problems) -> Node | None:
    """A value given on the command line, read as YAML; None, with a problem noted, if it doesn't parse."""
    return _Reader(problems, source, on_command_line=True).parse(text, path)


def placed(problem: str, document: Node, profile: str | None, value: str | None = None, option: str = "") -> str:
    """The problem with a place before it: of `value`, the option's first, or of the key that it begins with."""
    nodes, key, prefix = [document], problem.partition(": ")[0], f"profiles.{profile}."
    for node in nodes:
        nodes += [*node.mapping.values(), *node.items]
    named = [n for n in nodes if (value in (n.value, *n.mapping) if value else n.path.removeprefix(prefix) == key)]
    nearest = sorted(named, key=lambda n: (f"options.{option}." not in n.path, not n.path.startswith(prefix)))
    return f"{nearest[0].place}: {problem}" if nearest else problem


def describe(node: Node) -> str:
    """The value as an error message shows it."""
    if isinstance(node.value, dict | list):
        return "a mapping" if isinstance(node.value, dict) else "a list"
    return show(node.value)


def show(value: object) -> str:
    """A scalar as an error message or label shows it: text in double quotes, YAML's words for the rest."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f'"{visible(value, MOST_SHOWN - 2)}"' if isinstance(value, str) else visible(value)


_UNCLOSED = {
    "while parsing a flow sequence": "a comma or the `]` of this list",
    "while parsing a flow mapping": "a comma or the `}` of this mapping",
}
"""What is missing, by what ruamel was doing."""


class _Reader:
    """Turns ruamel's nodes into `Node`s. In YAML 1.2 `1e-3` is a number and `no` a word; no key is given twice."""

    def __init__(self, problems: Problems, source: str, *, on_command_line: bool = False) -> None:
        self.problems, self.source, self.on_command_line = problems, source, on_command_line
        self.yaml = YAML(typ="safe", pure=True)
        self.count = self.level = 0

    def parse(self, text: str, path: str = "") -> Node | None:
        """The document; None where a problem was noted."""
        try:
            composed = self.yaml.compose(text)
            return self.node(composed, path) if composed is not None else Node(None, self.place(None), path)
        except MarkedYAMLError as error:
            mark, detail = error.problem_mark, ", ".join(part for part in (error.context, error.problem) if part)
            detail = "a tab: indent with spaces" if r"'\t'" in detail else detail
            if (kind := _UNCLOSED.get(error.context)) is not None and not detail.startswith("a tab"):
                by = "" if self.on_command_line else f", at the latest in line {mark.line + 1}"
                mark, detail = error.context_mark, f"{kind} is missing{by}"
        except RecursionError:
            mark, detail = None, f"nested more than {MOST_LEVELS} levels deep"
        except (YAMLError, ValueError) as error:
            mark, detail = None, " ".join(str(error).split())
        self.note(mark, path, f"not valid YAML: {visible(detail, 160)}")
        return None

    def place(self, mark: Any) -> Place:
        if self.on_command_line:
            return Place(self.source)
        return Place(self.source, mark.line + 1, mark.column + 1) if mark else Place(self.source, 1, 1)

    def note(self, mark: Any, path: str, wrong: str) -> None:
        self.problems.add(self.place(mark), path, wrong)

    def node(self, raw: Any, path: str, key: Any = None) -> Node:
        self.count += 1
        if self.count > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} values")
        if self.level > MOST_LEVELS:
            raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
        self.level += 1
        value: Any
        if isinstance(raw, MappingNode):
            value = self.entries(raw, path)
        elif isinstance(raw, SequenceNode):
            value = [self.node(item, f"{path}[{i}]") for i, item in enumerate(raw.value)]
        else:
            value = self.scalar(raw, path)
        self.level -= 1
        return Node(value, self.place(raw.start_mark), path, self.place(key.start_mark) if key else None)

    def entries(self, raw: Any, path: str) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key, child in raw.value:
            name = key.value if isinstance(key, ScalarNode) else None
            if name is None or key.tag == f"{TAG}merge":
                what = "a key must be a word" if name is None else "merge keys (<<) are not YAML 1.2"
                self.note(key.start_mark, path, what)
                continue
            child_path = f"{path}.{name}" if path else name
            if (odd := unwritable(name)) is not None:
                self.note(
                    key.start_mark, path, f"the key {quoted(name)} holds {visible(odd)}, which no report can show"
                )
            elif name in entries:
                first = entries[name].key_place or entries[name].place
                wrong = f"the key {quoted(name)} is given twice, first in line {first.line}"
                self.note(key.start_mark, child_path, wrong)
            else:
                entries[name] = self.node(child, child_path, key)
        return entries

    def scalar(self, raw: Any, path: str) -> str | int | float | bool | None:
        kind, text = str(raw.tag).removeprefix(TAG), str(raw.value)
        if kind in ("str", "timestamp"):
            if (odd := unwritable(text)) is None:
                return text
            self.note(raw.start_mark, path, f"holds {visible(odd)}, which no report can show")
            return None
        # A tag may be written before any text: `!!int ''`.
        if kind == "null" and text.lower() in ("", "~", "null"):
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in ("int", "float"):
            with contextlib.suppress(ValueError, IndexError, OverflowError):
                return getattr(self.yaml.constructor, f"construct_yaml_{kind}")(raw)  # type: ignore[no-any-return]
        known = kind in ("null", "bool", "int", "float")
        wrong = f"{show(text)} is no {kind}" if known else f"the YAML tag {visible(raw.tag)} is not known here"
        self.note(raw.start_mark, path, wrong)
        return None


# How one piece of a suite is laid over another: profiles, `--set` and options over the shared choices.
#
# Mappings merge key by key. A mapping that carries its own tag replaces the inherited one whole, so that another
# optimizer never inherits the first one's learning rate. Lists and scalars replace.

_NAMES = frozenset({"name"})
KINDS: dict[str, tuple[str, ...]] = {
    "model": MODEL_TAGS, "data": TAGS, "train": TAGS, "heldout": TAGS, "tokenizer": TOKENIZER_TAGS,
}  # fmt: skip
"""By key, the tags of the mapping under it, which tell its class; a choice's class is told by its `name`."""
_TAGS: dict[str, tuple[str, ...]] = {
    **KINDS, "micro_batch_size": ("at_most",), "eval": (), "settings": (), "config": (),
}  # fmt: skip


def tags_of(key: str) -> frozenset[str]:
    """Keys that say which class the mapping under `key` is; mappings under `settings` or `config` have no class.

    The same word is a tag in one mapping and a setting in another: `tokens` of `data` and of `eval`.
    """
    tags = _TAGS.get(key, ("name",))
    return frozenset({*tags, "train"} if tags is TAGS else tags)


def merge(base: Node, over: Node, key: str = "") -> Node:
    """`over` laid over `base`, both of them under `key`; every value keeps its own place.

    A mapping without a tag over a shorthand (`{lr: 0.1}` over `sgd`) adds settings to it; other training text alone
    does not replace the held-out text.
    """
    tags = tags_of(key) & over.mapping.keys()
    if not isinstance(over.value, dict) or tags - ({"train"} if "train" in base.mapping else set()):
        return over
    if isinstance(base.value, str) and tags_of(key) == _NAMES:
        base = replace(base, value={"name": replace(base, path=f"{base.path}.name")})
    return merge_by_key(base, over) if isinstance(base.value, dict) else over


def merge_by_key(base: Node, over: Node) -> Node:
    """Two mappings key by key, whatever their keys are called."""
    entries = dict(base.mapping)
    for key, node in over.mapping.items():
        entries[key] = merge(entries[key], node, key) if key in entries else node
    return replace(base, value=entries)


def merge_document(base: Node, over: Node) -> Node:
    """A piece of a suite file laid over the file: at the top, and among options, `name` is no tag."""
    entries = dict(base.mapping)
    for key, node in over.mapping.items():
        present = entries.get(key)
        if present is not None and isinstance(present.value, dict) and isinstance(node.value, dict):
            node = merge_by_key(present, node)
        entries[key] = node
    return replace(base, value=entries)


def nest(keys: list[str], node: Node, place: Place) -> Node:
    """The node under these keys: mappings of one entry each, from the outermost."""
    for key in reversed(keys):
        node = Node(
            {key: replace(node, key_place=node.key_place or place)}, place, node.path.removesuffix(f".{key}")
        )
    return node


# The paths of a suite file, made absolute.
#
# Paths in the file are relative to the suite's folder, those of the command line to the working directory; `~` is
# the home folder.

_MODEL_PATHS: dict[str, PathKind] = {"config": "file", "pretrained": "folder or hub id"}
_HELDOUT_PATHS: dict[str, PathKind] = {"heldout": "file", "text": "globs", "tokenizer": "file"}
_CHOICES: dict[str, Mapping[str, PathKind]] = {
    "": {"python": "file"}, "model": _MODEL_PATHS, "tokenizer": _MODEL_PATHS,
}  # fmt: skip
_JOB: dict[str, Mapping[str, PathKind]] = {
    "job.data": PATHS, "job.data.train": PATHS, "job.data.heldout": PATHS,
    "job.model": _MODEL_PATHS, "job.tokenizer": _MODEL_PATHS,
}  # fmt: skip
_COMMAND: dict[str, Mapping[str, PathKind]] = {"job": {"directory": "file"}, "job.eval": _HELDOUT_PATHS}
"""By the path of a mapping, its keys that hold paths."""


def with_absolute_paths(document: Node, folder: Path) -> Node:
    """The document with all its paths absolute but those of rows; `folder`: the suite's."""
    if document.has_command:
        directory = Node(".", document.place, "job.directory")
        job = document.mapping["job"]
        if "directory" not in job.mapping:
            document = document.with_entries(job=job.with_entries(directory=directory))
    for keys, paths in (_COMMAND if document.has_command else _JOB).items():
        document = _with_paths(document, keys, paths, folder)
    # Exclusions are compared with rows, whose paths are made absolute later; axes keep their labels as written.
    for key, change in (("code", _absolute), ("exclude", with_interpreter)):
        if items := document.items_below(key):
            absolute = replace(document.mapping[key], value=[change(item, folder) for item in items])
            document = document.with_entries(**{key: absolute})
    return document


def with_interpreter(choices: Node, folder: Path) -> Node:
    """A mapping of choices with the paths of its interpreter, model and tokenizer absolute."""
    for keys, paths in _CHOICES.items():
        choices = _with_paths(choices, keys, paths, folder)
    return choices


def _with_paths(node: Node, keys: str, paths: Mapping[str, PathKind], folder: Path) -> Node:
    """The node with the `paths` of the mapping at `keys` made absolute: each a path, or a list of them."""
    first, _, rest = keys.partition(".")
    if first:
        child = node.mapping.get(first)
        return node if child is None else node.with_entries(**{first: _with_paths(child, rest, paths, folder)})
    for key in paths.keys() & node.mapping.keys():
        absolute = partial(_absolute, folder=folder, kind=paths[key])
        value = node.mapping[key]
        if isinstance(value.value, list):
            value = replace(value, value=[absolute(item) for item in value.items])
        node = node.with_entries(**{key: absolute(value)})
    return node


def _refuse_impossible(node: Node, path: str) -> None:
    """Raises UserError for a path that is too long for file systems: each later call would fail in its way."""
    name_bytes = [len(name.encode()) for name in path.split("/")]
    if max(name_bytes) > 255 or sum(name_bytes) + len(name_bytes) > 4096:
        problem = f"found {show(path)}, which is no path: it is too long"
        raise UserError(f"{node.place}: {visible(node.path)}: {problem}")


def _absolute(node: Node, folder: Path, kind: PathKind = "file") -> Node:
    if not isinstance(node.value, str) or not node.value:
        return node
    _refuse_impossible(node, node.value)
    if node.value.startswith("/"):  # on Windows too, where it is no absolute path: a run from Linux reads the same
        return replace(node, value=posixpath.normpath(node.value))
    # A path of the command line is relative to the working directory.
    base = str(folder if node.place.line else Path.cwd())
    # The folder is no pattern, even if its name holds a bracket. os.path and not Path: a pattern's `..` must be
    # resolved as text, before any glob.
    start = glob.escape(base) if kind == "globs" else base
    path = os.path.normpath(os.path.join(start, os.path.expanduser(node.value)))  # noqa: PTH111, PTH118
    # A hub id looks like a folder: it is taken for one if there is no such folder.
    is_hub_id = kind == "folder or hub id" and not node.value.startswith((".", "~")) and not Path(path).exists()
    return node if is_hub_id else replace(node, value=path)
