"""Names and log lines come from users: made harmless before they stand in a terminal or a report."""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


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
