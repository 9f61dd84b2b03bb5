"""A look at prepared data: some of its text, and the tokens that it is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from selectbench.data.prepared import HELDOUT, TOKENIZER, TRAIN, Prepared

SAMPLE_TOKENS = 80
SAMPLES = 2
LONGEST_PIECES = 12


@dataclass(frozen=True)
class Look:
    """What a person wants to see besides the counts."""

    training_samples: list[str]
    heldout_samples: list[str]
    longest_pieces: list[str]
    """Of the vocabulary, as text."""
    sha256: dict[str, str]
    """Of the files of tokens."""


def look(prepared: Prepared) -> Look:
    """Reads beginnings of both sides, and every token once for the digests."""
    decode = _decoder(prepared)
    return Look(
        [decode(part) for part in _samples(prepared.train())],
        [decode(part) for part in _samples(prepared.heldout())],
        _pieces(prepared), {name: _sha256(prepared, name) for name in (TRAIN, HELDOUT)},
    )  # fmt: skip


def _samples(tokens: npt.NDArray[Any]) -> Iterator[list[int]]:
    """From evenly spread places."""
    for number in range(SAMPLES):
        start = len(tokens) * number // SAMPLES
        part: list[int] = np.asarray(tokens[start : start + SAMPLE_TOKENS]).tolist()
        if part:
            yield part


def _decoder(prepared: Prepared) -> Any:
    if not prepared.has_text:
        return lambda ids: " ".join(map(str, ids))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared.folder / TOKENIZER))
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def _pieces(prepared: Prepared) -> list[str]:
    if not prepared.has_text:
        return []
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared.folder / TOKENIZER))
    texts = {tokenizer.decode([number]) for number in tokenizer.get_vocab().values()}
    return sorted(texts, key=lambda text: (-len(text), text))[:LONGEST_PIECES]


def _sha256(prepared: Prepared, name: str) -> str:
    with (prepared.folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
