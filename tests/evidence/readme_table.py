"""Writes the README's table anew from the records that are kept: `python tests/evidence/readme_table.py`."""

from __future__ import annotations

from pathlib import Path

from selectbench.launch.publish import read_run
from selectbench.report.files import markdown_table
from selectbench.report.ranking import ranking_table

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def kept_run(suite: str) -> Path:
    """The run of a suite that version control keeps."""
    return max((ROOT / "results" / suite).glob("*Z-*"))


def oldest_run(suite: str) -> Path:
    """The first of them, whose records have other keys than today's."""
    return min((ROOT / "results" / suite).glob("*Z-*"))


def section() -> str:
    """What stands between the markers."""
    stored = read_run(kept_run("precision"))
    ranking = stored.ranking()
    facts = stored.environment
    folder = kept_run("precision").relative_to(ROOT)
    return (
        f"`suites/precision.yaml`, profile {stored.suite.profile}, on {facts['cores_by_affinity']} cores of "
        f"{facts['cpu_model']}, torch {facts['libraries']['torch']} (`{folder}`):\n\n"
        f"> {ranking.answer}\n\n{markdown_table(ranking_table(ranking, 'markdown'))}\n\n"
    )


def rewritten(readme: str) -> str:
    """The README with the section between its markers."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + section() + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text()))
