"""How the process ends: what it says and with which status, whoever reads it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from evidence.readme_table import kept_run

from selectbench.__main__ import problem_shown
from selectbench.errors import ExitCode

REPORT = [sys.executable, "-m", "selectbench", "report", str(kept_run("precision")), "--json"]


def test_all_of_it_is_written() -> None:
    """The process ends without cleaning up after itself, and not before its output is out."""
    done = subprocess.run(REPORT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["suite"] == "precision"
    assert done.stderr == ""


KEPT = str(kept_run("precision"))
COMMANDS = [
    (["gate", "SAME", "--against", KEPT, "--limit", "tokens_per_second >= 0.9x reference"], ExitCode.OK),
    (["gate", "SAME", "--against", KEPT, "--limit", "tokens_per_second >= 9x reference"], ExitCode.REGRESSION),
    (["report", "SAME"], None), (["compare", KEPT, "SAME"], None), (["schema"], None),
    (["plan", "accumulation", "--json"], None),
    (["nonsense"], ExitCode.USER_ERROR),
]  # fmt: skip
"""With what each says of its subject by its status; None: nothing, what it has to give is its output."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(KEPT, folder / "SAME")
    (folder / "results").mkdir()
    return folder


@pytest.mark.parametrize(
    ("words", "verdict"), COMMANDS, ids=["passes", "regresses", *(words[0] for words, _ in COMMANDS[2:])]
)
def test_the_status_is_the_verdict_whoever_reads_along(
    words: list[str], verdict: ExitCode | None, place: Path
) -> None:
    """One who goes before anything is written; nobody; a disk that is full."""
    line = shlex.join([sys.executable, "-m", "selectbench", *words])
    for reader in ("2>&1 | true", ">&- 2>/dev/full"):
        done = subprocess.run(
            ["bash", "-c", f"{line} {reader}; exit ${{PIPESTATUS[0]}}"], cwd=place, capture_output=True, check=False
        )
        assert done.returncode == (verdict or 0), (reader, done.stderr)
        if verdict in (None, ExitCode.OK, ExitCode.REGRESSION):
            assert done.stderr == b"", reader
    with Path("/dev/full").open("w") as full:
        disk = subprocess.run(
            shlex.split(line), cwd=place, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert disk.returncode == (ExitCode.USER_ERROR if verdict is None else verdict)
    if verdict != ExitCode.USER_ERROR:
        assert disk.stderr == "cannot write the output: No space left on device; what was run is kept\n"


def test_a_reader_who_has_enough_gets_it() -> None:
    shell = f"set -o pipefail; {' '.join(REPORT)} | head -c 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout == "{"
    assert done.stderr == ""


def test_an_end_of_a_pipe_that_does_not_wait_gets_all_of_it() -> None:
    """As a program that reads without waiting may leave the pipe that it shares with us."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = processes.start([sys.executable, "-m", "selectbench", "schema"], stdout=writing)
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert "$defs" in json.load(stream)
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("raised", "status"),
    [("ZeroDivisionError()", ExitCode.OWN_BUG), ("KeyboardInterrupt()", ExitCode.INTERRUPTED),
     ("SystemExit(ExitCode.TRIALS_FAILED)", 3), ("SystemExit(1)", ExitCode.INTERRUPTED),
     ("OSError(5, 'Input/output error')", ExitCode.OWN_BUG)],
)  # fmt: skip
def test_what_escapes_a_command_has_its_status(raised: str, status: int) -> None:
    code = f"""
import selectbench.cli, selectbench.__main__
from selectbench.errors import ExitCode
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
    selectbench.cli._console().print('option \\U0001f680')
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


def test_a_problem_is_broken_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "suite.yaml:11:11: baseline: 'fp23' is not an option (did you mean 'fp32'?)"
    monkeypatch.setenv("COLUMNS", "50")
    assert problem_shown(line) == line
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert problem_shown(line).splitlines() == [
        "suite.yaml:11:11: baseline: 'fp23' is not an", "  option (did you mean 'fp32'?)"
    ]  # fmt: skip
    assert problem_shown("/a/long/" + 60 * "x").splitlines() == ["/a/long/" + 60 * "x"]
