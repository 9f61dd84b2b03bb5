"""Own code, chats and token files that are unfit: each ends in words that name the place, and nothing is cached."""

import json

import numpy as np
import pytest
from data.made import chat, made, own, refused, token_file, turns

from selectbench.suite.sources import Apart, Chat, Cleaning, JsonLines, OwnDocuments, TokenFile

DROP = Cleaning(unreadable="drop")


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
        (
            "Stories = 3\n",
            ["job.data.documents: own_stories:Documents: ", "own_stories.py has no Documents (it has Stories)"],
        ),
        ("def Document():\n    yield 'a'\n", ["has no Documents (did you mean 'Document'?)"]),
        ("Documents = 3\n", ["not callable"]),
        ("def Documents(missing):\n    yield 'a'\n", ["missing 1 required positional argument"]),
        ("def Documents():\n    return 'one string'\n", ["gave one str, an iterable of documents was expected"]),
        ("def Documents():\n    return 3\n", ["'int' object is not iterable"]),
        ("def Documents():\n    return []\n", ["has no text"]),
    ],
)
def test_own_code_that_fails(module, words, tmp_path):
    refused(own(tmp_path, module=module), "own_stories:Documents", *words, folder=tmp_path)


def test_documents_of_a_module_that_is_not_there_are_told_with_the_folders(tmp_path):
    own(tmp_path)
    words = (
        "job.data.documents: own_story:Documents: there is no module own_story (did you mean 'own_stories'?) in "
    )
    refused(OwnDocuments(documents="own_story:Documents"), f"{words}{tmp_path}", "`code`)", folder=tmp_path)


# --- chats ---


def told(**beside):
    """A conversation whose answer has more than its content."""
    return [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", **beside}]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (turns("Why?", "x")[:2], "no message of the assistant: there would be nothing to learn"),
        (turns("Why?", " \n"), "the assistant says nothing: there would be nothing to learn"),
        (
            [{"role": "bot", "content": "a"}],
            "message 0 has the role 'bot', expected one of system, user, assistant",
        ),
        ([{"content": "a"}], "message 0 has the role None"),
        (["a"], "message 0 has the role None"),
        ([{"role": "user", "content": ["a"]}], "message 0 has a list as its content, text was expected"),
        ([{"role": "user", "content": [{"type": "image", "image": "a"}]}], "message 0 has a part that is no text"),
        ([{"from": "bing", "value": "a"}], "message 0 has the role 'bing'"),
        ([], "an empty list was found"),
        ("text", "text was found, a list of messages was expected"),
        (None, "null was found"),
        (told(tool_calls=[{"type": "function"}]), "message 1 has 'tool_calls', which is not read"),
        (told(reasoning_content="Hm."), "message 1 has 'reasoning_content', which is not read"),
        (told(weight=0), "message 1 has weight 0, but every answer is trained on: end before it"),
    ],
)
def test_a_chat_that_teaches_nothing_is_refused_or_dropped(messages, words, tmp_path):
    data = chat(tmp_path)
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write(json.dumps({"messages": messages}) + "\n")
    refused(data, f"job.data.chat: {tmp_path / 'chats.jsonl'}, line 121: messages: ", words)
    assert made(data, cleaning=DROP).removed == {"unreadable": 1}


def test_a_chat_without_the_field(tmp_path):
    data = chat(tmp_path)
    refused(Chat(chat=data.chat, field="turns"), "line 1: there is no field 'turns' (it has messages)")


def test_what_stands_beside_a_conversation(tmp_path):
    data, beside = chat(tmp_path), [{"tools": [{"name": "w"}]}, {"system": "Be brief."}]
    keyless = {"name": None, "weight": 1, "tool_calls": [], "id": 7}
    lines = [{"messages": told(**keyless), "tools": [], "system": "", "source": "a"}]
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines + [{"messages": told()} | one for one in beside])
    refused(data, "line 122: messages: the 'tools' beside it is not read: make it a message")
    assert made(data, cleaning=DROP).removed == {"unreadable": 2}


@pytest.mark.parametrize("form", ["{}\n{}\n", "[{},\n{}]"])
def test_a_key_that_is_there_twice(form, tmp_path):
    (tmp_path / "twice.jsonl").write_text(form.format('{"text": "one"}', '{"text": "two", "text": "three"}'))
    refused(JsonLines(jsonl=[str(tmp_path / "twice.jsonl")]), " 2", "has the key 'text' twice")


# --- token files ---


def test_a_token_file_of_odd_size(tmp_path):
    data = token_file(tmp_path / "ids.bin", range(400))
    with (tmp_path / "ids.bin").open("ab") as file:
        file.write(b"x")
    refused(
        data, f"job.data.tokens: {tmp_path / 'ids.bin'} has 801 bytes", "whole number of uint16", tokenizer=None
    )


def test_ids_beyond_the_vocabulary(tmp_path):
    data = token_file(tmp_path / "ids.bin", [*range(400), 500, 1], "uint32")
    refused(
        data,
        tmp_path / "ids.bin",
        "as uint32 token 400 is 500, vocab_size is 500; is it another file, or dtype?",
        tokenizer=None,
    )


def test_token_files_that_are_missing_empty_or_folders(tmp_path):
    (tmp_path / "empty.bin").touch()
    for name, words in {
        "none.bin": "does not exist",
        "empty.bin": "is empty",
        "": "is a folder: name the file",
    }.items():
        data = TokenFile(tokens=str(tmp_path / name), vocab_size=500)
        refused(data, f"job.data.tokens: {tmp_path / name} {words}", tokenizer=None)


def test_a_bad_token_file_of_two_is_named(tmp_path):
    good = token_file(tmp_path / "good.bin", range(400))
    missing = TokenFile(tokens=str(tmp_path / "none.bin"), vocab_size=500)
    bad = token_file(tmp_path / "bad.bin", np.full(100, 600))
    refused(Apart(train=good, heldout=missing), f"{tmp_path / 'none.bin'} does not exist", tokenizer=None)
    refused(Apart(train=good, heldout=bad), f"{tmp_path / 'bad.bin'}: as uint16 token 0 is 600", tokenizer=None)
