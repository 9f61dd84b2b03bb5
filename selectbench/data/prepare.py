"""Text to token files: read, split, train the tokenizer, encode, publish under a hash of all that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from selectbench.data.cache import cache_root, publish, remove
from selectbench.data.corpus import Corpus, open_corpus, require
from selectbench.data.prepared import (
    FACTS,
    HELDOUT,
    TOKEN_BYTES,
    TOKENIZER,
    TRAIN,
    Prepared,
    check_enough,
    epochs,
)
from selectbench.data.split import Split, split
from selectbench.data.tokenizer import encode, token_bytes, train_bpe
from selectbench.errors import UserError
from selectbench.suite.job import EmbeddedCorpus, TextFiles, Tokenizer

__all__ = ["Prepared", "check_enough", "epochs", "prepare"]


def _silent(_: str) -> None:
    """Says nothing."""


def prepare(
    data: EmbeddedCorpus | TextFiles, tokenizer: Tokenizer, *, notify: Callable[[str], None] = _silent
) -> Prepared:
    """A job's data as token files, from the cache where they were made before.

    `data`'s paths and globs are absolute. `notify` gets a line for a person where something takes time or
    is left out. Two runs may prepare the same data at once. Raises UserError for text that is missing or
    unfit, a missing package, and a cache that cannot be written.
    """
    corpus = open_corpus(data, notify)
    key = _key(corpus, tokenizer)
    folder = cache_root() / "data" / key
    cached = _cached(folder)
    if cached is None:
        notify(f"preparing {corpus.description} once, in {folder}")
        publish(folder, lambda unfinished: _write(corpus, key, tokenizer.bpe, unfinished, notify))
        cached = Prepared.open(folder)
    return cached


def _key(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """The code stands for the rules of the split: whatever changes them changes the key."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    parts = [corpus.key, f"bpe {tokenizer.bpe}", f"tokenizers {require('tokenizers')}"]
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()[:32]


def _cached(folder: Path) -> Prepared | None:
    try:
        return Prepared.open(folder)
    except FileNotFoundError:
        if folder.exists():
            remove(folder)
    except ValueError:
        remove(folder)
    except OSError as error:
        raise UserError(
            f"cache: cannot read {folder}: {error.strerror}: set SELECTBENCH_CACHE to a folder of your own"
        ) from error
    return None


def _write(corpus: Corpus, key: str, vocab_size: int, folder: Path, notify: Callable[[str], None]) -> None:
    parts = split(corpus.documents)
    if not any(parts.training(corpus.documents)):
        raise UserError(f"data: {corpus.description} has no text, only white space")
    notify(f"training a tokenizer of {vocab_size} entries")
    bpe = train_bpe(parts.training(corpus.documents), vocab_size)
    (folder / TOKENIZER).write_text(bpe.to_str(), encoding="utf-8")
    lengths = token_bytes(bpe)
    np.save(folder / TOKEN_BYTES, lengths)
    notify("encoding")
    counts = _Counts(parts, corpus)
    train_tokens, train_bytes = _save(folder / TRAIN, encode(bpe, counts.training()), lengths)
    heldout_tokens, heldout_bytes = _save(folder / HELDOUT, encode(bpe, counts.evaluation()), lengths)
    prepared = Prepared(
        folder, key, train_tokens, heldout_tokens, len(lengths), counts.train, counts.heldout, counts.removed,
        counts.removed_lines, train_bytes, heldout_bytes,
    )  # fmt: skip
    (folder / FACTS).write_text(json.dumps(prepared.facts(), indent=1) + "\n", encoding="utf-8")


class _Counts:
    """Counts documents while they pass."""

    def __init__(self, parts: Split, corpus: Corpus) -> None:
        self.parts, self.documents = parts, corpus.documents
        self.train = self.heldout = self.removed = self.removed_lines = 0

    def training(self) -> Iterator[str]:
        for text in self.parts.training(self.documents):
            self.train += 1
            yield text

    def evaluation(self) -> Iterator[str]:
        for whole in self.parts.heldout_documents(self.documents):
            text = self.parts.without_leaks(whole)
            self.removed_lines += self.parts.leaks(whole)
            if text:
                self.heldout += 1
                yield text
            else:
                self.removed += 1


def _save(path: Path, documents: Iterable[np.ndarray], lengths: np.ndarray) -> tuple[int, int]:
    """Writes token ids as they come; how many there are, and the bytes of text they stand for."""
    tokens = text_bytes = 0
    with path.open("wb") as file:
        for ids in documents:
            file.write(ids.tobytes())
            tokens += len(ids)
            text_bytes += int(lengths[ids].sum())
    return tokens, text_bytes
