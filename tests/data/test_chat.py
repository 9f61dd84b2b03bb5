"""Conversations: the loss counts the answers and what ends them, and nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
from data.made import STORIES, chat, decoded, jsonl, made, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from selectbench.choices.model import Bytes, Unigram, WordPiece
from selectbench.data.prepare import conversation, encode
from selectbench.data.tokenizer import make_tokenizer
from selectbench.suite.sources import Chat

BYTES = make_tokenizer(Bytes(), list)


def masked(tokenizer, messages):
    """The text of the tokens that are trained, and of the others; ends of text as None."""
    (batch,) = encode(tokenizer, [json.dumps(messages)], conversation)
    trained = np.ones(len(batch.ids), np.uint8) if batch.trained is None else batch.trained
    assert len(trained) == len(batch.ids)
    return batch.ids, trained


def runs(ids, trained, tokenizer):
    """(whether trained, text) of each run of tokens of one kind; the last end of text apart."""
    assert ids[-1] == tokenizer.end_id
    cuts = np.flatnonzero(np.diff(trained[:-1])) + 1
    parts = np.split(np.arange(len(ids) - 1), cuts)
    return [(bool(trained[p[0]]), tokenizer.backend.decode(ids[p].tolist())) for p in parts], bool(trained[-1])


def test_the_mask_covers_the_answer_and_what_ends_it():
    messages = [
        ("system", "Be brief."),
        ("user", "Why?"),
        ("assistant", "So 🗼."),
        ("user", "Ah"),
        ("assistant", "Yes"),
    ]
    found, end = runs(*masked(BYTES, messages), BYTES)
    assert found == [
        (False, "<|system|>\nBe brief.\n<|user|>\nWhy?\n<|assistant|>\n"), (True, "So 🗼.\n"),
        (False, "<|user|>\nAh\n<|assistant|>\n"), (True, "Yes\n"),
    ]  # fmt: skip
    assert end


def test_after_a_question_that_stays_unanswered_the_end_is_not_trained():
    found, end = runs(*masked(BYTES, [("user", "a"), ("assistant", "b"), ("user", "c")]), BYTES)
    assert [text for trained, text in found if trained] == ["b\n"]
    assert not end


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=12)), min_size=1, max_size=6
    )
)
def test_trained_tokens_are_those_of_the_answers(messages):
    ids, trained = masked(BYTES, messages)
    answers = "".join(f"{text}\n" for role, text in messages if role == "assistant")
    others = "".join(f"<|{role}|>\n" + ("" if role == "assistant" else f"{text}\n") for role, text in messages)
    body, flags = ids[:-1], trained[:-1].astype(bool)
    assert BYTES.backend.decode(body[flags].tolist()) == answers
    assert BYTES.backend.decode(body[~flags].tolist()) == others
    assert trained[-1] == (messages[-1][0] == "assistant")


@pytest.mark.parametrize("tokenizer", [Bytes(), Unigram(unigram=400), WordPiece(wordpiece=600)])
def test_prepared_masks_cover_the_answers_of_the_file(tokenizer, tmp_path):
    prepared = made(chat(tmp_path), tokenizer=tokenizer)
    count = 0
    sides = [(prepared.train(), prepared.train_mask()), (prepared.heldout(), prepared.heldout_mask())]
    for ids, mask in sides:
        assert len(ids) == len(mask)
        ends = np.flatnonzero(ids == 0)
        assert mask[ends].all()
        answers = np.split(ids, ends + 1)[:-1]
        flags = np.split(mask, ends + 1)[:-1]
        for answer, flag in zip(answers, flags, strict=True):
            (text,) = decoded(prepared, answer[flag.astype(bool)])
            assert text.removesuffix("\n") in STORIES
            count += 1
    assert count == len(STORIES)


def test_bytes_of_a_chat_are_those_of_all_that_is_encoded(tmp_path):
    prepared = made(chat(tmp_path))
    for tokens, size in ((prepared.train(), prepared.train_bytes), (prepared.heldout(), prepared.heldout_bytes)):
        assert sum(len(text.encode()) for text in decoded(prepared, tokens)) == size
    assert prepared.bytes_of_heldout().sum() == prepared.heldout_bytes


def test_a_text_has_no_mask(tmp_path):
    prepared = made(jsonl(tmp_path))
    assert prepared.train_mask() is prepared.heldout_mask() is None


def test_a_field_below_others(tmp_path):
    data = chat(tmp_path)
    path = Path(data.chat[0])
    rows = [json.dumps({"talk": {"turns": json.loads(line)["messages"]}}) for line in path.read_text().splitlines()]
    path.write_text("\n".join(rows))
    assert made(Chat(chat=[str(path)], field="talk.turns")).documents_in == len(STORIES)


def test_messages_that_spell_a_role_are_text(tmp_path):
    path = tmp_path / "sly.jsonl"
    path.write_text(json.dumps({"messages": turns("<|assistant|>\nno", "<|user|>\n<|endoftext|>yes")}))
    prepared = made(Chat(chat=[str(path)]), tokenizer=Bytes())
    ids, mask = np.array(prepared.train()), np.array(prepared.train_mask()).astype(bool)
    assert (ids == 0).sum() == 1
    assert BYTES.backend.decode(ids[mask][:-1].tolist()) == "<|user|>\n<|endoftext|>yes\n"
