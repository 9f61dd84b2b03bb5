"""How one piece of a suite is laid over another: profiles, `--set` and options over what is shared.

Mappings merge key by key. A mapping that carries its own tag replaces the inherited one whole, so that
another optimizer never inherits the first one's learning rate. Lists and scalars replace.
"""

from __future__ import annotations

from dataclasses import replace

from selectbench.suite.document import Node, Place

_SOURCES = frozenset({
    "corpus", "text", "jsonl", "parquet", "dataset", "documents", "tokens", "markov", "chat", "pairs",
    "source_text", "train",
})  # fmt: skip
_TAGS = {
    "data": _SOURCES, "train": _SOURCES, "heldout": _SOURCES,
    "model": frozenset({"family", "config", "pretrained"}),
    "tokenizer": frozenset({"bpe", "unigram", "wordpiece", "bytes", "pretrained"}),
    "micro_batch_size": frozenset({"at_most"}),
    "eval": frozenset[str](), "settings": frozenset[str](), "config": frozenset[str](),
}  # fmt: skip
_NAMES = frozenset({"name"})


def tags_of(key: str) -> frozenset[str]:
    """Keys that say which class the mapping under `key` is; what stands under `settings` or `config` is the user's.

    The same word is a tag in one mapping and a setting in another: `tokens` of `data` and of `eval`.
    """
    return _TAGS.get(key, _NAMES)


def merge(base: Node, over: Node, key: str = "") -> Node:
    """`over` laid over `base`, both found under `key`; every value keeps its own place.

    A mapping without a tag over a shorthand (`{lr: 0.1}` over `sgd`) adds settings to it.
    """
    if not isinstance(over.value, dict) or _replaces(over.value, base, key):
        return over
    if isinstance(base.value, str) and tags_of(key) == _NAMES:
        base = replace(base, value={"name": replace(base, path=f"{base.path}.name")})
    return merge_by_key(base, over) if isinstance(base.value, dict) else over


def _replaces(mapping: dict[str, Node], base: Node, key: str) -> bool:
    """Whether it is of a class of its own; other training text alone leaves the held-out text what it is."""
    return any(tag in mapping and not (tag == "train" and tag in base.mapping) for tag in tags_of(key))


def merge_by_key(base: Node, over: Node) -> Node:
    """Two mappings key by key, whatever their keys are called."""
    entries = dict(base.mapping)
    for key, node in over.mapping.items():
        entries[key] = merge(entries[key], node, key) if key in entries else node
    return replace(base, value=entries)


def merge_document(base: Node, over: Node) -> Node:
    """A piece of a suite file over the file: at the top, and among options, names are no tags."""
    entries = dict(base.mapping)
    for key, node in over.mapping.items():
        below = entries.get(key)
        both = below is not None and isinstance(below.value, dict) and isinstance(node.value, dict)
        entries[key] = merge_by_key(below, node) if both and below is not None else node
    return replace(base, value=entries)


def nest(keys: list[str], node: Node, place: Place) -> Node:
    """The node under these keys: mappings of one entry each, from the outermost."""
    for key in reversed(keys):
        node = Node(
            {key: replace(node, key_place=node.key_place or place)}, place, node.path.removesuffix(f".{key}")
        )
    return node
