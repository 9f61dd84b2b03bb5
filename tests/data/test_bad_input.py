"""Bad input: each ends in words that name the file and the line, and leaves nothing in the cache."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.made import STORIES, dataset, decoded, jsonl, made, parquet, refused

from selectbench.choices.model import Bytes
from selectbench.data import reading as lines
from selectbench.errors import UserError
from selectbench.suite.sources import Cleaning, Dataset, JsonLines, Parquet, TextFiles

DROP = Cleaning(unreadable="drop")


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
    refused(data, tmp_path / "some.jsonl", "line 21", words, "`job.cleaning: {unreadable: drop}`")
    prepared = made(data, cleaning=DROP)
    assert (prepared.documents_in, prepared.removed) == (24, {"unreadable": 1})
    assert prepared.train_documents + prepared.heldout_documents == 23


ARRAY = [json.dumps(row).encode() for row in GOOD]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"[1, [2]]", "item 4: a list was found, an object was expected"),
        (b"null", "item 4: null was found, an object was expected"),
        (b'{"txt": "a"}', "item 4: there is no field 'text', text was expected"),
        (b'{"text": "caf\xe9"}', "item 4 holds bytes that are not UTF-8"),
        (b'{"text": "a", "text": "b"}', "item 4 is not JSON: an object has the key 'text' twice"),
    ],
)
def test_a_bad_item_of_an_array_is_refused_or_dropped_alone(bad, words, tmp_path):
    (tmp_path / "some.json").write_bytes(b"[" + b", ".join([*ARRAY[:3], bad, *ARRAY[3:]]) + b"]")
    data = JsonLines(jsonl=[str(tmp_path / "some.json")])
    refused(data, f"{tmp_path / 'some.json'}, {words}", "`job.cleaning: {unreadable: drop}`")
    prepared = made(data, cleaning=DROP)
    assert (prepared.documents_in, prepared.removed) == (21, {"unreadable": 1})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" + b",".join(ARRAY), "item 20 of a JSON array: it breaks off"),
        (b"[" + b",\n".join(ARRAY) + b"\n", "item 21 of a JSON array: it breaks off"),
        (b"[" + b",".join(ARRAY)[:-9], "item 20 of a JSON array: Unterminated string"),
        (b"[" + ARRAY[0] + b", {text: 3}, " + ARRAY[1] + b"]", "item 2 of a JSON array: Expecting property name"),
        (b"[" + ARRAY[0] + b" " + ARRAY[1] + b"]", "item 2 of a JSON array: the comma before it is missing"),
        (b"[," + ARRAY[0] + b"]", "item 1 of a JSON array: the comma before it is missing or too many"),
        (b"[" + ARRAY[0] + b",]", "item 2 of a JSON array: Expecting value"),
        (b"[" + b",".join(ARRAY) + b"]\n" + ARRAY[0], "goes on after the end of a JSON array"),
        (b"[" * 100_000, "item 1 of a JSON array: "),
        (b"[]", "has no text"),
        (b"[", "item 1 of a JSON array: it breaks off"),
    ],
)
@pytest.mark.parametrize("cleaning", [Cleaning(), DROP])
def test_an_array_that_is_damaged_is_refused_whatever_may_be_dropped(content, words, cleaning, tmp_path):
    (tmp_path / "some.json").write_bytes(content)
    refused(JsonLines(jsonl=[str(tmp_path / "some.json")]), tmp_path / "some.json", words, cleaning=cleaning)


@pytest.mark.parametrize("form", ["[%s]", "%s"])
def test_numbers_that_only_python_writes_are_read_in_arrays_and_in_lines(form, tmp_path):
    rows = [json.dumps({**row, "score": score}) for row in GOOD for score in (float("nan"), float("-inf"), 1.5)]
    path = tmp_path / "some.json"
    path.write_text(form % (", " if "[" in form else "\n").join(rows))
    assert made(JsonLines(jsonl=[str(path)])).documents_in == len(rows)


def test_an_array_is_not_read_whole_and_its_items_have_a_longest_length(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(lines, "LONGEST_LINE_BYTES", 1 << 10)
    path = tmp_path / "some.json"
    path.write_bytes(b"[" + b" , ".join(ARRAY) + b', {"text": "' + b"x" * 5000 + b'"}]')
    words = "item 21 of a JSON array: Unterminated string starting at, or it is longer than 0 MiB"
    with pytest.raises(UserError, match=words):
        list(lines.json_values(path, "job.data.jsonl", pytest.fail))
    items = lines.json_values(path, "job.data.jsonl", pytest.fail)
    assert [next(items)[1] for _ in GOOD] == GOOD  # before the fault is met


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


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_line_that_would_fill_the_memory_is_refused_or_dropped_alone(end, pack, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE_BYTES", 1 << 20)
    (tmp_path / "long.txt").write_bytes(pack(b"short" + end + b"x" * (3 << 20) + end + b"\xff" + end + b"after"))
    data = TextFiles(text=[str(tmp_path / "long.txt")])
    refused(data, f"{tmp_path / 'long.txt'}, line 2 is longer than 1 MiB", "line ends", "unreadable: drop")
    prepared = made(data, cleaning=DROP, tokenizer=Bytes())
    assert prepared.removed == {"unreadable": 2}
    assert decoded(prepared, prepared.train()) == ["short\nafter"]
    with pytest.raises(UserError, match=rf"byte offset {5 + (3 << 20) + 2 * len(end)}, line 3"):
        list(lines.read_lines(tmp_path / "long.txt", "job.data.text", only_too_long))


def only_too_long(message):
    if "longer than" not in message:
        raise UserError(message)


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
    refused(data, f"job.data.jsonl: {path}: the gzip file is damaged", cleaning=cleaning)


def test_gzip_overwritten_in_its_middle(tmp_path):
    """What it unpacks to until then is no JSON either; the damage may not be dropped."""
    data = jsonl(tmp_path, name="records.jsonl.gz")
    path = Path(data.jsonl[0])
    raw = path.read_bytes()
    path.write_bytes(raw[:200] + bytes(8) + raw[208:])
    for cleaning in (Cleaning(), DROP):
        refused(data, f"job.data.jsonl: {path}: the gzip file is damaged", cleaning=cleaning)


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
    refused(data, f"job.data.parquet: {path} cannot be read")


def test_parquet_damaged_inside(tmp_path):
    data = parquet(tmp_path)
    path = Path(data.parquet[0])
    raw = bytearray(path.read_bytes())
    raw[4:400] = bytes(396)
    path.write_bytes(raw)
    refused(data, f"job.data.parquet: {path} cannot be read")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody/nothing", "nobody/nothing cannot be loaded: Couldn't reach"),
        ("{folder}/missing", "missing cannot be loaded"),
        ("{folder}/empty", "empty cannot be loaded"),
        ("{folder}/damaged", "damaged cannot be loaded"),
        ("{folder}/torn", "torn cannot be loaded"),
    ],
)
def test_a_data_set_that_cannot_be_had(name, words, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.jsonl").write_text('{"text": "cut\n' * 3)
    dataset(tmp_path, name="torn")
    (tmp_path / "torn" / "state.json").write_text("{}")
    refused(Dataset(dataset=name.format(folder=tmp_path)), "job.data.dataset: ", words, "hub's cache")


def test_a_data_set_whose_rows_are_cut(tmp_path):
    data = dataset(tmp_path)
    (arrow,) = Path(data.dataset).glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    refused(data, "saved cannot be loaded")
