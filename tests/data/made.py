"""What the tests of data share: small real files of every kind, and what was prepared of them as text."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from selectbench.choices.model import Bpe
from selectbench.data.prepare import prepare
from selectbench.data.prepared import Prepared
from selectbench.data.tokenizer import END_OF_TEXT
from selectbench.errors import UserError
from selectbench.suite.sources import (
    Chat,
    Cleaning,
    Dataset,
    JsonLines,
    OwnDocuments,
    Parquet,
    TextFiles,
    TokenFile,
)

BPE = Bpe(bpe=300)
REFRAIN = "and all of the ravens came home again in the evening"
STORIES = [f"Day {n}: {n % 7} ravens left the größe {n * 13} tower 🗼{n}.\n{REFRAIN}" for n in range(120)]
"""Documents that differ, but for a line that stands in each."""


def text(folder: Path, documents: Iterable[str] = STORIES) -> TextFiles:
    """Each document as a block of its own, blank lines in between; blocks are cut from 2,000 characters on."""
    path = folder / "text.txt"
    path.write_text("\n\n".join(f"{one}\n{'x' * 2000}{number}" for number, one in enumerate(documents)), "utf-8")
    return TextFiles(text=[str(path)])


def jsonl(folder: Path, documents: Iterable[str] = STORIES, name: str = "records.jsonl") -> JsonLines:
    lines = "".join(json.dumps({"text": one, "id": 3, "meta": {"text": one}}) + "\n" for one in documents)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(folder / name, "wt", encoding="utf-8") as file:
        file.write(lines)
    return JsonLines(jsonl=[str(folder / name)])


def parquet(folder: Path, documents: Iterable[str] = STORIES, name: str = "rows.parquet") -> Parquet:
    found = list(documents)
    table = pa.table({"text": found, "id": range(len(found)), "meta": [{"text": one} for one in found]})
    pq.write_table(table, folder / name)
    return Parquet(parquet=[str(folder / name)])


def dataset(folder: Path, documents: Iterable[str] = STORIES, name: str = "saved") -> Dataset:
    found = list(documents)
    datasets.disable_progress_bars()
    columns = {"text": found, "id": list(range(len(found))), "meta": [{"text": one} for one in found]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder / name))
    return Dataset(dataset=str(folder / name))


OWN_MODULE = """\
import json
from pathlib import Path


class Documents:
    def __init__(self, times=1):
        self.times = times

    def __iter__(self):
        for text in json.loads((Path(__file__).parent / "own.json").read_text()) * self.times:
            yield text
"""


def own(folder: Path, documents: Iterable[str] = STORIES, module: str = OWN_MODULE) -> OwnDocuments:
    """In the folder `code`, which is to be given as `code`."""
    code = folder / "code"
    code.mkdir(exist_ok=True)
    (code / "own.json").write_text(json.dumps(list(documents)))
    (code / "own_stories.py").write_text(module)
    return OwnDocuments(documents="own_stories:Documents")


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]  # fmt: skip


def chat(folder: Path, documents: Iterable[str] = STORIES, name: str = "chats.jsonl") -> Chat:
    lines = [json.dumps({"messages": turns(f"What of {n}?", one)}) for n, one in enumerate(documents)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return Chat(chat=[str(folder / name)])


def token_file(path: Path, ids: Any, dtype: Any = "uint16", vocab_size: int = 500) -> TokenFile:
    np.asarray(ids, dtype).tofile(path)
    return TokenFile(tokens=str(path), dtype=dtype, vocab_size=vocab_size)


TEXTS: dict[str, Callable[..., Any]] = {
    "text": text, "jsonl": jsonl, "parquet": parquet, "dataset": dataset, "own": own,
}  # fmt: skip
"""Writers of every source of running text."""


def made(data: Any, folder: Path | None = None, **settings: Any) -> Prepared:
    """Prepared with a small tokenizer; `folder`: that own code lies in."""
    code = [str(folder / "code")] if folder is not None else []
    return prepare(data, settings.pop("tokenizer", BPE), code=code, **settings)


def decoded(prepared: Prepared, tokens: Any) -> list[str]:
    """The documents that tokens stand for."""
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer.json"))
    found = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    return found.split(END_OF_TEXT)[:-1]


def in_cache() -> list[str]:
    """What stands in the cache, unfinished folders too; not the locks of who prepared."""
    folder = Path(os.environ["SELECTBENCH_CACHE"]) / "data"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


def refused(
    data: Any, *words: object, folder: Path | None = None, cleaning: Cleaning | None = None, tokenizer: Any = BPE,
) -> None:  # fmt: skip
    """Asserts that it is, in a line with these words, and that the cache is as before."""
    before = in_cache()
    code = [str(folder / "code")] if folder else []
    with pytest.raises(UserError) as caught:
        prepare(data, tokenizer, cleaning=cleaning, code=code)
    for word in words:
        assert str(word) in str(caught.value)
    assert all(len(problem.splitlines()) == 1 for problem in caught.value.problems)
    assert in_cache() == before
