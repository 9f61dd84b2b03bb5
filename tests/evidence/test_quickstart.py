"""The quick start's notebook runs as it stands, and keeps what it gave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from evidence import quickstart
from evidence.readme_table import ROOT


def kinds(notebook: Any) -> list[list[tuple[str, ...]]]:
    """Of each cell with code, its outputs' types and formats; text may come in pieces."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    each = [[(one.output_type, *sorted(one.get("data", {}))) for one in outputs] for outputs in cells]
    return [list(dict.fromkeys(outputs)) for outputs in each]


def test_its_outputs_are_kept_and_the_readme_leads_to_it() -> None:
    notebook = quickstart.kept()
    install, *others = kinds(notebook)
    assert install == []  # it was there
    assert all(others)
    assert "error" not in {output[0] for outputs in others for output in outputs}
    text = quickstart.PATH.read_text()
    assert "--constraint own-torch.txt" in text
    where = quickstart.PATH.relative_to(ROOT)
    readme = (ROOT / "README.md").read_text()
    assert "colab-badge.svg)](https://colab.research.google.com/" in readme
    assert f"]({where})" in readme
    assert "YOUR_NAME" not in text + readme


def test_it_installs_the_newest_wheel_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = next(cell.source for cell in quickstart.kept().cells if "own-torch.txt" in cell.source)
    choice = "\n".join(line.strip() for line in cell.splitlines() if line.strip().startswith(("wheels", "source")))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"Path": Path, "SOURCE": "the index"}
    exec(choice, names)
    assert names["source"] == "the index"
    for age, version in enumerate(("0.10.0", "0.9.0", "0.8.0")):
        wheel = tmp_path / f"selectbench-{version}-py3-none-any.whl"
        wheel.touch()
        os.utime(wheel, (1e9 - age, 1e9 - age))
    exec(choice, names)
    assert names["source"] == "./selectbench-0.10.0-py3-none-any.whl[train]"


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::ResourceWarning")
@pytest.mark.slow
def test_it_runs_from_a_clean_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    notebook = quickstart.executed(tmp_path)
    assert kinds(notebook) == kinds(quickstart.kept())
    pages = [output.data["text/html"] for cell in notebook.cells for output in cell.get("outputs", [])
             if output.output_type == "execute_result" and "text/html" in output.data]  # fmt: skip
    assert sum("Every option, the best first" in page and "<figure>" in page for page in pages) == 1
    assert (tmp_path / "mine.zip").is_file()
