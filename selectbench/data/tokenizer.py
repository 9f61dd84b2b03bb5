"""Tokenizers: trained on a job's own training split, or read from a folder or the hub."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from selectbench.choices.tokenizer import AnyTokenizer, Bpe, Bytes, PretrainedTokenizer, Unigram, WordPiece
from selectbench.data.pretrained import load_pretrained
from selectbench.data.unigram import train_pieces
from selectbench.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
"""Follows every document; token 0 of a trained tokenizer."""
UNKNOWN = "<|unknown|>"
LONGEST_WORD = 64
"""Bytes of a word for WordPiece, longer ones are cut: its time grows with the cube of a word's length."""
MOST_WORDS = 50_000
"""Words that a unigram model is trained on, the most frequent ones."""
STRETCH = 1 << 23
"""Characters of which such words are counted at once."""
INSIDE = "\u2581"
"""Marks WordPiece's pieces inside of words; unlike BERT's ## it stands for no byte: no text can spell it."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer with what the data needs to know of it."""

    backend: Tokenizer
    end_id: int
    """Of the token that follows every document."""
    unknown_id: int | None
    """Of the token that stands for what can't be encoded; None: there is none, everything can."""
    special_ids: dict[str, int]
    """Of `mask`, `pad` and the like, where it has them."""

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab().values()) + 1


def make_tokenizer(
    spec: AnyTokenizer, documents: Callable[[], Iterable[str]], specials: Sequence[str] = (),
    waiting: Callable[[], None] = lambda: None,
) -> TextTokenizer:  # fmt: skip
    """`documents`: the training text, read where something is trained; `specials`: tokens that a task needs.

    `waiting` is called many times a second while native code trains. The same text gives the same
    tokenizer. Raises UserError where a pretrained one can't be had.
    """
    if isinstance(spec, PretrainedTokenizer):
        return TextTokenizer(*load_pretrained(spec, specials))
    named = [END_OF_TEXT, *(f"<|{name}|>" for name in specials)]
    backend = _trained(spec, documents, named, waiting)
    # A document may spell a special token out; that is text like any other, and decodes to itself.
    backend.encode_special_tokens = True
    ids = {name: backend.get_vocab()[f"<|{name}|>"] for name in specials}
    return TextTokenizer(backend, backend.get_vocab()[END_OF_TEXT], backend.token_to_id(UNKNOWN), ids)


def _trained(
    spec: AnyTokenizer, documents: Callable[[], Iterable[str]], specials: list[str], waiting: Callable[[], None]
) -> Tokenizer:
    match spec:
        case Bytes():
            return _of_bytes(specials)
        case Unigram():
            return _train_unigram(documents, spec.unigram, specials, waiting)
        case WordPiece():
            return _train_wordpiece(documents(), spec.wordpiece, specials, waiting)
        case Bpe():
            return train_bpe(documents(), spec.bpe, specials, waiting)
        case _:
            raise AssertionError(spec)


def _byte_level(model: Any) -> Tokenizer:
    """Words as GPT-2 splits them, spelt with one character per byte: nothing is lost, nothing is unknown."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def train_bpe(
    documents: Iterable[str], vocab_size: int, specials: Sequence[str] = (END_OF_TEXT,),
    waiting: Callable[[], None] = lambda: None,
) -> Tokenizer:  # fmt: skip
    """Byte pair encoding over bytes, split into words as GPT-2 does.

    The vocabulary holds the special tokens, the 256 bytes and merges; it is smaller than `vocab_size` where the
    text has no more pairs to merge. Source: Radford et al. 2019, Language Models are Unsupervised
    Multitask Learners, section 2.2.
    """
    from tokenizers import models, trainers

    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(specials), initial_alphabet=_alphabet(), show_progress=False
    )
    interruptible(lambda: tokenizer.train_from_iterator(documents, trainer), waiting)
    return tokenizer


def _of_bytes(specials: list[str]) -> Tokenizer:
    from tokenizers import models

    vocabulary = {token: number for number, token in enumerate([*specials, *_alphabet()])}
    tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _train_unigram(
    documents: Callable[[], Iterable[str]], vocab_size: int, specials: list[str], waiting: Callable[[], None]
) -> Tokenizer:
    """The special tokens, which no stretch of a text can be, then bytes and pieces."""
    from tokenizers import models

    alphabet, pieces = _alphabet(), list[tuple[str, float]]()
    words = _counted_words(documents(), waiting)
    interruptible(lambda: pieces.extend(train_pieces(words, alphabet, vocab_size - len(alphabet) - 1)), waiting)
    tokenizer = _byte_level(models.Unigram([*((name, 0.0) for name in specials), *pieces]))
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _counted_words(documents: Iterable[str], waiting: Callable[[], None] = lambda: None) -> dict[str, int]:
    """The most frequent words of a text, spelt by bytes, with their numbers of occurrences.

    Counted stretch by stretch, of each its own most frequent words: what is rare in all of them takes no memory, be
    the text made of numbers, or of a script without blanks, where a whole clause is a word.
    """
    counts: Counter[str] = Counter()
    for texts in _batches(documents, STRETCH):
        counts.update(_counted(texts, waiting))
        counts = _most_frequent(counts, 4 * MOST_WORDS)
    return _most_frequent(counts, MOST_WORDS)


def _counted(texts: list[str], waiting: Callable[[], None]) -> dict[str, int]:
    from tokenizers import models, trainers

    words = _byte_level(models.WordLevel(unk_token=UNKNOWN))
    trainer = trainers.WordLevelTrainer(vocab_size=MOST_WORDS, special_tokens=[UNKNOWN], show_progress=False)
    interruptible(lambda: words.train_from_iterator(texts, trainer), waiting)
    words.encode_special_tokens = True  # a text that spells the unknown out is of words like any other
    counts = np.zeros(words.get_vocab_size(), np.int64)
    for batch in _batches(texts, 1 << 20):  # a vector as long as the vocabulary is added up for every one
        encodings = words.encode_batch_fast(batch, add_special_tokens=False)
        ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        counts += np.bincount(np.fromiter(ids, np.int64), minlength=len(counts))
    return {word: int(counts[number]) for word, number in words.get_vocab().items() if word != UNKNOWN}


def _most_frequent(counts: Counter[str], most: int) -> Counter[str]:
    if len(counts) <= most:
        return counts
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Counter(dict(ranked[:most]))


def _batches(documents: Iterable[str], characters: int) -> Iterator[list[str]]:
    """So many characters each, or a document more."""
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size > characters:
            yield batch
            batch, size = [], 0
    yield batch


def _of_pieces(vocabulary: dict[str, int]) -> Tokenizer:
    from tokenizers import Regex, decoders, models, pre_tokenizers

    tokenizer = _byte_level(
        models.WordPiece(
            vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD, continuing_subword_prefix=INSIDE
        )
    )
    short = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), short])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(INSIDE, ""), decoders.ByteLevel()])
    return tokenizer


def _train_wordpiece(
    documents: Iterable[str], vocab_size: int, specials: list[str], waiting: Callable[[], None]
) -> Tokenizer:
    """Every byte is a piece at the beginning and inside of words, so that nothing is unknown."""
    from tokenizers import trainers

    named, inside = [*specials, UNKNOWN], [INSIDE + byte for byte in _alphabet()]
    fewest = 2 + 2 * len(inside)
    if vocab_size < fewest:
        raise UserError(
            f"tokenizer.wordpiece: {vocab_size} entries are too few: every byte at the beginning and inside of "
            f"words and two special tokens take {fewest}"
        )
    trained = _of_pieces({})
    # Pieces that the trainer meets by itself are numbered by chance, and numbers decide between equally frequent
    # pairs: bytes inside of words are given as special tokens, which are numbered first and in this order.
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(named) + 2 * len(inside)), special_tokens=[*named, *inside],
        initial_alphabet=_alphabet(), continuing_subword_prefix=INSIDE, show_progress=False,
    )  # fmt: skip
    interruptible(lambda: trained.train_from_iterator(documents, trainer), waiting)
    tokenizer = _of_pieces(trained.get_vocab())
    tokenizer.add_special_tokens(named)
    return tokenizer


def interruptible(work: Callable[[], None], waiting: Callable[[], None] = lambda: None) -> None:
    """Do work that keeps Ctrl-C waiting, since it is native code, in a thread that the process may leave behind.

    `waiting` is called many times a second meanwhile.
    """
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
        waiting()
    if failures:
        raise failures[0]
