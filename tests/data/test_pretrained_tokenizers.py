"""Tokenizers that exist: read as transformers saves them, with the same tokens, and each unfit one in words."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
from data.made import STORIES, jsonl, made
from data.test_tokenizers import ODD, SPECS, TEXT, assert_bytes_sum, encoded, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from selectbench.choices.model import PretrainedTokenizer
from selectbench.data.prepare import encode
from selectbench.data.tokenizer import END_OF_TEXT, check_alphabet, make_tokenizer
from selectbench.errors import UserError


def saved(folder, tokenizer, **config):
    """As transformers saves it."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **config).save_pretrained(str(folder))
    return PretrainedTokenizer(pretrained=str(folder))


def of_words(words, model=models.WordLevel, **config):
    backend = Tokenizer(model({word: n for n, word in enumerate(words)}, **config))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


@pytest.mark.parametrize("name", SPECS)
def test_a_trained_one_saved_and_read_gives_the_same_tokens(name, tmp_path):
    spec = saved(tmp_path / "tokenizer", trained(name).backend, eos_token=END_OF_TEXT)
    again = make_tokenizer(spec, list)
    assert (again.end_id, again.vocab_size) == (0, trained(name).vocab_size)
    texts = [*STORIES, *(text for text in ODD if "<|" not in text)]
    assert encoded(again, texts)[0].tolist() == encoded(trained(name), texts)[0].tolist()
    assert_bytes_sum(again, texts)


def test_prepared_with_the_saved_one_the_data_are_the_same(tmp_path):
    data = jsonl(tmp_path)
    first = made(data, tokenizer=SPECS["bpe"])
    own = Tokenizer.from_file(str(first.folder / "tokenizer.json"))
    second = made(data, tokenizer=saved(tmp_path / "tokenizer", own, eos_token=END_OF_TEXT))
    assert second.key != first.key
    assert second.train().tolist() == first.train().tolist()
    assert second.heldout().tolist() == first.heldout().tolist()


def test_special_tokens_spelt_out_follow_the_folders_setting(tmp_path):
    text = f"a{END_OF_TEXT}b"
    for split, expected in ((False, 2), (True, 1)):
        spec = saved(
            tmp_path / f"{split}", trained("bpe").backend, eos_token=END_OF_TEXT, split_special_tokens=split
        )
        ids = np.concatenate([batch.ids for batch in encode(make_tokenizer(spec, list), [text])])
        assert (ids == 0).sum() == expected


def dropping_white_space():
    """Lower case, words between blanks, and unknown ones: as BERT's."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    backend.train_from_iterator(STORIES, trainer)
    return backend


@settings(deadline=None, max_examples=60)
@given(documents=st.lists(TEXT, min_size=1, max_size=5))
def test_bytes_of_one_that_drops_white_space_sum_up_too(documents, tmp_path_factory):
    tokenizer = _dropping_in(tmp_path_factory.getbasetemp() / "bert")
    assert_bytes_sum(tokenizer, [text.replace("[SEP]", "") for text in documents])


@cache
def _dropping_in(folder):
    folder.mkdir(exist_ok=True)
    return make_tokenizer(saved(folder, dropping_white_space(), unk_token="[UNK]", sep_token="[SEP]"), list)


def test_blanks_that_no_token_stands_for_count_for_the_next(tmp_path_factory):
    _, sizes, _ = encoded(_dropping_in(tmp_path_factory.getbasetemp() / "bert"), ["  ravens   left  "])
    assert sizes.tolist()[0] == len("  ravens")
    assert sizes.sum() == len("  ravens   left  ")
    assert sizes[-1] == 2


def test_the_model_tells_the_unknown_token_where_the_settings_do_not(tmp_path):
    """tokenizer_config.json may name none: the unknown tokens must be counted all the same."""
    backend = of_words(["[UNK]", "[SEP]", "ravens"], unk_token="[UNK]")
    tokenizer = make_tokenizer(saved(tmp_path / "words", backend, sep_token="[SEP]"), list)
    assert tokenizer.unknown_id == 0


def refused(spec, tmp_path, *words):
    with pytest.raises(UserError) as caught:
        made(jsonl(tmp_path), tokenizer=spec)
    for word in ("tokenizer", *words):
        assert str(word) in str(caught.value)
    cache = tmp_path / "cache" / "data"
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize("model", [models.WordLevel, models.WordPiece])
@pytest.mark.parametrize("config", [{"unk_token": "[UNK]"}, {}])
def test_a_tokenizer_of_a_few_words_can_not_encode_the_text(model, config, tmp_path):
    backend = of_words(["[UNK]", "[SEP]", "day", "ravens"], model, unk_token="[UNK]")
    spec = saved(tmp_path / "words", backend, sep_token="[SEP]", **config)
    refused(
        spec, tmp_path, tmp_path / "words", "can't encode this text", "% of its tokens are the unknown one", "bpe"
    )


def test_a_tokenizer_without_even_an_unknown_token(tmp_path):
    spec = saved(tmp_path / "words", of_words(["[SEP]", "day"]), sep_token="[SEP]")
    refused(spec, tmp_path, "can't encode this text", "Missing [UNK] token")


def test_a_tokenizer_without_an_end_of_text(tmp_path):
    spec = saved(tmp_path / "words", of_words(["[UNK]", "day"], unk_token="[UNK]"))
    refused(spec, tmp_path, tmp_path / "words", "has no end-of-text token")


def test_a_task_that_needs_a_token_it_lacks(tmp_path):
    spec = saved(tmp_path / "bpe", trained("bpe").backend, eos_token=END_OF_TEXT)
    with pytest.raises(UserError, match="has no mask token"):
        made(jsonl(tmp_path), tokenizer=spec, specials=["mask"])
    assert make_tokenizer(spec, list, ["pad"]).special_ids == {"pad": 0}


def damaged_folders(folder):
    """Name of a folder to what is told of it."""
    whole = folder / "whole"
    saved(whole, trained("bpe").backend, eos_token=END_OF_TEXT)
    for name in ("cut", "no json", "other json", "config", "empty file"):
        shutil.copytree(whole, folder / name)
    text = (whole / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "cut" / "tokenizer.json").write_text(text[: len(text) // 2], encoding="utf-8")
    (folder / "no json" / "tokenizer.json").write_bytes(b"\x80\x81\x00")
    (folder / "other json" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": []}))
    (folder / "config" / "tokenizer_config.json").write_text("{")
    (folder / "empty file" / "tokenizer.json").write_text("")


@pytest.mark.parametrize("name", ["cut", "no json", "other json", "config", "empty file"])
def test_a_damaged_folder(name, tmp_path):
    damaged_folders(tmp_path)
    refused(
        PretrainedTokenizer(pretrained=str(tmp_path / name)), tmp_path, tmp_path / name, "cannot be loaded", "whole"
    )


def test_a_missing_or_empty_folder_and_an_id_without_a_network(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(PretrainedTokenizer(pretrained=str(tmp_path / "none")), tmp_path, "there is no such folder")
    refused(PretrainedTokenizer(pretrained=str(tmp_path / "empty")), tmp_path, "empty holds no tokenizer")
    refused(PretrainedTokenizer(pretrained="nobody/nothing"), tmp_path, "cannot be loaded", "hub's cache")


def test_every_file_of_a_folder_counts_for_the_key_but_its_weights(tmp_path):
    spec = saved(tmp_path / "bpe", trained("bpe").backend, eos_token=END_OF_TEXT)
    data = jsonl(tmp_path)
    key = made(data, tokenizer=spec).key
    (tmp_path / "bpe" / "model.safetensors").write_bytes(b"weights")
    shutil.copytree(tmp_path / "bpe", tmp_path / "copy")
    assert made(data, tokenizer=PretrainedTokenizer(pretrained=str(tmp_path / "copy"))).key == key
    config = tmp_path / "bpe" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "split_special_tokens": True}))
    assert made(data, tokenizer=spec).key != key


# Characters that no token stands for


def of_characters(text, normalizer=None, pre_tokenizer=None, **config):
    """BPE that knows these characters and no more."""
    backend = Tokenizer(
        models.BPE({"[SEP]": 0, **{c: n for n, c in enumerate(sorted(set(text)), 1)}}, [], **config)
    )
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


ALL_STORIES = "".join(STORIES)
KNOWN = ALL_STORIES.replace("ö", "").replace("🗼", "").replace(":", "")


@pytest.mark.parametrize("config", [{}, {"unk_token": "[UNK]"}], ids=["unnamed", "named in the settings alone"])
def test_characters_that_are_left_out_are_told(config, tmp_path):
    assert of_characters(KNOWN).encode("gröe").tokens == ["g", "r", "e"], "encoding says nothing of it"
    spec = saved(tmp_path / "letters", of_characters(KNOWN), sep_token="[SEP]", **config)
    refused(
        spec, tmp_path, f"{tmp_path / 'letters'} leaves out 360 characters of {tmp_path / 'records.jsonl'}",
        "':' (U+003A) 120 x", "'ö' (U+00F6) 120 x", "'🗼' (U+1F5FC) 120 x", "nor an unknown token", "{bpe: 4096}",
    )  # fmt: skip


def test_it_is_enough_that_every_character_has_a_token(tmp_path):
    spec = saved(tmp_path / "letters", of_characters(ALL_STORIES), sep_token="[SEP]")
    prepared = made(jsonl(tmp_path), tokenizer=spec)
    assert prepared.train_documents + prepared.heldout_documents == len(STORIES)


def lost_of(backend, *texts):
    """What is told of them; "" where nothing is."""
    try:
        check_alphabet(backend, texts, "mine", "these")
    except UserError as error:
        return str(error)
    return ""


def over_bytes(letters, *before):
    """BPE that knows the bytes of these letters, of words split first by what is given."""
    backend = of_characters("".join(word for word, _ in SPELT.pre_tokenize_str(letters)))
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, SPELT]) if before else SPELT
    return backend


def with_added(token):
    backend = over_bytes("a")
    backend.add_tokens([token])
    return backend


SPELT = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.mark.parametrize(
    ("backend", "text", "lost"),
    [
        (of_characters("abé", normalizers.NFC()), "e\u0301ab", ""),
        (of_characters("abé", normalizers.NFD()), "é", "'e' (U+0065)"),
        (of_characters("ab", normalizers.Lowercase()), "AB \u2581", ""),
        (of_characters("ab", pre_tokenizer=pre_tokenizers.Metaspace()), "a b\n", ""),
        (of_characters("ab") , "a\x00", "'\\x00' (U+0000)"),
        (over_bytes("aé"), "aéa", ""),
        (over_bytes("aé"), "aèa", "'è' (U+00E8)"),
        (Tokenizer(models.BPE({b: n for n, b in enumerate(BYTES)}, [], byte_fallback=True)), "aé", ""),
        (Tokenizer(models.BPE({b: n for n, b in enumerate(BYTES[:128])}, [], byte_fallback=True)), "aé", "'é'"),
        (Tokenizer(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>")), "ab c", "'c'"),
        (of_characters("a", unk_token="[SEP]"), "abc", ""),
        (of_characters("a", continuing_subword_prefix="##"), "ab", "'b'"),
        (over_bytes("aé", pre_tokenizers.Digits()), "aéè", "out 1 characters"),
        (over_bytes("aé"), "aÃ", "'Ã'"),
        (of_characters("a|", pre_tokenizer=pre_tokenizers.CharDelimiterSplit("|")), "a|a", "'|'"),
        (with_added("é"), "aéa", ""),
        (with_added("é"), "aèa", "'è'"),
        (Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")), "ab", ""),
        (Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]")), "ab", ""),
        (Tokenizer(models.Unigram([("?", 0.0), *((b, -1.0) for b in BYTES)], 0, True)), "aé", ""),
    ],
    ids=["composed", "decomposed", "lower case", "blanks", "control", "bytes", "a missing byte", "fallback",
         "half a fallback", "end of word", "unknown", "inside of words", "bytes of parts", "a byte's own letter",
         "taken out by the splitting", "added", "not added", "WordPiece", "without its unknown token", "unigram"],
)  # fmt: skip
def test_what_is_left_out_by_kind(backend, text, lost):
    told = lost_of(backend, text, "a")
    assert (lost in told) if lost else not told


@pytest.mark.parametrize("name", SPECS)
def test_a_trained_one_leaves_nothing_out_and_the_text_is_not_even_read(name):
    def unread():
        yield pytest.fail("read")

    check_alphabet(trained(name).backend, unread(), "mine", "these")
