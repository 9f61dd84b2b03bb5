"""Token ids that were prepared elsewhere: checked, split, and freed of what is in both parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selectbench.data.files import named_file
from selectbench.data.split import HELDOUT_FRACTION
from selectbench.errors import UserError
from selectbench.suite.data import TokenFile

Tokens = npt.NDArray[np.unsignedinteger[Any]]
BLOCK_TOKENS = 32
"""Held-out tokens that stand in training in this very order are taken out, block by block."""
_CHUNK = 1 << 22
_NPY = b"\x93NUMPY"
_BASE = np.uint64(0x9E3779B97F4A7C15)


def open_tokens(source: TokenFile) -> Tokens:
    """The file, memory-mapped read-only. Raises UserError where it is missing, cut, or has ids too large."""
    path = named_file(Path(source.tokens), "data.tokens")
    _refuse_a_header(path)
    width = np.dtype(source.dtype).itemsize
    size = path.stat().st_size
    if size % width:
        raise UserError(f"data.tokens: {path} has {size} bytes, which are no whole number of {source.dtype}")
    try:
        tokens: Tokens = np.memmap(path, dtype=source.dtype, mode="r")
    except OSError as error:
        raise UserError(f"data.tokens: {path} cannot be read: {error.strerror}") from error
    for start in range(0, len(tokens), _CHUNK):
        part = tokens[start : start + _CHUNK]
        wrong = np.flatnonzero(part >= source.vocab_size)
        if len(wrong):
            place = start + int(wrong[0])
            raise UserError(
                f"data.tokens: {path}: token {place} is {int(part[wrong[0]])}, vocab_size is {source.vocab_size} "
                f"(another dtype than {source.dtype}?)"
            )
    return tokens


def _refuse_a_header(path: Path) -> None:
    """Ids and nothing else: the header of an array's file would be trained on."""
    with path.open("rb") as stream:
        if stream.read(len(_NPY)) == _NPY:
            raise UserError(
                f"data.tokens: {path} is a .npy file, with a header before the ids: write the ids alone, "
                "as numpy's array.tofile(path) does"
            )


def split_tokens(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Training and held-out tokens: the last part of the stream is held out."""
    heldout = int(len(tokens) * HELDOUT_FRACTION)
    return tokens[: len(tokens) - heldout], tokens[len(tokens) - heldout :]


def without_leaks(training: Tokens, heldout: Tokens) -> tuple[Tokens, int]:
    """The held-out tokens without blocks that occur in training, and how many blocks were taken out.

    Blocks are cut every BLOCK_TOKENS tokens, and looked for at every place of the training tokens by a rolling
    polynomial hash modulo 2**64 (Karp and Rabin 1987), confirmed by nothing: a false match takes a block more.
    """
    blocks = len(heldout) // BLOCK_TOKENS
    if not blocks:
        return heldout, 0
    table = np.asarray(heldout[: blocks * BLOCK_TOKENS]).reshape(blocks, BLOCK_TOKENS)
    asked = _hashes(table.T)
    met = np.zeros(blocks, bool)
    order = np.argsort(asked)
    for found in _rolling(training):
        places = np.searchsorted(asked[order], found)
        places[places == blocks] = 0
        met[np.isin(asked, found[asked[order][places] == found])] = True
    kept = np.asarray(heldout)[np.append(np.repeat(~met, BLOCK_TOKENS), np.ones(len(heldout) % BLOCK_TOKENS, bool))]
    return kept, int(met.sum())


def _rolling(tokens: Tokens) -> Iterator[npt.NDArray[np.uint64]]:
    """Hashes of the BLOCK_TOKENS tokens from every place on, a chunk at a time."""
    for start in range(0, max(0, len(tokens) - BLOCK_TOKENS + 1), _CHUNK):
        part = np.asarray(tokens[start : start + _CHUNK + BLOCK_TOKENS - 1])
        yield _hashes([part[k : len(part) - BLOCK_TOKENS + 1 + k] for k in range(BLOCK_TOKENS)])


def _hashes(columns: Any) -> npt.NDArray[np.uint64]:
    total = np.zeros(len(columns[0]), np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            total = total * _BASE + column.astype(np.uint64) + np.uint64(1)
    return total
