"""Documents on disk between reading and encoding: read from their source once, then as often as needed.

Own iterators, compressed files and data sets are slow to read or can be read once only. Only numbers are held in
memory: eight bytes of hash and eight of length for a document.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from selectbench.data.split import side_hash

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
READ_BYTES = 1 << 20


class Spool:
    """Documents in order of arrival, with the hash of each."""

    def __init__(self, path: Path, named_by: Callable[[str], str] = lambda document: document) -> None:
        """`path`: of the file to be written; it must not exist. `named_by`: what of a document is hashed."""
        self.path = path
        self._named_by = named_by
        self._lengths = array("q")
        self._hashes = array("Q")
        self.bytes = 0
        """UTF-8 bytes of all documents."""

    def fill(self, documents: Iterable[str], written: Callable[[int], None]) -> None:
        """Writes documents as they come; `written` is told the bytes so far after each."""
        with self.path.open("ab") as file:
            for text in documents:
                raw = text.encode()
                file.write(raw)
                self._lengths.append(len(raw))
                self._hashes.append(side_hash(self._named_by(text)))
                self.bytes += len(raw)
                written(self.bytes)

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """`side_hash` of each document."""
        return np.frombuffer(self._hashes, dtype=np.uint64) if self._hashes else np.zeros(0, np.uint64)

    @property
    def lengths(self) -> Indices:
        """UTF-8 bytes of each document."""
        return np.frombuffer(self._lengths, dtype=np.int64) if self._lengths else np.zeros(0, np.int64)

    def documents(self, chosen: Mask) -> Iterator[str]:
        """Those that are chosen, in order."""
        with self.path.open("rb", buffering=READ_BYTES) as file:
            for length, wanted in zip(self._lengths, chosen.tolist(), strict=True):
                if wanted:
                    yield file.read(length).decode()
                else:
                    file.seek(length, 1)

    def first_of_equals(self) -> Mask:
        """Which documents are the first of those that are equal but for case, form and white space."""
        first = np.zeros(len(self), bool)
        first[np.unique(self.hashes, return_index=True)[1]] = True
        return first
