"""Suites and run folders of others: what they hold reaches no terminal raw, and stops no command but its own."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forking
import msgspec
import pytest
from evidence.golden_runs import RUNS
from launch.harness import corpus
from ruamel.yaml import YAML
from suite.suite_texts import VALID, changed

from selectbench.analysis.gate import compare
from selectbench.errors import UserError
from selectbench.launch.publish import past_runs, publish, read_run
from selectbench.record.run_folder import ENVIRONMENT, PAGE, RECORDS_FILE, REPORT, SUITE, read_records

ESCAPES = "\x1b[31m\x1b]0;title\x07\x9b31m\x08\r\u202e\u2066\ud800"
"""Colours, a terminal's title, the one byte that begins an escape, going back, writing from right to left."""
CONTROLS = {character for character in ESCAPES if not character.isprintable()}
YAML_ESCAPES = r"\e[31m\e]0;title\a\x9B31m\b\r\u202e\u2066"
LONG = "x" * 100_000


def command(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    called = ["-m", "selectbench", *map(str, words)]
    return forking.run(forking.BENCH, called, cwd or Path.cwd(), {**os.environ, "COLUMNS": "80"}, 300)


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


def test_no_command_shows_an_escape_of_a_runs_folder(tmp_path: Path) -> None:
    run = tmp_path / "results" / "failures" / "run"
    RUNS["failures"]().write(run)
    evil = ESCAPES.removesuffix("\ud800")  # with half a character it is no JSON
    environment = json.loads((run / ENVIRONMENT).read_text())
    environment |= {"cpu_model": evil, "libraries": {evil: LONG}, "threads": {"OMP_NUM_THREADS": evil}}
    (run / ENVIRONMENT).write_text(json.dumps(environment))
    lines = lines_of_records(run)
    for line in lines:
        line["software"] = {evil: evil, "openmp": LONG}
        if "detail" in line["outcome"]:
            line["outcome"]["detail"] = evil + LONG + "\n" + evil
    (run / RECORDS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = shutil.copytree(run, tmp_path / "other")
    limit = ("--limit", "tokens_per_second >= 0.5x reference")
    for words in (
        ("report", run), ("report", run, "--json"), ("list", "--results", tmp_path / "results"),
        ("compare", run, other), ("compare", run, other, "--markdown"), ("gate", run, "--against", other, *limit),
        *(("report", run, option) for option in {line["trial"]["option"] for line in lines}),
    ):  # fmt: skip
        done = command(*words)
        assert done.returncode in (0, 1, 4), done.stderr[-2000:]
        assert is_harmless(done.stdout + done.stderr), words
        assert not any("x" * 1001 in line for line in done.stdout.splitlines()) or "--json" in words, words
    assert not CONTROLS & set((run / PAGE).read_text(encoding="utf-8") + (run / REPORT).read_text(encoding="utf-8"))


RUNS_EVERYTHING = """\
name: everything
job:
  model: {family: gpt2, n_layer: 1, n_embd: 32, n_head: 2}
  data: {documents: "texts:Stories"}
  tokenizer: {bpe: 300}
  seq_len: 16
  global_batch_size: 4
  max_steps: 2
  eval: {tokens: 64}
  timing: {warmup_steps: 1, min_timed_seconds: 0.0}
choices:
  optimizer: {name: adamw, lr: 1e-3}
  micro_batch_size: 4
code: [code]
options:
  base: {}
  loss: {loss: "losses:summed"}
  elsewhere: {python: ./python}
baseline: base
seeds: [0]
"""
SUM = """\
from torch.nn.functional import cross_entropy

def summed(logits, targets):
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
"""
NAMES = ("texts", "losses", "python")
"""What that suite names, by the mark that each leaves when it is executed."""


@pytest.mark.slow
def test_what_looks_at_a_suite_or_a_run_executes_nothing_that_the_suite_names(tmp_path: Path) -> None:
    marks, code = tmp_path / "marks", tmp_path / "code"
    code.mkdir()
    leave = "import pathlib; pathlib.Path({!r}).mkdir(exist_ok=True); pathlib.Path({!r}).touch()\n"
    leaves = {name: leave.format(str(marks), str(marks / name)) for name in NAMES}
    stories = [f"{corpus()[n : n + 500]} {n}" for n in range(0, 30000, 500)]
    (code / "texts.py").write_text(f"{leaves['texts']}def Stories():\n    yield from {stories!r}\n")
    (code / "losses.py").write_text(leaves["losses"] + SUM)
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nmkdir -p {marks}; touch {marks}/python; exec {sys.executable} "$@"\n'
    )
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "mine.yaml").write_text(RUNS_EVERYTHING)

    def executed(*words: str | Path) -> set[str]:
        shutil.rmtree(marks, ignore_errors=True)
        cache = tmp_path / f"cache-{words[0]}"
        environment = {**os.environ, "SELECTBENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        call = [sys.executable, *(("-c",) if " " in str(words[0]) else ("-m", "selectbench")), *map(str, words)]
        done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode in (0, 1, 4), (words, done.stderr, done.stdout)
        return {path.name for path in marks.glob("*")}

    assert executed("run", "mine.yaml") == set(NAMES)
    assert {"python", "texts"} <= executed("plan", "mine.yaml")
    assert "texts" in executed("data", "mine.yaml")
    (run,) = (tmp_path / "results" / "everything").glob("*")
    other = shutil.copytree(run, tmp_path / "other")
    limit = ("--limit", "tokens_per_second >= 0.01x reference")
    for words in (
        ("report", run), ("report", run, "loss"), ("compare", run, other), ("list",), ("schema",),
        ("gate", run, "--against", other, *limit), ("init", "new.yaml"),
        (f"import selectbench; selectbench.load({str(run)!r}).to_pandas('trials')",),
    ):  # fmt: skip
        assert executed(*words) == set(), words


# Damage by chance, from seeds: whatever is changed in a suite, a record or an environment, each command that reads
# it ends with a report or with a sentence.


EXTREMES = [
    None, True, -1, 0, 1, 5e-324, 1e308, -1e308, 2**63, 10**400, 0.5, "", "x" * 3000, ESCAPES, [], {}, [1, 2],
    {"a": 1}, [[]], [None], [1e308, 5e-324],
]  # fmt: skip
MADE = ("gpus", "ranks", "grid", "scores", "tuned", "adapted", "own", "to_loss", "floor", "tokenizers", "holes")


def damaged(content: Any, chance: random.Random) -> Any:
    """The same plain data with one value of it changed, added or taken away; each kind of place is as likely."""
    content = copy.deepcopy(content)
    kinds: dict[tuple[Any, ...], list[tuple[Any, Any]]] = {}

    def walk(holder: Any, path: tuple[Any, ...]) -> None:
        for key, below in holder.items() if isinstance(holder, dict) else enumerate(holder[:3]):
            place = (*path, key if isinstance(holder, dict) else "#")
            kinds.setdefault(place, []).append((holder, key))
            if isinstance(below, dict | list):
                walk(below, place)

    walk(content, ())
    holder, key = chance.choice(kinds[chance.choice(sorted(kinds, key=str))])
    old, kind = holder[key], chance.random()
    if kind < 0.1:
        del holder[key]
    elif kind < 0.4:
        holder[key] = chance.choice(EXTREMES)
    elif isinstance(old, bool):
        holder[key] = not old
    elif isinstance(old, int):
        holder[key] = chance.choice([0, 1, 2**62, old * 1000, 2**63 - 1])
    elif isinstance(old, float):
        holder[key] = chance.choice([0.0, 5e-324, 1e308, old * 1e9, -1e60])
    elif isinstance(old, str):
        holder[key] = chance.choice(["", "x" * 5000, ESCAPES, old + "x"])
    elif isinstance(old, list):
        holder[key] = chance.choice([[], old[:-1], old + old[-1:], old * 3, [old]])
    elif isinstance(old, dict):
        holder[key] = chance.choice([{}, dict(list(old.items())[1:]), {**old, "more": 1}])
    return content


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders that hold all that there can be in one, as goldens have them."""
    folders = [tmp_path_factory.mktemp("made") / name for name in MADE]
    for folder in folders:
        RUNS[folder.name]().write(folder)
    return folders


def reported(folder: Path) -> str:
    """What report, compare and list say of the folder, or the sentence that refuses it."""
    note, told = past_runs(folder)[0].note or "", ""
    try:
        stored = read_run(folder)
        publish(folder, stored, print)
        compare(stored, stored)
    except UserError as error:
        told = str(error)
    for name in () if told else (REPORT, PAGE):
        assert not CONTROLS & set((folder / name).read_text(encoding="utf-8"))
    assert all(len(line) < 1000 for line in told.split("\n"))
    return told or note


def lines_of_records(folder: Path) -> list[Any]:
    """Without checksums, as whoever writes them anew leaves them."""
    return json.loads(msgspec.json.encode(read_records(folder / RECORDS_FILE)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_damaged_records(seed: int, runs: list[Path], tmp_path: Path) -> None:
    chance = random.Random(seed)
    folder = shutil.copytree(chance.choice(runs), tmp_path / "run")
    lines = lines_of_records(folder)
    for _ in range(chance.choice([1, 2, 4])):
        same, one = chance.randrange(1 << 30), chance.randrange(len(lines))
        for number in range(len(lines)) if chance.random() < 0.4 else [one]:
            lines[number] = damaged(lines[number], random.Random(same)) if lines[number] else {}
    (folder / RECORDS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert reported(folder) == ""  # a bad record is left out: it stops nothing


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_environment(seed: int, runs: list[Path], tmp_path: Path) -> None:
    chance = random.Random(seed)
    folder = shutil.copytree(chance.choice(runs), tmp_path / "run")
    path = folder / ENVIRONMENT
    path.write_text(json.dumps(damaged(json.loads(path.read_text()), chance)))
    said = reported(folder)
    assert said == "" or said.startswith(f"{path}: cannot be read: ")
    assert is_harmless(said)
    assert "\n" not in said


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_suite(seed: int, runs: list[Path], tmp_path: Path) -> None:
    chance = random.Random(seed)
    folder = shutil.copytree(chance.choice(runs), tmp_path / "run")
    path = folder / SUITE
    suite = YAML(typ="safe", pure=True).load(path)
    for _ in range(chance.choice([1, 1, 3])):
        suite = damaged(suite, chance)
    path.write_text(json.dumps(suite))
    reported(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_bytes_of_a_suite_that_changed(seed: int, runs: list[Path], tmp_path: Path) -> None:
    chance = random.Random(seed)
    folder = shutil.copytree(chance.choice(runs), tmp_path / "run")
    content = bytearray((folder / SUITE).read_bytes())
    for _ in range(chance.choice([1, 3, 10])):
        start = chance.randrange(len(content))
        end = start + chance.choice([0, 1, 1, 20])
        content[start:end] = chance.choice(
            [b"", b"\x00", b"\xff", b"\n", b"\t", b"[", b"}", b": ", b"- ", b"!!int ''"]
        )
    (folder / SUITE).write_bytes(content)
    reported(folder)
