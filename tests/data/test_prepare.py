"""Preparing real text: files in, token files out, and each bad input in words."""

import dataclasses
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from processes import start
from tokenizers import Tokenizer as HfTokenizer

from selectbench.choices.model import Bpe, Bytes
from selectbench.data.prepare import prepare
from selectbench.data.prepared import (
    ABANDONED_SECONDS,
    Prepared,
    cache_root,
    check_enough,
    epochs,
    file_digest,
    publish,
    sealed,
    unsealed,
)
from selectbench.data.split import SHORTEST_LEAK_CHARACTERS, normalised
from selectbench.data.tokenizer import END_OF_TEXT
from selectbench.errors import UserError
from selectbench.suite.job import Job
from selectbench.suite.sources import Apart, EmbeddedCorpus, TextFiles

BPE = Bpe(bpe=400)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    rows = (f"Chapter {n}: on day {n * 7} the {n % 5} ravens of größe {n} came\u00a0home, {n}." for n in range(900))
    path.write_text("\n\n".join(rows), encoding="utf-8")
    return path


def texts(*paths):
    return TextFiles(text=[str(path) for path in paths])


def documents(prepared, tokens):
    tokenizer = HfTokenizer.from_file(str(prepared.folder / "tokenizer.json"))
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    assert text.endswith(END_OF_TEXT)
    return text.removesuffix(END_OF_TEXT).split(END_OF_TEXT)


def test_tokens_decode_to_every_line_of_the_file(story):
    prepared = prepare(texts(story), BPE)
    train, heldout = documents(prepared, prepared.train()), documents(prepared, prepared.heldout())
    lines = [line for text in train + heldout for line in text.split("\n\n")]
    assert sorted(lines) == sorted(story.read_text(encoding="utf-8").split("\n\n"))
    assert (len(train), len(heldout)) == (prepared.train_documents, prepared.heldout_documents)
    assert prepared.train_bytes == sum(len(text.encode()) for text in train)
    assert prepared.heldout_bytes == sum(len(text.encode()) for text in heldout)


def test_token_bytes_sum_to_the_text(story):
    prepared = prepare(texts(story), BPE)
    sizes = prepared.bytes_of_heldout()
    assert sizes.sum() == prepared.heldout_bytes
    assert (sizes[prepared.heldout() == 0] == 0).all()  # the end of a document stands for no text
    assert (prepared.train_tokens, prepared.heldout_tokens) == (len(prepared.train()), len(prepared.heldout()))
    assert prepared.vocab_size == 400
    assert isinstance(prepared.train(), np.memmap)


def test_no_line_of_the_bible_is_held_out_and_trained_on():
    prepared = prepare(EmbeddedCorpus(), Bpe(bpe=512))
    train, heldout = documents(prepared, prepared.train()), documents(prepared, prepared.heldout())
    assert prepared.train_documents + prepared.heldout_documents + prepared.removed_documents == 1189
    trained, scored = ({normalised(v) for text in side for v in text.split("\n")} for side in (train, heldout))
    assert {verse for verse in trained & scored if len(verse) >= SHORTEST_LEAK_CHARACTERS} == set()
    assert prepared.removed_lines > 0
    lines = [line for text in train + heldout for line in text.split("\n")]
    assert len(lines) == 31_102 + 90 - prepared.removed_lines
    assert 0.03 < prepared.heldout_bytes / prepared.train_bytes < 0.08


def test_the_second_time_comes_from_the_cache_without_reading_the_bible():
    code = (
        "import sys; from selectbench.data.prepare import prepare; "
        "from selectbench.suite.sources import EmbeddedCorpus; from selectbench.choices.model import Bpe; "
        "p = prepare(EmbeddedCorpus(), Bpe(bpe=300), notify=print); "
        "print(p.key, sorted({'pythonbible', 'tokenizers', 'torch'} & set(sys.modules)))"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in "ab"
    )
    assert "preparing" in first
    assert first.splitlines()[-1].endswith("['pythonbible', 'tokenizers']")
    assert second == first.splitlines()[-1].replace("['pythonbible', 'tokenizers']", "[]") + "\n"


def test_two_caches_hold_the_same_bytes(story, tmp_path, monkeypatch):
    first = prepare(texts(story), BPE)
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "elsewhere"))
    second = prepare(texts(story), BPE)
    assert first.folder != second.folder
    assert first.facts() == second.facts()
    for path in first.folder.iterdir():
        assert path.read_bytes() == (second.folder / path.name).read_bytes(), path.name


def test_the_key_follows_content_and_tokenizer_not_the_name(story, tmp_path):
    key = prepare(texts(story), BPE).key
    copy = tmp_path / "copy.txt"
    copy.write_bytes(story.read_bytes())
    assert prepare(texts(copy), BPE).key == key
    assert prepare(texts(story), Bpe(bpe=300)).key != key
    copy.write_bytes(story.read_bytes() + b"\nmore")
    assert prepare(texts(copy), BPE).key != key


def test_processes_that_prepare_at_once_agree(story, cache):
    code = (
        "import sys; from selectbench.data.prepare import prepare; "
        "from selectbench.suite.sources import TextFiles; from selectbench.choices.model import Bpe; input(); "
        f"p = prepare(TextFiles(text=[{str(story)!r}]), Bpe(bpe=400)); print(p.folder, p.train().sum())"
    )
    runs = [start([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    said = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(said) == 1
    assert [path.name for path in cache.iterdir()] == [prepare(texts(story), BPE).key]


def test_the_loser_of_a_race_leaves_the_winner_in_place(tmp_path):
    final = tmp_path / "made"

    def late(unfinished):
        publish(final, lambda first: (first / "file").write_text("first") and None)
        (unfinished / "file").write_text("second")

    publish(final, late)
    assert (final / "file").read_text() == "first"
    assert [path.name for path in tmp_path.glob(".unfinished-*")] == []


def test_what_a_killed_run_left_is_swept_once_it_is_old(tmp_path):
    old, young = tmp_path / ".unfinished-old", tmp_path / ".unfinished-young"
    old.mkdir()
    young.mkdir()
    then = time.time() - 2 * ABANDONED_SECONDS
    os.utime(old, (then, then))
    publish(tmp_path / "made", lambda folder: (folder / "file").write_text("x") and None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-young", "made"]


def flip(path, place=0.5, bit=3):
    """One bit of a file, at this share of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)


def swap_words(path):
    """Two entries of a tokenizer's vocabulary: the file is as long as before, and still a tokenizer."""
    model = json.loads(path.read_text())
    words = model["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(model, indent=2, ensure_ascii=False))
    HfTokenizer.from_file(str(path))


def write_facts(path, **changes):
    """As if they had been written so: with the right digest."""
    path.write_text(sealed({**unsealed(path.read_bytes()), **changes}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *itertools.product(
            ["train.bin", "heldout.bin", "prepared.json", "heldout_bytes.bin", "tokenizer.json"],
            [Path.unlink, lambda path: os.truncate(path, 100), flip],
        ),
        ("tokenizer.json", swap_words),
        ("tokenizer.json", lambda path: path.write_text("{}")),
        ("prepared.json", lambda path: path.write_text("[1]")),
        ("prepared.json", lambda path: path.write_text("[" * 100_000)),
        ("prepared.json", lambda path: path.write_text(path.read_text().replace("400", "401"))),
        ("prepared.json", lambda path: write_facts(path, vocab_size="400")),
        ("prepared.json", lambda path: write_facts(path, removed={"empty": None})),
        ("prepared.json", lambda path: write_facts(path, made_up=1)),
    ],
)
def test_a_damaged_cache_is_made_anew_and_told(story, name, damage):
    prepared, said = prepare(texts(story), BPE), []
    whole = (prepared.folder / name).read_bytes()
    damage(prepared.folder / name)
    assert prepare(texts(story), BPE, notify=said.append) == prepared
    assert (prepared.folder / name).read_bytes() == whole
    (note,) = (line for line in said if "prepared again" in line)
    assert name in note
    prepare(texts(story), BPE, notify=said.clear)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_damaged_cache_that_cannot_be_removed_is_not_used(story, open_folder, monkeypatch):
    monkeypatch.setenv("SELECTBENCH_CACHE", str(open_folder / "cache"))
    text = shutil.copy(story, open_folder)
    flip(prepare(texts(text), BPE).folder / "heldout_bytes.bin")
    code = (
        "import os, selectbench.data.prepare as p; from selectbench.errors import UserError\n"
        "from selectbench.suite.sources import TextFiles; from selectbench.choices.model import Bpe\n"
        f"data = TextFiles(text=[{str(text)!r}])\n"
        "p.prepare(data, Bpe(bpe=300))\n"  # imports all: others may not read the interpreter
        "os.setuid(65534)\n"
        "try: p.prepare(data, Bpe(bpe=400))\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is damaged and can't be removed: Permission denied" in done.stdout


@pytest.mark.slow
def test_no_change_of_a_cached_file_goes_unnoticed(story):
    """Seeded: bits, bytes and stretches that are flipped, cut, doubled, swapped or overwritten, in every file."""
    prepared, draw = prepare(texts(story), BPE), random.Random(20)
    whole = {path.name: path.read_bytes() for path in prepared.folder.iterdir()}
    for number in range(80):
        name = draw.choice(sorted(whole))
        content = bytearray(whole[name])
        start, size = draw.randrange(len(content)), draw.choice([1, 2, 16, 4096])
        match number % 6:
            case 0:
                content[start] ^= 1 << draw.randrange(8)
            case 1:
                content[start : start + size] = draw.randbytes(len(content[start : start + size]))
            case 2:
                del content[start : start + size]
            case 3:
                content[start:start] = content[start : start + size]
            case 4:
                content[start : start + size] = bytes(len(content[start : start + size]))
            case 5:
                content[start:] = bytes(draw.sample(list(content[start:]), len(content) - start))
        (prepared.folder / name).write_bytes(content)
        said = []
        again = prepare(texts(story), BPE, notify=said.append)
        assert again == prepared
        told = any("prepared again" in line for line in said)
        if not told and name == "prepared.json":  # white space is not content
            assert json.loads(content) == json.loads(whole[name]), number
            (again.folder / name).write_bytes(whole[name])
        else:
            assert told == (content != whole[name]), (number, name)
            assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == whole, (number, name)


def test_a_large_file_is_told_to_be_read(story, monkeypatch):
    prepare(texts(story), BPE)
    said = []
    monkeypatch.setattr("selectbench.data.prepare.MUCH_BYTES", 1000)
    prepare(texts(story), BPE, notify=said.append)
    assert re.fullmatch(r"reading .* of prepared data, to see whether they are as they were written", said[0])


def test_every_piece_of_a_file_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("selectbench.data.prepared.PIECE_BYTES", 1000)
    path, seen = tmp_path / "file", set()
    path.write_bytes(bytes(3500))
    for place in (None, 0, 0.3, 0.6, 0.99):
        if place is not None:
            flip(path, place)
        seen.add(file_digest(path))
    os.truncate(path, 3499)
    assert len(seen | {file_digest(path)}) == 6


@pytest.mark.parametrize("file", ["tokenizer.json", "train.bin", "prepared.json"])
def test_a_cache_disk_that_gets_full_names_the_remedy(story, cache, file, monkeypatch):
    """Whichever file is the one that finds no room: those that other packages write, too."""

    def no_room(self, *arguments, **settings):
        return as_before(Path("/dev/full") if self.name == file else self, *arguments, **settings)

    as_before = Path.open
    monkeypatch.setattr(Path, "open", no_room)
    with pytest.raises(UserError, match=r"No space left on device.*set SELECTBENCH_CACHE"):
        prepare(texts(story), BPE)
    monkeypatch.undo()
    assert list(cache.iterdir()) == []


def test_other_users_of_a_cache_may_read_it(story):
    before = os.umask(0o022)
    try:
        prepared = prepare(texts(story), BPE)
    finally:
        os.umask(before)
    assert prepared.folder.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in prepared.folder.iterdir())


def test_open_reads_back_what_prepare_returned(story):
    prepared = prepare(texts(story), BPE)
    assert Prepared.open(str(prepared.folder)) == prepared


def test_a_text_that_spells_the_end_of_text_decodes_to_itself(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_text("\n\n".join(f"{n} {END_OF_TEXT} and on {'x' * 2000}" for n in range(4)))
    prepared = prepare(texts(path), BPE)
    ends = (prepared.train() == 0).sum() + (prepared.heldout() == 0).sum()
    assert ends == prepared.train_documents + prepared.heldout_documents == 4
    assert prepared.train_bytes + prepared.heldout_bytes == path.stat().st_size - 3 * 2


def test_a_small_text_gives_a_smaller_vocabulary_and_still_a_held_out_side(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("\n\n".join(chr(97 + n) * 2100 for n in range(3)))
    prepared = prepare(texts(path), Bpe(bpe=5000))
    assert 257 <= prepared.vocab_size < 5000
    assert prepared.heldout_documents == 1


def test_many_tokens_take_four_bytes(story):
    facts = {**prepare(texts(story), BPE).facts(), "vocab_size": 65_537}
    assert Prepared(folder=Path("x"), **{**facts, "heldout_tokens": 0}).heldout().dtype == np.uint32


def test_a_byte_order_mark_and_carriage_returns_are_no_text(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"one line\r\nand another\r\n")
    prepared = prepare(texts(path), BPE)
    assert documents(prepared, prepared.train()) == ["one line\nand another"]


# --- bad input ---


def problems_of(*paths):
    with pytest.raises(UserError) as caught:
        prepare(texts(*paths), BPE)
    return caught.value.problems


def test_every_unfit_pattern_is_named_at_once(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    names = ["missing.txt", "*.md", "empty.txt", "folder"]
    said = problems_of(*(tmp_path / name for name in names))
    assert [re.search(r"(?:missing\.txt|\*\.md|empty\.txt|folder)", line).group() for line in said] == names
    for line, words in zip(said, ["does not exist", "no file matches", "is empty", "is a folder"], strict=True):
        assert words in line


def test_empty_files_that_a_glob_met_are_left_out_aloud(story, tmp_path):
    (tmp_path / "void.txt").touch()
    said = []
    prepared = prepare(texts(tmp_path / "*.txt"), BPE, notify=said.append)
    assert prepared == prepare(texts(story), BPE)
    assert any("1 empty files" in line for line in said)


def test_a_glob_of_nothing_but_empty_files(tmp_path):
    (tmp_path / "void.txt").touch()
    assert "is empty" in problems_of(tmp_path / "*.txt")[0]


@pytest.mark.parametrize("before", [b"", b"fine\nalso fine\n", b"x" * (1 << 20), "ä\n".encode() * 400_000 + b"x"])
@pytest.mark.parametrize("bad", [b"\0binary", b"\xff\xfe", b"\xc3("])
def test_a_binary_file_is_named_with_offset_and_line(tmp_path, before, bad):
    path = tmp_path / "model.bin"
    path.write_bytes(before + bad + b" tail\n")
    (line,) = problems_of(path)
    assert str(path) in line
    assert f"byte offset {len(before)}, line {1 + before.count(10)}" in line


def test_a_character_cut_at_the_end_of_the_file(tmp_path):
    path = tmp_path / "cut.txt"
    path.write_bytes(b"line\n" + "ä".encode()[:1])
    assert "byte offset 5, line 2" in problems_of(path)[0]


def test_a_file_of_white_space(tmp_path):
    (tmp_path / "blank.txt").write_text(" \n\n \n")
    assert "no text, only white space" in problems_of(tmp_path / "blank.txt")[0]


def test_a_failed_preparation_leaves_nothing_behind(tmp_path, cache):
    (tmp_path / "blank.txt").write_text(" \n")
    problems_of(tmp_path / "blank.txt")
    assert list(cache.iterdir()) == []


def test_a_cache_below_a_file_names_the_remedy(story, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "file" / "cache"))
    assert "set SELECTBENCH_CACHE" in problems_of(story)[0]


def test_a_full_disk_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"No space left on device.*set SELECTBENCH_CACHE"):
        publish(tmp_path / "made", lambda folder: Path("/dev/full").write_text("x") and None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def open_folder():
    """A folder that every user can reach; pytest's own is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_user_without_rights_reads_the_cache_but_cannot_write_one(story, open_folder, monkeypatch):
    """Root may write anywhere, so permissions are tried as another user."""
    monkeypatch.setenv("SELECTBENCH_CACHE", str(open_folder / "cache"))
    text = shutil.copy(story, open_folder)
    code = (
        "import os\n"
        "from selectbench.data.prepare import prepare\n"
        "from selectbench.errors import UserError\n"
        "from selectbench.suite.sources import TextFiles; from selectbench.choices.model import Bpe\n"
        f"data = TextFiles(text=[{str(text)!r}])\n"
        "prepare(data, Bpe(bpe=400))\n"  # imports all: others may not read the interpreter
        "os.setuid(65534)\n"
        "print(prepare(data, Bpe(bpe=400)).vocab_size)\n"
        "try: prepare(data, Bpe(bpe=300))\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "400"
    assert "cannot write" in second
    assert "set SELECTBENCH_CACHE" in second


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("SELECTBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "selectbench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "selectbench"


# --- enough for the job ---


def job(**changes):
    model = {"family": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1}
    settings = {"model": model, "tokenizer": {"bpe": 400}, "seq_len": 16, "global_batch_size": 4, "max_steps": 10}
    return Job.model_validate({**settings, **changes})


def sized(train, heldout):
    return Prepared(Path("x"), "key", "text", train, heldout, 400, 2, {}, {}, 1, 1, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("train", "heldout", "changes", "words"),
    [
        (65, 17, {}, None),
        (64, 17, {}, "64 training tokens make 3 sequences of seq_len 16"),
        (65, 16, {}, "16 held-out tokens make no sequence"),
        (65, 0, {"eval": "none"}, None),
    ],
)
def test_the_text_must_fill_a_batch_and_an_evaluation(train, heldout, changes, words):
    if words is None:
        return check_enough(sized(train, heldout), job(**changes))
    with pytest.raises(UserError, match=words):
        check_enough(sized(train, heldout), job(**changes))
    return None


def test_what_the_training_text_has_too_is_told_where_too_little_is_left():
    leaky = dataclasses.replace(sized(65, 3), removed_documents=4, removed_lines=90, removed={"in_training": 2})
    with pytest.raises(UserError, match=r"3 held-out tokens .*6 held-out documents and 90 lines taken out"):
        check_enough(leaky, job())


LONG_LINE = "ab" * 100_000
TWICE = [f"Line {n} of a text that both sides have." for n in range(300)]


@pytest.mark.parametrize(
    ("train", "heldout", "words"),
    [
        (
            LONG_LINE,
            None,
            "nothing is left to score: 1 of 1 documents are trained on (what is equal stays on one side): give",
        ),
        (
            "\n".join(TWICE),
            "\n".join(TWICE[:100]),
            "nothing is left to score (1 held-out document and 100 lines taken out, as",
        ),
        (
            "\n".join(TWICE[:50]),
            "\n".join(TWICE[:50]),
            "nothing is left to score (1 held-out document taken out, as",
        ),
    ],
)
def test_text_of_which_nothing_can_be_held_out_is_refused(train, heldout, words, tmp_path):
    (tmp_path / "train.txt").write_text(train)
    data = texts(tmp_path / "train.txt")
    if heldout is not None:
        (tmp_path / "heldout.txt").write_text(heldout)
        data = Apart(train=data, heldout=texts(tmp_path / "heldout.txt"))
    prepared = prepare(data, Bytes())
    assert prepared.heldout_tokens == 0
    with pytest.raises(UserError) as caught:
        check_enough(prepared, job(global_batch_size=1))
    assert words in str(caught.value)
    assert "eval: none" in str(caught.value)
    check_enough(prepared, job(global_batch_size=1, eval="none"))


def test_the_training_of_a_tokenizer_says_that_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("selectbench.data.prepare.SECONDS_BETWEEN", 0.0)
    (tmp_path / "a.txt").write_text("\n".join(TWICE))
    said, told = [], threading.Event()

    def notify(line):
        said.append(line)
        if re.fullmatch(r"training the tokenizer: \S+ (s|ms|min) so far", line):
            told.set()
        if line == "training the tokenizer":  # in the thread that trains: it may not end before it was waited for
            assert told.wait(60), said

    prepare(texts(tmp_path / "a.txt"), BPE, notify=notify)
    assert told.is_set(), said


def test_epochs_count_sequences():
    assert epochs(sized(16 * 20 + 1, 0), job()) == 2.0
