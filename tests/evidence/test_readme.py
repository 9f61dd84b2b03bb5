"""What the README tells a user to type and to write."""

from __future__ import annotations

import re
from pathlib import Path

from evidence.readme_table import ROOT

from selectbench.suite.load import load_suite

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_command_installs_and_runs() -> None:
    line = blocks("sh")[0].strip()
    assert line.startswith("pip install ")
    assert line.endswith("selectbench run suites/precision.yaml")
    assert "\n" not in line


def test_the_suite_that_it_shows_is_one(tmp_path: Path) -> None:
    (whole,) = [block for block in blocks("yaml") if block.startswith("name: mine")]
    (tmp_path / "mine.yaml").write_text(whole)
    suite = load_suite(str(tmp_path / "mine.yaml"), device="cpu")
    assert len(suite.options) == 4
    assert suite.baseline in {option.name for option in suite.options}
