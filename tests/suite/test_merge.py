"""The law of laying one piece of a suite over another, and the places that survive it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectbench.suite.document import Node, Place, merge, merge_document, plain, tags_of

KEYS = st.sampled_from(["lr", "beta1", "max_steps", "tokens", "name", "family"])
SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from(["adamw", "sgd"])
TREES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=2) | st.dictionaries(KEYS, below, max_size=4), max_leaves=12
)
MAPPINGS = st.dictionaries(KEYS, TREES, max_size=4)
PLACES = st.sampled_from(["", "optimizer", "data", "model", "tokenizer", "eval", "settings"])


def node(value: Any, source: str = "base", path: str = "") -> Node:
    if isinstance(value, dict):
        below: Any = {key: node(v, source, f"{path}.{key}") for key, v in value.items()}
    else:
        below = [node(v, source, path) for v in value] if isinstance(value, list) else value
    return Node(below, Place(source), path)


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, below in value.items() for k, v in leaves(below, (*path, key)).items()}
    return {path: value}


@given(TREES)
def test_a_piece_over_itself_changes_nothing(value):
    assert plain(merge(node(value), node(value))) == value


@given(TREES, TREES)
def test_laying_twice_is_laying_once(base, over):
    once = merge(node(base), node(over))
    assert plain(merge(once, node(over))) == plain(once)


@given(MAPPINGS, MAPPINGS)
def test_what_is_laid_over_wins_and_keeps_its_place(base, over):
    merged = merge(node(base), node(over, "over"))
    for path, value in leaves(over).items():
        below = merged.at(path)
        assert value == {} or plain(below) == value
        assert value == {} or below.place == Place("over")


@given(MAPPINGS, MAPPINGS, PLACES)
def test_a_mapping_with_a_tag_inherits_nothing_and_one_without_inherits_the_rest(base, over, key):
    merged = plain(merge(node(base), node(over), key))
    if tags_of(key) & over.keys():
        assert merged == over
    else:
        assert merged.keys() == base.keys() | over.keys()
        assert {k: merged[k] for k in base.keys() - over.keys()} == {k: base[k] for k in base.keys() - over.keys()}


def test_settings_over_a_name_alone_belong_to_that_name():
    assert plain(merge(node("sgd"), node({"lr": 0.1}))) == {"name": "sgd", "lr": 0.1}


@pytest.mark.parametrize(
    ("key", "base", "over", "merged"),
    [
        ("eval", {"tokens": 9, "every_steps": 5}, {"tokens": 4}, {"tokens": 4, "every_steps": 5}),
        ("eval", "none", {"tokens": 4}, {"tokens": 4}),
        ("settings", {"text": 1, "name": "a"}, {"name": "b"}, {"text": 1, "name": "b"}),
        ("strategy", {"name": "zero", "config": {"a": 1}}, {"config": {"bytes": 2}},
         {"name": "zero", "config": {"a": 1, "bytes": 2}}),
        ("data", {"train": {"text": "a"}, "heldout": {"text": "b"}}, {"train": {"jsonl": "c"}},
         {"train": {"jsonl": "c"}, "heldout": {"text": "b"}}),
        ("data", {"train": {"text": "a"}, "heldout": {"text": "b"}}, {"text": "c"}, {"text": "c"}),
        ("data", {"text": "c"}, {"train": {"text": "a"}, "heldout": {"text": "b"}},
         {"train": {"text": "a"}, "heldout": {"text": "b"}}),
        ("data", {"dataset": "a", "name": "en", "split": "test"}, {"name": "de"},
         {"dataset": "a", "name": "de", "split": "test"}),
        ("model", {"config": "a.json", "vocab_size": 9}, {"config": "b.json"}, {"config": "b.json"}),
    ],
)  # fmt: skip
def test_a_word_is_a_tag_only_where_it_says_a_class(key, base, over, merged):
    assert plain(merge(node(base), node(over), key)) == merged


def test_a_name_alone_replaces_the_whole_mapping():
    assert plain(merge(node({"name": "adamw", "lr": 0.1}), node("sgd"))) == "sgd"


def test_at_the_top_and_among_options_a_name_is_no_tag():
    base = node({"name": "a", "seeds": [0, 1], "options": {"name": {"lr": 1}, "b": {}}})
    over = node({"name": "c", "seeds": [2], "options": {"name": {"beta1": 2}}})
    assert plain(merge_document(base, over)) == {
        "name": "c", "seeds": [2], "options": {"name": {"lr": 1, "beta1": 2}, "b": {}},
    }  # fmt: skip
