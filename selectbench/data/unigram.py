"""Training of a unigram language model over pieces of words (Kudo 2018, arXiv:1804.10959, section 3.2).

Expectation maximisation and pruning are sentencepiece's, in one thread: with several, the last digits of its sums
and so its choice among nearly equal pieces depend on how many they are. What it chooses from is found here, because
sentencepiece weighs every counted word as if it stood in the text once, and overlooks pieces that are always the
end of a word. The trainer of the package `tokenizers` gives another vocabulary at each call. The same words give
the same pieces from run to run; on a processor of another kind nearly equal pieces may fall out otherwise.
"""

from __future__ import annotations

import heapq
import io
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

LONGEST_PIECE = 16
"""Characters, each of which stands for a byte."""
LONGEST_WORD = 24
"""Longer ones are counted in parts."""
MOST_PARTS = 50_000
"""Words and parts of words that count, the most frequent ones: memory grows with their stretches."""
CANDIDATES_PER_PIECE = 10
DECIMALS = 6
"""Of log probabilities, by which pieces are numbered."""
ABSENT = -20.0
"""Log probability of a byte that the text lacks, or that is rarer than one in ten million, which sentencepiece
leaves out. It is in no longer piece, so that there is one way to write it, however likely it is."""
_NO_PIECE = "\u2047"
"""Sentencepiece insists on a piece for the unknown: this one is no byte's character, so no text can spell it."""

Counted = Sequence[tuple[str, int]]


def train_pieces(counted: Mapping[str, int], alphabet: Sequence[str], pieces: int) -> list[tuple[str, float]]:
    """The alphabet and at most so many pieces besides, each with its log probability, the likeliest first.

    `counted`: words spelt in the alphabet, one character for each byte, with their numbers of occurrences.
    """
    if not counted or not pieces:  # there is one way to write a text, whatever the probabilities
        return [(byte, round(-math.log(len(alphabet)), DECIMALS)) for byte in alphabet]
    parts = _parts(counted)
    single = _single(parts)
    candidates = [*single, *_candidates(parts, CANDIDATES_PER_PIECE * pieces)]
    found = _trained(parts, candidates, len(single) + pieces)
    every_byte = {byte: found.pop(byte, ABSENT) for byte in alphabet}
    return _likeliest_first([*every_byte.items(), *_likeliest_first(found.items())[:pieces]])


def _likeliest_first(scored: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(scored, key=lambda one: (-one[1], one[0]))


def _parts(counted: Mapping[str, int]) -> Counted:
    parts: Counter[str] = Counter()
    for word, count in counted.items():
        for start in range(0, len(word), LONGEST_WORD):
            parts[word[start : start + LONGEST_WORD]] += count
    return heapq.nsmallest(MOST_PARTS, parts.items(), key=lambda one: (-one[1], one[0]))


def _single(parts: Counted) -> Counted:
    counts: Counter[str] = Counter()
    for text, count in parts:
        for character in text:
            counts[character] += count
    return sorted(counts.items())


def _candidates(parts: Counted, most: int) -> Iterator[tuple[str, int]]:
    """The stretches that cover most of the text among those that occur more than once, with how much they cover."""
    best: list[tuple[int, str]] = []
    for size in range(2, LONGEST_PIECE + 1):
        best = heapq.nsmallest(most, itertools.chain(best, _of_size(parts, size)))
    return ((piece, -covered) for covered, piece in best)


def _of_size(parts: Counted, size: int) -> Iterator[tuple[int, str]]:
    """Every stretch of a length that occurs more than once, after minus how much of the text it covers.

    A length at a time: together they would take gigabytes where words are long.
    """
    counts: Counter[str] = Counter()
    for text, count in parts:
        for start in range(len(text) - size + 1):
            counts[text[start : start + size]] += count
    return ((-count * size, piece) for piece, count in counts.items() if count > 1)


def _trained(parts: Counted, candidates: Counted, pieces: int) -> dict[str, float]:
    """At most so many pieces, all single characters of the words among them, with their log probabilities."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    model = io.BytesIO()
    with tempfile.TemporaryFile("w", encoding="utf-8") as listed:
        listed.writelines(_lines(candidates))
        listed.flush()
        SentencePieceTrainer.train(
            model_type="unigram", vocab_size=1 + pieces, hard_vocab_limit=False, num_threads=1, minloglevel=2,
            sentence_iterator=_lines(parts, _times(parts, candidates)), input_format="tsv", model_writer=model,
            seed_sentencepieces_file=f"/proc/self/fd/{listed.fileno()}",  # it has no name to be left behind by
            max_sentencepiece_length=LONGEST_PIECE, character_coverage=1.0,
            # Words are spelt bytes, cut already: nothing in them is a blank, a digit or of a script.
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            split_by_unicode_script=False, split_by_number=False,
            unk_id=0, unk_piece=_NO_PIECE, bos_id=-1, eos_id=-1, pad_id=-1,
        )  # fmt: skip
    trained = SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(1, trained.get_piece_size())
    return {trained.id_to_piece(one): round(trained.get_score(one), DECIMALS) for one in ids}


def _times(parts: Counted, candidates: Counted) -> int:
    """How often a text must stand there to have a word for each candidate.

    What is expected less than half a time is left out: of a text with fewer words that could be everything.
    """
    return -(-len(candidates) // sum(count for _, count in parts))


def _lines(counted: Counted, times: int = 1) -> Iterator[str]:
    return (f"{text}\t{count * times}\n" for text, count in counted)
