"""Cleaning: every document is accounted for, and each step does what it says, once and for all."""

import json
import unicodedata

import pytest
from data.made import BPE, TEXTS, chat, decoded, jsonl, made, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from selectbench.data.prepare import prepare
from selectbench.data.reading import Cleaner, _steps, with_single_blanks, without_control_characters
from selectbench.errors import UserError
from selectbench.suite.sources import Cleaning

ODD = st.sampled_from(
    [
        *"ab \t\n\r\v\x0c\x00\x1f\x7f\x85\xa0\u2028\ue000\ufeff\u0301\u0338ÅﬁKé﷐가ᄀ",
        "\ud800",
        "\udc00",
        "\U000e0fff",
    ]
)
TEXT = st.one_of(st.text(ODD, max_size=25), st.text(max_size=25), st.text("ab \n", max_size=60))
SPECS = st.builds(
    Cleaning,
    unicode=st.sampled_from(["none", "NFC", "NFKC"]),
    control_characters=st.sampled_from(["keep", "remove"]),
    white_space=st.sampled_from(["keep", "collapse"]),
    min_characters=st.integers(0, 5),
    max_characters=st.sampled_from([None, 5, 20]),
)
EVERYTHING = Cleaning(unicode="NFKC", control_characters="remove", white_space="collapse")


def cleaned(spec, documents, **settings):
    cleaner = Cleaner(spec, **settings)
    return list(cleaner.cleaned(iter(documents))), cleaner


@given(SPECS, st.lists(TEXT, max_size=8))
def test_documents_in_are_those_kept_and_those_removed(spec, documents):
    kept, cleaner = cleaned(spec, documents)
    assert cleaner.documents_in == len(documents) == len(kept) + sum(cleaner.removed.values())
    assert all(0 < count <= len(documents) for count in [*cleaner.changed.values(), *cleaner.removed.values()])


@given(SPECS, st.lists(TEXT, max_size=8))
def test_cleaning_what_is_clean_does_nothing(spec, documents):
    kept, _ = cleaned(spec, documents)
    again, cleaner = cleaned(spec, kept)
    assert again == kept
    assert cleaner.removed == cleaner.changed == {}


@given(SPECS, st.lists(TEXT, max_size=8))
def test_order_is_kept_and_no_document_depends_on_others(spec, documents):
    alone = [text for document in documents for text in cleaned(spec, [document])[0]]
    assert cleaned(spec, documents)[0] == alone


@given(TEXT)
def test_no_control_characters_are_left(text):
    spec = Cleaning(control_characters="remove")
    for kept in cleaned(spec, [text])[0]:
        assert {unicodedata.category(c) for c in kept if c not in "\t\n"} & {"Cc", "Co", "Cn", "Cs"} == set()


@given(TEXT)
def test_control_characters_alone_are_taken_out(text):
    removable = {"Cc", "Co", "Cn", "Cs"}
    expected = "".join(c for c in text if c in "\t\n" or unicodedata.category(c) not in removable)
    assert without_control_characters(text) == expected


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@pytest.mark.parametrize("control", ["keep", "remove"])
@pytest.mark.parametrize("white_space", ["keep", "collapse"])
@given(text=TEXT)
def test_unicode_is_in_the_form_asked_for_whatever_else_is_done(form, control, white_space, text):
    spec = Cleaning(unicode=form, control_characters=control, white_space=white_space)
    for kept in cleaned(spec, [text])[0]:
        assert unicodedata.is_normalized(form, kept)


def test_an_accent_behind_a_removed_character_is_composed():
    kept, cleaner = cleaned(Cleaning(unicode="NFC", control_characters="remove"), ["e\x00\u0301"])
    assert kept == ["é"]
    assert cleaner.changed == {"control_characters": 1, "unicode": 1}


@given(TEXT)
def test_white_space_is_single(text):
    found = with_single_blanks(text)
    assert "  " not in found
    assert "\n\n\n" not in found
    assert all(line == line.strip() for line in found.split("\n"))
    assert found.split() == text.split()
    assert {c for c in found if c.isspace()} <= {" ", "\n"}


@given(TEXT)
def test_what_no_file_can_hold_is_replaced(text):
    for kept in cleaned(Cleaning(), [text])[0]:
        assert kept.encode().decode() == kept
        assert len(kept) <= len(text)


@pytest.mark.parametrize(
    ("text", "spec", "step"),
    [
        ("  \n", {}, "empty"),
        ("\x00\x01", {"control_characters": "remove"}, "empty"),
        ("abcd", {"min_characters": 5}, "too_short"),
        ("a   b", {"min_characters": 5, "white_space": "collapse"}, "too_short"),
        ("abcdef", {"max_characters": 5}, "too_long"),
        ("ﬁﬁﬁ", {"max_characters": 5, "unicode": "NFKC"}, "too_long"),
    ],
)
def test_bounds_are_those_of_the_cleaned_text(text, spec, step):
    assert cleaned(Cleaning(**spec), [text])[1].removed == {step: 1}


@pytest.mark.parametrize("text", ["abcde", "a\u0301bcd"])
def test_bounds_are_inclusive(text):
    assert cleaned(Cleaning(min_characters=5, max_characters=5), [text])[0] == [text]


# --- duplicates ---


@settings(deadline=None, max_examples=10)
@given(picked=st.lists(st.integers(0, 5), min_size=12, max_size=30))
def test_of_equal_documents_the_first_stays(picked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("duplicates")
    forms = [str.lower, str.upper, lambda text: text.replace(" ", " \n "), lambda text: text.replace("fi", "ﬁ")]
    documents = [forms[n % 4](f"Story {number} of the first few ravens") for n, number in enumerate(picked)]
    data, spec = jsonl(folder, documents), Cleaning(duplicates="remove")
    prepared = prepare(data, BPE, cleaning=spec)
    firsts = [document for n, document in enumerate(documents) if picked.index(picked[n]) == n]
    trained, heldout = decoded(prepared, prepared.train()), decoded(prepared, prepared.heldout())
    assert sorted(trained + heldout) == sorted(firsts)
    assert trained == [text for text in firsts if text in trained]
    assert prepared.removed.get("duplicate", 0) == len(documents) - len(firsts)
    assert prepared.documents_in == len(documents)


@pytest.mark.parametrize("name", ["jsonl", "parquet", "dataset", "own"])
def test_every_source_is_cleaned_and_accounted_for(name, tmp_path):
    documents = [f"Story \x07{n}  of many,   with ﬁ and {n * n} more" for n in range(60)] + ["", " ", "short"]
    documents += documents[:5]
    spec = EVERYTHING.model_copy(update={"duplicates": "remove", "min_characters": 10})
    prepared = made(TEXTS[name](tmp_path, documents), tmp_path, cleaning=spec)
    found = sorted(decoded(prepared, prepared.train()) + decoded(prepared, prepared.heldout()))
    assert found == sorted(f"Story {n} of many, with fi and {n * n} more" for n in range(60))
    assert prepared.removed == {"empty": 2, "too_short": 1, "duplicate": 5}
    assert prepared.documents_in == 68
    assert prepared.changed == {"control_characters": 65, "unicode": 65, "white_space": 66}


def test_another_cleaning_is_another_key(tmp_path):
    data = jsonl(tmp_path)
    specs = [Cleaning(), Cleaning(unicode="NFC"), Cleaning(white_space="collapse"), Cleaning(min_characters=3)]
    assert len({made(data, cleaning=spec).key for spec in specs}) == len(specs)


def test_cleaning_that_leaves_nothing_says_what_it_removed(tmp_path):
    with pytest.raises(UserError, match=r"removed all 120 documents \(120 too_short\)"):
        made(jsonl(tmp_path), cleaning=Cleaning(min_characters=10_000))


# --- chats ---


def after_all_steps(spec, text):
    for step in _steps(spec).values():
        text = step(text)
    return text


@given(SPECS, st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), min_size=1, max_size=5))
def test_a_chat_is_cleaned_message_by_message(spec, messages):
    free = spec.model_copy(update={"min_characters": 0, "max_characters": None})
    kept, _ = cleaned(free, [json.dumps(messages, ensure_ascii=False)], is_chat=True)
    alone = [[role, after_all_steps(free, text)] for role, text in messages]
    has_answer = any(role == "assistant" and text.strip() for role, text in alone)
    assert [json.loads(text) for text in kept] == ([alone] if has_answer else [])


def test_a_chat_whose_answer_cleaning_empties_is_removed(tmp_path):
    data = chat(tmp_path)
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write(json.dumps({"messages": turns("Why?", "\x07\x07")}) + "\n")
    prepared = made(data, cleaning=Cleaning(control_characters="remove"))
    assert prepared.removed == {"empty": 1}
    assert prepared.documents_in == 121


def test_equal_chats_are_duplicates(tmp_path):
    data = chat(tmp_path)
    path = tmp_path / "chats.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[3].replace("ravens", "RAVENS"), lines[5]]) + "\n")
    prepared = made(data, cleaning=Cleaning(duplicates="remove"))
    assert prepared.removed == {"duplicate": 2}
