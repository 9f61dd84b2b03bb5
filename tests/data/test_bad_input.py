"""Bad input: each ends in words that name the file and the line, and leaves nothing in the cache."""

import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.made import BPE, STORIES, chat, dataset, in_cache, jsonl, made, own, parquet, token_file, turns

from selectbench.data import lines
from selectbench.data.prepare import prepare
from selectbench.errors import UserError
from selectbench.suite.data import Apart, Chat, Cleaning, Dataset, JsonLines, Parquet, TextFiles, TokenFile

DROP = Cleaning(unreadable="drop")


def refused(data, *words, folder=None, cleaning=None, tokenizer=BPE):
    """Asserts that it is, in a line with these words, and that the cache is as before."""
    before = in_cache()
    code = [str(folder / "code")] if folder else []
    with pytest.raises(UserError) as caught:
        prepare(data, tokenizer, cleaning=cleaning, code=code)
    for word in words:
        assert str(word) in str(caught.value)
    assert all(len(problem.splitlines()) == 1 for problem in caught.value.problems)
    assert in_cache() == before


def records(path, *rows):
    """Bytes stand for themselves, other things for their JSON."""
    path.write_bytes(
        b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    )
    return JsonLines(jsonl=[str(path)])


GOOD = [{"text": story} for story in STORIES[:20]]
BAD_LINES = {
    "no UTF-8": (b'{"text": "caf\xe9"}', "not a text file: bytes that are not UTF-8 at byte offset"),
    "a NUL byte": (b'{"text": "\0"}', "NUL byte"),
    "no JSON": (b"{'text': 'a'}", "line 21 is not JSON"),
    "cut": (b'{"text": "a', "line 21 is not JSON"),
    "too deep": (b"[" * 100_000, "line 21 is not JSON"),
    "no object": ([1, 2], "line 21: a list was found, an object was expected"),
    "no field": ({"txt": "a"}, "line 21: there is no field 'text', text was expected"),
    "a number": ({"text": 3.5}, "line 21: the field 'text' is a number, text was expected"),
    "null": ({"text": None}, "line 21: the field 'text' is null"),
    "an object": ({"text": {"text": "a"}}, "line 21: the field 'text' is an object"),
}


@pytest.mark.parametrize(("bad", "words"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_of_jsonl_is_refused_or_dropped_and_counted(bad, words, tmp_path):
    data = records(tmp_path / "some.jsonl", *GOOD, bad, *GOOD[:3])
    refused(data, tmp_path / "some.jsonl", "line 21", words, "`cleaning: {unreadable: drop}`")
    prepared = made(data, cleaning=DROP)
    assert (prepared.documents_in, prepared.removed) == (24, {"unreadable": 1})
    assert prepared.train_documents + prepared.heldout_documents == 23


def test_nothing_but_bad_lines(tmp_path):
    data = records(tmp_path / "some.jsonl", b"no", b"nor this")
    refused(data, "cleaning removed all 2 documents (2 unreadable)", cleaning=DROP)


def test_a_bad_line_of_text_is_dropped_and_the_rest_stays(tmp_path):
    (tmp_path / "some.txt").write_bytes(b"a fine line\ncaf\xe9\nanother\n")
    data = TextFiles(text=[str(tmp_path / "some.txt")])
    refused(data, tmp_path / "some.txt", "byte offset 15, line 2")
    prepared = made(data, cleaning=DROP)
    assert prepared.removed == {"unreadable": 1}
    assert prepared.train_bytes == len("a fine line\nanother")


@pytest.mark.parametrize("cleaning", [Cleaning(), DROP])
@pytest.mark.parametrize("name", ["long.txt", "long.gz"])
def test_a_line_that_would_fill_the_memory(name, cleaning, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE_BYTES", 1 << 20)
    content = b"short\n" + b"x" * (1 << 20) + b"y\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    data = TextFiles(text=[str(tmp_path / name)])
    refused(data, f"{tmp_path / name}, line 2 is longer than 1 MiB", "line ends", cleaning=cleaning)


def test_a_line_of_just_the_longest_length_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE_BYTES", 1 << 10)
    (tmp_path / "long.txt").write_bytes(b"x" * 1023 + b"\n" + b"y" * 1023)
    assert made(TextFiles(text=[str(tmp_path / "long.txt")])).train_bytes == 2047


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:2],
        lambda raw: raw[:-8] + bytes(8),
        lambda raw: raw + b"trailing text",
        lambda raw: raw[:3] + b"\xff" + raw[4:],
    ],
    ids=["cut", "a head alone", "wrong checksum", "text behind it", "unknown flags"],
)
@pytest.mark.parametrize("cleaning", [Cleaning(), DROP])
def test_damaged_gzip(damage, cleaning, tmp_path):
    data = jsonl(tmp_path, name="records.jsonl.gz")
    path = Path(data.jsonl[0])
    path.write_bytes(damage(path.read_bytes()))
    refused(data, f"data.jsonl: {path}, line ", "the gzip file is damaged", cleaning=cleaning)


def test_gzip_overwritten_in_its_middle(tmp_path):
    """What it unpacks to until then is no JSON either, and may be dropped; the damage may not."""
    data = jsonl(tmp_path, name="records.jsonl.gz")
    path = Path(data.jsonl[0])
    raw = path.read_bytes()
    path.write_bytes(raw[:200] + bytes(8) + raw[208:])
    refused(data, f"data.jsonl: {path}, line 1 ")
    refused(data, f"data.jsonl: {path}, line ", "the gzip file is damaged", cleaning=DROP)


# --- parquet and data sets ---


def test_parquet_without_the_column(tmp_path):
    data = parquet(tmp_path).model_copy(update={"field": "body"})
    refused(data, tmp_path / "rows.parquet", "has no column 'body' (it has text, id, meta)")


@pytest.mark.parametrize("write", [parquet, dataset])
@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("id", "row 0: the field 'id' is a number, text was expected"),
        ("meta.title", "row 0: there is no field 'meta.title'"),
        ("text.deep", "row 0: there is no field 'text.deep'"),
    ],
)
def test_a_column_that_is_no_text(write, field, words, tmp_path):
    data = write(tmp_path).model_copy(update={"field": field})
    refused(data, tmp_path, words)
    refused(data, "all 120 documents (120 unreadable)", cleaning=DROP)


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_a_row_without_text_is_named_or_dropped(kind, tmp_path):
    rows = [*STORIES, None, *STORIES]
    if kind == "parquet":
        pq.write_table(pa.table({"text": rows}), tmp_path / "some.parquet")
        data = Parquet(parquet=[str(tmp_path / "some.parquet")])
    else:
        datasets.Dataset.from_dict({"text": rows}).save_to_disk(str(tmp_path / "some"))
        data = Dataset(dataset=str(tmp_path / "some"))
    refused(data, tmp_path, "row 120: the field 'text' is null")
    assert made(data, cleaning=DROP).removed == {"unreadable": 1}


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-20], lambda raw: b"PAR1", lambda raw: b"no parquet at all" * 9]
)
def test_damaged_parquet(damage, tmp_path):
    data = parquet(tmp_path)
    path = Path(data.parquet[0])
    path.write_bytes(damage(path.read_bytes()))
    refused(data, f"data.parquet: {path} cannot be read")


def test_parquet_damaged_inside(tmp_path):
    data = parquet(tmp_path)
    path = Path(data.parquet[0])
    raw = bytearray(path.read_bytes())
    raw[4:400] = bytes(396)
    path.write_bytes(raw)
    refused(data, f"data.parquet: {path} cannot be read")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody/nothing", "nobody/nothing cannot be had: Couldn't reach"),
        ("{folder}/missing", "missing cannot be had"),
        ("{folder}/empty", "empty cannot be had"),
        ("{folder}/damaged", "damaged cannot be had"),
        ("{folder}/torn", "torn cannot be had"),
    ],
)
def test_a_data_set_that_cannot_be_had(name, words, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.jsonl").write_text('{"text": "cut\n' * 3)
    dataset(tmp_path, name="torn")
    (tmp_path / "torn" / "state.json").write_text("{}")
    refused(Dataset(dataset=name.format(folder=tmp_path)), "data.dataset: ", words, "hub's cache")


def test_a_data_set_whose_rows_are_cut(tmp_path):
    data = dataset(tmp_path)
    (arrow,) = Path(data.dataset).glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    refused(data, "saved cannot be had")


# --- own code ---


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("def Documents():\n    yield 'a'\n    yield 3\n", ["yielded a int as document 1, text was expected"]),
        ("import no_such_package\n", ["ModuleNotFoundError: No module named 'no_such_package'", "line 1"]),
        ("def Documents():\n    yield 'a'\n    import no_such_package\n", ["failed at document 1", "line 3"]),
        ("def Documents():\n    yield 'a'\n    open('/no/such')\n", ["document 1: FileNotFoundError", "line 3"]),
        ("def Documents():\n    yield {}['a']\n", ["failed at document 0: KeyError", "own_stories.py, line 2"]),
        ("def Documents(:\n", ["SyntaxError", "own_stories.py, line 1"]),
        ("Stories = 3\n", ["has no attribute 'Documents'"]),
        ("Documents = 3\n", ["not callable"]),
        ("def Documents(missing):\n    yield 'a'\n", ["missing 1 required positional argument"]),
        ("def Documents():\n    return 'one string'\n", ["gave one str, an iterable of documents was expected"]),
        ("def Documents():\n    return 3\n", ["'int' object is not iterable"]),
        ("def Documents():\n    return []\n", ["has no text"]),
    ],
)
def test_own_code_that_fails(module, words, tmp_path):
    refused(own(tmp_path, module=module), "own_stories:Documents", *words, folder=tmp_path)


# --- chats ---


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (turns("Why?", "x")[:2], "no message of the assistant: there would be nothing to learn"),
        (turns("Why?", " \n"), "no message of the assistant"),
        (
            [{"role": "bot", "content": "a"}],
            "message 0 has the role 'bot', expected one of system, user, assistant",
        ),
        ([{"content": "a"}], "message 0 has the role None"),
        (["a"], "message 0 has the role None"),
        ([{"role": "user", "content": ["a"]}], "message 0 has a list as its content, text was expected"),
        ([], "a list was found"),
        ("text", "text was found, a list of messages was expected"),
        (None, "null was found"),
    ],
)
def test_a_chat_that_teaches_nothing_is_refused_or_dropped(messages, words, tmp_path):
    data = chat(tmp_path)
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write(json.dumps({"messages": messages}) + "\n")
    refused(data, f"data.chat: {tmp_path / 'chats.jsonl'}, line 121: messages: ", words)
    assert made(data, cleaning=DROP).removed == {"unreadable": 1}


def test_a_chat_without_the_field(tmp_path):
    data = chat(tmp_path)
    refused(
        Chat(chat=data.chat, field="turns"), "line 1: turns: nothing was found, a list of messages was expected"
    )


# --- token files ---


def test_a_token_file_of_odd_size(tmp_path):
    data = token_file(tmp_path / "ids.bin", range(400))
    with (tmp_path / "ids.bin").open("ab") as file:
        file.write(b"x")
    refused(data, f"data.tokens: {tmp_path / 'ids.bin'} has 801 bytes", "whole number of uint16", tokenizer=None)


def test_ids_beyond_the_vocabulary(tmp_path):
    data = token_file(tmp_path / "ids.bin", [*range(400), 500, 1], "uint32")
    refused(data, tmp_path / "ids.bin", "token 400 is 500, vocab_size is 500", "another dtype", tokenizer=None)


def test_token_files_that_are_missing_empty_or_folders(tmp_path):
    (tmp_path / "empty.bin").touch()
    for name, words in {
        "none.bin": "does not exist",
        "empty.bin": "is empty",
        "": "is a folder: name the file",
    }.items():
        data = TokenFile(tokens=str(tmp_path / name), vocab_size=500)
        refused(data, f"data.tokens: {tmp_path / name} {words}", tokenizer=None)


def test_a_bad_token_file_of_two_is_named(tmp_path):
    good = token_file(tmp_path / "good.bin", range(400))
    missing = TokenFile(tokens=str(tmp_path / "none.bin"), vocab_size=500)
    bad = token_file(tmp_path / "bad.bin", np.full(100, 600))
    refused(Apart(train=good, heldout=missing), f"{tmp_path / 'none.bin'} does not exist", tokenizer=None)
    refused(Apart(train=good, heldout=bad), f"{tmp_path / 'bad.bin'}: token 0 is 600", tokenizer=None)
