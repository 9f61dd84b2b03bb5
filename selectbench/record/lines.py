"""Recorded values to lines of JSON and back; what would not come back as it was is refused."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
from pydantic import BaseModel

Content = TypeVar("Content")


class Lines(Generic[Content]):
    """Lines of one class, or of one union of classes."""

    def __init__(self, kind: Any) -> None:
        self._encoder = msgspec.json.Encoder(enc_hook=_plain)
        self._decoder: msgspec.json.Decoder[Content] = msgspec.json.Decoder(kind, dec_hook=_made)

    def write(self, content: Content) -> bytes:
        """One line without its end.

        Raises ValueError, which names the place, where a number is NaN or infinite, which JSON does not have, and
        where a value is of another type than its field.
        """
        line = self._encoder.encode(content)
        lost = _lost(content, msgspec.json.decode(line), "$")
        if lost:
            raise ValueError(f"{type(content).__name__} can't be written: {lost}")
        self.read(line)
        return line

    def read(self, line: bytes | memoryview | str) -> Content:
        """The line's content, its types checked.

        Raises ValueError: it is no JSON in UTF-8, or does not fit, at the place that is named.
        """
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):  # a number of numpy's or torch's
        return value.item()
    raise TypeError(f"a {type(value).__name__} can't be written as JSON")


def _made(kind: type, value: object) -> object:
    assert issubclass(kind, BaseModel)
    return kind.model_validate_json(msgspec.json.encode(value))  # strict models take a tuple from JSON alone


def _lost(content: object, read: object, place: str) -> str | None:
    """The first place where what was read differs from what was given; lists and tuples are alike."""
    given = _opened(content)
    if isinstance(given, dict) and isinstance(read, dict) and given.keys() <= read.keys():  # a tag is only read
        parts = [(given[key], read[key], f"{place}.{key}") for key in given]
    elif isinstance(given, list | tuple) and isinstance(read, list) and len(given) == len(read):
        parts = [(*pair, f"{place}[{n}]") for n, pair in enumerate(zip(given, read, strict=True))]
    else:
        return None if given == read else f"{given!r} would be read back as {read!r} - at `{place}`"
    return next(filter(None, (_lost(*part) for part in parts)), None)


def _opened(content: object) -> object:
    """One level of it as JSON has it."""
    if isinstance(content, msgspec.Struct):
        return {name: getattr(content, name) for name in content.__struct_fields__}
    if isinstance(content, msgspec.Raw):
        return msgspec.json.decode(content)
    return content.model_dump(mode="json") if isinstance(content, BaseModel) else content
