"""A job's data as token files: from the cache where they were made before, else made and published there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from selectbench.choices.model import AnyTokenizer, PretrainedTokenizer, Unigram
from selectbench.data.prepared import Prepared, cache_root, check_enough, epochs, publish, remove
from selectbench.data.reading import Cleaner, files_sha256
from selectbench.data.sources import Corpus, keyed, open_corpus, require
from selectbench.data.tokenizer import pinned, pretrained_key
from selectbench.data.write import TextWork, write_markov, write_text, write_token_files
from selectbench.errors import NotDownloadedError, UserError
from selectbench.suite.sources import Cleaning, Dataset, DataSource, MarkovSource, TokenFile

__all__ = ["Prepared", "check_enough", "epochs", "prepare"]
Notify = Callable[[str], None]
Write = Callable[[str, Path], None]
"""Fills an empty folder with the data of a key."""


def _silent(_: str) -> None:
    """Says nothing."""


def prepare(
    data: DataSource, tokenizer: AnyTokenizer | None, *, cleaning: Cleaning | None = None,
    specials: Sequence[str] = (), code: Sequence[str] = (), notify: Notify = _silent, evaluates: bool = False,
    downloads: bool = True,
) -> Prepared:  # fmt: skip
    """A job's data as token files.

    `data`'s paths and globs are absolute. `tokenizer` None: the data are tokens already. `specials`: tokens that
    the task needs; `code`: folders of own code. `notify` gets a line for a person where something takes time or
    is left out. `evaluates`: text of which nothing can be held out is an error at once. Two runs may prepare
    the same data at once. `downloads` False: rows that would be read as they are downloaded are left to a run.
    Raises NotDownloadedError for these, UserError for text that is missing or unfit, a missing package, and a cache
    that cannot be written.
    """
    described, parts, write = _work(data, tokenizer, cleaning or Cleaning(), specials, code, notify, evaluates)
    key = _key(parts)
    folder = cache_root() / "data" / key
    cached = _cached(folder)
    if cached is None:
        if not downloads and (missing := streamed(data)):
            raise NotDownloadedError(*(f"data.dataset: {one.dataset} is not downloaded yet" for one in missing))
        notify(f"preparing {described} once, in {folder}")
        publish(folder, partial(write, key))
        cached = Prepared.open(folder)
    return cached


def streamed(data: DataSource) -> list[Dataset]:
    """Those of the sources that are read as they are downloaded from the hub."""
    return [s for s in data.parts if isinstance(s, Dataset) and s.rows and not Path(s.dataset).exists()]


def _work(
    data: DataSource, tokenizer: AnyTokenizer | None, cleaning: Cleaning, specials: Sequence[str],
    code: Sequence[str], notify: Notify, evaluates: bool,
) -> tuple[str, list[str], Write]:  # fmt: skip
    """What is prepared in words, what its key is made of, and how it is made."""
    if isinstance(data, MarkovSource):
        source = data
        return "a made-up source", [source.model_dump_json()], lambda key, folder: write_markov(source, key, folder)
    if data.kind == "tokens":
        files = [part for part in data.parts if isinstance(part, TokenFile)]
        return files[0].tokens, _token_key(files), lambda key, folder: write_token_files(files, key, folder)
    assert tokenizer is not None, "text needs a tokenizer: the job was checked"
    if isinstance(tokenizer, PretrainedTokenizer):
        require("transformers")
        tokenizer = pinned(tokenizer)
    corpora = [_keyed(open_corpus(part, notify, code), cleaning, notify) for part in data.parts]
    work = TextWork(corpora, data.kind, tokenizer, cleaning, tuple(specials), notify, evaluates)
    parts = [str(corpus.key) for corpus in corpora]
    parts += [work.kind, cleaning.model_dump_json(), _tokenizer_key(tokenizer), " ".join(specials)]
    return work.described, parts, lambda key, folder: write_text(work, key, folder)


def _keyed(corpus: Corpus, cleaning: Cleaning, notify: Notify) -> Corpus:
    if corpus.key is None:
        notify(f"reading {corpus.description}, to see whether it is prepared already")
    return keyed(corpus, Cleaner(cleaning).fault)


def _token_key(files: Sequence[TokenFile]) -> list[str]:
    paths = [Path(one.tokens) for one in files]
    present = [path for path in paths if path.is_file()]
    digest = files_sha256(present, "data.tokens")
    return ["tokens", digest, *(f"{one.dtype} {one.vocab_size}" for one in files)]


def _tokenizer_key(tokenizer: AnyTokenizer) -> str:
    version = f"tokenizers {require('tokenizers')}"
    if isinstance(tokenizer, PretrainedTokenizer):
        return f"{pretrained_key(tokenizer)} transformers {require('transformers')} {version}"
    trained_by = f" sentencepiece {require('sentencepiece')}" if isinstance(tokenizer, Unigram) else ""
    return f"{tokenizer.model_dump_json()} {version}{trained_by}"


def _key(parts: Sequence[str]) -> str:
    """The code stands for the rules of the split: whatever changes them changes the key."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(json.dumps(list(parts)).encode())
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
