"""What preparing leaves in the cache, and how a worker reads it: memory-mapped token files, no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TRAIN = "train.bin"
"""Token ids of the training documents, an end-of-text token after each; unsigned, 2 or 4 bytes, native order."""
HELDOUT = "heldout.bin"
"""Token ids of the held-out documents, in the same form."""
TRAIN_MASK = "train_mask.bin"
"""Of chats: a byte per training token, 1 where it is to be predicted."""
HELDOUT_MASK = "heldout_mask.bin"
"""The same of the held-out tokens."""
TRAIN_LENGTHS = "train_lengths.bin"
"""Of pairs: tokens of each source and each target in turn, int64, an end-of-text token among them."""
HELDOUT_LENGTHS = "heldout_lengths.bin"
"""The same of the held-out pairs."""
HELDOUT_PAIRS = "heldout_pairs.jsonl"
"""Of pairs: the held-out text, a list of source and target a line."""
HELDOUT_BYTES = "heldout_bytes.bin"
"""Of text: bytes of UTF-8 that each held-out token stands for, uint32; they sum up to the text."""
HELDOUT_TRUTH = "heldout_truth.bin"
"""Of a source whose probabilities are known: nats of each held-out token under the source itself, float64."""
TOKENIZER = "tokenizer.json"
"""The tokenizer, as the package `tokenizers` writes it."""
FACTS = "prepared.json"
"""The numbers of `Prepared`."""


@dataclass(frozen=True)
class Prepared:
    """A job's data in the cache. Documents are counted after cleaning and split, tokens with END_OF_TEXT."""

    folder: Path
    """Where the files are."""
    key: str
    """Hash of the text, the rules of cleaning and split, the tokenizer and the code that applied them."""
    kind: str
    """text, chat, pairs, tokens or markov."""
    train_tokens: int
    heldout_tokens: int
    vocab_size: int
    """Entries that the tokenizer really has, at most those asked for."""
    documents_in: int
    """Documents read, unreadable ones among them."""
    removed: dict[str, int]
    """Documents that cleaning removed, by step."""
    changed: dict[str, int]
    """Documents that cleaning changed, by step."""
    train_documents: int
    heldout_documents: int
    removed_documents: int
    """Held-out documents that were dropped whole, as they occur in training."""
    removed_lines: int
    """Held-out lines (of a chat: answers; of tokens: blocks of 32) that were dropped, as they occur in training."""
    train_bytes: int
    """UTF-8 bytes of the training documents; 0 where there is no text."""
    heldout_bytes: int
    """UTF-8 bytes of the held-out documents."""
    unknown_tokens: int = 0
    """Training and held-out tokens that stand for what the tokenizer could not encode."""
    entropy_rate: float | None = None
    """Of a source whose probabilities are known: nats per token in the long run."""
    end_id: int = 0
    """Of the token that follows every document."""
    special_ids: dict[str, int] = field(default_factory=dict)
    """Token ids that the task needs besides: `mask`, `pad`."""
    document_sizes: list[int] = field(default_factory=list)
    """Documents kept, by size in UTF-8 bytes: the n-th counts those below 2**n and not below 2**(n - 1)."""

    @classmethod
    def open(cls, folder: Path | str) -> Prepared:
        """Reads it back. Raises FileNotFoundError where it is missing, ValueError where it is damaged."""
        folder = Path(folder)
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        names = {f.name for f in fields(cls)} - {"folder"}
        if not isinstance(facts, dict) or set(facts) != names:
            raise ValueError(f"{folder / FACTS}: not what this version of selectbench writes")
        prepared = cls(folder=folder, **facts)
        prepared._check_sizes()
        return prepared

    def _check_sizes(self) -> None:
        for name, entries, dtype in self._files():
            found, written = (self.folder / name).stat().st_size, entries * np.dtype(dtype).itemsize
            if found != written:
                raise ValueError(f"{self.folder / name}: has {found} bytes, {written} were written")
        if self.has_text and not (self.folder / TOKENIZER).stat().st_size:
            raise ValueError(f"{self.folder}: the tokenizer is empty")

    def _files(self) -> list[tuple[str, int, npt.DTypeLike]]:
        """Name, entries and type of each file of numbers."""
        ids = token_dtype(self.vocab_size)
        found: list[tuple[str, int, npt.DTypeLike]] = [
            (TRAIN, self.train_tokens, ids), (HELDOUT, self.heldout_tokens, ids),
        ]  # fmt: skip
        if self.kind == "chat":
            found += [(TRAIN_MASK, self.train_tokens, np.uint8), (HELDOUT_MASK, self.heldout_tokens, np.uint8)]
        if self.kind == "pairs":
            found += [(TRAIN_LENGTHS, 2 * self.train_documents, np.int64),
                      (HELDOUT_LENGTHS, 2 * self.heldout_documents, np.int64)]  # fmt: skip
        if self.has_text:
            found.append((HELDOUT_BYTES, self.heldout_tokens, np.uint32))
        if self.kind == "markov":
            found.append((HELDOUT_TRUTH, self.heldout_tokens, np.float64))
        return found

    @property
    def has_text(self) -> bool:
        """Whether tokens stand for text, by a tokenizer that lies beside them."""
        return self.kind in ("text", "chat", "pairs")

    def facts(self) -> dict[str, Any]:
        """Everything but the folder, as prepared.json holds it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "folder"}

    def train(self) -> npt.NDArray[np.unsignedinteger]:
        """The training tokens, memory-mapped read-only, shape (train_tokens,)."""
        tokens: npt.NDArray[np.unsignedinteger] = self._mapped(TRAIN)
        return tokens

    def heldout(self) -> npt.NDArray[np.unsignedinteger]:
        """The held-out tokens, memory-mapped read-only, shape (heldout_tokens,)."""
        tokens: npt.NDArray[np.unsignedinteger] = self._mapped(HELDOUT)
        return tokens

    def train_mask(self) -> npt.NDArray[np.uint8] | None:
        """1 for each training token that is to be predicted; None: all are."""
        found: npt.NDArray[np.uint8] | None = self._if_there(TRAIN_MASK)
        return found

    def heldout_mask(self) -> npt.NDArray[np.uint8] | None:
        """The same of the held-out tokens."""
        found: npt.NDArray[np.uint8] | None = self._if_there(HELDOUT_MASK)
        return found

    def train_lengths(self) -> npt.NDArray[np.int64] | None:
        """Tokens of each source and target, (pairs, 2); None: the data are no pairs."""
        found: npt.NDArray[np.int64] | None = self._if_there(TRAIN_LENGTHS)
        return None if found is None else found.reshape(-1, 2)

    def heldout_lengths(self) -> npt.NDArray[np.int64] | None:
        """The same of the held-out pairs."""
        found: npt.NDArray[np.int64] | None = self._if_there(HELDOUT_LENGTHS)
        return None if found is None else found.reshape(-1, 2)

    def heldout_pairs(self) -> list[tuple[str, str]]:
        """Source and target of every held-out pair, as text."""
        lines = (self.folder / HELDOUT_PAIRS).read_text(encoding="utf-8").split("\n")
        return [(source, target) for source, target in map(json.loads, filter(None, lines))]

    def bytes_of_heldout(self) -> npt.NDArray[np.uint32] | None:
        """Bytes of UTF-8 that each held-out token stands for; None: there is no text."""
        found: npt.NDArray[np.uint32] | None = self._if_there(HELDOUT_BYTES)
        return found

    def truth_of_heldout(self) -> npt.NDArray[np.float64] | None:
        """Nats of each held-out token under the source itself; None: not known."""
        found: npt.NDArray[np.float64] | None = self._if_there(HELDOUT_TRUTH)
        return found

    def _if_there(self, name: str) -> Any:
        return self._mapped(name) if any(name == known for known, _, _ in self._files()) else None

    def _mapped(self, name: str) -> Any:
        entries, dtype = next((count, kind) for known, count, kind in self._files() if known == name)
        if not entries:  # an empty file cannot be mapped
            return np.zeros(0, dtype=dtype)
        return np.memmap(self.folder / name, dtype=dtype, mode="r", shape=(entries,))


def token_dtype(vocab_size: int) -> npt.DTypeLike:
    """The narrowest unsigned type of 2 or 4 bytes that holds every token id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def sequences(tokens: int, seq_len: int) -> int:
    """Whole sequences in a token stream; each reads one token beyond its length, as its last target."""
    return max(0, tokens - 1) // seq_len


def fitting(lengths: npt.NDArray[np.int64], seq_len: int) -> npt.NDArray[np.int64]:
    """Which pairs have no side longer than `seq_len` tokens; the others take no part."""
    return np.flatnonzero((lengths <= seq_len).all(axis=1))
