"""What an error of a library or of own code says, in a line."""

from __future__ import annotations

import traceback


def first_line(error: BaseException) -> str:
    """The beginning of what it says; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)


def root_cause(error: BaseException) -> BaseException:
    """The error that others were raised from: `datasets` says only that something failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def with_place(error: BaseException) -> str:
    """Type, words, and the file and line that raised it."""
    said = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError):
        return f"{said} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else said
