"""Tokenizers: pretrained ones, trained ones, and whether they can encode the whole text."""

from __future__ import annotations

import hashlib
import heapq
import io
import itertools
import json
import math
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from selectbench.choices.model import AnyTokenizer, Bpe, Bytes, PretrainedTokenizer, Unigram, WordPiece
from selectbench.data.reading import fetch_snapshot
from selectbench.errors import UserError
from selectbench.text import first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json",
    "tokenizer.model", "spiece.model", "added_tokens.json",
)  # fmt: skip
_SUFFIXES = (".json", ".txt", ".model", ".spm", ".bpe", ".tiktoken")
"""Suffixes of all files from which a tokenizer is made, with config.json among them; weights have others."""


def load_pretrained(spec: PretrainedTokenizer, specials: Sequence[str]) -> TextTokenizer:
    """Load a tokenizer. Raises UserError where it is unavailable, is not fast, or lacks a token that is needed."""
    fast = pretrained_tokenizer(spec)
    where = f"tokenizer.pretrained: {spec.pretrained}"
    backend = getattr(fast, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{where} has no fast tokenizer (tokenizer.json), and none can be made of its files")
    ends = (fast.eos_token_id, fast.sep_token_id, fast.pad_token_id)
    end = next((token for token in ends if token is not None), None)
    if end is None:
        raise UserError(
            f"{where} has no end-of-text token: no eos, sep or pad token is set in its tokenizer_config.json"
        )
    ids = {name: getattr(fast, f"{name}_token_id", None) for name in specials}
    if "pad" in ids and ids["pad"] is None:
        ids["pad"] = end
    missing = [name for name, number in ids.items() if number is None]
    if missing:
        raise UserError(f"{where} has no {' and no '.join(missing)} token, which this task needs")
    # As the folder says: by default a special token that a document spells out is that token, as in transformers.
    backend.encode_special_tokens = bool(getattr(fast, "split_special_tokens", False))
    backend.no_truncation()
    backend.no_padding()
    special_ids = {name: int(number) for name, number in ids.items() if number is not None}
    return TextTokenizer(backend, int(end), _unknown_id(fast, backend), special_ids)


def _unknown_id(fast: Any, backend: Tokenizer) -> int | None:
    """Id of the unknown token; None: there is none, as for GPT-2, which names its end of text as unknown token."""
    number = fast.unk_token_id
    if number is None:
        model = json.loads(backend.to_str())["model"]
        number = model.get("unk_id")
        if number is None and model.get("unk_token"):
            number = backend.token_to_id(model["unk_token"])
    return None if number is None or number == fast.eos_token_id else int(number)


def pretrained_tokenizer(spec: PretrainedTokenizer) -> Any:
    """The tokenizer as transformers loads it. Raises UserError where it is unavailable."""
    import transformers

    where, folder = f"tokenizer.pretrained: {spec.pretrained}", _folder(spec)
    if not any((folder / name).is_file() for name in _FILES):
        raise UserError(f"{where} holds no tokenizer (none of {', '.join(_FILES[:6])})")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # a damaged file raises what its parser raises, `tokenizers` bare exceptions
        raise UserError(
            f"{where} cannot be loaded: {type(error).__name__}: {first_line(error)}: is it a whole folder, as "
            "transformers saves a tokenizer?"
        ) from None


def _folder(spec: PretrainedTokenizer) -> Path:
    """The folder of its files; missing files of a hub id are downloaded. Raises UserError."""
    where, folder = f"tokenizer.pretrained: {spec.pretrained}", Path(spec.pretrained)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise UserError(f"{where}: there is no such folder")
    files = [f"*{suffix}" for suffix in (*_SUFFIXES, ".jinja")]
    return fetch_snapshot("tokenizer.pretrained", spec.pretrained, spec.revision, files)


def pinned(spec: PretrainedTokenizer) -> tuple[PretrainedTokenizer, str]:
    """The tokenizer at the hub's current commit, and a key of its files' content. Raises UserError."""
    folder, digest = _folder(spec), hashlib.sha256()
    if folder != Path(spec.pretrained):
        spec = spec.model_copy(update={"revision": folder.name})
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return spec, f"pretrained {digest.hexdigest()}"


# Training of a unigram language model over pieces of words (Kudo 2018, arXiv:1804.10959, section 3.2).
#
# Expectation maximisation and pruning are sentencepiece's, in one thread: with several, the last digits of its sums
# and so its choice among nearly equal pieces depend on how many they are. What it chooses from is found here,
# because sentencepiece weighs every counted word as if it stood in the text once, and overlooks pieces that are
# always the end of a word. The trainer of the package `tokenizers` gives another vocabulary at each call. The same
# words give the same pieces from run to run; on a processor of another kind nearly equal pieces may fall out
# otherwise.


LONGEST_PIECE = 16
"""Characters, each of which stands for a byte."""
LONGEST_UNIGRAM_WORD = 24
"""Most characters of a word; longer words are counted in parts."""
MOST_PARTS = 50_000
"""Words and parts of words that count, the most frequent ones: memory grows with their stretches."""
CANDIDATES_PER_PIECE = 10
DECIMALS = 6
"""Decimals of log probabilities, by which pieces are ordered."""
ABSENT = -20.0
"""Log probability of a byte that the text lacks, or that is rarer than one in ten million, which sentencepiece
leaves out. It is in no longer piece, so that there is one way to write it, however likely it is."""
_UNKNOWN_PIECE = "\u2047"
"""Sentencepiece requires an unknown piece: this character stands for no byte, so no text can spell it."""

Counted = Sequence[tuple[str, int]]
Number = TypeVar("Number", int, float)


def train_pieces(counted: Mapping[str, int], alphabet: Sequence[str], pieces: int) -> list[tuple[str, float]]:
    """The alphabet and at most `pieces` further pieces, each with its log probability, the likeliest first.

    `counted`: words spelt in the alphabet, one character for each byte, with their numbers of occurrences.
    """
    if not counted or not pieces:  # there is one way to write a text, whatever the probabilities
        return [(byte, round(-math.log(len(alphabet)), DECIMALS)) for byte in alphabet]
    parts = _parts(counted)
    single: Counter[str] = Counter()
    for text, count in parts:
        for character in text:
            single[character] += count
    candidates = [*sorted(single.items()), *_candidates(parts, CANDIDATES_PER_PIECE * pieces)]
    trained = _train_with_sentencepiece(parts, candidates, len(single) + pieces)
    every_byte = {byte: trained.pop(byte, ABSENT) for byte in alphabet}
    return _ranked([*every_byte.items(), *_ranked(trained.items(), pieces)])


def _ranked(scored: Iterable[tuple[str, Number]], most: int | None = None) -> list[tuple[str, Number]]:
    """The items, the highest numbers first, equal ones by their text; `most`: at most so many."""
    return sorted(scored, key=lambda item: (-item[1], item[0]))[:most]


def _parts(counted: Mapping[str, int]) -> Counted:
    parts: Counter[str] = Counter()
    for word, count in counted.items():
        for start in range(0, len(word), LONGEST_UNIGRAM_WORD):
            parts[word[start : start + LONGEST_UNIGRAM_WORD]] += count
    return _ranked(parts.items(), MOST_PARTS)


def _candidates(parts: Counted, most: int) -> Iterator[tuple[str, int]]:
    """The repeated substrings that cover most characters of the text, with the characters that they cover."""
    best: list[tuple[int, str]] = []
    for size in range(
        2, LONGEST_PIECE + 1
    ):  # a length at a time: together they take gigabytes where words are long
        counts: Counter[str] = Counter()
        for text, count in parts:
            for start in range(len(text) - size + 1):
                counts[text[start : start + size]] += count
        of_size = ((-count * size, piece) for piece, count in counts.items() if count > 1)
        best = heapq.nsmallest(most, itertools.chain(best, of_size))
    return ((piece, -covered) for covered, piece in best)


def _train_with_sentencepiece(parts: Counted, candidates: Counted, pieces: int) -> dict[str, float]:
    """At most `pieces` pieces with their log probabilities, including all single characters of the words."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    # The text is repeated until it has a word for each candidate: pieces that are expected less than half a time
    # are left out, and of a text with fewer words that could be all of them.
    repeats = -(-len(candidates) // sum(count for _, count in parts))
    model = io.BytesIO()
    with tempfile.TemporaryFile("w", encoding="utf-8") as seeds:
        seeds.writelines(_tsv_lines(candidates))
        seeds.flush()
        SentencePieceTrainer.train(
            model_type="unigram", vocab_size=1 + pieces, hard_vocab_limit=False, num_threads=1, minloglevel=2,
            sentence_iterator=_tsv_lines(parts, repeats), input_format="tsv", model_writer=model,
            seed_sentencepieces_file=f"/proc/self/fd/{seeds.fileno()}",  # without a name it can't be left behind
            max_sentencepiece_length=LONGEST_PIECE, character_coverage=1.0,
            # Words are spelt bytes, cut already: nothing in them is a blank, a digit or of a script.
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            split_by_unicode_script=False, split_by_number=False,
            unk_id=0, unk_piece=_UNKNOWN_PIECE, bos_id=-1, eos_id=-1, pad_id=-1,
        )  # fmt: skip
    trained = SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(1, trained.get_piece_size())
    return {trained.id_to_piece(i): round(trained.get_score(i), DECIMALS) for i in ids}


def _tsv_lines(counted: Counted, times: int = 1) -> Iterator[str]:
    return (f"{text}\t{count * times}\n" for text, count in counted)


END_OF_TEXT = "<|endoftext|>"
"""Follows every document; token 0 of a trained tokenizer."""
UNKNOWN = "<|unknown|>"
LONGEST_WORD = 64
"""Bytes of a word for WordPiece, longer ones are cut: its time grows with the cube of a word's length."""
MOST_WORDS = 50_000
"""Words that a unigram model is trained on, the most frequent ones."""
STRETCH = 1 << 23
"""Characters of text whose words are counted at once."""
INSIDE = "\u2581"
"""Marks WordPiece's pieces inside of words; unlike BERT's ## it stands for no byte: no text can spell it."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer with the ids that preparing data needs."""

    backend: Tokenizer
    end_id: int
    """Id of the token that follows every document."""
    unknown_id: int | None
    """Id of the token for text that can't be encoded; None: everything can be."""
    special_ids: dict[str, int]
    """Ids of `mask`, `pad` and the like, where the tokenizer has them."""

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab().values()) + 1


def make_tokenizer(
    spec: AnyTokenizer, documents: Callable[[], Iterable[str]], specials: Sequence[str] = (),
    waiting: Callable[[], None] = lambda: None,
) -> TextTokenizer:  # fmt: skip
    """Load or train the tokenizer of `spec`; `documents`: the training text; `specials`: tokens that a task needs.

    `waiting` is called many times a second while native code trains. The same text gives the same
    tokenizer. Raises UserError where a pretrained one is unavailable.
    """
    if isinstance(spec, PretrainedTokenizer):
        return load_pretrained(spec, specials)
    special_tokens = [END_OF_TEXT, *(f"<|{name}|>" for name in specials)]
    match spec:
        case Bytes():
            from tokenizers import models

            vocabulary = {token: number for number, token in enumerate([*special_tokens, *_alphabet()])}
            backend = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
            backend.add_special_tokens(special_tokens)
        case Unigram():
            backend = _train_unigram(documents, spec.unigram, special_tokens, waiting)
        case WordPiece():
            backend = _train_wordpiece(documents(), spec.wordpiece, special_tokens, waiting)
        case Bpe():
            backend = train_bpe(documents(), spec.bpe, special_tokens, waiting)
        case _:
            raise AssertionError(spec)
    # A document may spell a special token out; that is text like any other, and decodes to itself.
    backend.encode_special_tokens = True
    ids = {name: backend.get_vocab()[f"<|{name}|>"] for name in specials}
    return TextTokenizer(backend, backend.get_vocab()[END_OF_TEXT], backend.token_to_id(UNKNOWN), ids)


def _byte_level(model: Any) -> Tokenizer:
    """A tokenizer that splits words as GPT-2 does and spells them with one character per byte, so all are known."""
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


def _train_unigram(
    documents: Callable[[], Iterable[str]], vocab_size: int, specials: list[str], waiting: Callable[[], None]
) -> Tokenizer:
    """A unigram tokenizer: first the special tokens, which no text spells, then bytes and pieces."""
    from tokenizers import models

    alphabet, pieces = _alphabet(), list[tuple[str, float]]()
    words = _counted_words(documents(), waiting)
    interruptible(lambda: pieces.extend(train_pieces(words, alphabet, vocab_size - len(alphabet) - 1)), waiting)
    tokenizer = _byte_level(models.Unigram([*((name, 0.0) for name in specials), *pieces]))
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _counted_words(documents: Iterable[str], waiting: Callable[[], None] = lambda: None) -> dict[str, int]:
    """The most frequent words of a text, spelt by bytes, with their numbers of occurrences.

    Words are counted stretch by stretch, and only each stretch's most frequent ones are stored: rare words take no
    memory, even in a text of numbers, or in a script without blanks, where a whole clause is a word.
    """
    counts: Counter[str] = Counter()
    for texts in batches(documents, STRETCH):
        counts.update(_count_words(texts, waiting))
        counts = Counter(dict(_ranked(counts.items(), 4 * MOST_WORDS)))
    return dict(_ranked(counts.items(), MOST_WORDS))


def _count_words(texts: list[str], waiting: Callable[[], None]) -> dict[str, int]:
    from tokenizers import models, trainers

    words = _byte_level(models.WordLevel(unk_token=UNKNOWN))
    trainer = trainers.WordLevelTrainer(vocab_size=MOST_WORDS, special_tokens=[UNKNOWN], show_progress=False)
    interruptible(lambda: words.train_from_iterator(texts, trainer), waiting)
    words.encode_special_tokens = True  # a text that spells the unknown out is of words like any other
    counts = np.zeros(words.get_vocab_size(), np.int64)
    for batch in batches(texts, 1 << 20):  # a vector as long as the vocabulary is added up for every one
        encodings = words.encode_batch_fast(batch, add_special_tokens=False)
        ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        counts += np.bincount(np.fromiter(ids, np.int64), minlength=len(counts))
    return {word: int(counts[number]) for word, number in words.get_vocab().items() if word != UNKNOWN}


def batches(documents: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Documents in order, in batches that each, but the last, have more than `characters` characters."""
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size > characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _wordpiece_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
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
    """A WordPiece tokenizer; every byte is a piece at the start of words and inside, so all words are known."""
    from tokenizers import trainers

    reserved, inside = [*specials, UNKNOWN], [INSIDE + byte for byte in _alphabet()]
    trained = _wordpiece_tokenizer({})
    # Pieces that the trainer meets by itself are numbered by chance, and numbers decide between equally frequent
    # pairs: bytes inside of words are given as special tokens, which are numbered first and in this order.
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(reserved) + 2 * len(inside)), special_tokens=[*reserved, *inside],
        initial_alphabet=_alphabet(), continuing_subword_prefix=INSIDE, show_progress=False,
    )  # fmt: skip
    interruptible(lambda: trained.train_from_iterator(documents, trainer), waiting)
    tokenizer = _wordpiece_tokenizer(trained.get_vocab())
    tokenizer.add_special_tokens(reserved)
    return tokenizer


def interruptible(work: Callable[[], None], waiting: Callable[[], None] = lambda: None) -> None:
    """Do native work, which keeps Ctrl-C waiting, in a thread that may be left behind; calls `waiting` often."""
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


# Text that a tokenizer has no tokens for: characters that it leaves out, and characters that are unknown to it.
#
# Byte pair encoding without an unknown token leaves out what its vocabulary lacks, and says nothing. Any other
# model of the package `tokenizers` raises or gives its unknown token, and one with all 256 bytes can write
# everything.


BLANK = "\u2581"
"""Sentencepiece's character for white space."""
EXAMPLES = 3
MOST_UNKNOWN = 0.1
"""Share of unknown tokens above which a tokenizer is taken to be unable to encode the text."""
OTHER_TOKENIZERS = "take one that was made for such text, or have one trained on it (`tokenizer: {bpe: 4096}`)"
UTF8 = [
    *map(chr, range(0x800)), chr(0x800), *map(chr, range(0x1000, 0x10000, 0x1000)),
    *map(chr, (0x10000, 0x40000, 0x80000, 0xC0000, 0x100000)),
]  # fmt: skip
"""Characters in which every byte of UTF-8 occurs, some of them such as no text has: a tokenizer that has tokens for
all of them has tokens for the bytes."""


def check_alphabet(backend: Tokenizer, texts: Iterable[str], name: str, description: str) -> None:
    """Raise UserError where the tokenizer `name` would leave out characters of the described text.

    White space, which many tokenizers drop on purpose, and what a normalizer removes or rewrites, such as accents,
    are not counted. The text is read only where characters may be left out.
    """
    from tokenizers import models

    model = backend.model
    if not isinstance(model, models.BPE) or model.unk_token is not None or not _missing_characters(backend, UTF8):
        return
    if not (left_out := _missing_characters(backend, texts)):
        return
    first = ", ".join(f"{c!r} (U+{ord(c):04X}) {count:,} x" for c, count in left_out.most_common(EXAMPLES))
    more = f" and {len(left_out) - EXAMPLES:,} others" if len(left_out) > EXAMPLES else ""
    raise UserError(
        f"tokenizer: {name} leaves out {left_out.total():,} characters of {description}, having neither tokens for "
        f"them nor an unknown token: {first}{more}: {OTHER_TOKENIZERS}; one over bytes leaves nothing out"
    )


def check_unknown(unknown: int, tokens: int, name: str) -> None:
    """Raise UserError where more than MOST_UNKNOWN of the tokens are the unknown one."""
    if unknown > MOST_UNKNOWN * tokens:
        raise UserError(
            f"tokenizer: {name} can't encode this text: {unknown / tokens:.0%} of its tokens are the unknown one: "
            f"{OTHER_TOKENIZERS}"
        )


def _missing_characters(backend: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Characters that get no token, with their occurrences; each distinct character is tested once."""
    normalized = str if backend.normalizer is None else backend.normalizer.normalize_str
    model, cut = backend.model, backend.pre_tokenizer

    def letters_of(c: str) -> str:
        return c if cut is None else "".join(word for word, _ in cut.pre_tokenize_str(c))

    blanks = {BLANK, *letters_of(" ")}
    added = {token.content for token in backend.get_added_tokens_decoder().values()}

    def is_known(c: str) -> bool:
        if c.isspace() or c == BLANK or c in added:
            return True
        # Some models write a letter differently inside of words and at their end: one known way is enough.
        letters = letters_of(c)
        return bool(letters) and all(letter in blanks or model.tokenize(3 * letter) for letter in letters)

    checked: set[str] = set()
    left_out: Counter[str] = Counter()
    for text in texts:
        # A normalizer is slow, and does to ASCII in a text what it does to each character alone.
        normal_text = text if text.isascii() else normalized(text)
        characters = set(normal_text)
        left_out.update({c: 0 for c in characters - checked if not all(map(is_known, normalized(c)))})
        checked |= characters
        left_out.update({c: normal_text.count(c) for c in characters & left_out.keys()})
    return left_out
