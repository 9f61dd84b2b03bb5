"""Tokenizers: nothing is lost or unknown, the same text gives the same one, and bytes are counted to the last."""

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from data.made import STORIES, decoded, jsonl, made
from hypothesis import given, settings
from hypothesis import strategies as st

from selectbench.choices.model import Bpe, Bytes, Unigram, WordPiece
from selectbench.data.prepare import bytes_of_tokens, encode
from selectbench.data.tokenizer import END_OF_TEXT, _counted_words, make_tokenizer, train_pieces

SPECS = {
    "bpe": Bpe(bpe=400), "unigram": Unigram(unigram=400), "wordpiece": WordPiece(wordpiece=700),
    "bytes": Bytes(),
}  # fmt: skip
SMALLEST = {"bpe": Bpe(bpe=257), "unigram": Unigram(unigram=257), "wordpiece": WordPiece(wordpiece=514)}
ODD = [
    "", " ", "\n", "\t \r\n\v\x0c", "\x00\x01\x7f\x85", "👩🏽‍🚀🗼", "e\u0301 a\u0323\u0302",
    "##a #", "\u2581a\u2581",
    "日本語テキスト",
    END_OF_TEXT, f"a{END_OF_TEXT}b", "<|unknown|><|mask|>", "x" * 5000, " " * 300, "\ufeffa\u2028b", "İßſ", "Ġa",
]  # fmt: skip
TEXT = st.one_of(
    st.text(max_size=60),
    st.text(st.sampled_from("ab #\u2581Ġ▁\n\t\u0301\U0001f5fc<|>"), max_size=60),
    st.lists(st.sampled_from([*ODD, *STORIES[:5]]), max_size=5).map("".join),
)


@cache
def trained(name, specials=()):
    return make_tokenizer(
        {**SPECS, **{f"small {k}": v for k, v in SMALLEST.items()}}[name], lambda: STORIES, specials
    )


ALL = [*SPECS, *(f"small {name}" for name in SMALLEST)]


def assert_round_trip(name, text):
    tokenizer = trained(name, ("mask",))
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.end_id not in ids
    assert tokenizer.special_ids["mask"] not in ids
    assert tokenizer.unknown_id not in ids


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", ODD, ids=[ascii(text)[:12] for text in ODD])
def test_odd_text_comes_back(name, text):
    assert_round_trip(name, text)


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=150)
@given(text=TEXT)
def test_any_text_comes_back(name, text):
    assert_round_trip(name, text)


@pytest.mark.parametrize("name", SPECS)
@settings(deadline=None, max_examples=15)
@given(texts=st.lists(TEXT, max_size=4))
def test_trained_on_anything_it_encodes_everything(name, texts):
    tokenizer = make_tokenizer(SPECS[name], lambda: texts)
    assert tokenizer.vocab_size <= SPECS[name].most_entries
    for text in ODD[:-1]:
        ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.backend.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", ALL)
def test_the_vocabulary_is_not_above_what_was_asked_for(name):
    spec = {**SPECS, **{f"small {k}": v for k, v in SMALLEST.items()}}[name]
    assert 257 <= trained(name).vocab_size <= spec.most_entries
    assert trained(name, ("mask",)).vocab_size <= spec.most_entries + 1  # special tokens of a task come besides
    assert trained(name).end_id == 0
    assert len(trained(name).backend.get_vocab()) == trained(name).vocab_size


@pytest.mark.parametrize("name", ["bpe", "unigram", "wordpiece"])
def test_what_is_trained_is_shorter_than_bytes(name):
    text = "\n".join(STORIES)
    tokens = len(trained(name).backend.encode(text, add_special_tokens=False).ids)
    assert tokens < 0.4 * len(text.encode())


@pytest.mark.parametrize("name", SPECS)
def test_the_same_text_gives_the_same_tokenizer(name):
    again = make_tokenizer(SPECS[name], lambda: iter(STORIES))
    assert again.backend.to_str() == trained(name).backend.to_str()


def test_the_text_decides_over_the_vocabulary():
    other = make_tokenizer(SPECS["bpe"], lambda: [story[::-1] for story in STORIES])
    assert other.backend.get_vocab() != trained("bpe").backend.get_vocab()


def test_a_long_word_takes_wordpiece_no_longer_than_short_ones():
    """Its search is cubic in the length of a word: 100,000 characters would take hours."""
    text = "x" * 100_000
    tokenizer = trained("wordpiece")
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.backend.decode(ids) == text


# --- bytes of tokens ---


def encoded(tokenizer, documents):
    batches = list(encode(tokenizer, documents, with_bytes=True))
    return np.concatenate([b.ids for b in batches]), np.concatenate([b.bytes for b in batches]), batches


def assert_bytes_sum(tokenizer, documents):
    ids, sizes, _ = encoded(tokenizer, documents)
    assert len(ids) == len(sizes)
    ends = np.flatnonzero(ids == tokenizer.end_id)
    assert len(ends) == len(documents)
    per_document = np.add.reduceat(sizes, np.concatenate([[0], ends[:-1] + 1]))
    assert per_document.tolist() == [len(text.encode()) for text in documents]


@pytest.mark.parametrize("name", SPECS)
@settings(deadline=None, max_examples=80)
@given(documents=st.lists(TEXT, min_size=1, max_size=6))
def test_token_bytes_sum_to_those_of_every_document(name, documents):
    assert_bytes_sum(trained(name), documents)


def test_the_first_token_of_a_character_has_all_its_bytes():
    tokenizer = trained("bytes")
    _, sizes, _ = encoded(tokenizer, ["aé🗼"])
    assert sizes.tolist() == [1, 2, 0, 4, 0, 0, 0, 0]


@given(st.text(max_size=30), st.data())
def test_bytes_of_tokens_reach_to_where_the_last_token_ends(text, data):
    ends = data.draw(st.lists(st.integers(0, len(text)), max_size=10))
    sizes = bytes_of_tokens(text, ends)
    assert sizes.sum() == len(text[: max(ends, default=0)].encode())


def test_words_are_counted_stretch_by_stretch_and_rare_ones_left_out(monkeypatch):
    texts = [*STORIES, *STORIES[:30], "once 1234 and 5678 again", "<|unknown|> <|unknown|>"]
    whole = dict(_counted_words(texts))
    assert whole["Ġravens"] == 2 * 150
    assert whole["unknown"] == 2
    monkeypatch.setattr("selectbench.data.tokenizer.STRETCH", 500)
    assert dict(_counted_words(texts)) == whole
    monkeypatch.setattr("selectbench.data.tokenizer.MOST_WORDS", 20)
    few = _counted_words(texts)
    assert len(few) == 20
    assert few["Ġravens"] == 2 * 150
    assert "Ġ1234" not in few


def test_a_unigram_model_is_of_the_most_frequent_parts_of_words(monkeypatch):
    """Long words have many parts, and each part many stretches that all would be held."""
    monkeypatch.setattr("selectbench.data.tokenizer.MOST_PARTS", 2)
    pieces = dict(train_pieces({"ab" * 12 + "xy" * 12: 5, "cd" * 12: 4, "ef": 3}, list("abcdefxy"), 40))
    assert {character for piece in pieces if len(piece) > 1 for character in piece} == set("abxy")
    assert set("abcdefxy") <= pieces.keys()


@pytest.mark.parametrize("pieces", [0, 1, 40])
def test_a_unigram_model_has_every_byte_and_no_more_than_was_asked_for(pieces):
    """Also those that the text lacks or hardly has; and nothing of what stands for the unknown in sentencepiece."""
    alphabet = list("abcdeunk<>")
    found = train_pieces({"ab" * 8: 10**12, "c": 5, "<unk>": 10**12}, alphabet, pieces)
    assert len(dict(found)) == len(found) <= len(alphabet) + pieces
    assert set(alphabet) <= dict(found).keys()
    assert set("".join(dict(found))) == set(alphabet)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


IDS_OF_THE_BIBLE = """
import hashlib, itertools, sys
from selectbench.choices.model import Bpe, Unigram, WordPiece
from selectbench.data.sources import open_corpus
from selectbench.data.tokenizer import make_tokenizer
from selectbench.suite.sources import EmbeddedCorpus
kind = {"bpe": Bpe, "unigram": Unigram, "wordpiece": WordPiece}[sys.argv[1]]
text = open_corpus(EmbeddedCorpus(corpus="bible"), print).documents(print)
chapters = list(itertools.islice(text, 100))
backend = make_tokenizer(kind.model_validate({sys.argv[1]: 2048}), lambda: chapters).backend
ids = [encoding.ids for encoding in backend.encode_batch(chapters)]
print(sum(map(len, ids)), hashlib.sha256(repr((backend.get_vocab_size(), ids)).encode()).hexdigest())
"""


@pytest.mark.parametrize("name", ["bpe", "unigram", "wordpiece"])
def test_another_process_gives_the_same_ids(name):
    """Whatever order it hashes in, and however many threads it is told to have."""
    digests = {ids_of_the_bible(name, seed, threads) for seed, threads in (("1", "1"), ("2", "7"))}
    assert len(digests) == 1


def ids_of_the_bible(name, hash_seed, threads):
    environment = {
        **os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", IDS_OF_THE_BIBLE, name], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("name", SPECS)
def test_batches_are_the_same_as_one_by_one(name, monkeypatch):
    """Documents of several batches, encoded with and without bytes, give the tokens of each alone."""
    monkeypatch.setattr("selectbench.data.prepare.BATCH_CHARACTERS", 500)
    tokenizer = trained(name)
    fast = [batch.ids for batch in encode(tokenizer, STORIES)]
    assert len(fast) > 10
    alone = [[*tokenizer.backend.encode(story, add_special_tokens=False).ids, 0] for story in STORIES]
    assert np.concatenate(fast).tolist() == [number for ids in alone for number in ids]
    assert encoded(tokenizer, STORIES)[0].tolist() == np.concatenate(fast).tolist()
    lengths = np.concatenate([batch.lengths for batch in encode(tokenizer, STORIES)])
    assert lengths.tolist() == [len(ids) for ids in alone]


@pytest.mark.parametrize("name", SPECS)
def test_prepared_bytes_are_those_of_the_held_out_text(name, tmp_path):
    prepared = made(jsonl(tmp_path), tokenizer=SPECS[name])
    heldout = decoded(prepared, prepared.heldout())
    assert heldout
    assert prepared.bytes_of_heldout().sum() == prepared.heldout_bytes == sum(len(t.encode()) for t in heldout)
    assert prepared.unknown_tokens == 0
