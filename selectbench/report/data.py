"""Prepared data for the terminal, or as JSON: what went in, what came out, and what it looks like. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from selectbench import units
from selectbench.report.escape import one_line

if TYPE_CHECKING:
    from selectbench.data.look import Look
    from selectbench.data.prepared import Prepared

_BAR = 40
_WORDS = {
    "unreadable": "not readable", "empty": "empty", "too_short": "too short", "too_long": "too long",
    "duplicate": "the same as another", "in_training": "held out, but in the training text as a whole",
    "surrogates": "broken characters replaced", "unicode": "Unicode normalised",
    "control_characters": "control characters removed", "white_space": "white space collapsed",
}  # fmt: skip


def data_as_json(found: Sequence[tuple[Prepared, list[str], Look]]) -> str:
    """For other programs; `found`: data, the options that use it, a look at it."""
    content = [
        {**prepared.facts(), "options": options, "training_samples": look.training_samples,
         "heldout_samples": look.heldout_samples, "sha256": look.sha256}
        for prepared, options, look in found
    ]  # fmt: skip
    return json.dumps(content, indent=2, ensure_ascii=False)


def print_data(console: Console, found: Sequence[tuple[Prepared, list[str], Look]]) -> None:
    """Each distinct preparation; most suites have one."""
    for prepared, options, look in found:
        if len(found) > 1:
            console.print(Text(f"{one_line(', '.join(options), 200)}:", style="bold"))
        for line in lines(prepared):
            console.print(Text(line))
        for heading, samples in (("training", look.training_samples), ("held out", look.heldout_samples)):
            for sample in samples:
                console.print(Text(f"{heading}: ", style="bold") + Text(one_line(sample, 300), style="dim"))
        if look.longest_pieces:
            told = ", ".join(repr(piece) for piece in look.longest_pieces)
            console.print(Text("longest pieces: ", style="bold") + Text(one_line(told, 300), style="dim"))
        for name, digest in look.sha256.items():
            console.print(Text(f"sha256 of {name}: {digest}", style="dim"), soft_wrap=True)
        console.print(Text(f"in {prepared.folder}", style="dim"), soft_wrap=True)


def lines(prepared: Prepared) -> list[str]:
    """The counts in words, and the histogram of sizes."""
    found = [*_documents(prepared), *_tokens(prepared)]
    return [*found, *_histogram(prepared.document_sizes)]


def _documents(prepared: Prepared) -> list[str]:
    if not prepared.has_text:
        return []
    kept = prepared.train_documents + prepared.heldout_documents
    gone = sum(prepared.removed.values()) + prepared.removed_documents
    told = (
        f"documents: {prepared.documents_in:,} read = {kept:,} kept ({prepared.train_documents:,} to train on, "
        f"{prepared.heldout_documents:,} held out) + {gone:,} removed"
    )
    found = [told]
    found += [f"  removed: {count:,} {_WORDS.get(step, step)}" for step, count in prepared.removed.items()]
    if prepared.removed_documents:
        found.append(
            f"  removed: {prepared.removed_documents:,} held out, all of whose lines are in the training text"
        )
    found += [f"  changed: {count:,} {_WORDS.get(step, step)}" for step, count in prepared.changed.items()]
    if prepared.removed_lines:
        found.append(f"  held-out lines taken out, as they are in the training text: {prepared.removed_lines:,}")
    return found


def _tokens(prepared: Prepared) -> list[str]:
    told = (
        f"tokens: {prepared.train_tokens:,} to train on, {prepared.heldout_tokens:,} held out; vocabulary of "
        f"{prepared.vocab_size:,}"
    )
    found = [told]
    if prepared.has_text and prepared.train_tokens:
        found.append(
            f"  {units.significant(prepared.train_bytes / prepared.train_tokens, 3)} bytes a token "
            f"({units.size(prepared.train_bytes)} to train on, {units.size(prepared.heldout_bytes)} held out)"
        )
    if prepared.unknown_tokens:
        found.append(f"  unknown to the tokenizer: {prepared.unknown_tokens:,} tokens, whose text is lost")
    if prepared.entropy_rate is not None:
        found.append(f"  entropy of the source: {units.significant(prepared.entropy_rate, 6)} nats per token")
    if not prepared.has_text and prepared.removed_lines:
        found.append(f"  held-out blocks taken out, as they are in the training tokens: {prepared.removed_lines:,}")
    return found


def _histogram(sizes: Sequence[int]) -> list[str]:
    """A bar for each power of two."""
    known = [(power, count) for power, count in enumerate(sizes) if count]
    if not known:
        return []
    most = max(count for _, count in known)
    first, last = known[0][0], known[-1][0]
    rows = [
        f"  below {units.size(2.0**power):>9}  {'#' * round(_BAR * sizes[power] / most):<{_BAR}} {sizes[power]:,}"
        for power in range(first, last + 1)
    ]
    return ["size of the documents that were kept:", *rows]


def cleaning_lines(facts: Mapping[str, Any]) -> list[str]:
    """What environment.json's `data` says of cleaning, for a report; nothing of runs that are older than it."""
    removed, changed = facts.get("removed") or {}, facts.get("changed") or {}
    if "documents_in" not in facts or not facts["documents_in"]:
        return []
    told = [f"{count:,} {_WORDS.get(step, step)}" for step, count in removed.items()]
    if facts.get("removed_documents"):
        told.append(f"{facts['removed_documents']:,} held out, all of whose lines are in the training text")
    altered = [f"{count:,} {_WORDS.get(step, step)}" for step, count in changed.items()]
    parts = [f"{facts['documents_in']:,} documents were read"]
    parts += [f"removed: {', '.join(told)}" if told else "none was removed"]
    parts += [f"changed: {', '.join(altered)}"] if altered else []
    parts += [f"{facts['train_documents']:,} are trained on and {facts['heldout_documents']:,} held out"]
    if facts.get("removed_lines"):
        parts.append(f"{facts['removed_lines']:,} held-out lines were taken out as the training text has them")
    if facts.get("unknown_tokens"):
        parts.append(f"{facts['unknown_tokens']:,} tokens are unknown to the tokenizer, so that their text is lost")
    return [f"The text: {'; '.join(parts)}."]
