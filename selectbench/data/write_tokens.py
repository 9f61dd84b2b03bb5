"""Data that needs no tokenizer: token files made elsewhere, and a source whose probabilities are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selectbench.data.markov import emit, make_source
from selectbench.data.prepared import FACTS, HELDOUT, HELDOUT_TRUTH, TRAIN, Prepared, token_dtype
from selectbench.data.split import HELDOUT_FRACTION
from selectbench.data.tokens import Tokens, open_tokens, split_tokens, without_leaks
from selectbench.errors import UserError
from selectbench.suite.data import MarkovSource, TokenFile

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
