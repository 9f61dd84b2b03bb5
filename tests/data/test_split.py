"""Held-out blocks: which they are, and that nothing of them is in training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectbench.data.split import (
    BLOCK_CHARACTERS,
    HELDOUT_FRACTION,
    SHORTEST_LEAK_CHARACTERS,
    blocks,
    normalised,
    side_hash,
    split,
)
from selectbench.data.split import LINES as LINES_OF_TEXT

LINES = [f"line number {n} says something of its own" for n in range(40)]


class Listed:
    """Documents in memory, as a split wants them."""

    def __init__(self, documents):
        self.all = list(documents)
        self.hashes = np.array([side_hash(text) for text in self.all], dtype=np.uint64)

    def documents(self, chosen):
        return (text for text, wanted in zip(self.all, chosen, strict=True) if wanted)

    def split(self):
        return split(self, LINES_OF_TEXT, np.ones(len(self.all), bool))


def sides(documents):
    listed = Listed(documents)
    result = listed.split()
    heldout = [result.without_leaks(text) for text in listed.documents(result.heldout)]
    return list(listed.documents(result.training)), heldout


def long_lines(texts):
    lines = {normalised(line) for text in texts for line in text.split("\n")}
    return {line for line in lines if len(line) >= SHORTEST_LEAK_CHARACTERS}


@given(st.lists(st.lists(st.sampled_from(LINES), min_size=1, max_size=5).map("\n".join), max_size=60))
@settings(deadline=None)
def test_no_held_out_line_is_in_training_and_no_document_is_lost(documents):
    training, heldout = sides(documents)
    assert not long_lines(training) & long_lines(heldout)
    assert len(training) + len(heldout) == len(documents)


@given(st.lists(st.integers().map(lambda n: f"a document about the number {n}"), min_size=2, unique=True))
@settings(deadline=None)
def test_different_documents_give_both_sides(documents):
    training, heldout = sides(documents)
    assert training
    assert any(heldout)


@given(st.lists(st.text(min_size=1), min_size=1))
@settings(deadline=None)
def test_copies_that_differ_in_case_and_space_lie_on_one_side(documents):
    copies = ["  " + text.replace(" ", "\n ") + " " for text in documents]
    heldout = Listed([*documents, *copies]).split().heldout
    assert heldout[: len(documents)].tolist() == heldout[len(documents) :].tolist()


def test_the_share_held_out_is_the_stated_one():
    documents = [f"document {n} of many" for n in range(10_000)]
    _, heldout = sides(documents)
    assert len(heldout) == pytest.approx(10_000 * HELDOUT_FRACTION, rel=0.15)


def test_a_document_keeps_its_side_when_others_are_added():
    documents = [f"document {n} of many" for n in range(1000)]
    few, many = (Listed(documents[:size]).split().heldout for size in (500, 1000))
    assert few.tolist() == many[:500].tolist()


def test_a_text_of_one_document_is_all_training():
    training, heldout = sides(["only this", "Only  this"])
    assert (len(training), heldout) == (2, [])


def test_a_refrain_is_taken_out_of_the_held_out_side_alone():
    refrain = "for his lovingkindness endureth for ever"
    documents = [f"verse {n} which differs from all others\n{refrain}" for n in range(200)]
    training, heldout = sides(documents)
    assert all(refrain in text for text in training)
    assert heldout
    assert not any(refrain in text for text in heldout)
    assert all(text.startswith("verse") for text in heldout)


@given(st.lists(st.text(alphabet="ab \n", max_size=900), max_size=20).map("".join))
def test_blocks_keep_every_line_of_words(text):
    found = list(blocks(text.splitlines(keepends=True)))
    kept = [line for block in found for line in block.split("\n") if line.strip()]
    assert kept == [line for line in text.split("\n") if line.strip()]
    assert all(len(block) >= BLOCK_CHARACTERS - 1 for block in found[:-1]) or "\n\n" in text


def test_blocks_end_at_blank_lines_where_there_are_some():
    paragraph = ("word " * 30 + "\n") * 5
    text = (paragraph + "\n") * 20
    found = list(blocks(text.splitlines(keepends=True)))
    assert len(found) > 4
    assert all(block.endswith(paragraph.rstrip("\n")) for block in found)


def test_blocks_end_at_lines_where_no_line_is_blank():
    text = "a line without any blank one after it\n" * 1000
    assert all(len(block) < 3 * BLOCK_CHARACTERS for block in blocks(text.splitlines(keepends=True)))
