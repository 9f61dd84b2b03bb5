"""What others wrote, made harmless to show; plain data as the YAML of suite files and as JSON that people read."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from io import StringIO
from typing import Any

import msgspec

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
MOST_SHOWN = 80
"""Characters of a value that a message repeats."""


# Names, log lines and what stands in files come from others: no control character, terminal escape, lone surrogate
# or change of the direction of writing reaches a terminal or a report.


def clean(text: str) -> str:
    """The text without terminal escapes, with spaces for what can't be printed; line ends stay."""
    if text.isprintable():  # so are most, and an escape begins with a character that is not
        return text
    kept = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c == "\n" or c.isprintable() else " " for c in kept)


def one_line(text: str, most: int | None = None) -> str:
    """The text on one line, cut to `most` characters with an ellipsis."""
    line = " ".join(clean(text).split())
    return line if most is None or len(line) <= most else line[: max(0, most - 3)] + "..."


def first_line(what: str | BaseException, most: int | None = None) -> str:
    """What it says before its traceback or log: its first line, and those that a colon announces."""
    text = what if isinstance(what, str) else str(what).strip() or repr(what)
    said = re.match(r"(?:.*:\n(?!Traceback))*.*", text.strip())
    return one_line(said[0] if said else "", most)


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def some(names: Sequence[str], most: int) -> str:
    """So many of them: `a, b and 3 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """All that mappings, and lists of them, hold, by dotted path; empty parts are left out."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from leaves(part, f"{path}[{number}]")
    else:
        yield path, value


def unwritable(text: str) -> str | None:
    """Its first character that belongs in no text: a lone surrogate, a control character but tab and line ends."""
    if text.isprintable():
        return None
    return next((c for c in text if unicodedata.category(c) in ("Cs", "Cc") and c not in "\t\n\r"), None)


def visible(value: object, most: int = MOST_SHOWN) -> str:
    """On one line of at most `most` characters, what can't be printed as escapes; of a longer both ends stay."""
    text = str(value)
    if len(text) > 2 * most:  # what is left out needs no escapes
        text = text[:most] + "..." + text[-most:]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= most else f"{text[: most // 2 - 2]}...{text[1 - most // 2 :]}"


def quoted(value: object) -> str:
    """The same as a message repeats what was found: text in quotes."""
    return f"'{visible(value, MOST_SHOWN - 2)}'" if isinstance(value, str) else visible(value)


_WIDTH = 110
_INDICATORS = (":", "?", "-")


def suite_yaml(content: Mapping[str, Any]) -> str:
    """A whole suite, every value on a line of its own; each key's text is kept, as options share most settings."""
    return "".join(_dumped(json.dumps({key: value})) for key, value in content.items())


def choices_yaml(choices: Mapping[str, Any]) -> str:
    """The settings that an option has, below the key `choices`; the small ones on one line each."""
    known = {key: value for key, value in choices.items() if value is not None}
    if not known:
        return "choices: {}\n"
    return "choices:\n" + "".join(_dumped(json.dumps({key: value}), "choices") for key, value in known.items())


@lru_cache(maxsize=2048)
def _dumped(entry: str, above: str = "") -> str:
    """A mapping of one key as YAML; `above`: the key that it is to stand below, small values on one line each."""
    from ruamel.yaml import YAML  # here: workers in other environments import this file, and need no YAML
    from ruamel.yaml.comments import CommentedMap

    stream, yaml, content = StringIO(), YAML(), CommentedMap(_quoted(json.loads(entry)))
    yaml.default_flow_style, yaml.width = None if above else False, _WIDTH
    content.fa.set_block_style()
    yaml.dump({above: content} if above else content, stream)
    return stream.getvalue().partition("\n")[2] if above else stream.getvalue()


def _quoted(value: Any) -> Any:
    """With quotes where ruamel leaves them out and then reads a key, or a list's item."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, dict):
        for key, part in value.items():
            value[key] = _quoted(part)
    elif isinstance(value, list):
        return [_quoted(part) for part in value]
    elif isinstance(value, str) and value.startswith(_INDICATORS):
        return DoubleQuotedScalarString(value)
    return value


def json_text(content: object) -> str:
    """`json.dumps(content, indent=2)` and a line end, only faster. Raises ValueError (NaN, infinity), TypeError."""
    return msgspec.json.format(json.dumps(content, allow_nan=False), indent=2) + "\n"
