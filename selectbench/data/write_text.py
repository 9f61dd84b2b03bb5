"""Text to token files: read once, clean, split, train the tokenizer, encode."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from selectbench.choices.tokenizer import AnyTokenizer
from selectbench.data.cleaning import Cleaner
from selectbench.data.corpus import Corpus
from selectbench.data.coverage import check_alphabet, check_unknown
from selectbench.data.encode import Encoded, encode
from selectbench.data.held_out import nothing_held_out
from selectbench.data.prepared import (
    FACTS,
    HELDOUT,
    HELDOUT_BYTES,
    HELDOUT_LENGTHS,
    HELDOUT_MASK,
    HELDOUT_PAIRS,
    TOKENIZER,
    TRAIN,
    TRAIN_LENGTHS,
    TRAIN_MASK,
    Prepared,
)
from selectbench.data.progress import Progress
from selectbench.data.shape import SHAPES, Shape
from selectbench.data.split import Mask, Sides, decontaminated, split
from selectbench.data.spool import Spool
from selectbench.data.tokenizer import TextTokenizer, make_tokenizer
from selectbench.errors import UserError
from selectbench.suite.data import Cleaning, Kind

SPOOL = "documents.tmp"
TOKENIZER_BYTES = 256 << 20
"""A tokenizer is trained on so much of the training text, evenly spread: more changes it little and takes long."""


@dataclass(frozen=True)
class TextWork:
    """What is to be made."""

    corpora: Sequence[Corpus]
    """The text, or training and held-out text apart."""
    kind: Kind
    tokenizer: AnyTokenizer
    cleaning: Cleaning
    specials: tuple[str, ...]
    notify: Callable[[str], None]
    evaluates: bool = False
    """Whether there must be held-out text."""

    @property
    def shape(self) -> Shape:
        """What the documents are made of."""
        return SHAPES[self.kind]

    @property
    def described(self) -> str:
        """The text in words."""
        return " and ".join(corpus.description for corpus in self.corpora)

    @property
    def tokenizer_name(self) -> str:
        """What the tokenizer is called in messages."""
        return str(next(iter(self.tokenizer.model_dump().values())))


@dataclass
class _Side:
    """What was written of one side."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    unknown: int = 0
    removed_documents: int = 0
    removed_lines: int = 0


def write_text(work: TextWork, key: str, folder: Path) -> None:
    """Fills the folder. Raises UserError for text that is unfit, and a tokenizer that can't encode it."""
    spool = Spool(folder / SPOOL, work.shape.named_by)
    cleaner = Cleaner(work.cleaning, is_chat=work.shape.by_message)
    sides = _sides(work, spool, cleaner)
    if not sides.training.any():
        raise UserError(f"data: {work.corpora[0].description} {_nothing(cleaner)}")
    if work.evaluates and (reason := nothing_held_out(spool, sides, cleaner.removed.get("in_training", 0))):
        raise UserError(f"data: {work.described}: {reason}")
    training = Progress("training the tokenizer", work.notify)
    sample = _sample(work, spool, sides.training)
    tokenizer = make_tokenizer(work.tokenizer, sample, work.specials, training.still)
    tokenizer.backend.save(str(folder / TOKENIZER))
    texts = (
        text for document in spool.documents(sides.training | sides.heldout) for text in _texts(work, document)
    )
    check_alphabet(tokenizer.backend, texts, work.tokenizer_name, work.described)
    train = _train(work, spool, sides, tokenizer, folder)
    heldout = _heldout(work, spool, sides, tokenizer, folder)
    spool.path.unlink()
    check_unknown(train.unknown + heldout.unknown, train.tokens + heldout.tokens, work.tokenizer_name)
    prepared = Prepared(
        folder=folder, key=key, kind=work.kind, train_tokens=train.tokens, heldout_tokens=heldout.tokens,
        vocab_size=tokenizer.vocab_size, documents_in=cleaner.documents_in, removed=cleaner.removed,
        changed=cleaner.changed, train_documents=train.documents, heldout_documents=heldout.documents,
        removed_documents=heldout.removed_documents, removed_lines=heldout.removed_lines, train_bytes=train.bytes,
        heldout_bytes=heldout.bytes, unknown_tokens=train.unknown + heldout.unknown,
        end_id=tokenizer.end_id, special_ids=tokenizer.special_ids,
        document_sizes=_sizes(spool, sides.training | sides.heldout),
    )  # fmt: skip
    (folder / FACTS).write_text(json.dumps(prepared.facts(), indent=1) + "\n", encoding="utf-8")


def _nothing(cleaner: Cleaner) -> str:
    if set(cleaner.removed) <= {"empty"}:
        return "has no text, only white space"
    counts = ", ".join(f"{count} {step}" for step, count in cleaner.removed.items())
    return f"has no text left: cleaning removed all {cleaner.documents_in} documents ({counts})"


def _sides(work: TextWork, spool: Spool, cleaner: Cleaner) -> Sides:
    """Reads everything into the spool and splits it."""
    ends = []
    for corpus in work.corpora:
        progress = Progress(f"reading {corpus.description}", work.notify)
        spool.fill(cleaner.kept(corpus.documents(cleaner.fault)), progress.done)
        ends.append(len(spool))
    kept = np.ones(len(spool), bool)
    if work.cleaning.duplicates == "remove":
        kept = spool.first_of_equals()
        _count(cleaner, "duplicate", int((~kept).sum()))
    pieces = work.shape.pieces
    work.notify("looking for what is in both the training and the held-out text")
    if len(work.corpora) == 1:
        return split(spool, pieces, kept)
    heldout = np.arange(len(spool)) >= ends[0]
    again = heldout & kept & np.isin(spool.hashes, spool.hashes[kept & ~heldout])
    _count(cleaner, "in_training", int(again.sum()))
    return decontaminated(spool, pieces, kept & ~again, heldout)


def _count(cleaner: Cleaner, step: str, documents: int) -> None:
    if documents:
        cleaner.removed[step] = cleaner.removed.get(step, 0) + documents


def _sample(work: TextWork, spool: Spool, training: Mask) -> Callable[[], Iterator[str]]:
    """What a tokenizer is trained on."""
    size = int(spool.lengths[training].sum())
    chosen = training
    if size > TOKENIZER_BYTES:
        chosen = training & (spool.hashes % np.uint64(1 << 32) < np.uint64(TOKENIZER_BYTES / size * 2**32))
        work.notify(f"the tokenizer is trained on {TOKENIZER_BYTES >> 20} MiB of the training text, evenly spread")

    def texts() -> Iterator[str]:
        work.notify("training the tokenizer")
        for document in spool.documents(chosen):
            yield from _texts(work, document)

    return texts


def _texts(work: TextWork, document: str) -> Iterator[str]:
    """All that is encoded of a document."""
    for text in work.shape.texts(document):
        yield from (part.text for part in work.shape.parts(text))


def _train(work: TextWork, spool: Spool, sides: Sides, tokenizer: TextTokenizer, folder: Path) -> _Side:
    found = _Side(documents=int(sides.training.sum()))
    found.bytes = _text_bytes(work, spool, sides.training)
    progress = Progress("encoding", work.notify, int(spool.lengths[sides.training].sum()))
    read = 0

    def documents() -> Iterator[str]:
        nonlocal read
        for text in spool.documents(sides.training):
            read += len(text)
            progress.done(read)
            yield from work.shape.texts(text)

    with (
        (folder / TRAIN).open("wb") as ids, _if(work.kind == "chat", folder / TRAIN_MASK) as mask,
        _if(work.kind == "pairs", folder / TRAIN_LENGTHS) as lengths,
    ):  # fmt: skip
        for batch in encode(tokenizer, documents(), work.shape.parts):
            _append(batch, ids, mask, lengths, found)
    return found


def _heldout(work: TextWork, spool: Spool, sides: Sides, tokenizer: TextTokenizer, folder: Path) -> _Side:
    found = _Side()

    with (
        (folder / HELDOUT).open("wb") as ids, _if(work.kind == "chat", folder / HELDOUT_MASK) as mask,
        _if(work.kind == "pairs", folder / HELDOUT_LENGTHS) as lengths,
        _if(work.kind == "pairs", folder / HELDOUT_PAIRS) as pairs, (folder / HELDOUT_BYTES).open("wb") as sizes,
    ):  # fmt: skip
        texts = _scored(work, spool, sides, found, pairs)
        for batch in encode(tokenizer, texts, work.shape.parts, with_bytes=True):
            _append(batch, ids, mask, lengths, found)
            assert batch.bytes is not None
            sizes.write(batch.bytes.tobytes())
            found.bytes += int(batch.bytes.sum(dtype=np.int64))
    return found


def _scored(work: TextWork, spool: Spool, sides: Sides, found: _Side, pairs: BinaryIO | None) -> Iterator[str]:
    """What is encoded of the held-out documents, counted, once what training has is taken out."""
    for document in spool.documents(sides.heldout):
        found.removed_lines += sides.leaks(document)
        kept = sides.without_leaks(document)
        if not kept:
            found.removed_documents += 1
            continue
        found.documents += 1
        texts = list(work.shape.texts(kept))
        if pairs is not None:
            pairs.write(json.dumps(texts, ensure_ascii=False).encode() + b"\n")
        yield from texts


class _Nowhere:
    """Stands for a file that is not written."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _if(wanted: bool, path: Path) -> BinaryIO | _Nowhere:
    return path.open("wb") if wanted else _Nowhere()


def _append(batch: Encoded, ids: BinaryIO, mask: BinaryIO | None, lengths: BinaryIO | None, found: _Side) -> None:
    if lengths is not None:
        lengths.write(batch.lengths.astype(np.int64).tobytes())
    ids.write(batch.ids.tobytes())
    if mask is not None:
        trained = np.ones(len(batch.ids), np.uint8) if batch.trained is None else batch.trained
        mask.write(trained.tobytes())
    found.tokens += len(batch.ids)
    found.unknown += batch.unknown


def _text_bytes(work: TextWork, spool: Spool, chosen: Mask) -> int:
    """UTF-8 bytes of what is encoded; of a chat with its roles."""
    if not work.shape.by_message:
        return int(spool.lengths[chosen].sum())
    return sum(len(text.encode()) for document in spool.documents(chosen) for text in _texts(work, document))


def _sizes(spool: Spool, chosen: Mask) -> list[int]:
    lengths = spool.lengths[chosen]
    found: list[int] = np.bincount(np.frexp(lengths.astype(float))[1]).tolist() if len(lengths) else []
    return found
