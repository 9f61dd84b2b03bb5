"""The pages that a user reads: short, linked, and true to the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from evidence.readme_table import ROOT
from evidence.reference import PATH, reference

from selectbench.suite.load import load_suite

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_pointer_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_readme_is_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_reference_is_what_the_code_says() -> None:
    assert PATH.read_text() == reference(), "write it anew: PYTHONPATH=tests python tests/evidence/reference.py"


def test_the_pages_name_every_shipped_suite() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{suite.stem}`" in readme for suite in (ROOT / "suites").glob("*.yaml"))


@pytest.mark.parametrize("key", ["cleaning:", "tune:", "decide:"])
def test_what_the_pages_show_is_a_suite(tmp_path: Path, key: str) -> None:
    readme = (ROOT / "README.md").read_text()
    (suite,) = re.findall(r"```yaml\n(name: mine.*?)```", readme, re.DOTALL)
    pages = "\n".join(page.read_text() for page in PAGES[1:])
    (block,) = re.findall(rf"```yaml\n({key}.*?)```", pages, re.DOTALL)
    if key == "cleaning:":
        suite = suite.replace("  seq_len:", "".join(f"  {line}\n" for line in block.splitlines()) + "  seq_len:")
    else:
        suite = suite.split("decide:")[0] + block
    (tmp_path / "mine.yaml").write_text(suite)
    found = load_suite(str(tmp_path / "mine.yaml"), device="cpu")
    assert len(found.options) == 4 + found.control
    if key == "decide:":
        assert found.decide.constraints[1] == "peak_memory_bytes <= 80 GiB"
        assert found.gate == ["tokens_per_second >= 0.97x reference"]


def test_the_readme_has_the_line_that_ci_runs():
    """As `.ci/run` looks for it."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if re.match(r"^pip install .*&& pytest", line)]
    assert f"    {line}" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
