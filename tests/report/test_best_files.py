"""The files of the options that verdicts name say what they answer and how sure that is."""

from __future__ import annotations

from io import StringIO

import pytest
from evidence.readme_table import kept_run
from ruamel.yaml import YAML

from selectbench.launch.publish import StoredRun, best_files, read_run
from selectbench.report.files import best_head


@pytest.fixture(scope="module")
def stored() -> StoredRun:
    return read_run(kept_run("precision"))


def head(text: str) -> str:
    """The comment that it begins with, on one line."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(" ".join(line.removeprefix("#") for line in lines[:first]).split())


def test_each_file_names_its_questions_with_how_sure_the_answer_is(stored: StoredRun) -> None:
    ranking = stored.ranking()
    made = {name: text for name, text in best_files(stored, ranking).items() if name.endswith(".yaml")}
    assert len(made) > 1
    answered = {verdict.name for verdict in ranking.verdicts if not verdict.sure}
    assert answered  # some are no winners by the tests
    for verdict in ranking.verdicts:
        for name, text in made.items():
            told = f"{verdict.title}: {verdict.headline}. {verdict.confidence}"
            assert (told in head(text)) == (name == verdict.file), (verdict.name, name)
    assert all(len(line) <= 116 for text in made.values() for line in text.splitlines()[:4])


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x85", "\u2028", "\u2029", "\x0b", "\x0c", " " * 120])
def test_no_name_breaks_out_of_the_comment(stored: StoredRun, end: str) -> None:
    ranking = stored.ranking()
    evil = f"x{end}name: evil{end}- {'long' * 40}{end}# y: z"
    wrong = [
        verdict.model_copy(update={"title": evil, "option": evil, "confidence": evil, "file": "best.yaml"})
        for verdict in ranking.verdicts
    ]
    text = best_head(ranking.model_copy(update={"verdicts": wrong}), "best.yaml") + "name: good\n"
    assert "name: evil" in text
    assert YAML(typ="safe", pure=True).load(StringIO(text)) == {"name": "good"}
