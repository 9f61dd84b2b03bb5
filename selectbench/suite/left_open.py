"""Shared choices that a suite leaves to the machine: `precision: auto` and `micro_batch_size: {at_most: 16}`.

A plan settles them, once for all options: were they an option's own, its difference from the others would be
another one on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from selectbench.choices.strategy import MicroBatchSize
from selectbench.strict import Strict
from selectbench.suite.document import Node, Problems, plain
from selectbench.suite.grid import Row
from selectbench.suite.problems import validate

AUTO = "auto"
AT_MOST = "at_most"
PRECISION, MICRO_BATCH_SIZE = "precision", "micro_batch_size"
_IN_PLACE_OF = {PRECISION: "name a precision here", MICRO_BATCH_SIZE: "give a number here"}


class SizeThatFits(Strict):
    """A micro-batch size that is chosen by the GPUs' memory."""

    at_most: MicroBatchSize
    """Sequences per forward pass and rank: the largest number up to this one that cuts every option's step into
    whole micro-batches, and with which the option that takes most memory should fit into the smallest GPU."""


class MachineChoice(Strict):
    """What became of a choice that the suite left to the machine."""

    setting: str
    """`precision` or `micro_batch_size`."""
    asked: str
    """As the suite says it."""
    taken: str
    """The same for every option."""
    why: str
    """Of this machine."""


class LeftOpen(Strict):
    """What of the shared choices is still to be settled; the options hold placeholders meanwhile."""

    precision: bool = False
    """The best one that the machine has units for."""
    micro_batch_size: SizeThatFits | None = None
    """The largest one that fits."""
    machine_choices: list[MachineChoice] = Field(default_factory=list)
    """What was left open, once it is settled."""

    @property
    def settings(self) -> dict[str, Any]:
        """As the shared choices say them."""
        found: dict[str, Any] = {PRECISION: AUTO} if self.precision else {}
        return found | ({MICRO_BATCH_SIZE: self.micro_batch_size.model_dump()} if self.micro_batch_size else {})


def taken_out(document: Node, problems: Problems) -> tuple[LeftOpen, Node]:
    """What the shared choices leave open, and the document without it; anywhere else it is a mistake."""
    for setting in (PRECISION, MICRO_BATCH_SIZE):
        document = _refused_elsewhere(document, setting, problems)
    shared = document.mapping.get("choices")
    if shared is None:
        return LeftOpen(), document
    found = {s: node for s, node in shared.mapping.items() if _leaves_open(s, node)}
    size = None
    if MICRO_BATCH_SIZE in found:
        size = validate(SizeThatFits, found[MICRO_BATCH_SIZE], problems) or SizeThatFits(at_most=1)
    opened = LeftOpen(precision=PRECISION in found, micro_batch_size=size)
    return opened, document.with_entries(choices=shared.without(*found)) if found else document


def _refused_elsewhere(document: Node, setting: str, problems: Problems) -> Node:
    """The document without options that leave it open, each told; values of an axis are told."""
    options = _entries(document, "options")
    own = {name: option.mapping[setting] for name, option in options.items() if setting in option.mapping}
    axis = _entries(document, "axes").get(setting)
    values = [] if axis is None else [*axis.mapping.values(), *axis.items]
    for node in (node for node in (*own.values(), *values) if _leaves_open(setting, node)):
        said = AUTO if setting == PRECISION else f"{{{AT_MOST}: ...}}"
        problems.at(node, f"{said} is said once for all options, under choices: {_IN_PLACE_OF[setting]}")
    kept = {name: options[name].without(setting) for name, node in own.items() if _leaves_open(setting, node)}
    if not kept:
        return document
    return document.with_entries(options=document.mapping["options"].with_entries(**kept))


def _leaves_open(setting: str, node: Node) -> bool:
    if setting == PRECISION:
        return plain(node) in (AUTO, {"name": AUTO})
    return setting == MICRO_BATCH_SIZE and isinstance(node.value, dict)


def _entries(document: Node, key: str) -> dict[str, Node]:
    node = document.mapping.get(key)
    return {} if node is None else node.mapping


def of_these_rows(asked: LeftOpen, rows: Sequence[Row], document: Node, problems: Problems) -> LeftOpen:
    """Without what every row sets itself; some rows alone may not.

    `rows`: as options and axes have them, without what is left open.
    """
    update: dict[str, object] = {}
    for setting in asked.settings:
        own = [row.choices.mapping[setting] for row in rows if setting in row.choices.mapping]
        if not own:
            _check_exclude(setting, document, problems)
            continue
        update[setting] = LeftOpen.model_fields[setting].default
        if len(own) < len(rows):
            wrong = f"choices.{setting} leaves it to the machine: set it in every option, or in none of them"
            problems.at(own[0], wrong)
    return asked.model_copy(update=update)


def _check_exclude(setting: str, document: Node, problems: Problems) -> None:
    exclude = document.mapping.get("exclude")
    for entry in exclude.items if exclude is not None else []:
        if setting in entry.mapping:
            wrong = f"choices.{setting} leaves it to the machine: there is nothing to exclude by it"
            problems.at(entry.mapping[setting], wrong)


def with_placeholders(rows: Sequence[Row], asked: LeftOpen) -> list[Row]:
    """Rows that can be validated: with micro-batches of one sequence, and the default precision."""
    if asked.micro_batch_size is None:
        return list(rows)
    return [replace(row, choices=row.choices.with_entries(micro_batch_size=_one(row))) for row in rows]


def _one(row: Row) -> Node:
    return Node(1, row.place, f"choices.{MICRO_BATCH_SIZE}")
