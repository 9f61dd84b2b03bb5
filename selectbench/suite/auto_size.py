"""`micro_batch_size: auto` among the shared choices stands for `best_of: {micro_batch_size: auto}`."""

from __future__ import annotations

from dataclasses import replace

from selectbench.suite.document import Node, Problems

AUTO = "auto"
_KEY = "micro_batch_size"


def with_sizes_searched(document: Node, problems: Problems) -> Node:
    """The document with the search in place of the word; an option's own `auto` is a mistake."""
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
    choices = document.mapping["choices"]
    shared = replace(choices, value={**choices.mapping, _KEY: replace(node, value=1)})
    best_of = Node({_KEY: replace(node, path=f"best_of.{_KEY}")}, node.place, "best_of")
    return document.with_entries(choices=shared, best_of=best_of)
