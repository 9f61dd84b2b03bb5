"""Suites and run folders of others: what they hold reaches no terminal raw, and stops no command but its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from suite.suite_texts import VALID, changed

ESCAPES = "\x1b[31m\x1b]0;title\x07\x9b31m\x08\r\u202e\u2066\ud800"
"""Colours, a terminal's title, the one byte that begins an escape, going back, writing from right to left."""
YAML_ESCAPES = r"\e[31m\e]0;title\a\x9B31m\b\r\u202e\u2066"
LONG = "x" * 100_000


def command(
    *words: str | Path, cwd: Path | None = None, terminal: bool = False
) -> subprocess.CompletedProcess[str]:
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"} if terminal else {}
    return subprocess.run(
        [sys.executable, "-m", "selectbench", *map(str, words)], capture_output=True, text=True, cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **forced},
    )  # fmt: skip


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


HOSTILE_SUITES = {
    "name": f'name: "{YAML_ESCAPES}{LONG}"\n',
    "key": f'"{YAML_ESCAPES}{LONG}": 1\n',
    "number": changed(("max_steps: 30", f'max_steps: "{YAML_ESCAPES}{LONG}"')),
    "family": changed(("family: gpt2", f'family: "{YAML_ESCAPES}{LONG}"')),
    "baseline": changed(more=f'baseline: "{YAML_ESCAPES}{LONG}"\n'),
    "tag": f"job: !<{LONG}> 1\n",
    "alias": f"job: *{LONG}\n",
    "files": changed(("max_steps: 30", f'max_steps: 30\n  data: {{files: "{YAML_ESCAPES}{LONG}"}}')),
    "folder": changed(("max_steps: 30", f"max_steps: 30\n  data: {{text: [{LONG[:300]}]}}")),
    "control character": "job: \x1b[31m\n",
    "constraint": changed(more=f'decide: {{constraints: ["{YAML_ESCAPES}{LONG}"], objective: "{LONG}"}}\n'),
    "gate": changed(more=f'gate: ["tokens_per_second >= 1 {YAML_ESCAPES}{LONG}"]\n'),
    "axis": changed(more=f'axes: {{"{YAML_ESCAPES}{LONG}": [1]}}\n'),
    "tuned": changed(more=f'tune: {{parameters: {{"optimizer.{YAML_ESCAPES}{LONG}": {{}}}}}}\n'),
}  # fmt: skip


@pytest.mark.parametrize("which", HOSTILE_SUITES)
def test_what_a_suite_says_is_told_in_short_printable_lines(which: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(HOSTILE_SUITES[which])
    done = command("plan", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.startswith("mine.yaml:")
    assert is_harmless(done.stderr)
    assert "x" * 81 not in done.stderr
    assert all(len(line) < 800 for line in done.stderr.splitlines())


def test_a_plan_shows_no_escape_of_a_suite(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f'question: "{YAML_ESCAPES}{"why " * 9000}"\n{VALID}')
    done = command("plan", "mine.yaml", cwd=tmp_path)
    assert done.returncode in (0, 2)  # 2: such a question is refused
    assert is_harmless(done.stdout + done.stderr)
    assert len(done.stdout + done.stderr) < 5000
