"""Prepared data in the cache: how they get in whole, how they are read, and whether they are enough for a job."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import numpy.typing as npt

from selectbench.choices.model import AnyModel, PretrainedModel, PretrainedTokenizer, mapping_in
from selectbench.data.reading import cached_folder
from selectbench.errors import UserError
from selectbench.machine import lock
from selectbench.suite.job import Eval, Job
from selectbench.suite.suite import Suite

# The cache folder: where it lies, and how a folder of files appears in it all at once or not at all.


LONGEST_WAIT_SECONDS = 3600.0
"""After that it is no longer waited for another process: data are prepared twice, and one of both stays."""
ABANDONED_SECONDS = 86_400
"""A half-written folder older than this is taken to be left by a run that was killed."""


def cache_root() -> Path:
    """SELECTBENCH_CACHE, else selectbench/ in XDG's cache folder, ~/.cache by default. Raises UserError."""
    if named := os.environ.get("SELECTBENCH_CACHE"):
        return Path(named).expanduser().absolute()
    # The XDG specification says that a relative path is to be ignored.
    if (xdg := os.environ.get("XDG_CACHE_HOME")) and Path(xdg).is_absolute():
        return Path(xdg) / "selectbench"
    try:
        return Path.home() / ".cache" / "selectbench"
    except RuntimeError:
        raise UserError("cache: this user has no home folder: set SELECTBENCH_CACHE to a writable folder") from None


@contextmanager
def folder_lock(final: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Lock a folder's preparation against other processes of this node, where the disk has locks."""
    path = final.with_name(f".unfinished-{final.name}.lock")
    until = time.monotonic() + LONGEST_WAIT_SECONDS
    with ExitStack() as stack:
        with suppress(OSError):  # without a lock it goes on; a folder that can't be written fails later
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab"))
            if not lock(file.fileno(), wait=False):
                notify(f"waiting for another process, which prepares {final}")
                while not (locked := lock(file.fileno(), wait=False)) and time.monotonic() < until:
                    time.sleep(0.2)
                if not locked:
                    notify(f"waited {LONGEST_WAIT_SECONDS / 60:.0f} min for it: {final} is prepared here too")
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def publish(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill an empty folder next to `final`, and rename it to `final` when it is complete.

    Where another run published the same folder first, that one stays: the name is a hash of the inputs,
    so both hold the same. Raises UserError where the folder cannot be written or the disk is full.
    """
    # Made by mkdir, not by mkdtemp, so that other users of a shared cache may read it as the umask says.
    unfinished = final.with_name(f".unfinished-{uuid4().hex}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in final.parent.glob(".unfinished-*"):
            with suppress(OSError):
                newest = max(path.stat().st_mtime for path in (abandoned, *abandoned.iterdir()))
                if time.time() - newest > ABANDONED_SECONDS:
                    shutil.rmtree(abandoned, ignore_errors=True)
        unfinished.mkdir()
        write(unfinished)
        for path in unfinished.iterdir():  # to the disk before the name, so that a power cut leaves no torn folder
            with path.open("r+b") as file:  # Windows flushes no file that is open for reading alone
                os.fsync(file.fileno())
        try:
            unfinished.rename(final)
        except OSError:
            # Renaming onto a folder that has files fails: another run was first.
            if not final.is_dir():
                raise
    except OSError as error:
        raise UserError(
            f"cache: cannot write {final.parent}: {error.strerror or error}: "
            "set SELECTBENCH_CACHE to a folder that is writable and has room"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a damaged folder from the cache: rename it first, then delete its files. Raises UserError."""
    aside = folder.with_name(f".unfinished-{uuid4().hex}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"cache: {folder} is damaged and can't be removed: {error.strerror}: remove it, or set "
            "SELECTBENCH_CACHE to a folder of your own"
        ) from error
    shutil.rmtree(aside, ignore_errors=True)


# Files of the cache are checked against their digests: a disk, or a person, may have changed them since.


PIECE_BYTES = 4 << 20


def sealed(content: Any) -> str:
    """JSON with the content and its SHA-256."""
    return json.dumps({"sha256": _sha256_of(content), "content": content}, indent=1) + "\n"


def unsealed(text: bytes) -> Any:
    """The content that was given to `sealed`. Raises ValueError where the text was changed since."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict) or document.keys() != {"sha256", "content"}:
        raise ValueError("it is not what this version of selectbench writes")
    if document["sha256"] != _sha256_of(document["content"]):
        raise ValueError("its content is not what was written")
    return document["content"]


def _sha256_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 over the SHA-256 of each 4 MiB of a file, computed on all cores. Raises OSError."""

    def digest(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(PIECE_BYTES)).digest()

    with ThreadPoolExecutor() as pool:
        pieces = pool.map(digest, range(0, path.stat().st_size, PIECE_BYTES))
        return hashlib.sha256(b"".join(pieces)).hexdigest()


# Digests of large files that do not change between runs, stored in the cache so that the files are read once.


UNCHANGED_NS = 2_000_000_000
"""A file that changed more recently may change again within one tick of its clock: its digest is not stored."""


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits. Raises OSError where it can't be read.

    A stored digest is used for the same path, inode, size and times, of which no program can set the ctime: a file
    that was written to, replaced or given another mtime is read again. Without a usable cache nothing is stored.
    """
    with path.open("rb") as file:
        entry = _entry(path, os.fstat(file.fileno()))
        with suppress(OSError, ValueError):
            return str(unsealed(entry.read_bytes()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if _entry(path, after) == entry and time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > UNCHANGED_NS:
        with suppress(OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            unfinished = entry.with_name(f".unfinished-{uuid4().hex}")
            unfinished.write_text(sealed(digest), encoding="ascii")
            unfinished.replace(entry)
    return digest


def _entry(path: Path, file: os.stat_result) -> Path:
    mark = (str(path.resolve()), file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns)
    return cache_root() / "digests" / hashlib.sha256(repr(mark).encode()).hexdigest()


TRAIN, HELDOUT = "train", "heldout"
"""Names of the two sides, with which their files begin."""
HELDOUT_PAIRS = "heldout_pairs.jsonl"
"""The held-out pairs as text: on each line a list of source and target."""
TOKENIZER = "tokenizer.json"
"""The tokenizer, as the package `tokenizers` writes it."""
FACTS = "prepared.json"
"""The fields of `Prepared`, except its folder."""


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
    """Entries that the tokenizer has; may be fewer than the suite requests."""
    documents_in: int = 0
    """Documents read, including unreadable ones."""
    removed: dict[str, int] = field(default_factory=dict)
    """Documents that cleaning removed, by step."""
    changed: dict[str, int] = field(default_factory=dict)
    """Documents that cleaning changed, by step."""
    train_documents: int = 0
    heldout_documents: int = 0
    removed_documents: int = 0
    """Held-out documents that were dropped whole, as they occur in training."""
    removed_lines: int = 0
    """Held-out lines (of a chat: answers; of tokens: blocks of 32) that were dropped, as they occur in training."""
    train_bytes: int = 0
    """UTF-8 bytes of the training documents; 0 where there is no text."""
    heldout_bytes: int = 0
    """UTF-8 bytes of the held-out documents."""
    unknown_tokens: int = 0
    """Training and held-out tokens that stand for what the tokenizer could not encode."""
    entropy_rate: float | None = None
    """Nats per token in the long run, for a source of known probabilities; None: other data."""
    end_id: int = 0
    """Id of the token that follows every document."""
    special_ids: dict[str, int] = field(default_factory=dict)
    """Ids of further tokens that the task needs, by name: `mask`, `pad`."""
    document_sizes: list[int] = field(default_factory=list)
    """Numbers of documents by size: entry n counts sizes from 2**(n - 1) to below 2**n UTF-8 bytes."""
    digests: dict[str, str] = field(default_factory=dict)
    """`file_digest` of each other file of the folder, by name."""

    @classmethod
    def open(cls, folder: Path | str) -> Prepared:
        """Read prepared data, checking only the sizes of files. Raises FileNotFoundError, or ValueError."""
        folder = Path(folder)
        try:
            content = unsealed((folder / FACTS).read_bytes())
            if not isinstance(content, dict) or content.keys() != {f.name for f in fields(cls)} - {"folder"}:
                raise ValueError("it is not what this version of selectbench writes")
            prepared = msgspec.convert({**content, "folder": folder}, cls)
        except ValueError as error:
            raise ValueError(f"{FACTS}: {error}") from None
        for name, (entries, dtype) in prepared.files().items():
            size, expected = (folder / name).stat().st_size, entries * np.dtype(dtype).itemsize
            if size != expected:
                raise ValueError(f"{name}: it has {size} bytes, {expected} were written")
        if prepared.has_text and not (folder / TOKENIZER).stat().st_size:
            raise ValueError(f"{TOKENIZER}: it is empty")
        return prepared

    def check(self) -> None:
        """Check the digest of every file. Raises ValueError where one has changed, FileNotFoundError, OSError."""
        for name, digest in self.digests.items():
            if file_digest(self.folder / name) != digest:
                raise ValueError(f"{name}: its content is not what was written")

    def save(self) -> None:
        """Write prepared.json with the digests of the other files, which must be complete."""
        digests = {path.name: file_digest(path) for path in sorted(self.folder.iterdir())}
        (self.folder / FACTS).write_text(sealed({**self.facts(), "digests": digests}), encoding="utf-8")

    def files(self) -> dict[str, tuple[int, npt.DTypeLike]]:
        """Entries and type of each file of numbers, by name; in native order.

        `train.bin`, `heldout.bin`: token ids, an end-of-text token after each document. Of chats `_mask`: 1 where
        the token is to be predicted. Of pairs `_lengths`: tokens of each source and each target in turn, their ends
        among them. `heldout_bytes`: bytes of UTF-8 that each token stands for; they sum up to the text. Of a source
        whose probabilities are known `heldout_truth`: nats of each token under the source itself.
        """
        files: dict[str, tuple[int, npt.DTypeLike]] = {}
        for side, tokens, documents in (
            (TRAIN, self.train_tokens, self.train_documents), (HELDOUT, self.heldout_tokens, self.heldout_documents)
        ):  # fmt: skip
            files[f"{side}.bin"] = tokens, token_dtype(self.vocab_size)
            if self.kind == "chat":
                files[f"{side}_mask.bin"] = tokens, np.uint8
            if self.kind == "pairs":
                files[f"{side}_lengths.bin"] = 2 * documents, np.int64
        if self.has_text:
            files[f"{HELDOUT}_bytes.bin"] = self.heldout_tokens, np.uint32
        if self.kind == "markov":
            files[f"{HELDOUT}_truth.bin"] = self.heldout_tokens, np.float64
        return files

    @property
    def has_text(self) -> bool:
        """Whether tokens stand for text, through a tokenizer in the same folder."""
        return self.kind in ("text", "chat", "pairs")

    def facts(self) -> dict[str, Any]:
        """All fields but the folder and the digests."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("folder", "digests")}

    def train(self) -> npt.NDArray[np.unsignedinteger]:
        """The training tokens, memory-mapped read-only, shape (train_tokens,)."""
        return self._map(f"{TRAIN}.bin")

    def heldout(self) -> npt.NDArray[np.unsignedinteger]:
        """The held-out tokens, memory-mapped read-only, shape (heldout_tokens,)."""
        return self._map(f"{HELDOUT}.bin")

    def mask(self, side: str) -> npt.NDArray[np.uint8] | None:
        """1 for each token of a side, TRAIN or HELDOUT, that is predicted, else 0; None: all are."""
        return self._map_optional(f"{side}_mask.bin")

    def lengths(self, side: str) -> npt.NDArray[np.int64] | None:
        """Tokens of each source and target of a side, (pairs, 2); None: the data are not pairs."""
        lengths = self._map_optional(f"{side}_lengths.bin")
        return None if lengths is None else lengths.reshape(-1, 2)

    def answers(self, side: str, seq_len: int) -> Answers | None:
        """The sequences of one side of a chat; None: other data, whose tokens are cut evenly."""
        return _cut_answers(self.folder, side, seq_len) if self.kind == "chat" else None

    def heldout_pairs(self) -> list[tuple[str, str]]:
        """Source and target of every held-out pair, as text."""
        lines = (self.folder / HELDOUT_PAIRS).read_text(encoding="utf-8").split("\n")
        return [(source, target) for source, target in map(json.loads, filter(None, lines))]

    def pairs_to_score(self, job: Job) -> list[tuple[str, str]]:
        """The first held-out pairs whose sides fit `seq_len`, as many as the evaluation generates for."""
        lengths, evaluation = self.lengths(HELDOUT), job.eval
        assert lengths is not None
        assert isinstance(evaluation, Eval)
        pairs = self.heldout_pairs()
        return [pairs[number] for number in fitting_pairs(lengths, job.seq_len)[: evaluation.generate].tolist()]

    def bytes_of_heldout(self) -> npt.NDArray[np.uint32] | None:
        """Bytes of UTF-8 that each held-out token stands for; None: there is no text."""
        return self._map_optional(f"{HELDOUT}_bytes.bin")

    def truth_of_heldout(self) -> npt.NDArray[np.float64] | None:
        """Nats of each held-out token under the source itself; None: not known."""
        return self._map_optional(f"{HELDOUT}_truth.bin")

    def _map_optional(self, name: str) -> npt.NDArray[Any] | None:
        return self._map(name) if name in self.files() else None

    def _map(self, name: str) -> npt.NDArray[Any]:
        entries, dtype = self.files()[name]
        if not entries:  # an empty file cannot be mapped
            return np.zeros(0, dtype=dtype)
        return np.memmap(self.folder / name, dtype=dtype, mode="r", shape=(entries,))


def token_dtype(vocab_size: int) -> npt.DTypeLike:
    """The narrowest unsigned type of 2 or 4 bytes that holds every token id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def sequences(tokens: int, seq_len: int) -> int:
    """Whole sequences in a token stream; each reads one token beyond its length, as its last target."""
    return max(0, tokens - 1) // seq_len


@dataclass(frozen=True)
class Answers:
    """The sequences of a chat's tokens: every token of an answer is counted in exactly one of them.

    A sequence begins with its conversation where that reaches to the answer's end; else at least half of it is
    context before the answer. An answer that fits into a sequence is not cut; each sequence counts some token.
    """

    mask: npt.NDArray[np.bool_]
    """For each token, whether it belongs to an answer."""
    starts: npt.NDArray[np.int64]
    """Index of each sequence's first token; the tokens after it are its targets."""
    spans: npt.NDArray[np.int64]
    """First and end index of the targets that a sequence counts, (sequences, 2)."""

    def counted(self, indices: npt.NDArray[np.int64], seq_len: int) -> npt.NDArray[np.bool_]:
        """Whether each target of these sequences counts, (len(indices), seq_len)."""
        places = self.starts[indices][:, None] + np.arange(1, seq_len + 1)
        first, last = self.spans[indices].T[:, :, None]
        return np.asarray(self.mask[places] & (first <= places) & (places < last), bool)

    def counted_tokens(self, count: int) -> int:
        """Number of tokens that the first `count` sequences count."""
        return int(self.mask[: self.spans[count - 1, 1]].sum()) if count else 0


@lru_cache(maxsize=8)
def _cut_answers(folder: Path, side: str, seq_len: int) -> Answers:
    data = Prepared.open(folder)
    mask, ids = data.mask(side), data.train() if side == TRAIN else data.heldout()
    assert mask is not None
    edges = np.flatnonzero(np.diff(mask, prepend=0, append=0))
    begins, ends = edges[::2], edges[1::2]
    conversations = np.append(0, np.flatnonzero(ids == data.end_id) + 1)
    conversations = conversations[np.searchsorted(conversations, begins, "right") - 1]
    rows = list(_sequences_around(begins.tolist(), ends.tolist(), conversations.tolist(), seq_len, len(ids)))
    cut = np.array(rows, np.int64).reshape(-1, 3)
    return Answers(mask.view(bool), cut[:, 0], cut[:, 1:])


def _sequences_around(
    begins: list[int], ends: list[int], conversations: list[int], seq_len: int, tokens: int
) -> Iterator[tuple[int, int, int]]:
    """Start and span of every sequence; `conversations`: start of each answer's conversation."""
    number, first_uncounted = 0, begins[0] if begins else 0
    while tokens > seq_len and number < len(begins):
        end, start = ends[number], conversations[number]
        if end - 1 > start + seq_len:
            fits = end - first_uncounted <= seq_len
            context = seq_len // 2 if fits or first_uncounted == begins[number] else 0
            start = max(start, first_uncounted - 1 - context, end - 1 - seq_len if fits else 0)
        first, end_of_sequence = conversations[number], min(start + seq_len + 1, tokens)
        number = bisect_right(ends, end_of_sequence, number)
        following, last = begins[number] if number < len(begins) else tokens, ends[number - 1]
        if following < end_of_sequence and ends[number] - following > seq_len:
            following = last = end_of_sequence  # no sequence holds that answer whole
        yield min(start, tokens - 1 - seq_len, max(first, last - 1 - seq_len)), first_uncounted, last
        first_uncounted = following


def fitting_pairs(lengths: npt.NDArray[np.int64], seq_len: int) -> npt.NDArray[np.int64]:
    """Indices of the pairs with no side longer than `seq_len` tokens; the others are not used."""
    return np.flatnonzero((lengths <= seq_len).all(axis=1))


# Which content a pretrained model has: its commit on the hub, or its files' digest.


FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")
"""Files from which transformers makes a model."""


def model_contents(models: Mapping[str, AnyModel]) -> dict[str, str]:
    """The hub commit, where cached, or the files' SHA-256 of each option's pretrained model. Raises UserError."""
    pretrained = {option: model for option, model in models.items() if isinstance(model, PretrainedModel)}
    contents = {model: _content(model) for model in dict.fromkeys(pretrained.values())}
    return {option: content for option, model in pretrained.items() if (content := contents[model]) is not None}


def uncached_models(suite: Suite) -> list[PretrainedModel]:
    """The options' pretrained models whose configuration is not in the hub's cache."""
    models = [suite.job_of(option).model for option in suite.options]
    pretrained = dict.fromkeys(model for model in models if isinstance(model, PretrainedModel))
    return [model for model in pretrained if _content(model) is None]


def configuration_of(model: PretrainedModel) -> dict[str, Any] | None:
    """The content of the model's config.json; None: the folder, or the hub's cache, has none."""
    folder = Path(model.pretrained)
    snapshot = folder if folder.is_dir() else cached_folder(model.pretrained, model.revision)
    return (mapping_in(snapshot / "config.json") or None) if snapshot else None


def pinned_model(model: AnyModel, content: str | None) -> AnyModel:
    """The same model; a hub id is pinned to the commit in `content`."""
    if content is None or not isinstance(model, PretrainedModel) or Path(model.pretrained).is_dir():
        return model
    return model.model_copy(update={"revision": content})


def _content(model: PretrainedModel) -> str | None:
    folder = Path(model.pretrained)
    if not folder.is_dir():
        snapshot = cached_folder(model.pretrained, model.revision)
        return None if snapshot is None else snapshot.name
    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    digest = hashlib.sha256("\0".join(path.name for path in files).encode())
    for path in files:
        try:
            digest.update(bytes.fromhex(cached_sha256(path)))
        except OSError as error:
            raise UserError(f"model.pretrained: {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


# Whether prepared data are enough for a job: its batches, its evaluation, its epochs.


def training_sequences(prepared: Prepared, job: Job) -> int:
    """Number of the job's training sequences."""
    lengths, cut = prepared.lengths(TRAIN), prepared.answers(TRAIN, job.seq_len)
    if lengths is not None:
        return len(fitting_pairs(lengths, job.seq_len))
    return sequences(prepared.train_tokens, job.seq_len) if cut is None else len(cut.starts)


Targets = tuple[float, str]
"""Share of a step's tokens that its loss counts, and a sentence on it."""


def targets(prepared: Prepared, job: Job) -> Targets | None:
    """The counted share for chats and pairs, which must be enough for the job; None: other data."""
    lengths, mask, note = prepared.lengths(TRAIN), prepared.mask(TRAIN), ""
    if lengths is not None:
        counted = int(lengths[fitting_pairs(lengths, job.seq_len), 1].sum())
    elif mask is not None:
        counted, even = int(mask.sum(dtype=np.int64)), sequences(len(mask), job.seq_len)
        if empty := 1 - float(mask[1 : even * job.seq_len + 1].reshape(even, -1).any(axis=1).mean()):
            note = f"; cut evenly, {empty:.0%} of the sequences would hold none: they are cut around the answers"
        if isinstance(job.tokenizer, PretrainedTokenizer):
            note += "; roles are written as <|user|> and <|assistant|>, not by a template of the tokenizer's own"
    else:
        return None
    per_step, tokens = counted / training_sequences(prepared, job) * job.global_batch_size, job.tokens_per_step
    text = f"trained on: {per_step:,.0f} of the {tokens:,} tokens of a step ({per_step / tokens:.1%}){note}"
    return per_step / tokens, text


def evaluable_tokens(prepared: Prepared, job: Job) -> int:
    """Held-out tokens that an evaluation can score: whole sequences, answers, or the targets of pairs that fit."""
    lengths, cut = prepared.lengths(HELDOUT), prepared.answers(HELDOUT, job.seq_len)
    if cut is not None:
        return cut.counted_tokens(len(cut.starts))
    if lengths is None:
        return sequences(prepared.heldout_tokens, job.seq_len) * job.seq_len
    return int(lengths[fitting_pairs(lengths, job.seq_len), 1].sum())


def check_enough(prepared: Prepared, job: Job) -> None:
    """Raise UserError where the text is shorter than one batch, or leaves no sequence to evaluate on."""
    whole, problems = training_sequences(prepared, job), []
    if whole < job.global_batch_size:
        less = f"less than one batch of global_batch_size {job.global_batch_size}"
        if (pairs := prepared.lengths(TRAIN)) is not None:
            problems.append(
                f"job.data: of {len(pairs)} training pairs {whole} have no side longer than seq_len {job.seq_len}, "
                f"{less}: give more pairs, or raise seq_len"
            )
        else:
            answers = " with an answer in them" if prepared.kind == "chat" else ""
            problems.append(
                f"job.data: {prepared.train_tokens} training tokens make {whole} sequences of seq_len {job.seq_len}"
                f"{answers}, {less}: give more text, or lower either"
            )
    if job.evaluates and not evaluable_tokens(prepared, job):
        problems.append(f"job.data: {_nothing_to_score(prepared, job)}, or set eval: none")
    if problems:
        raise UserError(*problems)


def _nothing_to_score(prepared: Prepared, job: Job) -> str:
    """Why no held-out token can be scored, and what to change."""
    documents, taken_out = prepared.removed_documents + prepared.removed.get("in_training", 0), ""
    counts = ((documents, "held-out document"), (prepared.removed_lines, "line"))
    if parts := [f"{number:,} {what}{'s' * (number != 1)}" for number, what in counts if number]:
        taken_out = f" ({' and '.join(parts)} taken out, as the training text has them)"
    if prepared.has_text and not prepared.heldout_tokens:
        if taken_out:
            return f"nothing is left to score{taken_out}: give held-out text that is not trained on"
        cleaned = ", ".join(f"{count:,} {step}" for step, count in prepared.removed.items())
        cleaned = f", and cleaning removed {cleaned}" if cleaned else ""
        lines = ", put line breaks into it" if prepared.kind == "text" else ""
        return (
            f"nothing is left to score: {prepared.train_documents:,} of {prepared.documents_in:,} documents "
            f"are trained on (what is equal stays on one side{cleaned}): give more text{lines}, or held-out "
            "text of its own that passes cleaning (job.data: {train: ..., heldout: ...})"
        )
    if prepared.kind == "pairs":
        return f"no held-out pair fits seq_len {job.seq_len}: give more pairs"
    tokens = f"{prepared.heldout_tokens} held-out tokens make no sequence of seq_len {job.seq_len}{taken_out}"
    return f"{tokens}: give more text, lower seq_len"


def epochs(prepared: Prepared, job: Job) -> float:
    """How often the job goes through its training sequences; `check_enough` must hold."""
    return job.max_steps * job.global_batch_size / training_sequences(prepared, job)


SAMPLE_TOKENS = 80
SAMPLES = 2


@dataclass(frozen=True)
class Samples:
    """Samples of prepared data for a person to check, and their digests."""

    training_samples: list[str]
    heldout_samples: list[str]
    sha256: dict[str, str]
    """SHA-256 of each file of tokens, by name."""
    targets: Targets | None
    """Counted share of tokens in the job of the first option with these data."""

    @classmethod
    def draw(cls, prepared: Prepared, job: Job) -> Samples:
        """Draw samples from both sides, and read all tokens once for the digests."""
        tokenizer = None
        if prepared.has_text:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(prepared.folder / TOKENIZER))

        def decoded(tokens: npt.NDArray[Any]) -> list[str]:
            starts = [len(tokens) * number // SAMPLES for number in range(SAMPLES)]  # evenly spread
            parts: list[list[int]] = [tokens[start : start + SAMPLE_TOKENS].tolist() for start in starts]
            if tokenizer is None:
                return [" ".join(map(str, part)) for part in parts if part]
            return [tokenizer.decode(part, skip_special_tokens=False) for part in parts if part]

        digests = {}
        for name in (f"{TRAIN}.bin", f"{HELDOUT}.bin"):
            with (prepared.folder / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(decoded(prepared.train()), decoded(prepared.heldout()), digests, targets(prepared, job))
