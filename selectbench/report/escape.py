"""Names and log lines come from users: made harmless before they stand in a terminal or in Markdown."""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_SPECIAL = re.compile(r"([\\`*\[\]<>|#~&$]|(?<![^\W_])_|_(?![^\W_]))")


def clean(text: str) -> str:
    """The text without terminal escapes and control characters; line ends stay."""
    if text.isprintable():  # so are most, and an escape begins with a character that is not
        return text
    kept = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c == "\n" or c.isprintable() else " " for c in kept)


def one_line(text: str, most: int | None = None) -> str:
    """The text on one line, cut to `most` characters with an ellipsis."""
    line = " ".join(clean(text).split())
    return line if most is None or len(line) <= most else line[: max(0, most - 3)] + "..."


def first_line(text: str, most: int | None = None) -> str:
    """What a detail says before its traceback or log."""
    return one_line(text.strip().partition("\n")[0], most)


def markdown(text: str, most: int | None = None) -> str:
    """One line in which nothing is read as Markdown or HTML; underscores within words stay bare."""
    return _SPECIAL.sub(r"\\\1", one_line(text, most))


def block(text: str) -> str:
    """An indented code block: nothing inside can end it."""
    return "\n".join(f"    {line}".rstrip() for line in clean(text).strip("\n").split("\n"))


def table(heads: list[str], rows: list[list[str]], right: int = 0) -> str:
    """A Markdown table of cells that are escaped already; columns from `right` on align right."""
    rule = ["---" if number < right else "---:" for number in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))
