"""How the process ends: what it says and with which status, whoever reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from evidence.readme_table import kept_run

from selectbench.errors import ExitCode

REPORT = [sys.executable, "-m", "selectbench", "report", str(kept_run("precision")), "--json"]


def test_all_of_it_is_written() -> None:
    """The process ends without cleaning up after itself, and not before its output is out."""
    done = subprocess.run(REPORT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["suite"] == "precision"
    assert done.stderr == ""


def test_a_full_disk_is_told_of() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(REPORT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == ExitCode.USER_ERROR
    assert done.stderr == "cannot write the output: No space left on device; what was run is kept\n"


def test_a_reader_who_has_enough_is_no_error() -> None:
    shell = f"set -o pipefail; {' '.join(REPORT)} | head -c 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout == "{"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("raised", "status"),
    [("ZeroDivisionError()", ExitCode.OWN_BUG), ("KeyboardInterrupt()", ExitCode.INTERRUPTED),
     ("SystemExit(3)", 3), ("OSError(5, 'Input/output error')", ExitCode.OWN_BUG)],
)  # fmt: skip
def test_what_escapes_a_command_has_its_status(raised: str, status: int) -> None:
    code = f"""
import selectbench.cli, selectbench.__main__
def app(): raise {raised}
selectbench.cli.app = app
selectbench.__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("selectbench's own" in done.stderr) == (status == ExitCode.OWN_BUG)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_what_a_stream_cannot_write_is_escaped(environment: dict[str, str]) -> None:
    code = """
import selectbench.cli, selectbench.__main__
from selectbench.errors import UserError
def app():
    selectbench.cli._stdout().print('option \\U0001f680')
    raise UserError('no \\U0001f680')
selectbench.cli.app = app
selectbench.__main__.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False,
        env={**os.environ, "PYTHONCOERCECLOCALE": "0", **environment},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"option \\U0001f680\n", b"no \\U0001f680\n")
    assert done.returncode == ExitCode.USER_ERROR


@pytest.mark.parametrize(("closed", "said"), [(">&-", ""), ("2>&-", "{"), (">&- 2>&- <&-", "")])
def test_a_closed_stream_is_no_error(closed: str, said: str) -> None:
    shell = f"{' '.join(REPORT)} {closed}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout[:1] == said
    assert done.stderr == ""
