"""What of a text a tokenizer has no tokens for: what it leaves out, and what is unknown to it.

Byte pair encoding without an unknown token leaves out what its vocabulary lacks, and says nothing. Any other model
of the package `tokenizers` raises or gives its unknown token, and one with all 256 bytes can write everything.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from selectbench.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK = "\u2581"
"""What sentencepiece writes for white space."""
EXAMPLES = 3
MOST_UNKNOWN = 0.1
"""Share of unknown tokens from which a tokenizer counts as one that can't encode the text."""
OTHERS = "take one that was made for such text, or have one trained on it (`tokenizer: {bpe: 4096}`)"
Spellings = Callable[[str], list[list[str]]]
"""The ways in which a model may write a character: entries of its vocabulary."""


def check_alphabet(backend: Tokenizer, texts: Iterable[str], name: str, described: str) -> None:
    """Raises UserError where the tokenizer of this name would leave out characters of the described text.

    White space apart, which many tokenizers mean to drop, and what a normalizer takes out or writes otherwise, such
    as accents. The text is read only where something may be left out.
    """
    spellings = _spellings(backend)
    lost = Counter[str]() if spellings is None else _left_out(backend, texts, spellings)
    if not lost:
        return
    first = ", ".join(f"{c!r} (U+{ord(c):04X}) {count:,} x" for c, count in lost.most_common(EXAMPLES))
    more = f" and {len(lost) - EXAMPLES:,} others" if len(lost) > EXAMPLES else ""
    raise UserError(
        f"tokenizer: {name} leaves out {lost.total():,} characters of {described}, having neither tokens for them "
        f"nor an unknown token: {first}{more}: {OTHERS}; one over bytes leaves nothing out"
    )


def check_unknown(unknown: int, tokens: int, name: str) -> None:
    """Raises UserError where too many of the tokens are the unknown one."""
    if unknown > MOST_UNKNOWN * tokens:
        raise UserError(
            f"tokenizer: {name} can't encode this text: {unknown / tokens:.0%} of its tokens are the unknown one: "
            f"{OTHERS}"
        )


def _left_out(backend: Tokenizer, texts: Iterable[str], spellings: Spellings) -> Counter[str]:
    """Characters that get no token, with their occurrences; each distinct one is looked at once."""
    normalized = str if backend.normalizer is None else backend.normalizer.normalize_str
    vocabulary = backend.get_vocab()

    def is_known(character: str) -> bool:
        known = any(all(entry in vocabulary for entry in entries) for entries in spellings(character))
        return known or character.isspace() or character == BLANK

    seen: set[str] = set()
    lost: Counter[str] = Counter()
    for text in texts:
        # A normalizer is slow, and does to ASCII in a text what it does to each character alone.
        written = text if text.isascii() else normalized(text)
        found = set(written)
        lost.update({character: 0 for character in found - seen if not all(map(is_known, normalized(character)))})
        seen |= found
        lost.update({character: written.count(character) for character in found & lost.keys()})
    return lost


def _spellings(backend: Tokenizer) -> Spellings | None:
    """Of the tokenizer's model; None: it leaves nothing out."""
    from tokenizers import pre_tokenizers

    content = json.loads(backend.to_str())
    model, vocabulary = content["model"], backend.get_vocab().keys()
    if model["type"] != "BPE" or model.get("unk_token") is not None:
        return None
    splits = set(_kinds(content["pre_tokenizer"]))
    over_bytes = "ByteLevel" in splits.union(_kinds(content["normalizer"]))
    if over_bytes and vocabulary >= set(pre_tokenizers.ByteLevel.alphabet()):
        return None
    if model.get("byte_fallback") and vocabulary >= set(_fallback(bytes(range(256)))):
        return None
    return _by_bytes() if "ByteLevel" in splits else lambda character: _by_characters(model, character)


def _kinds(part: Mapping[str, Any] | None) -> Iterator[str]:
    """Of a normalizer or a pre-tokenizer, as tokenizer.json has them: its kind, and those in its sequence."""
    if part is not None:
        yield part["type"]
        for inner in (*part.get("normalizers", ()), *part.get("pretokenizers", ())):
            yield from _kinds(inner)


def _by_bytes() -> Spellings:
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return lambda character: [[byte for word, _ in byte_level.pre_tokenize_str(character) for byte in word]]


def _by_characters(model: Mapping[str, Any], character: str) -> list[list[str]]:
    """Inside of words and at their end some models write a character otherwise: one way that they know will do."""
    inside, end = (model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    forms = [[f"{before}{character}{after}"] for before in {"", inside} for after in {"", end}]
    return [*forms, _fallback(character.encode())] if model.get("byte_fallback") else forms


def _fallback(raw: bytes) -> list[str]:
    """Bytes as sentencepiece's vocabularies have them."""
    return [f"<0x{byte:02X}>" for byte in raw]
