"""Micro-batch sizes that are searched: `micro_batch_size: auto`, and what the options begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selectbench.suite.document import Node, Problems
from selectbench.suite.grid import Row

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
