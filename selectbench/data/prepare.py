"""A job's data as token files: from the cache where they were made before, else made and published there.

Documents are read once, cleaned and split, a tokenizer is trained on them, and they are encoded on all cores.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from selectbench import units
from selectbench.choices.model import AnyTokenizer, PretrainedTokenizer, Unigram
from selectbench.data import sources
from selectbench.data.prepared import (
    HELDOUT,
    HELDOUT_PAIRS,
    TOKENIZER,
    TRAIN,
    Prepared,
    cache_root,
    folder_lock,
    publish,
    remove,
    token_dtype,
)
from selectbench.data.reading import Cleaner, files_sha256
from selectbench.data.split import (
    ANSWERS,
    HELDOUT_FRACTION,
    LINES,
    Mask,
    Pieces,
    Sides,
    Spool,
    decontaminated,
    split,
)
from selectbench.data.tokenizer import (
    OTHER_TOKENIZERS,
    TextTokenizer,
    batches,
    check_alphabet,
    check_unknown,
    make_tokenizer,
    pinned,
)
from selectbench.errors import NotDownloadedError, UserError
from selectbench.suite.sources import Cleaning, Dataset, DataSource, Kind, MarkovSource, TokenFile
from selectbench.text import first_line

Notify = Callable[[str], None]
Write = Callable[[str, Path], None]
"""Fills an empty folder with the data of a cache key; it gets the key and the folder."""


def prepare(
    data: DataSource, tokenizer: AnyTokenizer | None, *, cleaning: Cleaning | None = None,
    specials: Sequence[str] = (), code: Sequence[str] = (), notify: Notify = lambda _: None,
    downloads: bool = True,
) -> Prepared:  # fmt: skip
    """Return a job's data as token files, from the cache or newly prepared.

    `data`'s paths and globs are absolute. `tokenizer` None: the data are tokens already. `specials`: tokens that
    the task needs; `code`: folders of own code. `notify` gets a line for a person where something takes time or
    is left out. Two runs may prepare the same data at once. `downloads` False: rows that would be read as they are
    downloaded are left to a run.
    Raises NotDownloadedError for such rows, UserError for missing or unfit text, a missing package, and a cache
    that cannot be written.
    """
    description, parts, write = _plan_preparation(data, tokenizer, cleaning or Cleaning(), specials, code, notify)
    key = _cache_key(parts)
    folder = cache_root() / "data" / key
    cached = _read_cached(folder, notify)
    if cached is None:
        if not downloads and (missing := streamed_datasets(data)):
            raise NotDownloadedError(*(f"job.data.dataset: {d.dataset} is not downloaded yet" for d in missing))
        with folder_lock(folder, notify):
            cached = _read_cached(folder, notify)
            if cached is None:
                notify(f"preparing {description} once, in {folder}")
                publish(folder, lambda unfinished: write(key, unfinished))
                cached = Prepared.open(folder)
    return cached


def streamed_datasets(data: DataSource) -> list[Dataset]:
    """The data sets that are read as they are downloaded from the hub."""
    return [s for s in data.parts if isinstance(s, Dataset) and s.rows and not Path(s.dataset).exists()]


def _plan_preparation(
    data: DataSource, tokenizer: AnyTokenizer | None, cleaning: Cleaning, specials: Sequence[str],
    code: Sequence[str], notify: Notify,
) -> tuple[str, list[str], Write]:  # fmt: skip
    """A description for messages, the parts of the cache key, and the function that writes the data."""
    if isinstance(data, MarkovSource):
        source = data
        return "a made-up source", [source.model_dump_json()], lambda key, folder: write_markov(source, key, folder)
    if data.kind == "tokens":
        files = [part for part in data.parts if isinstance(part, TokenFile)]
        paths = [path for file in files if (path := Path(file.tokens)).is_file()]
        digest = files_sha256([*paths, *filter(None, map(sources.index_of, paths))], "job.data.tokens")
        parts = ["tokens", digest, *(f"{file.dtype} {file.vocab_size}" for file in files)]
        return files[0].tokens, parts, lambda key, folder: write_token_files(files, key, folder)
    assert tokenizer is not None, "text needs a tokenizer: the job was checked"
    packages, tokenizer_key = ["tokenizers"], tokenizer.model_dump_json()
    packages += ["sentencepiece"] if isinstance(tokenizer, Unigram) else []
    packages += ["transformers"] if isinstance(tokenizer, PretrainedTokenizer) else []
    versions = " ".join(f"{name} {sources.require(name)}" for name in packages)
    if isinstance(tokenizer, PretrainedTokenizer):
        tokenizer, tokenizer_key = pinned(tokenizer)
    corpora = [sources.open_corpus(part, notify, code) for part in data.parts]
    for corpus in corpora:
        if corpus.key is None:
            notify(f"reading {corpus.description}, to see whether it is prepared already")
    corpora = [sources.with_content_key(corpus, Cleaner(cleaning).fault) for corpus in corpora]
    text_work = TextWork(corpora, data.kind, tokenizer, cleaning, tuple(specials), notify)
    parts = [str(corpus.key) for corpus in corpora]
    parts += [text_work.kind, cleaning.model_dump_json(), f"{tokenizer_key} {versions}", " ".join(specials)]
    return text_work.description, parts, lambda key, folder: write_text(text_work, key, folder)


def _cache_key(parts: Sequence[str]) -> str:
    """Hash of the parts and of this package's code, which stands for the rules of cleaning and split."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(json.dumps(list(parts)).encode())
    return digest.hexdigest()[:32]


MUCH_BYTES = 4 << 30
"""Size from which reading takes seconds."""


def _read_cached(folder: Path, notify: Notify) -> Prepared | None:
    """The data in the cache, after a check of every file's digest; None: they must be prepared."""
    try:
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > MUCH_BYTES:
            notify(f"reading {units.size(size)} of prepared data, to see whether they are as they were written")
        prepared = Prepared.open(folder)
        prepared.check()
        return prepared
    except (FileNotFoundError, ValueError) as error:
        if folder.is_dir():
            reason = f"{Path(error.filename).name} is gone" if isinstance(error, FileNotFoundError) else error
            notify(f"{folder} is damaged ({reason}): it is removed and prepared again")
            remove(folder)
    except OSError as error:
        raise UserError(
            f"cache: cannot read {folder}: {error.strerror}: set SELECTBENCH_CACHE to a folder of your own"
        ) from error
    return None


SECONDS_BETWEEN = 5.0


@dataclass
class Progress:
    """Reports every few seconds how far a long stage is and how long it will take; `done` may be called often."""

    stage: str
    notify: Callable[[str], None]
    total: int | None = None
    """Bytes of the whole stage; None: not known beforehand."""
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._last = self.began

    def done(self, count: int | None = None) -> None:
        """`count` bytes are done; None: the stage goes on, and it is not known how far it is."""
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN:
            return
        self._last, seconds = now, now - self.began
        text = f"{units.duration(seconds)} so far" if count is None else units.size(count)
        if self.total and count:
            seconds_left = max(0.0, seconds * (self.total - count) / count)
            text += f" of {units.size(self.total)}, about {units.duration(seconds_left)} left"
        self.notify(f"{self.stage}: {text}")


# Documents to token ids, on all cores: the tokenizer works on one batch while the one before it is written.


BATCH_CHARACTERS = 1 << 20
"""Characters that are encoded at once, many more than the threads need to share them evenly."""


@dataclass(frozen=True)
class Encoded:
    """A batch of documents as one run of tokens, each document with an end-of-text token after it."""

    ids: npt.NDArray[np.unsignedinteger[Any]]
    trained: npt.NDArray[np.uint8] | None
    """For each token, whether the model is trained to predict it; None: all are."""
    bytes: npt.NDArray[np.uint32] | None
    """For each token, the UTF-8 bytes of text that it stands for, which sum up to the text; None: not requested."""
    lengths: npt.NDArray[np.int64]
    """Tokens of each document, including its end-of-text token."""
    unknown: int
    """Number of tokens that stand for text that the tokenizer could not encode."""
    text_bytes: int
    """UTF-8 bytes of the encoded text."""


@dataclass(frozen=True)
class Part:
    """A part of a document that is encoded separately."""

    text: str
    trained: bool = True


Parts = Callable[[str], list[Part]]


def text_parts(document: str) -> list[Part]:
    """The parts of running text: the document is one part."""
    return [Part(document)]


def chat_parts(document: str) -> list[Part]:
    """The parts of a chat: each message after its role; the answers and the tokens that end them are trained."""
    parts: list[Part] = []
    for role, content in json.loads(document):
        parts += [Part(f"<|{role}|>\n", False), Part(f"{content}\n", role == "assistant")]
    return parts


def encode(
    tokenizer: TextTokenizer, documents: Iterable[str], parts_of: Parts = text_parts, *, with_bytes: bool = False
) -> Iterator[Encoded]:
    """Encode documents batch by batch, in order. Raises UserError for text that the tokenizer can't encode."""
    encode_batch = tokenizer.backend.encode_batch if with_bytes else tokenizer.backend.encode_batch_fast
    pending: tuple[list[list[Part]], Future[list[Any]]] | None = None
    with ThreadPoolExecutor(1) as pool:
        for batch in ([*map(parts_of, texts)] for texts in batches(documents, BATCH_CHARACTERS)):
            texts = [part.text for document in batch for part in document]
            future = pool.submit(encode_batch, texts, add_special_tokens=False)
            if pending is not None:
                yield _encoded_batch(tokenizer, *pending, with_bytes=with_bytes)
            pending = batch, future
        if pending is not None:
            yield _encoded_batch(tokenizer, *pending, with_bytes=with_bytes)


def _encoded_batch(
    tokenizer: TextTokenizer, batch: list[list[Part]], future: Future[list[Any]], *, with_bytes: bool
) -> Encoded:
    """Wait for the encodings of a batch and join them. Raises UserError where the tokenizer failed."""
    try:
        encodings = future.result()
    except Exception as error:  # `tokenizers` raises bare exceptions
        raise UserError(f"tokenizer: it can't encode this text: {first_line(error)}: {OTHER_TOKENIZERS}") from error
    dtype = token_dtype(tokenizer.vocab_size)
    lists = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    flat = np.fromiter(itertools.chain.from_iterable(lists), dtype, int(lengths.sum()))
    ends = np.cumsum([len(document) for document in batch])
    places = np.cumsum(lengths)[ends - 1]  # where each document's end-of-text goes
    ids = np.insert(flat, places, np.array(tokenizer.end_id, dtype))
    unknown = 0 if tokenizer.unknown_id is None else int((flat == tokenizer.unknown_id).sum())
    flags, trained = [part.trained for document in batch for part in document], None
    if not all(flags):
        last = np.array([document[-1].trained for document in batch], np.uint8)
        trained = np.insert(np.repeat(np.array(flags, np.uint8), lengths), places, last)
    return Encoded(
        ids=ids, trained=trained, lengths=np.diff(places, prepend=0) + 1, unknown=unknown,
        bytes=_bytes_per_token(batch, encodings, ends, places) if with_bytes else None,
        text_bytes=sum(len(part.text.encode()) for document in batch for part in document),
    )  # fmt: skip


def _bytes_per_token(
    batch: list[list[Part]], encodings: list[Any], ends: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """UTF-8 bytes of each token; text left out at the end of a part counts for the end-of-text token."""
    texts = [part.text for document in batch for part in document]
    sizes, left_out = [], np.zeros(len(texts), np.int64)
    for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
        token_bytes = bytes_of_tokens(text, [end for _, end in encoding.offsets])
        left_out[number] = utf8_lengths(text)[-1] - token_bytes.sum()
        sizes.append(token_bytes)
    flat = np.concatenate(sizes) if sizes else np.zeros(0, np.uint32)
    rests = np.add.reduceat(left_out, np.concatenate([[0], ends[:-1]])) if len(left_out) else left_out
    return np.insert(flat, places, rests.astype(np.uint32))


def bytes_of_tokens(text: str, ends: list[int]) -> npt.NDArray[np.uint32]:
    """UTF-8 bytes of each token, from the end of the tokens before it to its own; `ends` in characters.

    Where tokens share a character, the first one has all its bytes.
    """
    if not ends:
        return np.zeros(0, np.uint32)
    reached = np.maximum.accumulate(np.array(ends, np.int64))
    return np.diff(utf8_lengths(text)[reached], prepend=0).astype(np.uint32)


def utf8_lengths(text: str) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of the first 0, 1, ... len(text) characters."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)])


@dataclass(frozen=True)
class Shape:
    """How documents of a kind are split, cleaned and encoded."""

    pieces: Pieces
    """The pieces of a document that may not occur on both sides of the split."""
    hashed_text: Callable[[str], str]
    """Returns the text of a document whose hash decides its side of the split."""
    by_message: bool
    """Whether a document is JSON, a list of (role, text) messages, that is cleaned message by message."""
    texts: Callable[[str], Iterable[str]]
    """Returns the texts of a document that are each followed by an end-of-text token."""
    parts: Parts
    """Splits such a text into parts that are encoded separately."""

    def encoded(self, document: str) -> Iterator[str]:
        """All text of a document that is encoded."""
        return (part.text for text in self.texts(document) for part in self.parts(text))


SHAPES: dict[Kind, Shape] = {
    "text": Shape(LINES, str, False, lambda document: [document], text_parts),
    "chat": Shape(ANSWERS, str, True, lambda document: [document], chat_parts),
    "pairs": Shape(sources.TARGETS, sources.source_of, True, sources.pair_of, text_parts),
}


# Text to token files: read once, clean, split, train the tokenizer, encode.


SPOOL = "documents.tmp"
TOKENIZER_BYTES = 256 << 20
"""Most training text for a tokenizer, drawn evenly; more changes the tokenizer little and takes long."""


@dataclass
class TextWork:
    """Text to prepare, and how."""

    corpora: Sequence[sources.Corpus]
    """One corpus that is split, or a training and a held-out corpus."""
    kind: Kind
    tokenizer: AnyTokenizer
    cleaning: Cleaning
    specials: tuple[str, ...]
    notify: Callable[[str], None]

    def __post_init__(self) -> None:
        self.shape = SHAPES[self.kind]
        self.description = " and ".join(corpus.description for corpus in self.corpora)


Counts = Counter[str]
"""Counts over both sides, by the names of fields of `Prepared`."""


def write_text(work: TextWork, key: str, folder: Path) -> None:
    """Write tokenized text into the folder. Raises UserError for unfit text or a tokenizer that can't encode it."""
    spool = Spool(folder / SPOOL, work.shape.hashed_text)
    cleaner = Cleaner(work.cleaning, is_chat=work.shape.by_message)
    sides = _read_and_split(work, spool, cleaner)
    if not sides.training.any():
        reason = "has no text, only white space"
        if not set(cleaner.removed) <= {"empty"}:
            removed = ", ".join(f"{count} {step}" for step, count in cleaner.removed.items())
            reason = f"has no text left: cleaning removed all {cleaner.documents_in} documents ({removed})"
        raise UserError(f"job.data: {work.corpora[0].description} {reason}")
    training = Progress("training the tokenizer", work.notify)
    tokenizer = make_tokenizer(
        work.tokenizer, _tokenizer_sample(work, spool, sides.training), work.specials, training.done
    )
    # Written by Python, as what `tokenizers` raises on a full disk is no OSError.
    (folder / TOKENIZER).write_text(tokenizer.backend.to_str(pretty=True), encoding="utf-8", newline="\n")
    name, is_used = str(next(iter(work.tokenizer.model_dump().values()))), sides.training | sides.heldout
    texts = itertools.chain.from_iterable(map(work.shape.encoded, spool.documents(is_used)))
    check_alphabet(tokenizer.backend, texts, name, work.description)
    counts = Counts({"train_documents": int(sides.training.sum()), "train_tokens": 0, "heldout_tokens": 0})
    _write_side(TRAIN, counts, work, tokenizer, _training_texts(work, spool, sides), folder)
    _write_side(HELDOUT, counts, work, tokenizer, _heldout_texts(work, spool, sides, counts, folder), folder)
    spool.path.unlink()
    check_unknown(counts["unknown_tokens"], counts["train_tokens"] + counts["heldout_tokens"], name)
    lengths = spool.lengths[is_used]
    facts: dict[str, Any] = dict(counts)
    Prepared(
        folder=folder, key=key, kind=work.kind, vocab_size=tokenizer.vocab_size, end_id=tokenizer.end_id,
        documents_in=cleaner.documents_in, removed=cleaner.removed, changed=cleaner.changed,
        special_ids=tokenizer.special_ids,
        document_sizes=np.bincount(np.frexp(lengths.astype(float))[1]).tolist() if len(lengths) else [], **facts,
    ).save()  # fmt: skip


def _read_and_split(work: TextWork, spool: Spool, cleaner: Cleaner) -> Sides:
    """Read all documents into the spool and split them."""
    ends = []
    for corpus in work.corpora:
        progress = Progress(f"reading {corpus.description}", work.notify)
        spool.fill(cleaner.cleaned(corpus.documents(cleaner.fault)), progress.done)
        ends.append(len(spool))
    used = np.ones(len(spool), bool)
    if work.cleaning.duplicates == "remove":
        used = spool.first_of_equals()
        cleaner.remove("duplicate", int((~used).sum()))
    pieces = work.shape.pieces
    work.notify("looking for what is in both the training and the held-out text")
    if len(work.corpora) == 1:
        return split(spool, pieces, used)
    heldout = np.arange(len(spool)) >= ends[0]
    is_copy = heldout & used & np.isin(spool.hashes, spool.hashes[used & ~heldout])
    cleaner.remove("in_training", int(is_copy.sum()))
    return decontaminated(spool, pieces, used & ~is_copy, heldout)


def _tokenizer_sample(work: TextWork, spool: Spool, training: Mask) -> Callable[[], Iterator[str]]:
    """A function that reads the text on which the tokenizer is trained."""
    size = int(spool.lengths[training].sum())
    chosen = training
    if size > TOKENIZER_BYTES:
        chosen = training & (spool.hashes % np.uint64(1 << 32) < np.uint64(TOKENIZER_BYTES / size * 2**32))
        work.notify(f"the tokenizer is trained on {TOKENIZER_BYTES >> 20} MiB of the training text, evenly spread")

    def texts() -> Iterator[str]:
        work.notify("training the tokenizer")
        for document in spool.documents(chosen):
            yield from work.shape.encoded(document)

    return texts


def _training_texts(work: TextWork, spool: Spool, sides: Sides) -> Iterator[str]:
    """The texts of the training documents."""
    progress = Progress("encoding", work.notify, int(spool.lengths[sides.training].sum()))
    read = 0
    for document in spool.documents(sides.training):
        read += len(document)
        progress.done(read)
        yield from work.shape.texts(document)


def _heldout_texts(work: TextWork, spool: Spool, sides: Sides, counts: Counts, folder: Path) -> Iterator[str]:
    """The texts of the held-out documents without leaks, which are counted; pairs are also written to a file."""
    with (folder / HELDOUT_PAIRS).open("wb") if work.kind == "pairs" else nullcontext() as pairs:
        for document in spool.documents(sides.heldout):
            counts["removed_lines"] += sides.leaks(document)
            scored = sides.without_leaks(document)
            counts["heldout_documents" if scored else "removed_documents"] += 1
            if not scored:
                continue
            texts = list(work.shape.texts(scored))
            if pairs is not None:
                pairs.write(json.dumps(texts, ensure_ascii=False).encode() + b"\n")
            yield from texts


def _write_side(
    name: str, counts: Counts, work: TextWork, tokenizer: TextTokenizer, texts: Iterator[str], folder: Path
) -> None:
    """Encode the texts into the files of a side, and add to the counts."""
    with ExitStack() as opened:

        def create(suffix: str, *, wanted: bool = True) -> BinaryIO | None:
            return opened.enter_context((folder / f"{name}{suffix}").open("wb")) if wanted else None

        ids, mask = create(".bin"), create("_mask.bin", wanted=work.kind == "chat")
        lengths = create("_lengths.bin", wanted=work.kind == "pairs")
        sizes = create("_bytes.bin", wanted=name == HELDOUT)
        for batch in encode(tokenizer, texts, work.shape.parts, with_bytes=sizes is not None):
            arrays = batch.ids, batch.trained, batch.lengths, batch.bytes
            for file, array in zip((ids, mask, lengths, sizes), arrays, strict=True):
                if file is not None:
                    assert array is not None
                    file.write(array.tobytes())
            counts[f"{name}_tokens"] += len(batch.ids)
            counts["unknown_tokens"] += batch.unknown
            counts[f"{name}_bytes"] += batch.text_bytes


# Data that needs no tokenizer: token files made elsewhere, and a source whose probabilities are known.


_CHUNK = 1 << 22


def write_token_files(files: Sequence[TokenFile], key: str, folder: Path) -> None:
    """Write tokens of one file, whose end is held out, or of a training and a held-out file. Raises UserError."""
    first, *rest = (sources.open_tokens(file) for file in files)
    training, heldout = (first, rest[0]) if rest else sources.split_tokens(first)
    scored, blocks = sources.without_leaks(training, heldout)
    vocab_size = files[0].vocab_size
    for name, tokens in ((TRAIN, training), (HELDOUT, scored)):
        with (folder / f"{name}.bin").open("wb") as stream:
            for start in range(0, len(tokens), _CHUNK):
                stream.write(np.asarray(tokens[start : start + _CHUNK]).astype(token_dtype(vocab_size)).tobytes())
    if not len(training):
        raise UserError("job.data.tokens: there is nothing to train on")
    Prepared(
        folder=folder, key=key, kind="tokens", train_tokens=len(training), heldout_tokens=len(scored),
        vocab_size=vocab_size, removed_lines=blocks,
    ).save()  # fmt: skip


def write_markov(spec: MarkovSource, key: str, folder: Path) -> None:
    """Write two walks, training and held-out tokens; shared stretches are not removed, as both are chance."""
    source = sources.make_source(spec)
    training, _ = sources.emit(source, spec.train_tokens, [spec.seed, 2])
    heldout, truth = sources.emit(source, max(1000, int(spec.train_tokens * HELDOUT_FRACTION)), [spec.seed, 3])
    training.tofile(folder / f"{TRAIN}.bin")
    heldout.tofile(folder / f"{HELDOUT}.bin")
    truth.tofile(folder / f"{HELDOUT}_truth.bin")
    Prepared(
        folder=folder, key=key, kind="markov", train_tokens=len(training), heldout_tokens=len(heldout),
        vocab_size=spec.vocab_size, entropy_rate=source.entropy_rate(),
    ).save()  # fmt: skip
