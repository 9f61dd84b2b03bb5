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
from selectbench.data.reading import cached_commit, cached_folder
from selectbench.errors import UserError
from selectbench.machine import lock
from selectbench.suite.job import Eval, Job
from selectbench.suite.suite import Suite

# The cache folder: where it lies, and how a folder of files appears in it all at once or not at all.


ABANDONED_SECONDS = 86_400
"""A half-written folder older than this was left by a run that was killed."""


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
def in_turn(final: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Inside, nobody else on this node makes the same folder, so that it is made once, where its disk has locks."""
    place = final.with_name(f".unfinished-{final.name}.lock")
    until = time.monotonic() + 3600.0  # from when on it is made twice, and one of both stays
    with ExitStack() as held:
        with suppress(OSError):  # it goes without; where nothing can be written, what follows says so
            place.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(place.open("ab"))
            if not lock(file.fileno(), wait=False):
                notify(f"waiting for another process, which prepares {final}")
                while time.monotonic() < until and not lock(file.fileno(), wait=False):
                    time.sleep(0.2)
        try:
            yield
        finally:
            with suppress(OSError):
                place.unlink()


def publish(final: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill an empty folder beside `final` and renames it to `final` when it is whole.

    Where another run published the same folder first, that one stays: the name is a hash of what made
    it, so both hold the same. Raises UserError where the folder cannot be written or the disk is full.
    """
    # Made by mkdir, not by mkdtemp, so that other users of a shared cache may read it as the umask says.
    unfinished = final.with_name(f".unfinished-{uuid4().hex}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for left in final.parent.glob(".unfinished-*"):
            with suppress(OSError):
                newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
                if time.time() - newest > ABANDONED_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
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
    """Takes a damaged folder out of the cache; it is gone under its name before its files go. Raises UserError."""
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


# What the cache holds is believed only with its digest: a disk, or a person, may have changed it since.


PIECE_BYTES = 4 << 20


def sealed(content: Any) -> str:
    """JSON of the content and its SHA-256."""
    return json.dumps({"sha256": _sha256_of(content), "content": content}, indent=1) + "\n"


def unsealed(text: bytes) -> Any:
    """The content that `sealed` got. Raises ValueError where anything of it was changed."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict) or found.keys() != {"sha256", "content"}:
        raise ValueError("it is not what this version of selectbench writes")
    if found["sha256"] != _sha256_of(found["content"]):
        raise ValueError("its content is not what was written")
    return found["content"]


def _sha256_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of the SHA-256 of every 4 MiB of a file, which all cores work on at once. Raises OSError."""

    def digest(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(PIECE_BYTES)).digest()

    with ThreadPoolExecutor() as pool:
        pieces = pool.map(digest, range(0, path.stat().st_size, PIECE_BYTES))
        return hashlib.sha256(b"".join(pieces)).hexdigest()


# Digests of large files that do not change between runs, kept in the cache so that they are read once.


SETTLED_NS = 2_000_000_000
"""A file that was changed more lately than this may change again within one tick of its clock: nothing is kept."""


def kept_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits. Raises OSError where it can't be read.

    It is known again by path, inode, size and both times, of which no program sets the second (ctime): a file that
    was written to, replaced or given another's time is read anew. A cache that can't be used keeps nothing.
    """
    with path.open("rb") as file:
        place = _place(path, os.fstat(file.fileno()))
        with suppress(OSError, ValueError):
            return str(unsealed(place.read_bytes()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if _place(path, after) == place and time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > SETTLED_NS:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            unfinished = place.with_name(f".unfinished-{uuid4().hex}")
            unfinished.write_text(sealed(digest), encoding="ascii")
            unfinished.replace(place)
    return digest


def _place(path: Path, file: os.stat_result) -> Path:
    mark = (str(path.resolve()), file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns)
    return cache_root() / "digests" / hashlib.sha256(repr(mark).encode()).hexdigest()


TRAIN, HELDOUT = "train", "heldout"
"""What the names of the two sides' files begin with."""
HELDOUT_PAIRS = "heldout_pairs.jsonl"
"""Of pairs: the held-out text, a list of source and target a line."""
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
    documents_in: int = 0
    """Documents read, unreadable ones among them."""
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
    """Of a source whose probabilities are known: nats per token in the long run."""
    end_id: int = 0
    """Of the token that follows every document."""
    special_ids: dict[str, int] = field(default_factory=dict)
    """Token ids that the task needs besides: `mask`, `pad`."""
    document_sizes: list[int] = field(default_factory=list)
    """Documents kept, by size in UTF-8 bytes: the n-th counts those below 2**n and not below 2**(n - 1)."""
    digests: dict[str, str] = field(default_factory=dict)
    """`file_digest` of each file beside prepared.json."""

    @classmethod
    def open(cls, folder: Path | str) -> Prepared:
        """Reads it back, checking only the sizes of its files. Raises FileNotFoundError, or ValueError."""
        folder = Path(folder)
        try:
            content = unsealed((folder / FACTS).read_bytes())
            if not isinstance(content, dict) or content.keys() != {f.name for f in fields(cls)} - {"folder"}:
                raise ValueError("it is not what this version of selectbench writes")
            prepared = msgspec.convert({**content, "folder": folder}, cls)
        except ValueError as error:
            raise ValueError(f"{FACTS}: {error}") from None
        for name, (entries, dtype) in prepared.files().items():
            size, written = (folder / name).stat().st_size, entries * np.dtype(dtype).itemsize
            if size != written:
                raise ValueError(f"{name}: it has {size} bytes, {written} were written")
        if prepared.has_text and not (folder / TOKENIZER).stat().st_size:
            raise ValueError(f"{TOKENIZER}: it is empty")
        return prepared

    def check(self) -> None:
        """Reads every file. Raises ValueError where one is not what was written, FileNotFoundError, OSError."""
        for name, digest in self.digests.items():
            if file_digest(self.folder / name) != digest:
                raise ValueError(f"{name}: its content is not what was written")

    def save(self) -> None:
        """Writes its facts beside the files, which are whole by now."""
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
        """Whether tokens stand for text, by a tokenizer that lies beside them."""
        return self.kind in ("text", "chat", "pairs")

    def facts(self) -> dict[str, Any]:
        """Everything but the folder and the digests, which follow from it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("folder", "digests")}

    def train(self) -> npt.NDArray[np.unsignedinteger]:
        """The training tokens, memory-mapped read-only, shape (train_tokens,)."""
        return self._mapped(f"{TRAIN}.bin")

    def heldout(self) -> npt.NDArray[np.unsignedinteger]:
        """The held-out tokens, memory-mapped read-only, shape (heldout_tokens,)."""
        return self._mapped(f"{HELDOUT}.bin")

    def mask(self, side: str) -> npt.NDArray[np.uint8] | None:
        """1 for each token of a side, TRAIN or HELDOUT, that is to be predicted; None: all are."""
        return self._mapped_if_there(f"{side}_mask.bin")

    def lengths(self, side: str) -> npt.NDArray[np.int64] | None:
        """Tokens of each source and target of a side, (pairs, 2); None: the data are no pairs."""
        lengths = self._mapped_if_there(f"{side}_lengths.bin")
        return None if lengths is None else lengths.reshape(-1, 2)

    def answers(self, side: str, seq_len: int) -> Answers | None:
        """The sequences of a chat's side; None: other data, whose tokens are cut evenly."""
        return _answers(self.folder, side, seq_len) if self.kind == "chat" else None

    def heldout_pairs(self) -> list[tuple[str, str]]:
        """Source and target of every held-out pair, as text."""
        lines = (self.folder / HELDOUT_PAIRS).read_text(encoding="utf-8").split("\n")
        return [(source, target) for source, target in map(json.loads, filter(None, lines))]

    def pairs_to_score(self, job: Job) -> list[tuple[str, str]]:
        """The first of these, as many as its evaluation generates for, of which both sides fit the job."""
        lengths, asked = self.lengths(HELDOUT), job.eval
        assert lengths is not None
        assert isinstance(asked, Eval)
        pairs = self.heldout_pairs()
        return [pairs[number] for number in fitting(lengths, job.seq_len)[: asked.generate].tolist()]

    def bytes_of_heldout(self) -> npt.NDArray[np.uint32] | None:
        """Bytes of UTF-8 that each held-out token stands for; None: there is no text."""
        return self._mapped_if_there(f"{HELDOUT}_bytes.bin")

    def truth_of_heldout(self) -> npt.NDArray[np.float64] | None:
        """Nats of each held-out token under the source itself; None: not known."""
        return self._mapped_if_there(f"{HELDOUT}_truth.bin")

    def _mapped_if_there(self, name: str) -> npt.NDArray[Any] | None:
        return self._mapped(name) if name in self.files() else None

    def _mapped(self, name: str) -> npt.NDArray[Any]:
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
    """The sequences that a chat's tokens are cut to: every token of an answer is counted in exactly one of them.

    One begins with its conversation where that reaches to the answer's end; else half of it or more is what stands
    before the answer. An answer that fits into a sequence is whole in one; none is without a token that counts.
    """

    mask: npt.NDArray[np.bool_]
    """Of each token, whether it is an answer's."""
    starts: npt.NDArray[np.int64]
    """First token of each sequence; those after it are its targets."""
    spans: npt.NDArray[np.int64]
    """Where the targets begin and end that a sequence counts, (sequences, 2)."""

    def counted(self, indices: npt.NDArray[np.int64], seq_len: int) -> npt.NDArray[np.bool_]:
        """Which targets of these sequences count, (len(indices), seq_len)."""
        places = self.starts[indices][:, None] + np.arange(1, seq_len + 1)
        first, last = self.spans[indices].T[:, :, None]
        return np.asarray(self.mask[places] & (first <= places) & (places < last), bool)

    def upto(self, count: int) -> int:
        """Tokens that the first so many sequences count."""
        return int(self.mask[: self.spans[count - 1, 1]].sum()) if count else 0


@lru_cache(maxsize=8)
def _answers(folder: Path, side: str, seq_len: int) -> Answers:
    data = Prepared.open(folder)
    mask, ids = data.mask(side), data.train() if side == TRAIN else data.heldout()
    assert mask is not None
    edges = np.flatnonzero(np.diff(mask, prepend=0, append=0))
    begins, ends = edges[::2], edges[1::2]
    conversations = np.append(0, np.flatnonzero(ids == data.end_id) + 1)
    conversations = conversations[np.searchsorted(conversations, begins, "right") - 1]
    found = list(_cut(begins.tolist(), ends.tolist(), conversations.tolist(), seq_len, len(ids)))
    cut = np.array(found, np.int64).reshape(-1, 3)
    return Answers(mask.view(bool), cut[:, 0], cut[:, 1:])


def _cut(
    begins: list[int], ends: list[int], conversations: list[int], seq_len: int, tokens: int
) -> Iterator[tuple[int, int, int]]:
    """Start and span of every sequence; `conversations`: where that of each answer begins."""
    number, todo = 0, begins[0] if begins else 0
    while tokens > seq_len and number < len(begins):
        end, start = ends[number], conversations[number]
        if end - 1 > start + seq_len:
            fits = end - todo <= seq_len
            before = seq_len // 2 if fits or todo == begins[number] else 0
            start = max(start, todo - 1 - before, end - 1 - seq_len if fits else 0)
        first, reached = conversations[number], min(start + seq_len + 1, tokens)
        number = bisect_right(ends, reached, number)
        following, last = begins[number] if number < len(begins) else tokens, ends[number - 1]
        if following < reached and ends[number] - following > seq_len:
            following = last = reached  # no sequence holds that answer whole
        yield min(start, tokens - 1 - seq_len, max(first, last - 1 - seq_len)), todo, last
        todo = following


def fitting(lengths: npt.NDArray[np.int64], seq_len: int) -> npt.NDArray[np.int64]:
    """Which pairs have no side longer than `seq_len` tokens; the others take no part."""
    return np.flatnonzero((lengths <= seq_len).all(axis=1))


# What a model that was trained before really is: its commit on the hub, or its files' content.


FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")
"""What transformers makes a model of."""


def contents_of(models: Mapping[str, AnyModel]) -> dict[str, str]:
    """By option, the commit, where cached, or files' SHA-256 of a pretrained model. Raises UserError."""
    asked = {option: model for option, model in models.items() if isinstance(model, PretrainedModel)}
    contents = {model: _content(model) for model in dict.fromkeys(asked.values())}
    return {option: content for option, model in asked.items() if (content := contents[model]) is not None}


def unfetched(suite: Suite) -> list[PretrainedModel]:
    """Hub ids of its options' models of which the hub's cache holds no configuration."""
    models = [suite.job_of(option).model for option in suite.options]
    named = dict.fromkeys(model for model in models if isinstance(model, PretrainedModel))
    return [model for model in named if _content(model) is None]


def configuration_of(model: PretrainedModel) -> dict[str, Any] | None:
    """What its config.json holds; None: there is no such file, or the hub's cache has none."""
    folder = Path(model.pretrained)
    snapshot = folder if folder.is_dir() else cached_folder(model.pretrained, model.revision)
    return (mapping_in(snapshot / "config.json") or None) if snapshot else None


def pinned_model(model: AnyModel, content: str | None) -> AnyModel:
    """The same model; of a hub id the commit that was found, whatever the name means by then."""
    if content is None or not isinstance(model, PretrainedModel) or Path(model.pretrained).is_dir():
        return model
    return model.model_copy(update={"revision": content})


def _content(model: PretrainedModel) -> str | None:
    folder = Path(model.pretrained)
    if not folder.is_dir():
        return cached_commit(model.pretrained, model.revision)
    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    digest = hashlib.sha256("\0".join(path.name for path in files).encode())
    for path in files:
        try:
            digest.update(bytes.fromhex(kept_sha256(path)))
        except OSError as error:
            raise UserError(f"model.pretrained: {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


# Whether prepared data are enough for a job: its batches, its evaluation, its epochs.


def training_sequences(prepared: Prepared, job: Job) -> int:
    """Sequences of the job that there are to train on."""
    lengths, cut = prepared.lengths(TRAIN), prepared.answers(TRAIN, job.seq_len)
    if cut is not None:
        return len(cut.starts)
    return sequences(prepared.train_tokens, job.seq_len) if lengths is None else len(fitting(lengths, job.seq_len))


Targets = tuple[float, str]
"""Of a step's tokens the share that its loss counts, and the same for a person."""


def targets(prepared: Prepared, job: Job) -> Targets | None:
    """Of chats and pairs that are enough for the job; None: of other data."""
    lengths, mask, around = prepared.lengths(TRAIN), prepared.mask(TRAIN), ""
    if lengths is not None:
        counted = int(lengths[fitting(lengths, job.seq_len), 1].sum())
    elif mask is not None:
        counted, even = int(mask.sum(dtype=np.int64)), sequences(len(mask), job.seq_len)
        if empty := 1 - float(mask[1 : even * job.seq_len + 1].reshape(even, -1).any(axis=1).mean()):
            around = f"; cut evenly, {empty:.0%} of the sequences would hold none: they are cut around the answers"
        if isinstance(job.tokenizer, PretrainedTokenizer):
            around += "; roles are written as <|user|> and <|assistant|>, not by a template of the tokenizer's own"
    else:
        return None
    per_step, of = counted / training_sequences(prepared, job) * job.global_batch_size, job.tokens_per_step
    words = f"trained on: {per_step:,.0f} of the {of:,} tokens of a step ({per_step / of:.1%}){around}"
    return per_step / of, words


def evaluable_tokens(prepared: Prepared, job: Job) -> int:
    """Held-out tokens that an evaluation may read: whole sequences, answers, or the targets of pairs that fit."""
    lengths, cut = prepared.lengths(HELDOUT), prepared.answers(HELDOUT, job.seq_len)
    if cut is not None:
        return cut.upto(len(cut.starts))
    if lengths is None:
        return sequences(prepared.heldout_tokens, job.seq_len) * job.seq_len
    return int(lengths[fitting(lengths, job.seq_len), 1].sum())


def check_enough(prepared: Prepared, job: Job) -> None:
    """Raises UserError where the text is shorter than one batch, or leaves no sequence to evaluate on."""
    pairs, whole = prepared.lengths(TRAIN), training_sequences(prepared, job)
    less = f"less than one batch of global_batch_size {job.global_batch_size}"
    documents, taken_out = prepared.removed_documents + prepared.removed.get("in_training", 0), ""
    if documents or prepared.removed_lines:
        taken_out = (
            f" ({documents:,} held-out documents and {prepared.removed_lines:,} lines were taken out, as the "
            "training text has them)"
        )
    if pairs is not None:
        too_few = (
            f"of {len(pairs)} training pairs {whole} have no side longer than seq_len {job.seq_len}, {less}: "
            "give more pairs, or raise seq_len"
        )
        none_held_out = f"no held-out pair fits seq_len {job.seq_len}: give more pairs, or set eval: none"
    else:
        too_few = (
            f"{prepared.train_tokens} training tokens make {whole} sequences of seq_len {job.seq_len}"
            f"{' with an answer in them' if prepared.kind == 'chat' else ''}, {less}: "
            "give more text, or lower either"
        )
        none_held_out = (
            f"{prepared.heldout_tokens} held-out tokens make no sequence of seq_len {job.seq_len}"
            f"{taken_out}: give more text, lower seq_len, or set eval: none"
        )
    if prepared.has_text and not prepared.heldout_tokens:
        none_held_out = f"nothing is left to score{taken_out}: give held-out text that is not trained on"
        if not taken_out:
            none_held_out = (
                f"nothing can be held out of so few documents as {prepared.train_documents:,} (text is cut at the "
                "ends of its lines, and what is equal stays on one side): give more text, put line breaks into it, "
                "give held-out text of its own (job.data: {train: ..., heldout: ...})"
            )
        none_held_out += ", or set eval: none"
    problems = [f"job.data: {too_few}"] if whole < job.global_batch_size else []
    if job.evaluates and not evaluable_tokens(prepared, job):
        problems.append(f"job.data: {none_held_out}")
    if problems:
        raise UserError(*problems)


def epochs(prepared: Prepared, job: Job) -> float:
    """How often the job goes through its training sequences; `check_enough` must hold."""
    return job.max_steps * job.global_batch_size / training_sequences(prepared, job)


SAMPLE_TOKENS = 80
SAMPLES = 2


@dataclass(frozen=True)
class Look:
    """Samples of prepared data for a person to check, and their digests."""

    training_samples: list[str]
    heldout_samples: list[str]
    sha256: dict[str, str]
    """Of the files of tokens."""
    targets: Targets | None
    """Of the job of the first option that reads them."""


def look(prepared: Prepared, job: Job) -> Look:
    """Reads beginnings of both sides, and every token once for the digests."""
    tokenizer = None
    if prepared.has_text:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(prepared.folder / TOKENIZER))

    def decode(ids: list[int]) -> str:
        return " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=False)

    digests = {}
    for name in (f"{TRAIN}.bin", f"{HELDOUT}.bin"):
        with (prepared.folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()

    def samples(tokens: npt.NDArray[Any]) -> list[str]:
        starts = [len(tokens) * number // SAMPLES for number in range(SAMPLES)]  # evenly spread
        parts: list[list[int]] = [tokens[start : start + SAMPLE_TOKENS].tolist() for start in starts]
        return [decode(part) for part in parts if part]

    training, heldout = samples(prepared.train()), samples(prepared.heldout())
    return Look(training, heldout, digests, targets(prepared, job))
