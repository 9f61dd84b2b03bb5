"""Writing token files: documents are cleaned, split, encoded on all cores and written."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from selectbench import units
from selectbench.choices.model import AnyTokenizer
from selectbench.data.prepared import (
    FACTS,
    HELDOUT,
    HELDOUT_BYTES,
    HELDOUT_LENGTHS,
    HELDOUT_MASK,
    HELDOUT_PAIRS,
    HELDOUT_TRUTH,
    TOKENIZER,
    TRAIN,
    TRAIN_LENGTHS,
    TRAIN_MASK,
    Prepared,
    token_dtype,
)
from selectbench.data.reading import Cleaner, first_line
from selectbench.data.sources import (
    TARGETS,
    Corpus,
    Tokens,
    emit,
    make_source,
    open_tokens,
    pair_of,
    source_of,
    split_tokens,
    without_leaks,
)
from selectbench.data.split import (
    ANSWERS,
    HELDOUT_FRACTION,
    LINES,
    Mask,
    Pieces,
    Sides,
    Spool,
    decontaminated,
    nothing_held_out,
    split,
)
from selectbench.data.tokenizer import TextTokenizer, check_alphabet, check_unknown, make_tokenizer
from selectbench.errors import UserError
from selectbench.suite.sources import Cleaning, Kind, MarkovSource, TokenFile

# Lines on how far a long preparation is and how long it will take, a few seconds apart.


SECONDS_BETWEEN = 5.0


@dataclass
class Progress:
    """Of one stage; `done` may be told as often as one likes."""

    stage: str
    notify: Callable[[str], None]
    total: int | None = None
    """Bytes in all; None: not known beforehand."""
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._last = self.began

    def done(self, count: int) -> None:
        """So many bytes so far."""
        now = time.monotonic()
        self._tell(now, lambda: f"{units.size(count)}{self._left(count, now)}")

    def still(self) -> None:
        """It goes on, how far is not known."""
        now = time.monotonic()
        self._tell(now, lambda: f"{units.duration(now - self.began)} so far")

    def _tell(self, now: float, words: Callable[[], str]) -> None:
        if now - self._last >= SECONDS_BETWEEN:
            self._last = now
            self.notify(f"{self.stage}: {words()}")

    def _left(self, count: int, now: float) -> str:
        if not self.total or not count:
            return ""
        left = (now - self.began) * (self.total - count) / count
        return f" of {units.size(self.total)}, about {units.duration(max(0.0, left))} left"


# Documents to token ids, on all cores: the tokenizer works on one batch while the one before it is written.


BATCH_CHARACTERS = 1 << 20
"""Text that is encoded at once: much more than the threads need to share it evenly."""
TokenIds = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Encoded:
    """Some documents, each with the end-of-text token after it, as one run of tokens."""

    ids: TokenIds
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


# What a kind of document is made of: running text, a conversation, a pair.


def _itself(document: str) -> str:
    return document


def _alone(document: str) -> Iterable[str]:
    return [document]


def _both(document: str) -> Iterable[str]:
    pair = pair_of(document)
    return [pair.source, pair.target]


@dataclass(frozen=True)
class Shape:
    """How documents of a kind are split, cleaned and encoded."""

    pieces: Pieces
    """What of a document may not stand on both sides of the split."""
    named_by: Callable[[str], str]
    """What of a document decides on which side it lies."""
    by_message: bool
    """Whether a document is JSON, a list of roles with their text."""
    texts: Callable[[str], Iterable[str]]
    """What of it is encoded with an end-of-text token after it."""
    parts: Parts
    """What of such a text is encoded by itself."""


SHAPES: dict[Kind, Shape] = {
    "text": Shape(LINES, _itself, False, _alone, whole),
    "chat": Shape(ANSWERS, _itself, True, _alone, conversation),
    "pairs": Shape(TARGETS, source_of, True, _both, whole),
}


# Text to token files: read once, clean, split, train the tokenizer, encode.


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


# Data that needs no tokenizer: token files made elsewhere, and a source whose probabilities are known.


_CHUNK = 1 << 22


def write_token_files(files: Sequence[TokenFile], key: str, folder: Path) -> None:
    """One file, whose end is held out, or one for training and one to score."""
    opened = [open_tokens(one) for one in files]
    training, heldout = (opened[0], opened[1]) if len(opened) > 1 else split_tokens(opened[0])
    kept, blocks = without_leaks(training, heldout)
    vocab_size = files[0].vocab_size
    _save(folder / TRAIN, training, vocab_size)
    _save(folder / HELDOUT, kept, vocab_size)
    _finish(folder, key, "tokens", len(training), len(kept), vocab_size, removed_lines=blocks)


def _save(path: Path, tokens: Tokens, vocab_size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, len(tokens), _CHUNK):
            file.write(np.asarray(tokens[start : start + _CHUNK]).astype(token_dtype(vocab_size)).tobytes())


def write_markov(spec: MarkovSource, key: str, folder: Path) -> None:
    """Training and held-out tokens are two walks; no stretch of one is looked for in the other: both are chance."""
    source = make_source(spec)
    training, _ = emit(source, spec.train_tokens, [spec.seed, 2])
    heldout, truth = emit(source, max(1000, int(spec.train_tokens * HELDOUT_FRACTION)), [spec.seed, 3])
    training.tofile(folder / TRAIN)
    heldout.tofile(folder / HELDOUT)
    truth.tofile(folder / HELDOUT_TRUTH)
    rate = source.entropy_rate()
    _finish(folder, key, "markov", len(training), len(heldout), spec.vocab_size, entropy_rate=rate)


def _finish(
    folder: Path, key: str, kind: str, train_tokens: int, heldout_tokens: int, vocab_size: int, *,
    removed_lines: int = 0, entropy_rate: float | None = None,
) -> None:  # fmt: skip
    if not train_tokens:
        raise UserError("data.tokens: there is nothing to train on")
    prepared = Prepared(
        folder=folder, key=key, kind=kind, train_tokens=train_tokens, heldout_tokens=heldout_tokens,
        vocab_size=vocab_size, documents_in=0, removed={}, changed={}, train_documents=0, heldout_documents=0,
        removed_documents=0, removed_lines=removed_lines, train_bytes=0, heldout_bytes=0, entropy_rate=entropy_rate,
    )  # fmt: skip
    (folder / FACTS).write_text(json.dumps(prepared.facts(), indent=1) + "\n", encoding="utf-8")
