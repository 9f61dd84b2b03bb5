"""Every source, read for real: its documents arrive, and its key follows its content."""

import gzip
import json
import shutil
import sys
from pathlib import Path

import datasets
import pytest
from data.made import (
    OWN_MODULE,
    REFRAIN,
    STORIES,
    TEXTS,
    chat,
    dataset,
    decoded,
    in_cache,
    jsonl,
    made,
    own,
    parquet,
)

from selectbench.choices.model import Bpe, Bytes
from selectbench.data import reading
from selectbench.data.prepare import prepare
from selectbench.errors import UserError
from selectbench.suite.sources import Apart, Chat, Dataset, JsonLines, OwnDocuments, Pairs, Parquet, TextFiles

RECORDS = {name: write for name, write in TEXTS.items() if name != "text"}


def of_both_sides(prepared):
    return decoded(prepared, prepared.train()) + decoded(prepared, prepared.heldout())


def first_lines(documents):
    return sorted(text.split("\n")[0] for text in documents)


@pytest.mark.parametrize("write", TEXTS.values(), ids=TEXTS)
def test_every_document_arrives_once(write, tmp_path):
    prepared = made(write(tmp_path), tmp_path)
    assert first_lines(of_both_sides(prepared)) == first_lines(STORIES)
    assert prepared.documents_in == len(STORIES) == prepared.train_documents + prepared.heldout_documents
    assert prepared.heldout_documents > 0
    assert prepared.removed == prepared.changed == {}


@pytest.mark.parametrize("write", RECORDS.values(), ids=RECORDS)
def test_training_documents_keep_their_order(write, tmp_path):
    prepared = made(write(tmp_path), tmp_path)
    trained = decoded(prepared, prepared.train())
    assert trained == [text for text in STORIES if text in set(trained)]


@pytest.mark.parametrize("write", [jsonl, parquet, dataset])
def test_a_field_below_others_is_reached_with_dots(write, tmp_path):
    nested = write(tmp_path).model_copy(update={"field": "meta.text"})
    prepared = made(nested)
    assert first_lines(of_both_sides(prepared)) == first_lines(STORIES)


@pytest.mark.parametrize("name", [*TEXTS, "chat"])
def test_the_same_content_gives_the_same_key_and_other_content_another(name, tmp_path):
    keys = {}
    write = TEXTS.get(name, chat)
    for place, documents in {"a": STORIES, "b": STORIES, "c": [*STORIES[:-1], STORIES[-1] + "!"]}.items():
        (tmp_path / place).mkdir()
        keys[place] = made(write(tmp_path / place, documents), tmp_path / place).key
    assert keys["a"] == keys["b"] != keys["c"]
    assert in_cache() == sorted({keys["a"], keys["c"]})


@pytest.mark.parametrize("write", [jsonl, parquet, dataset])
def test_another_field_is_another_key(write, tmp_path):
    data = write(tmp_path)
    assert made(data).key != made(data.model_copy(update={"field": "meta.text"})).key


def test_rows_exchanged_behind_a_saved_fingerprint_give_another_key(tmp_path):
    """`datasets` writes its fingerprint beside the rows; it says nothing of what lies there now."""
    first = made(dataset(tmp_path, STORIES, "first"))
    dataset(tmp_path, [*STORIES[:-1], "another last one"], "second")
    for arrow in (tmp_path / "second").glob("*.arrow"):
        shutil.copy(arrow, tmp_path / "first" / arrow.name)
    second = made(Dataset(dataset=str(tmp_path / "first")))
    assert first.key != second.key
    assert "another last one" in of_both_sides(second)
    assert "another last one" not in of_both_sides(first)


def test_gzip_is_read_like_the_plain_file(tmp_path):
    plain, packed = made(jsonl(tmp_path)), made(jsonl(tmp_path, name="records.jsonl.gz"))
    assert (tmp_path / "records.jsonl.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert packed.train().tolist() == plain.train().tolist()


def test_gzip_of_several_members_is_read_to_its_end(tmp_path):
    whole = jsonl(tmp_path)
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "two.gz").write_bytes(gzip.compress(b"".join(lines[:50])) + gzip.compress(b"".join(lines[50:])))
    assert made(JsonLines(jsonl=[str(tmp_path / "two.gz")])).train().tolist() == made(whole).train().tolist()


@pytest.mark.parametrize(("write", "kind"), [(jsonl, JsonLines), (parquet, Parquet), (chat, Chat)])
def test_a_glob_finds_files_in_folders_in_the_order_of_their_names(write, kind, tmp_path):
    for place, name, part in (("b", "1", STORIES[60:]), ("a", "2", STORIES[30:60]), ("a", "1", STORIES[:30])):
        (tmp_path / place).mkdir(exist_ok=True)
        write(tmp_path / place, part, name=f"{name}.data")
    key = next(iter(kind.model_fields))
    prepared = made(kind.model_validate({key: f"{tmp_path}/**/*.data"}))
    assert prepared.documents_in == len(STORIES)
    trained = decoded(prepared, prepared.train())
    numbers = [next(n for n, story in enumerate(STORIES) if story in text) for text in trained]
    assert numbers == sorted(numbers)


def test_blank_lines_of_jsonl_are_passed_over(tmp_path):
    data = jsonl(tmp_path)
    path = Path(data.jsonl[0])
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\n\n  \n"), encoding="utf-8")
    assert made(data).documents_in == len(STORIES)


OBJECTS = [{"text": story, "meta": {"n": [n, "a\r]"]}} for n, story in enumerate(STORIES)]
JSON_FILES = {
    "lf": "\n".join(map(json.dumps, OBJECTS)),
    "cr": "\r".join(map(json.dumps, OBJECTS)),
    "all ends": "".join(json.dumps(one) + ("\r\n", "\r", "\n")[n % 3] for n, one in enumerate(OBJECTS)),
    "array": json.dumps(OBJECTS),
    "indented array": "\n " + json.dumps(OBJECTS, indent=3, ensure_ascii=False) + "\n\n",
    "array of cr": json.dumps(OBJECTS, indent=0).replace("\n", "\r"),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("form", JSON_FILES)
def test_objects_in_lines_of_any_end_or_in_an_array(form, pack, mark, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 700)  # so that items lie across what is read at once
    (tmp_path / "records").write_bytes(pack(mark + JSON_FILES[form].encode()))
    prepared = made(JsonLines(jsonl=[str(tmp_path / "records")]), tokenizer=Bytes())
    assert first_lines(of_both_sides(prepared)) == first_lines(STORIES)
    assert prepared.documents_in == len(STORIES)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_text_and_pairs_whose_lines_end_in_any_way(end, tmp_path):
    lines = [story.split("\n")[0] for story in STORIES]
    (tmp_path / "text.txt").write_bytes(end.join(lines).encode())
    text = made(TextFiles(text=[str(tmp_path / "text.txt")]), tokenizer=Bytes())
    assert sorted("\n".join(of_both_sides(text)).split("\n")) == sorted(lines)
    pairs = end.join(f"{line}\t{line[::-1]}" for line in lines)
    (tmp_path / "pairs.tsv").write_bytes(pairs.encode())
    found = made(Pairs(pairs=[str(tmp_path / "pairs.tsv")]), tokenizer=Bytes(), specials=("pad",))
    assert sorted(of_both_sides(found)) == sorted([*lines, *(line[::-1] for line in lines)])


def test_pairs_in_an_array(tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps([{"source": s, "target": s[::-1]} for s in STORIES], indent=1))
    found = made(Pairs(pairs=[str(tmp_path / "pairs.json")]), tokenizer=Bytes(), specials=("pad",))
    assert found.documents_in == len(STORIES)
    assert first_lines(of_both_sides(found)) == first_lines([*STORIES, *(s[::-1] for s in STORIES)])


# --- data sets ---


def test_one_of_several_saved_splits_and_a_slice_of_it(tmp_path):
    both = {
        "train": datasets.Dataset.from_dict({"text": STORIES[:80]}),
        "test": datasets.Dataset.from_dict({"text": STORIES[80:]}),
    }
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "both"))
    for split, expected in {
        "test": STORIES[80:],
        "train[:50%]": STORIES[:40],
        "train[-3:]": STORIES[77:80],
    }.items():
        prepared = made(Dataset(dataset=str(tmp_path / "both"), split=split))
        assert first_lines(of_both_sides(prepared)) == first_lines(expected)


@pytest.mark.parametrize("saved", ["one", "several"])
def test_a_split_that_is_not_there_is_told_with_those_that_are(saved, tmp_path):
    rows = datasets.Dataset.from_dict({"text": STORIES})
    (rows if saved == "one" else datasets.DatasetDict({"train": rows})).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"saved has no split 'test' \(it has train\)"):
        made(Dataset(dataset=str(tmp_path / "saved"), split="test"))


def test_a_folder_of_files_is_read_as_the_library_reads_it(tmp_path):
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder")
    prepared = made(Dataset(dataset=str(tmp_path / "folder")))
    assert first_lines(of_both_sides(prepared)) == first_lines(STORIES)
    again = made(Dataset(dataset=str(tmp_path / "folder")))
    assert again.key == prepared.key
    jsonl(tmp_path / "folder", STORIES[:-1])
    assert made(Dataset(dataset=str(tmp_path / "folder"))).key != prepared.key


# --- own code ---


def test_own_code_gets_its_settings_and_leaves_no_trace(tmp_path):
    before = list(sys.path)
    data = own(tmp_path, STORIES)
    prepared = made(data.model_copy(update={"settings": {"times": 2}}), tmp_path)
    assert prepared.documents_in == 2 * len(STORIES)
    assert sys.path == before
    assert "own_stories" not in sys.modules


def test_edited_own_code_is_read_anew(tmp_path):
    data = own(tmp_path)
    assert made(data, tmp_path).documents_in == 120
    own(tmp_path, module=OWN_MODULE.replace("yield text", "yield text\n            yield text.upper()"))
    assert made(data, tmp_path).documents_in == 240


def test_documents_that_change_from_reading_to_reading_are_told(tmp_path):
    module = "import builtins\ndef Documents():\n    yield f'number {next(builtins.drawn)}'\n"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("builtins.drawn", iter(range(9)), raising=False)
        with pytest.raises(UserError, match=r"own_stories:Documents gave other documents.*seed what it draws"):
            made(own(tmp_path, module=module), tmp_path)
    assert in_cache() == []


def test_a_file_of_own_code_stands_for_its_folder(tmp_path):
    data = own(tmp_path)
    found = prepare(data, Bpe(bpe=300), code=[str(tmp_path / "code" / "own_stories.py")])
    assert found.key == made(data, tmp_path).key


# --- training and held-out text apart ---


def apart(name, folder, train, heldout):
    write = TEXTS.get(name, chat)
    for place, documents in (("train", train), ("heldout", heldout)):
        (folder / place).mkdir()
        if name != "own":
            yield write(folder / place, documents)
    if name == "own":
        module = OWN_MODULE.replace("times=1", "part").replace(" * self.times", "[self.times]")
        both = own(folder, [], module=module.replace("self.times = times", "self.times = part"))
        (folder / "code" / "own.json").write_text(json.dumps([train, heldout]))
        for part in (0, 1):
            yield OwnDocuments(documents=both.documents, settings={"part": part})


@pytest.mark.parametrize("name", ["jsonl", "parquet", "dataset", "own"])
def test_a_held_out_document_in_training_is_removed_and_counted(name, tmp_path):
    fresh = [f"Night {n}: nobody saw any of the ravens, {n}.\n{REFRAIN}" for n in range(10)]
    copies = [STORIES[3], STORIES[5].upper().replace(" ", "  ")]
    train, heldout = apart(name, tmp_path, STORIES, [*fresh, *copies])
    prepared = made(Apart(train=train, heldout=heldout), tmp_path)
    assert decoded(prepared, prepared.train()) == STORIES
    assert decoded(prepared, prepared.heldout()) == [text.split("\n")[0] for text in fresh]
    assert prepared.removed == {"in_training": 2}
    assert prepared.removed_lines == 10  # the refrain
    assert prepared.documents_in == 132


def test_a_held_out_document_whose_lines_are_all_in_training_is_removed_whole(tmp_path):
    lines = [story.split("\n")[0] for story in STORIES]
    train, heldout = apart("jsonl", tmp_path, STORIES, [f"{lines[1]}\n{lines[2]}", "nothing of it is known there"])
    prepared = made(Apart(train=train, heldout=heldout))
    assert decoded(prepared, prepared.heldout()) == ["nothing of it is known there"]
    assert (prepared.removed, prepared.removed_documents, prepared.removed_lines) == ({}, 1, 2)


def test_exchanging_training_and_held_out_text_is_another_key(tmp_path):
    one, two = apart("jsonl", tmp_path, STORIES[:60], STORIES[60:])
    assert made(Apart(train=one, heldout=two)).key != made(Apart(train=two, heldout=one)).key


def test_the_second_time_nothing_is_read_but_for_the_key(tmp_path):
    data = jsonl(tmp_path)
    said = []
    first = made(data, notify=said.append)
    assert any("preparing" in line for line in said)
    stamp = (first.folder / "train.bin").stat().st_mtime_ns
    said.clear()
    assert made(data, notify=said.append) == first
    assert said == []
    assert (first.folder / "train.bin").stat().st_mtime_ns == stamp
