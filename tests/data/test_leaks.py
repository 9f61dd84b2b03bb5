"""No test text in training text, whatever the source and however it was split."""

import numpy as np
import pytest
from data.made import REFRAIN, STORIES, TEXTS, chat, decoded, made, token_file
from hypothesis import given, settings
from hypothesis import strategies as st

from selectbench.data.sources import BLOCK_TOKENS, open_tokens, split_tokens, without_leaks
from selectbench.data.split import HELDOUT_FRACTION, SHORTEST_LEAK_CHARACTERS, normalised
from selectbench.suite.sources import Apart

LEAKY = [
    *STORIES,
    *(
        f"Night {n}, {n * 7} owls.\n{REFRAIN}\n{STORIES[(n * 5) % 120].split(chr(10))[0].upper()}"
        for n in range(80)
    ),
    *STORIES[:10],
    *(story.replace(" ", "  ") for story in STORIES[40:50]),
]
"""Documents with shared lines, copies, and copies in other case and white space."""


def long_lines(documents):
    forms = {normalised(line) for text in documents for line in text.split("\n")}
    return {form for form in forms if len(form) >= SHORTEST_LEAK_CHARACTERS}


def sides(prepared):
    return decoded(prepared, prepared.train()), decoded(prepared, prepared.heldout())


@pytest.mark.parametrize("name", TEXTS)
def test_no_line_is_held_out_and_trained_on(name, tmp_path):
    prepared = made(TEXTS[name](tmp_path, LEAKY), tmp_path)
    trained, heldout = sides(prepared)
    assert long_lines(trained) & long_lines(heldout) == set()
    assert heldout
    assert prepared.removed_lines > 0
    assert len(trained) + len(heldout) + prepared.removed_documents == prepared.documents_in


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "own"])
def test_no_line_of_text_held_out_apart_is_trained_on(name, tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    train, heldout = TEXTS[name](tmp_path / "a", LEAKY[:150]), TEXTS[name](tmp_path / "b", LEAKY[60:])
    prepared = made(Apart(train=train, heldout=heldout))
    trained, scored = sides(prepared)
    assert len(trained) == 150  # training text is left alone
    assert long_lines(trained) & long_lines(scored) == set()
    assert scored
    gone = prepared.removed_documents + prepared.removed.get("in_training", 0)
    assert 150 + len(scored) + gone == prepared.documents_in == 150 + len(LEAKY[60:])


def answers(documents):
    return {part.split("<|user|>")[0].strip() for text in documents for part in text.split("<|assistant|>\n")[1:]}


@pytest.mark.parametrize("is_apart", [False, True])
def test_no_answer_is_held_out_and_trained_on(is_apart, tmp_path):
    replies = [LEAKY[n % 180] for n in range(250)]
    if is_apart:
        train, heldout = chat(tmp_path, replies[:160]), chat(tmp_path, replies[100:], name="heldout.jsonl")
        prepared = made(Apart(train=train, heldout=heldout))
    else:
        prepared = made(chat(tmp_path, replies))
    trained, scored = map(answers, sides(prepared))
    assert trained
    assert scored
    assert {normalised(a) for a in trained} & {normalised(a) for a in scored} == set()
    assert prepared.removed_documents > 0


def test_short_answers_may_be_in_both(tmp_path):
    replies = ["Yes.", "No."] * 60
    prepared = made(chat(tmp_path, replies))
    trained, scored = map(answers, sides(prepared))
    assert scored <= trained == {"Yes.", "No."}
    assert (prepared.removed_documents, prepared.removed_lines) == (0, 0)


@settings(deadline=None, max_examples=12)
@given(drawn=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=4), min_size=20, max_size=60))
def test_whatever_lines_are_shared_none_is_on_both_sides(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaks")
    documents = ["\n".join(f"the line of the number {number} itself" for number in own) for own in drawn]
    for write in (TEXTS["jsonl"], chat):
        prepared = made(write(folder, documents))
        trained, scored = sides(prepared)
        pick = long_lines if write is not chat else answers
        assert pick(trained) & pick(scored) == set()


# --- tokens ---


def windows(tokens):
    return {tuple(tokens[n : n + BLOCK_TOKENS]) for n in range(len(tokens) - BLOCK_TOKENS + 1)}


def blocks(tokens):
    return [tuple(tokens[n : n + BLOCK_TOKENS]) for n in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS)]


def assert_no_block_in_training(training, heldout):
    """By brute force, at every offset of the training tokens."""
    kept, taken = without_leaks(np.array(training, np.uint16), np.array(heldout, np.uint16))
    known, given_blocks = windows(training), blocks(heldout)
    assert all(block not in known for block in blocks(kept.tolist()))
    assert taken == sum(block in known for block in given_blocks)
    rest = list(heldout)[len(given_blocks) * BLOCK_TOKENS :]
    assert kept.tolist() == [token for block in given_blocks if block not in known for token in block] + rest


@settings(deadline=None)
@given(
    training=st.lists(st.integers(0, 3), max_size=300), heldout=st.lists(st.integers(0, 3), max_size=200),
    copies=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 200), st.integers(1, 120)), max_size=4),
)  # fmt: skip
def test_no_block_of_held_out_tokens_is_in_training(training, heldout, copies):
    for source, target, size in copies:  # stretches of training in held-out tokens, at any place
        heldout[target : target + size] = training[source : source + size]
    assert_no_block_in_training(training, heldout)


def test_blocks_are_found_across_chunks_of_the_training_tokens(monkeypatch):
    monkeypatch.setattr("selectbench.data.sources._CHUNK", 50)
    training = np.random.default_rng(0).integers(0, 60_000, 500)
    for start in range(500 - BLOCK_TOKENS + 1):
        _, taken = without_leaks(
            training.astype(np.uint16), training[start : start + BLOCK_TOKENS].astype(np.uint16)
        )
        assert taken == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_token_file_that_repeats_itself_keeps_only_new_blocks(seed, tmp_path):
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, 500, 20_000)
    ids[19_200:19_360] = ids[777 : 777 + 160]
    prepared = made(token_file(tmp_path / "ids.bin", ids), tokenizer=None)
    training, heldout = split_tokens(ids.astype(np.uint16))
    assert len(heldout) == int(20_000 * HELDOUT_FRACTION)
    assert prepared.removed_lines in (4, 5)
    assert prepared.train().tolist() == training.tolist()
    known = windows(training.tolist())
    assert all(block not in known for block in blocks(prepared.heldout().tolist()))
    assert prepared.heldout_tokens == 1000 - 32 * prepared.removed_lines


@pytest.mark.parametrize(
    ("dtype", "vocab_size", "stored"), [("uint16", 500, 2), ("uint32", 500, 2), ("uint32", 70_000, 4)]
)
def test_token_files_apart_of_any_width(dtype, vocab_size, stored, tmp_path):
    ids = np.random.default_rng(0).integers(0, vocab_size, 3000)
    train = token_file(tmp_path / "train.bin", ids[:2000], dtype, vocab_size)
    heldout = token_file(tmp_path / "heldout.bin", [*ids[2000:], *ids[100:164]], "uint32", vocab_size)
    prepared = made(Apart(train=train, heldout=heldout), tokenizer=None)
    assert prepared.train().itemsize == stored
    assert prepared.train().tolist() == ids[:2000].tolist()
    known = windows(ids[:2000].tolist())
    assert all(block not in known for block in blocks(prepared.heldout().tolist()))
    assert 1 <= prepared.removed_lines <= 2
    assert open_tokens(train).tolist() == ids[:2000].tolist()


def test_token_keys_follow_content_and_type(tmp_path):
    keys = [
        made(token_file(tmp_path / "a.bin", range(400)), tokenizer=None).key,
        made(token_file(tmp_path / "b.bin", range(400)), tokenizer=None).key,
        made(token_file(tmp_path / "c.bin", range(1, 401)), tokenizer=None).key,
        made(token_file(tmp_path / "d.bin", range(400), vocab_size=600), tokenizer=None).key,
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
