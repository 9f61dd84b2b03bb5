"""What preparing leaves in the cache, and how a worker reads it: memory-mapped token files, no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from selectbench.data.tokenizer import token_dtype
from selectbench.errors import UserError
from selectbench.suite.job import Job

TRAIN = "train.bin"
"""Token ids of the training documents, END_OF_TEXT after each; unsigned, 2 or 4 bytes, native order."""
HELDOUT = "heldout.bin"
"""Token ids of the held-out documents, in the same form."""
TOKEN_BYTES = "token_bytes.npy"
"""Bytes of UTF-8 per token id, int32."""
TOKENIZER = "tokenizer.json"
"""The tokenizer, as the package `tokenizers` writes it."""
FACTS = "prepared.json"
"""The numbers of `Prepared`."""


@dataclass(frozen=True)
class Prepared:
    """A job's data in the cache. Documents are counted after the split, tokens with END_OF_TEXT."""

    folder: Path
    """Where the files are."""
    key: str
    """Hash of the text, the rules of the split, the tokenizer and the code that applied them."""
    train_tokens: int
    heldout_tokens: int
    vocab_size: int
    """Entries that the tokenizer really has, at most those asked for."""
    train_documents: int
    heldout_documents: int
    removed_documents: int
    """Held-out documents that were dropped whole, every line of them occurring in training."""
    removed_lines: int
    """Held-out lines that were dropped because they occur in training too."""
    train_bytes: int
    """UTF-8 bytes of the training documents."""
    heldout_bytes: int
    """UTF-8 bytes of the held-out documents."""

    @classmethod
    def open(cls, folder: Path | str) -> Prepared:
        """Reads it back. Raises FileNotFoundError where it is missing, ValueError where it is damaged."""
        folder = Path(folder)
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        names = {field.name for field in fields(cls)} - {"folder"}
        if not isinstance(facts, dict) or set(facts) != names:
            raise ValueError(f"{folder / FACTS}: not what this version of selectbench writes")
        prepared = cls(folder=folder, **facts)
        prepared._check_sizes()
        return prepared

    def _check_sizes(self) -> None:
        width = np.dtype(token_dtype(self.vocab_size)).itemsize
        for name, tokens in ((TRAIN, self.train_tokens), (HELDOUT, self.heldout_tokens)):
            found = (self.folder / name).stat().st_size
            if found != tokens * width:
                raise ValueError(f"{self.folder / name}: has {found} bytes, {tokens * width} were written")
        if len(self.token_bytes()) != self.vocab_size or not (self.folder / TOKENIZER).stat().st_size:
            raise ValueError(f"{self.folder}: token table and tokenizer do not fit the vocabulary")

    def facts(self) -> dict[str, int | str]:
        """Everything but the folder, as prepared.json holds it."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "folder"}

    def train(self) -> npt.NDArray[np.unsignedinteger]:
        """The training tokens, memory-mapped read-only, shape (train_tokens,)."""
        return self._tokens(TRAIN, self.train_tokens)

    def heldout(self) -> npt.NDArray[np.unsignedinteger]:
        """The held-out tokens, memory-mapped read-only, shape (heldout_tokens,)."""
        return self._tokens(HELDOUT, self.heldout_tokens)

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """Bytes of UTF-8 that each token id stands for, shape (vocab_size,); 0 for END_OF_TEXT."""
        table: npt.NDArray[np.int32] = np.load(self.folder / TOKEN_BYTES)
        return table

    def _tokens(self, name: str, count: int) -> npt.NDArray[np.unsignedinteger]:
        dtype = token_dtype(self.vocab_size)
        if not count:  # an empty file cannot be mapped
            return np.zeros(0, dtype=dtype)
        return np.memmap(self.folder / name, dtype=dtype, mode="r", shape=(count,))


def sequences(tokens: int, seq_len: int) -> int:
    """Whole sequences in a token stream; each reads one token beyond its length, as its last target."""
    return max(0, tokens - 1) // seq_len


def check_enough(prepared: Prepared, job: Job) -> None:
    """Raises UserError where the text is shorter than one batch, or leaves no sequence to evaluate on."""
    problems = []
    found = sequences(prepared.train_tokens, job.seq_len)
    if found < job.global_batch_size:
        problems.append(
            f"data: {prepared.train_tokens} training tokens make {found} sequences of seq_len {job.seq_len}, less "
            f"than one batch of global_batch_size {job.global_batch_size}: give more text, or lower either"
        )
    if job.evaluates and not sequences(prepared.heldout_tokens, job.seq_len):
        problems.append(
            f"data: {prepared.heldout_tokens} held-out tokens make no sequence of seq_len {job.seq_len}: "
            "give more text, lower seq_len, or set eval: none"
        )
    if problems:
        raise UserError(*problems)


def epochs(prepared: Prepared, job: Job) -> float:
    """How often the job goes through its training sequences; `check_enough` must hold."""
    return job.max_steps * job.global_batch_size / sequences(prepared.train_tokens, job.seq_len)
