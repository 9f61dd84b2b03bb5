"""Foreign text made harmless to print; plain data as the YAML of suite files and as JSON that people read."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

import msgspec

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
MOST_SHOWN = 80
"""Characters of a value that a message repeats."""


# Names, log lines and contents of files come from others: none of their control characters, terminal escapes, lone
# surrogates or changes of the direction of writing reaches a terminal or a report.


def clean(text: str) -> str:
    """The text without terminal escapes, with spaces for what can't be printed; line ends stay."""
    if text.isprintable():  # as most texts are; an escape begins with a character that is not
        return text
    cleaned = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c == "\n" or c.isprintable() else " " for c in cleaned)


def one_line(text: str, most: int | None = None) -> str:
    """The text on one line, cut to `most` characters with an ellipsis."""
    line = " ".join(clean(text).split())
    return line if most is None or len(line) <= most else line[: max(0, most - 3)] + "..."


def first_line(what: str | BaseException, most: int | None = None) -> str:
    """The message before a traceback or log: its first line, and lines that a colon announces."""
    text = what if isinstance(what, str) else str(what).strip() or repr(what)
    match = re.match(r"(?:.*:\n(?!Traceback))*.*", text.strip())
    return one_line(match[0] if match else "", most)


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def some(names: Sequence[str], most: int) -> str:
    """The first `most` names: `a, b and 3 more`."""
    hidden = len(names) - most
    return ", ".join(names[:most]) + (f" and {hidden} more" if hidden > 0 else "")


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Each value in nested mappings, and lists of them, with its dotted path; empty parts are left out."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from leaves(part, f"{path}[{number}]")
    else:
        yield path, value


def unwritable(text: str) -> str | None:
    """The first character that belongs in no text: a lone surrogate, a control character but tab and line ends."""
    if text.isprintable():
        return None
    return next((c for c in text if unicodedata.category(c) in ("Cs", "Cc") and c not in "\t\n\r"), None)


def visible(value: object, most: int = MOST_SHOWN) -> str:
    """A value on one line of at most `most` characters, cut in the middle; unprintable characters as escapes."""
    text = str(value)
    if len(text) > 2 * most:  # the middle needs no escapes
        text = text[:most] + "..." + text[-most:]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= most else f"{text[: most // 2 - 2]}...{text[1 - most // 2 :]}"


def quoted(value: object) -> str:
    """`visible` for messages that repeat a value: text in quotes."""
    return f"'{visible(value, MOST_SHOWN - 2)}'" if isinstance(value, str) else visible(value)


_WIDTH = 110
_INDICATORS = (":", "?", "-")


def suite_yaml(content: Mapping[str, Any]) -> str:
    """A whole suite, each value on its own line."""
    return _dumped(_quoted(content), is_flowing=False)


def choices_yaml(choices: Mapping[str, Any]) -> str:
    """An option's settings below the key `choices`; small ones on one line each."""
    from ruamel.yaml.comments import CommentedMap  # here, as below

    known = CommentedMap(_quoted({key: value for key, value in choices.items() if value is not None}))
    known.fa.set_block_style()
    return _dumped({"choices": known}, is_flowing=None)


def _dumped(content: Mapping[str, Any], *, is_flowing: bool | None) -> str:
    """`is_flowing` None: mappings and lists of plain values are on one line each."""
    from ruamel.yaml import YAML  # here: workers in other environments import this file, and need no YAML

    stream, yaml = StringIO(), YAML()
    yaml.default_flow_style, yaml.width = is_flowing, _WIDTH
    yaml.dump(content, stream)
    return stream.getvalue()


def _quoted(value: Any) -> Any:
    """A copy with quoted texts where ruamel leaves quotes out and would then read a key or a list's item."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, Mapping):
        return {key: _quoted(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(part) for part in value]
    is_indicator = isinstance(value, str) and value.startswith(_INDICATORS)
    return DoubleQuotedScalarString(value) if is_indicator else value


def json_text(content: object) -> str:
    """`json.dumps(content, indent=2)` with a line end, but faster. Raises ValueError (NaN, infinity), TypeError."""
    return msgspec.json.format(json.dumps(content, allow_nan=False), indent=2) + "\n"
