"""Documents to token ids, on all cores: the tokenizer works on one batch while the one before it is written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from selectbench.data.failures import first_line
from selectbench.data.prepared import token_dtype
from selectbench.data.tokenizer import TextTokenizer
from selectbench.errors import UserError

BATCH_CHARACTERS = 1 << 20
"""Text that is encoded at once: much more than the threads need to share it evenly."""
Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Encoded:
    """Some documents, each with the end-of-text token after it, as one run of tokens."""

    ids: Tokens
    trained: npt.NDArray[np.uint8] | None
    """Of each token, whether it is to be predicted; None: all are."""
    bytes: npt.NDArray[np.uint32] | None
    """Of each token, the UTF-8 bytes of text that it stands for; None: not asked for. They sum up to the text."""
    lengths: npt.NDArray[np.int64]
    """Tokens of each document, its end among them."""
    unknown: int
    """Tokens that stand for what the tokenizer could not encode."""


@dataclass(frozen=True)
class Part:
    """A stretch of a document that is encoded by itself."""

    text: str
    trained: bool = True


Parts = Callable[[str], list[Part]]


def whole(document: str) -> list[Part]:
    """Running text is one part."""
    return [Part(document)]


def conversation(document: str) -> list[Part]:
    """A chat's messages, each after its role; the answers and what ends them are trained."""
    parts: list[Part] = []
    for role, content in json.loads(document):
        parts += [Part(f"<|{role}|>\n", False), Part(f"{content}\n", role == "assistant")]
    return parts


def encode(
    tokenizer: TextTokenizer, documents: Iterable[str], parts_of: Parts = whole, *, with_bytes: bool = False
) -> Iterator[Encoded]:
    """Batches of documents in order."""
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[list[list[Part]], Future[list[Any]]] | None = None
        for batch in _batches(documents, parts_of):
            texts = [part.text for document in batch for part in document]
            work = tokenizer.backend.encode_batch if with_bytes else tokenizer.backend.encode_batch_fast
            started = pool.submit(work, texts, add_special_tokens=False)
            if waiting is not None:
                yield _joined(tokenizer, *waiting, with_bytes=with_bytes)
            waiting = batch, started
        if waiting is not None:
            yield _joined(tokenizer, *waiting, with_bytes=with_bytes)


def _batches(documents: Iterable[str], parts_of: Parts) -> Iterator[list[list[Part]]]:
    batch: list[list[Part]] = []
    size = 0
    for document in documents:
        batch.append(parts_of(document))
        size += len(document)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _joined(
    tokenizer: TextTokenizer, batch: list[list[Part]], future: Future[list[Any]], *, with_bytes: bool
) -> Encoded:
    encodings = _result(future)
    dtype = token_dtype(tokenizer.vocab_size)
    lists = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    flat = np.fromiter(itertools.chain.from_iterable(lists), dtype, int(lengths.sum()))
    ends = np.cumsum([len(document) for document in batch])
    places = np.cumsum(lengths)[ends - 1]  # where each document's end-of-text goes
    ids = np.insert(flat, places, np.array(tokenizer.end_id, dtype))
    unknown = 0 if tokenizer.unknown_id is None else int((flat == tokenizer.unknown_id).sum())
    return Encoded(
        ids=ids, trained=_trained(batch, lengths, places), lengths=np.diff(places, prepend=0) + 1, unknown=unknown,
        bytes=_bytes(batch, encodings, ends, places) if with_bytes else None,
    )  # fmt: skip


def _result(future: Future[list[Any]]) -> list[Any]:
    try:
        return future.result()
    except Exception as error:  # `tokenizers` raises bare exceptions
        raise UserError(
            f"tokenizer: it can't encode this text: {first_line(error)}: take one that was made for such text, or "
            "have one trained on it (`tokenizer: {bpe: 4096}`)"
        ) from error


def _trained(
    batch: list[list[Part]], lengths: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8] | None:
    flags = [part.trained for document in batch for part in document]
    if all(flags):
        return None
    last = np.array([document[-1].trained for document in batch], np.uint8)
    return np.insert(np.repeat(np.array(flags, np.uint8), lengths), places, last)


def _bytes(
    batch: list[list[Part]], encodings: list[Any], ends: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """What a tokenizer leaves out at the end of a part counts for the end-of-text token."""
    texts = [part.text for document in batch for part in document]
    found, left = [], np.zeros(len(texts), np.int64)
    for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
        own = bytes_of_tokens(text, [end for _, end in encoding.offsets])
        left[number] = utf8_lengths(text)[-1] - own.sum()
        found.append(own)
    flat = np.concatenate(found) if found else np.zeros(0, np.uint32)
    rests = np.add.reduceat(left, np.concatenate([[0], ends[:-1]])) if len(left) else left
    return np.insert(flat, places, rests.astype(np.uint32))


def bytes_of_tokens(text: str, ends: list[int]) -> npt.NDArray[np.uint32]:
    """UTF-8 bytes from where the tokens before it ended to where each ends; `ends` in characters.

    Of tokens that share a character the first has all its bytes.
    """
    if not ends:
        return np.zeros(0, np.uint32)
    reached = np.maximum.accumulate(np.array(ends, np.int64))
    return np.diff(utf8_lengths(text)[reached], prepend=0).astype(np.uint32)


def utf8_lengths(text: str) -> npt.NDArray[np.int64]:
    """Bytes of the first 0, 1, ... len(text) characters."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)])
