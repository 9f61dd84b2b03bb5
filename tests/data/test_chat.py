"""Conversations: the loss counts the answers and what ends them, and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.made import STORIES, chat, decoded, jsonl, made, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from selectbench.choices.model import Bytes, Gpt2, Unigram, WordPiece
from selectbench.data.prepare import chat_parts, encode
from selectbench.data.prepared import targets
from selectbench.data.tokenizer import make_tokenizer
from selectbench.suite.job import Job
from selectbench.suite.sources import Chat

BYTES = make_tokenizer(Bytes(), list)


def masked(tokenizer, messages):
    """The text of the tokens that are trained, and of the others; ends of text as None."""
    (batch,) = encode(tokenizer, [json.dumps(messages)], chat_parts)
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
    sides = [(prepared.train(), prepared.mask("train")), (prepared.heldout(), prepared.mask("heldout"))]
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
    assert prepared.mask("train") is prepared.mask("heldout") is None


def test_a_field_below_others(tmp_path):
    data = chat(tmp_path)
    path = Path(data.chat[0])
    rows = [json.dumps({"talk": {"turns": json.loads(line)["messages"]}}) for line in path.read_text().splitlines()]
    path.write_text("\n".join(rows))
    assert made(Chat(chat=[str(path)], field="talk.turns")).documents_in == len(STORIES)


@pytest.mark.parametrize("parts", [1, 3])
def test_content_in_parts_is_read_as_one_text(parts, tmp_path):
    whole = chat(tmp_path)
    rows = [json.loads(line)["messages"] for line in Path(whole.chat[0]).read_text().splitlines()]
    for message in (message for row in rows for message in row):
        size = -(-len(message["content"]) // parts)
        cuts = range(0, len(message["content"]), size)
        message["content"] = [{"type": "text", "text": message["content"][n : n + size]} for n in cuts]
    (tmp_path / "parts.json").write_text(json.dumps([{"messages": row} for row in rows], indent=1))
    found = made(Chat(chat=[str(tmp_path / "parts.json")]))
    assert found.train().tolist() == made(whole).train().tolist()


@pytest.mark.parametrize("field", [None, "conversations"])
def test_conversations_as_share_gpt_has_them(field, tmp_path):
    whole = chat(tmp_path)
    rows = [json.loads(line)["messages"] for line in Path(whole.chat[0]).read_text().splitlines()]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [[{"from": names[one["role"]], "value": one["content"]} for one in row] for row in rows]
    (tmp_path / "shared.json").write_text(json.dumps([{"id": 3, "conversations": row} for row in shared]))
    found = made(Chat(chat=[str(tmp_path / "shared.json")], field=field))
    assert found.train().tolist() == made(whole).train().tolist()
    assert found.mask("train").tolist() == made(whole).mask("train").tolist()


def test_messages_that_spell_a_role_are_text(tmp_path):
    path = tmp_path / "sly.jsonl"
    path.write_text(json.dumps({"messages": turns("<|assistant|>\nno", "<|user|>\n<|endoftext|>yes")}))
    prepared = made(Chat(chat=[str(path)]), tokenizer=Bytes())
    ids, mask = np.array(prepared.train()), np.array(prepared.mask("train")).astype(bool)
    assert (ids == 0).sum() == 1
    assert BYTES.backend.decode(ids[mask][:-1].tolist()) == "<|user|>\n<|endoftext|>yes\n"


def lengthy(folder, *, turns_each, question, answer, chats=40):
    """Conversations whose questions and answers have up to so many words."""
    draw, lines = np.random.default_rng(0), []
    for number in range(chats):
        messages = []
        for _ in range(draw.integers(1, turns_each + 1)):
            for role, most in (("user", question), ("assistant", answer)):
                words = " ".join(f"{word:x}" for word in draw.integers(0, 4096, draw.integers(1, most + 1)))
                messages.append({"role": role, "content": f"{words} {number}"})
        lines.append(json.dumps({"messages": messages}))
    (folder / "long.jsonl").write_text("\n".join(lines))
    return Chat(chat=[str(folder / "long.jsonl")])


def job(seq_len):
    return Job(model=Gpt2(n_layer=1, n_embd=8, n_head=1), data=Chat(chat=["x"]), tokenizer=Bytes(), seq_len=seq_len,
               global_batch_size=4, max_steps=5, eval="none")  # fmt: skip


@pytest.mark.parametrize(
    ("turns_each", "question", "answer"), [(1, 200, 2), (6, 12, 30), (2, 3, 150), (9, 2, 2), (1, 300, 300)]
)
@pytest.mark.parametrize("seq_len", [16, 64, 500])
def test_sequences_hold_every_token_of_the_answers_once_and_whole_answers(
    turns_each, question, answer, seq_len, tmp_path
):
    prepared = made(lengthy(tmp_path, turns_each=turns_each, question=question, answer=answer), tokenizer=Bytes())
    ids, mask = np.array(prepared.train()), np.array(prepared.mask("train"))
    cut = prepared.answers("train", seq_len)
    counted = cut.counted(np.arange(len(cut.starts)), seq_len)
    places = cut.starts[:, None] + np.arange(1, seq_len + 1)
    assert counted.any(axis=1).all()
    assert np.sort(places[counted]).tolist() == np.flatnonzero(mask).tolist()
    assert cut.starts.min() >= 0
    assert places.max() < len(ids)
    where = dict(zip(places[counted].tolist(), np.nonzero(counted)[0].tolist(), strict=True))
    begins = [n for n in np.flatnonzero(mask) if not mask[n - 1]]
    for begin in begins:
        end = begin + int(np.argmin(np.append(mask[begin:], 0)))
        if end - begin <= seq_len:
            assert len({where[place] for place in range(begin, end)}) == 1
            start = int(cut.starts[where[begin]])
            conversation = int(np.flatnonzero(np.append(0, ids[:begin]) == 0)[-1])
            least = min(begin - conversation, seq_len // 2, seq_len - (end - begin))
            assert begin - 1 - start >= least - 1
    share, words = targets(prepared, job(seq_len))
    even = [mask[n + 1 : n + seq_len + 1].any() for n in range(0, len(ids) - seq_len, seq_len)]
    assert share == pytest.approx(mask.sum() / (len(cut.starts) * seq_len))
    assert (f"; cut evenly, {1 - np.mean(even):.0%} of the sequences" in words) != all(even)


def test_what_a_step_trains_on_is_shown_and_few_is_a_warning_and_none_an_error(tmp_path):
    """Prompts of hundreds of words before answers of one or two, in short sequences."""
    lengthy(tmp_path, turns_each=1, question=400, answer=2, chats=200)
    suite = {
        "job": {
            "model": {"family": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1}, "data": {"chat": "long.jsonl"},
            "tokenizer": {"bytes": True}, "seq_len": 16, "global_batch_size": 8, "max_steps": 5, "eval": "none",
        },
        "choices": {"micro_batch_size": 8, "optimizer": {"name": "adamw", "lr": 1e-3}},
        "decide": {"objective": "tokens_per_second", "constraints": []}, "options": {"a": {}},
    }  # fmt: skip
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))

    def shown(command, seq_len):
        words = ["selectbench", command, str(tmp_path / "suite.yaml"), "--set", f"job.seq_len={seq_len}"]
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
        return " ".join((done.stdout + done.stderr).split())

    short, long = shown("plan", 16), shown("data", 512)
    told = re.search(r"trained on: (\d+) of the 128 tokens of a step \(([\d.]+)%\); cut evenly, (\d+)% of", short)
    assert 100 * int(told[1]) / 128 == pytest.approx(float(told[2]), abs=0.5)
    assert int(told[3]) > 90
    assert "tokens of a step are trained on" not in short
    assert "of the 4,096 tokens of a step" in long
    assert re.search(r"warning: only [0-4]\.\d% of the tokens of a step are trained on: losses are noisy", long)
    assert "make 0 sequences of seq_len 1048576 with an answer" in shown("plan", 1 << 20)
