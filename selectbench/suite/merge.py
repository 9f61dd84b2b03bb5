"""How one piece of a suite is laid over another: profiles, `--set` and options over what is shared.

Mappings merge key by key. A mapping that carries its own tag replaces the inherited one whole, so that
another optimizer never inherits the first one's learning rate. Lists and scalars replace.
"""

from __future__ import annotations

from dataclasses import replace

from selectbench.suite.document import Node, Place

TAGS = frozenset({
    "name", "family", "config", "pretrained", "corpus", "text", "jsonl", "parquet", "dataset", "documents",
    "tokens",
    "markov", "chat", "pairs", "source_text", "train", "bpe", "unigram", "wordpiece", "bytes",
})  # fmt: skip
"""Keys that say which class a mapping is; `config` only where no mapping stands under it, as DeepSpeed's does."""


def merge(base: Node, over: Node) -> Node:
    """`over` laid over `base`; every value keeps its own place.

    A mapping without a tag over a shorthand (`{lr: 0.1}` over `sgd`) adds settings to it.
    """
    if not isinstance(over.value, dict) or _is_tagged(over.value):
        return over
    if isinstance(base.value, str):
        base = replace(base, value={"name": replace(base, path=f"{base.path}.name")})
    return merge_by_key(base, over) if isinstance(base.value, dict) else over


def _is_tagged(mapping: dict[str, Node]) -> bool:
    return any(key in TAGS and not (key == "config" and below.mapping) for key, below in mapping.items())


def merge_by_key(base: Node, over: Node) -> Node:
    """Two mappings key by key, whatever their keys are called."""
    entries = dict(base.mapping)
    for key, node in over.mapping.items():
        entries[key] = merge(entries[key], node) if key in entries else node
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
