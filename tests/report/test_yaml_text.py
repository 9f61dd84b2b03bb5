"""What is written as YAML is read back as it was, whatever shares its texts."""

from io import StringIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from selectbench.text import choices_yaml, suite_yaml

KEYS = st.text("abcdefgh_", min_size=1, max_size=8)
TEXTS = st.text("abcXYZ019 ._:?-/#'\"{}[],é漢", max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS, below, max_size=4), max_leaves=12
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=5))
def test_a_suite_is_read_back_as_it_was(content: dict[str, Any]) -> None:
    assert YAML(typ="safe", pure=True).load(suite_yaml(content)) == content


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_choices_are_read_back_without_those_that_are_none(choices: dict[str, Any]) -> None:
    known = {key: value for key, value in choices.items() if value is not None}
    assert YAML(typ="safe", pure=True).load(choices_yaml(choices)) == {"choices": known}


@pytest.mark.parametrize("text", [":0", "?0", "? a", "-", "- a", ":", "a: b", "-1"])
def test_a_text_that_could_be_a_key_or_an_item_is_read_back(text: str) -> None:
    content = {"a": {"b": text, "c": [text]}}
    assert YAML(typ="safe", pure=True).load(choices_yaml(content)) == {"choices": content}
    assert YAML(typ="safe", pure=True).load(suite_yaml(content)) == content


def test_small_settings_share_a_line() -> None:
    text = choices_yaml({"optimizer": {"name": "adamw", "lr": 0.001}, "micro_batch_size": 8, "compile": None})
    assert text == "choices:\n  optimizer: {name: adamw, lr: 0.001}\n  micro_batch_size: 8\n"


def test_a_whole_suite_is_what_a_dump_of_the_whole_is() -> None:
    content = {"name": "x", "job": {"model": {"n_layer": 2}, "data": ["a", "b"]}, "options": {"a": {}, "b": None}}
    stream, yaml = StringIO(), YAML()
    yaml.default_flow_style, yaml.width = False, 110
    yaml.dump(content, stream)
    assert suite_yaml(content) == stream.getvalue()
