"""The quick start's notebook, run in a kernel of its own: `python tests/evidence/quickstart.py` keeps it so."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


def kept() -> nbformat.NotebookNode:
    """As it is in the repository."""
    return nbformat.read(PATH, 4)  # type: ignore[no-untyped-call]


def executed(folder: Path) -> nbformat.NotebookNode:
    """The same with what its cells give here, in an empty folder. Raises CellExecutionError."""
    notebook = kept()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with patch.dict(os.environ, {"PATH": path, "COLUMNS": "100"}):
        NotebookClient(
            notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(folder)}}
        ).execute()
    return notebook


def main() -> None:
    """Nothing of this machine's folders is kept."""
    with tempfile.TemporaryDirectory(prefix="quickstart-") as folder:
        with patch.dict(os.environ, {"SELECTBENCH_CACHE": f"{folder}/cache"}):
            notebook = executed(Path(folder))
        PATH.write_text(nbformat.writes(notebook).replace(folder, "/content") + "\n")  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
