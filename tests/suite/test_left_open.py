"""What a suite may leave to the machine, where, and what a mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from suite_texts import changed, lines_of, write

from selectbench.suite.document import plain, read_document
from selectbench.suite.load import json_schema, load_suite
from selectbench.text import suite_yaml

OPEN = changed(
    ("  micro_batch_size: 8\n", "  precision: auto\n  micro_batch_size: {at_most: 8}\n"),
    ("  fp32: {precision: fp32}\n  bf16: {precision: bf16_mixed}\n", "  sdpa: {}\n  eager: {attention: eager}\n"),
    ("baseline: fp32", "baseline: sdpa"),
)


def test_both_are_left_open_and_said_again_by_the_resolved_suite(tmp_path: Path) -> None:
    suite = load_suite(str(write(tmp_path, OPEN)), device="cpu")
    assert suite.left_open.settings == {"precision": "auto", "micro_batch_size": {"at_most": 8}}
    assert {key: suite.resolved["choices"][key] for key in suite.left_open.settings} == suite.left_open.settings
    again = load_suite(str(write(tmp_path, suite_yaml(suite.resolved), "again.yaml")), device="cpu")
    assert again.resolved == suite.resolved
    assert again.left_open == suite.left_open


@pytest.mark.parametrize("spelling", ["auto", "{name: auto}"])
def test_a_profile_may_leave_it_open_over_what_the_file_names(tmp_path: Path, spelling: str) -> None:
    shared = changed(("  micro_batch_size: 8\n", "  micro_batch_size: auto\n  precision: fp32\n"))
    rows = shared.replace("  fp32: {precision: fp32}\n  bf16: {precision: bf16_mixed}\n", "  fp32: {}\n")
    profile = f"profiles: {{cuda: {{choices: {{precision: {spelling}, micro_batch_size: {{at_most: 4}}}}}}}}\n"
    path = str(write(tmp_path, rows + profile))
    assert load_suite(path, device="cpu").left_open.settings == {}
    found = load_suite(path, device="cuda").left_open
    assert found.settings == {"precision": "auto", "micro_batch_size": {"at_most": 4}}


def test_what_the_command_line_names_is_not_left_open(tmp_path: Path) -> None:
    path = str(write(tmp_path, OPEN))
    named = ["choices.precision=bf16_mixed", "choices.micro_batch_size=2"]
    suite = load_suite(path, device="cpu", settings=named)
    assert suite.left_open.settings == {}
    assert {option.choices.micro_batch_size for option in suite.options} == {2}
    grid = load_suite(path, device="cpu", axes=["precision=fp32,bf16_mixed", "micro_batch_size=2,4"])
    assert grid.left_open.settings == {}
    assert [(o.choices.precision.name, o.choices.micro_batch_size) for o in grid.options] == [
        ("fp32", 2), ("fp32", 4), ("bf16_mixed", 2), ("bf16_mixed", 4),
    ]  # fmt: skip


def test_sizes_may_be_searched_from_one_that_fits(tmp_path: Path) -> None:
    suite = load_suite(str(write(tmp_path, OPEN + "best_of: {micro_batch_size: [2, 4]}\n")), device="cpu")
    assert suite.best_of is not None
    assert suite.left_open.micro_batch_size is not None


AUTO = "auto is said once for all options, under choices: name a precision here"
SIZE = "{at_most: ...} is said once for all options, under choices: give a number here"
SHARED_SIZE = "choices.micro_batch_size"
EXCLUDED = "exclude[0].precision: choices.precision leaves it to the machine: there is nothing to exclude by it"
ALL_OR_NONE = "leaves it to the machine: set it in every option, or in none of them"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("eager: {attention: eager}", "eager: {attention: eager, precision: auto}",
         f"options.eager.precision: {AUTO}"),
        ("eager: {attention: eager}", "eager: {attention: eager, micro_batch_size: {at_most: 4}}",
         f"options.eager.micro_batch_size: {SIZE}"),
        ("eager: {attention: eager}", "eager: {attention: eager, precision: fp32}",
         f"options.eager.precision: choices.precision {ALL_OR_NONE}"),
        ("eager: {attention: eager}", "eager: {attention: eager, micro_batch_size: 4}",
         f"options.eager.micro_batch_size: choices.micro_batch_size {ALL_OR_NONE}"),
        ("at_most: 8", "at_most: 0", f"{SHARED_SIZE}.at_most: found 0, must be at least 1"),
        ("at_most: 8", "at_mots: 8", f"{SHARED_SIZE}.at_mots: unknown key (did you mean 'at_most'?)"),
        ("{at_most: 8}", "{}", f"{SHARED_SIZE}: required key 'at_most' is missing"),
        ("baseline: sdpa", "exclude: [{precision: fp32, attention: eager}]\nbaseline: sdpa", EXCLUDED),
    ],
)  # fmt: skip
def test_a_mistake_has_its_place_and_its_fix(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in OPEN
    text = OPEN.replace(old, new)
    found = {told: place for place, _, told in (one.partition(": ") for one in lines_of(write(tmp_path, text)))}
    # The line that was changed, and the value or the key in it.
    row, column = map(int, found[line].removeprefix("mine.yaml:").split(":"))
    written = text.splitlines()[row - 1][column - 1 :]
    assert written.startswith(("auto", "{at_most", "fp32", "4", "0", "at_mots", "{}"))


@pytest.mark.parametrize("axis", ["[fp32, auto]", "{one: fp32, two: auto}"])
def test_an_axis_does_not_take_it(tmp_path: Path, axis: str) -> None:
    text = (
        OPEN.replace("  precision: auto\n", "").replace("baseline: sdpa\n", "") + f"axes: {{precision: {axis}}}\n"
    )
    assert any(AUTO in line and line.startswith("mine.yaml:13:") for line in lines_of(write(tmp_path, text)))


def test_a_profile_of_another_machine_is_checked_too(tmp_path: Path) -> None:
    text = (
        OPEN
        + "profiles: {cuda: {options: {eager: {precision: auto}}, choices: {micro_batch_size: {at_mots: 1}}}}\n"
    )
    found = lines_of(write(tmp_path, text))
    assert any(AUTO in line for line in found)
    assert any("at_mots: unknown key (did you mean 'at_most'?)" in line for line in found)


def test_an_editor_offers_it_where_a_suite_may_say_it(tmp_path: Path) -> None:
    schema = Draft202012Validator(json_schema())

    def problems(text: str) -> list[object]:
        return list(schema.iter_errors(plain(read_document(write(tmp_path, text)))))

    assert problems(OPEN) == []
    assert problems(OPEN.replace("{at_most: 8}", "auto")) == []
    assert problems(OPEN + "profiles: {cuda: {choices: {precision: auto, micro_batch_size: {at_most: 2}}}}\n") == []
    assert problems(OPEN.replace("at_most: 8", "at_mots: 8")) != []
    assert problems(OPEN.replace("{attention: eager}", "{precision: auto}")) != []
    assert problems(OPEN.replace("{attention: eager}", "{micro_batch_size: auto}")) != []
    assert problems(OPEN + "axes: {precision: [auto]}\n") != []
