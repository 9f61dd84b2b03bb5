"""Tokenizers and data sets of the hub: a name is keyed by what it means, and that is what is loaded."""

import json
import shutil

import datasets
import pytest
from data.made import STORIES, jsonl, made
from data.test_pretrained_tokenizers import saved
from hub_cache import FIRST, NAME, SECOND, commit, moved
from tokenizers import Tokenizer

from selectbench.choices.model import Bpe, PretrainedTokenizer
from selectbench.data.tokenizer import END_OF_TEXT, make_tokenizer
from selectbench.suite.sources import Dataset


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def tokenizer_folder(tmp_path, entries):
    folder = tmp_path / f"bpe{entries}"
    saved(folder, make_tokenizer(Bpe(bpe=entries), lambda: STORIES).backend, eos_token=END_OF_TEXT)
    return folder


def test_a_tokenizer_that_changed_under_its_name_is_another(hub, tmp_path):
    data, name = jsonl(tmp_path), PretrainedTokenizer(pretrained=NAME)
    commit(hub, FIRST, tokenizer_folder(tmp_path, 300))
    first = made(data, tokenizer=name)
    commit(hub, SECOND, tokenizer_folder(tmp_path, 350))
    second = made(data, tokenizer=name)
    assert (first.vocab_size, second.vocab_size) == (300, 350)
    assert first.key != second.key
    assert made(data, tokenizer=PretrainedTokenizer(pretrained=NAME, revision=FIRST)).key == first.key
    moved(hub, FIRST)
    assert made(data, tokenizer=name).key == first.key


def test_the_same_files_under_another_commit_or_in_a_folder_are_the_same(hub, tmp_path):
    data, folder = jsonl(tmp_path), tokenizer_folder(tmp_path, 300)
    keys = []
    for number in (FIRST, SECOND):
        commit(hub, number, folder)
        keys.append(made(data, tokenizer=PretrainedTokenizer(pretrained=NAME)).key)
    keys.append(made(data, tokenizer=PretrainedTokenizer(pretrained=str(folder))).key)
    assert len(set(keys)) == 1


def test_what_was_keyed_is_loaded_though_the_name_moves_meanwhile(hub, tmp_path):
    data = jsonl(tmp_path)
    commit(hub, SECOND, tokenizer_folder(tmp_path, 350))
    commit(hub, FIRST, tokenizer_folder(tmp_path, 300))

    def move(line):
        moved(hub, SECOND)

    prepared = made(data, tokenizer=PretrainedTokenizer(pretrained=NAME), notify=move)
    assert Tokenizer.from_file(str(prepared.folder / "tokenizer.json")).get_vocab_size() == 300


def test_a_data_set_that_changed_under_its_name_is_another(tmp_path):
    datasets.disable_progress_bars()
    found = []
    for number, documents in ((FIRST, STORIES), (SECOND, [*STORIES[:-1], "another last one"])):
        kept_by_the_library(tmp_path, number, documents)
        found.append(made(Dataset(dataset="org/texts")))
    assert found[0].key != found[1].key
    assert found[0].train_bytes + found[0].heldout_bytes != found[1].train_bytes + found[1].heldout_bytes


def kept_by_the_library(tmp_path, number, documents):
    """A commit of org/texts as `datasets` keeps it to be read without a network, where the latest counts."""
    source = tmp_path / f"{number}.jsonl"
    source.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    rows = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(tmp_path / number))
    (file,) = rows.cache_files
    kept = datasets.config.HF_DATASETS_CACHE / "org___texts" / "default" / "0.0.0" / number
    kept.mkdir(parents=True)
    shutil.copy(file["filename"], kept / "texts-train.arrow")
    shutil.copy(str(file["filename"]).replace("json-train.arrow", "dataset_info.json"), kept)
