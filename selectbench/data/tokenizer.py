"""The byte-level BPE tokenizer, trained on a job's own training split."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
"""Follows every document; token 0."""
BATCH_DOCUMENTS = 256


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte pair encoding over bytes, split into words as GPT-2 does; the same text gives the same tokenizer.

    The vocabulary holds END_OF_TEXT, the 256 bytes and merges; it is smaller than `vocab_size` where the
    text has no more pairs to merge. Source: Radford et al. 2019, Language Models are Unsupervised
    Multitask Learners, section 2.2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    interruptible(lambda: tokenizer.train_from_iterator(documents, trainer))
    # A document may spell END_OF_TEXT out; that is text like any other, and decodes to itself.
    tokenizer.encode_special_tokens = True
    return tokenizer


def interruptible(work: Callable[[], None]) -> None:
    """Do work that keeps Ctrl-C waiting, since it is native code, in a thread that the process may leave behind."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.05)  # a wait without a bound would not notice the signal
    if failures:
        raise failures[0]


def token_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.int32]:
    """Bytes of UTF-8 that each token id stands for, shape (vocab_size,); 0 for END_OF_TEXT.

    A byte-level token is spelt with one character per byte.
    """
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int32)
    for token, token_id in tokenizer.get_vocab().items():
        lengths[token_id] = 0 if token == END_OF_TEXT else len(token)
    return lengths


def token_dtype(vocab_size: int) -> npt.DTypeLike:
    """The narrowest unsigned type of 2 or 4 bytes that holds every token id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def encode(tokenizer: Tokenizer, documents: Iterable[str]) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    """The token ids of each document, END_OF_TEXT after it."""
    dtype = token_dtype(tokenizer.get_vocab_size())
    end = tokenizer.token_to_id(END_OF_TEXT)
    remaining = iter(documents)
    while batch := list(islice(remaining, BATCH_DOCUMENTS)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array([*encoding.ids, end], dtype=dtype)
