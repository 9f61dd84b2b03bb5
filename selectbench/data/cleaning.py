"""Declared, counted steps between reading a document and keeping it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from selectbench.errors import UserError
from selectbench.suite.data import Cleaning

_OTHER = re.compile(r"[^\t\n\x20-\x7e]")
_BLANKS = re.compile(r"[^\S\n]+")
_MANY_LINES = re.compile(r"\n{3,}")
_REMOVABLE = frozenset({"Cc", "Co", "Cn", "Cs"})
Change = Callable[[str], str]


@dataclass
class Cleaner:
    """Passes documents through the steps and counts what each did; documents in = kept + removed."""

    spec: Cleaning
    is_chat: bool = False
    """Documents are conversations as JSON: changes are made message by message."""
    documents_in: int = 0
    """Read, unreadable ones among them."""
    removed: dict[str, int] = field(default_factory=dict)
    """Documents that a step removed, by its name."""
    changed: dict[str, int] = field(default_factory=dict)
    """Documents that a step changed, by its name."""

    def fault(self, message: str) -> None:
        """Something unreadable in a source. Raises UserError where the suite does not let it be dropped."""
        if self.spec.unreadable == "refuse":
            raise UserError(f"{message} (`job.cleaning: {{unreadable: drop}}` leaves such out and counts them)")
        self.documents_in += 1
        self._remove("unreadable")

    def kept(self, documents: Iterator[str]) -> Iterator[str]:
        """The documents that stay, changed as declared."""
        steps = _steps(self.spec)
        for document in documents:
            self.documents_in += 1
            text = self._changed(document, steps)
            reason = self._reason(_words(text) if self.is_chat else text)
            if reason is None:
                yield text
            else:
                self._remove(reason)

    def _remove(self, reason: str) -> None:
        self.removed[reason] = self.removed.get(reason, 0) + 1

    def _changed(self, text: str, steps: dict[str, Change]) -> str:
        for name, step in steps.items():
            after = _by_message(text, step) if self.is_chat else step(text)
            if after != text:
                self.changed[name] = self.changed.get(name, 0) + 1
                text = after
        return text

    def _reason(self, text: str) -> str | None:
        if not text or text.isspace():
            return "empty"
        if len(text) < self.spec.min_characters:
            return "too_short"
        if self.spec.max_characters is not None and len(text) > self.spec.max_characters:
            return "too_long"
        return None


def _words(document: str) -> str:
    """All that is said; '' where no answer, or one side of a pair, has any text left: it would teach nothing."""
    messages = json.loads(document)
    said = {role for role, content in messages if content.strip()}
    is_whole = "assistant" in said or {"source", "target"} <= said
    return "".join(content for _, content in messages) if is_whole else ""


def _by_message(document: str, step: Change) -> str:
    messages = [(role, step(content)) for role, content in json.loads(document)]
    return json.dumps(messages, ensure_ascii=False)


def _steps(spec: Cleaning) -> dict[str, Change]:
    """In the order in which they are made; lone surrogates, which no file can hold, are replaced always."""
    steps: dict[str, Change] = {"surrogates": _without_surrogates}
    if spec.control_characters == "remove":
        steps["control_characters"] = without_control_characters
    if spec.unicode != "none":  # after what may have stood between a letter and its accent is gone
        steps["unicode"] = partial(unicodedata.normalize, spec.unicode)
    if spec.white_space == "collapse":
        steps["white_space"] = with_single_blanks
    return steps


def _without_surrogates(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no character."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def without_control_characters(text: str) -> str:
    """Without what has no meaning in text: control (but tab and line feed), private-use, unassigned characters."""
    return _OTHER.sub(lambda found: "" if unicodedata.category(found[0]) in _REMOVABLE else found[0], text)


def with_single_blanks(text: str) -> str:
    """Runs of blanks as one, none at the ends of lines, at most one blank line in a row."""
    lines = (_BLANKS.sub(" ", line).strip() for line in text.split("\n"))
    return _MANY_LINES.sub("\n\n", "\n".join(lines)).strip("\n")
