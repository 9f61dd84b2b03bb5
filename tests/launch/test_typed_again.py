"""The same line typed again where a run of it is complete."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import processes
from launch.harness import Workplace

Contents = dict[str, bytes]


def at_a_terminal(workplace: Workplace, *words: str, typed: str = "") -> tuple[int, str, str]:
    """Status, standard output and what the terminal showed; `typed` waits in the terminal from the beginning."""
    master, slave = pty.openpty()
    try:
        process = processes.start(
            [sys.executable, "-m", "selectbench", *words], cwd=workplace.folder, stdin=slave,
            stdout=subprocess.PIPE, stderr=slave, env=workplace.environment(TERM="xterm"),
        )  # fmt: skip
        os.close(slave)
        os.write(master, typed.encode())
        shown = b""
        try:
            while part := os.read(master, 4096):
                shown += part
        except OSError:  # nobody has the terminal any more
            pass
        out, _ = process.communicate(timeout=60)
    finally:
        os.close(master)
    return process.returncode, out, shown.decode()


def contents(workplace: Workplace) -> Contents:
    results = workplace.folder / "results"
    return {str(path.relative_to(results)): path.read_bytes() for path in results.rglob("*") if path.is_file()}


def test_a_complete_run_is_shown_where_the_answer_is_to_show_it(finished: Workplace) -> None:
    before, (folder,) = contents(finished), finished.run_folders()
    for typed in ("s\n", "what?\n\n"):
        status, out, shown = at_a_terminal(finished, "run", "tiny.yaml", typed=typed)
        assert (status, contents(finished)) == (0, before)
        assert f"{Path(*folder.parts[-3:])} is complete, " in shown
        assert shown.count("(s)how it, (e)xtend it by more seeds, run (a)new, or (q)uit?") == len(
            typed.splitlines()
        )
        assert "nothing was run" in shown
        assert "whole" in out
    status, out, shown = at_a_terminal(finished, "run", "tiny.yaml", typed="q\n")
    assert (status, out, contents(finished)) == (2, "", before)
    assert "nothing was run" in shown


def test_reuse_shows_it_without_a_question(finished: Workplace) -> None:
    before = contents(finished)
    done = finished.call("run", "tiny.yaml", "--reuse")
    assert (done.returncode, contents(finished)) == (0, before)
    assert "nothing was run" in done.stderr
    assert "report.md" in done.stdout
    retried = finished.call("run", "tiny.yaml", "--retry-failed")  # nothing failed
    assert (retried.returncode, contents(finished)) == (0, before)
    refused = finished.call("run", "tiny.yaml", "--reuse", "--fresh")
    assert (refused.returncode, contents(finished)) == (2, before)
    assert "leave one of them out" in refused.stderr


def test_a_terminal_that_hangs_up_starts_nothing(finished: Workplace) -> None:
    before = contents(finished)
    status, _, shown = at_a_terminal(finished, "run", "tiny.yaml", typed="\x04")  # Ctrl-D
    assert (status, contents(finished)) == (2, before)
    assert "nobody answered: --reuse shows" in shown


def test_it_is_extended_or_made_anew_where_that_is_the_answer(workplace: Workplace) -> None:
    assert workplace.call("run", "tiny.yaml", "--seeds", "0", "--reuse").returncode == 0  # there was none to show
    (folder,) = workplace.run_folders()
    status, _, shown = at_a_terminal(workplace, "run", "tiny.yaml", "--seeds", "0", typed="e\n1\n")
    assert status == 0, shown
    assert workplace.run_folders() == [folder]
    assert [one["trial"]["seed"] for one in workplace.records()] == [0, 0, 1, 1]
    status, _, shown = at_a_terminal(workplace, "run", "tiny.yaml", "--seeds", "0", typed="a\n")
    assert status == 0, shown
    assert len(workplace.run_folders()) == 2
    assert [one["trial"]["seed"] for one in workplace.records()] == [0, 0]
    assert workplace.call("run", "tiny.yaml", "--seeds", "0").returncode == 0  # not at a terminal: anew, as ever
    assert len(workplace.run_folders()) == 3
