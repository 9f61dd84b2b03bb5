"""Runs the command line as a user does: in a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking
import processes

TINY_SUITE = """\
name: tiny
question: Which micro-batch trains this tiny model fastest?
job:
  model: {family: gpt2, n_layer: 1, n_embd: 32, n_head: 2}
  data: {text: [corpus.txt]}
  tokenizer: {bpe: 300}
  seq_len: 16
  global_batch_size: 4
  max_steps: 6
  lr_schedule: {name: cosine, warmup_steps: 2}
  eval: {tokens: 512, every_steps: 3}
choices:
  optimizer: {name: adamw, lr: 1e-3}
  micro_batch_size: 4
baseline: whole
options:
  whole: {}
  halves: {micro_batch_size: 2}
seeds: [0, 1]
"""

LONG = ("--set", "job.max_steps=100000", "--set", "job.eval=none")
"""A trial that outlasts any test: the test ends it."""

GATE = """\
import os, sys, time

FOLDER = os.path.dirname(os.path.abspath(__file__))


def stand(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/FILE"):
        held = "/trials/" in os.readlink("/proc/self/fd/1")
        while held and not {"all", str(os.getpid())} & {*os.listdir(FOLDER)}:
            time.sleep(0.02)


sys.addaudithook(stand)
"""
"""A module that Python imports when it starts, see `Workplace.hold`."""


def corpus() -> str:
    """Some 60 kB of distinct lines."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "seven",
        "wizards",
        "brew",
        "strong",
        "ale",
    ]
    lines = [" ".join(words[(i * k) % len(words)] for k in range(1, 9)) + f" number {i}." for i in range(1200)]
    return "\n".join("\n".join(lines[i : i + 6]) + "\n" for i in range(0, len(lines), 6))


@dataclass
class Workplace:
    """A folder with a corpus and a suite, and the command line inside it."""

    folder: Path

    def write(self, text: str = TINY_SUITE, name: str = "tiny.yaml") -> None:
        (self.folder / "corpus.txt").write_text(corpus())
        (self.folder / name).write_text(text)

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def hold(self, at: str = "prepared.json") -> None:
        """From now on a trial stands where it opens this file of its data until the test lets it go.

        The first file is opened before a trial has several ranks, train.bin by every one of them.
        """
        self.gate.mkdir()
        (self.gate / "sitecustomize.py").write_text(GATE.replace("FILE", at))

    def let_go(self, *pids: int) -> None:
        """These processes; without any, all that stand there or will come to it."""
        for name in pids or ("all",):
            (self.gate / str(name)).touch()

    def environment(self, **more: str) -> dict[str, str]:
        # One thread: on a machine that is busy with something else, threads of tiny steps wait for each other.
        held = {"PYTHONPATH": str(self.gate)} if self.gate.exists() else {}
        return {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1", **held, **more}

    def start(
        self, *arguments: str, ignores: Collection[signal.Signals] = (), **environment: str
    ) -> processes.Process:
        return processes.start(
            [sys.executable, "-m", "selectbench", *arguments], cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment(**environment), ignores=ignores,
        )  # fmt: skip

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command's end; what runs nothing is forked from a process that has imported the bench."""
        if arguments[0] != "run":
            command = ["-m", "selectbench", *arguments]
            return forking.run(forking.BENCH, command, self.folder, self.environment(**environment), 300)
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run_folders(self, suite: str = "tiny") -> list[Path]:
        return sorted((self.folder / "results" / suite).glob("*"))

    def records(self, suite: str = "tiny") -> list[dict[str, Any]]:
        """Every whole line of the newest run."""
        folders = self.run_folders(suite)
        path = folders[-1] / "records.jsonl" if folders else Path("/nonexistent")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def first_trial_done(self, *arguments: str) -> processes.Process:
        """The command line, where its first trial has its record and its second one stands at its data."""
        self.hold()
        process = self.start(*arguments)
        until(trial_is_running(self))
        self.let_go(*running_trials(self))
        until(lambda: self.records() and running_trials(self))
        return process

    def trial_pids(self) -> list[int]:
        """Processes that have this folder's run on their command line or as their log: server and trials."""
        return [pid for pid in all_pids() if str(self.folder) in output_of(pid)]


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def output_of(pid: int) -> str:
    """The file that a process's standard output goes to; '' where it is none, or the process has ended."""
    try:
        return str(Path(f"/proc/{pid}/fd/1").readlink())
    except OSError:
        return ""


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for something another process does; the only place that polls."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def running_trials(workplace: Workplace) -> list[int]:
    """The process ids of trials (not of the server) that run now."""
    return [pid for pid in workplace.trial_pids() if "/trials/" in output_of(pid)]


def trial_is_running(workplace: Workplace) -> Callable[[], bool]:
    """A condition to wait for."""
    return lambda: bool(running_trials(workplace))
