"""`init --from-command`: a real script is run for a few steps, and a suite is written that runs it."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

import pytest
from launch.harness import Workplace, all_pids, until

from selectbench.launch.command import Observed, observe, suite_text
from selectbench.suite.document import plain, read_document
from selectbench.suite.load import load_suite

SCRIPT = """\
import argparse, sys, time, torch
from torch import nn
p = argparse.ArgumentParser()
p.add_argument("--seed", type=int, default=1)
p.add_argument("--max_steps", type=int, default=50)
p.add_argument("--bf16", nargs="?", const=True, default=False)
p.add_argument("--fail", action="store_true")
p.add_argument("--sleep", type=float, default=0.0)
a = p.parse_args()
torch.manual_seed(a.seed)
model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16))
opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(a.max_steps):
    if a.fail and step == 2:
        raise RuntimeError("the data ended")
    ids = torch.randint(0, 16, (4, 9))
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(a.bf16)):
        logits = model(ids)
    loss = nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 16).float(), ids[:, 1:].reshape(-1))
    loss.backward(); opt.step(); opt.zero_grad()
    time.sleep(a.sleep)
print("the script's own end")
"""


@pytest.fixture
def scripts(workplace: Workplace) -> Workplace:
    (workplace.folder / "train.py").write_text(SCRIPT)
    return workplace


def test_what_is_seen_is_shown_and_a_suite_that_runs_is_written(scripts: Workplace) -> None:
    done = scripts.call("init", "--from-command", "python train.py --bf16 --seed 7 --max_steps=12", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert "Ctrl-C ends it" in done.stderr
    split = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in done.stdout.splitlines()]
    shown = {words[0]: words[1] for words in split if len(words) == 2}
    assert shown["model"] == "Sequential, 272 parameters"
    assert shown["optimizer"].startswith("AdamW(for_loop), betas 0.9, 0.999")
    assert shown["dtypes"] == "parameters float32, computed in bfloat16"
    assert shown["tokens per step"] == "36 in 4 rows, 1 micro-batch"
    assert shown["learning rate"] == "0.01"
    assert "attention" in shown["not seen"]
    suite = load_suite(str(scripts.folder / "mine.yaml"), device="cpu")
    assert suite.command is not None
    assert suite.command.command == "python train.py --seed {seed} --max_steps={max_steps} {args}"
    assert (suite.command.max_steps, suite.command.eval, suite.seeds) == (12, "none", [1, 2, 3])
    assert [option.name for option in suite.options] == ["without", "bf16"]
    done = scripts.call("run", "mine.yaml", "--seeds", "1", "--set", "job.timing.warmup_steps=2")
    assert done.returncode == 0, done.stderr
    records = [record for record in scripts.records("mine") if record["phase"] == "contest"]
    assert {record["outcome"]["status"] for record in records} == {"completed"}
    assert {record["identity"]["compute_dtype"] for record in records} == {"float32", "bfloat16"}
    assert {record["identity"]["steps_requested"] for record in records} == {12}


def test_options_that_the_script_names_are_added_and_another_option_waits_to_be_edited(scripts: Workplace) -> None:
    (scripts.folder / "suites").mkdir()
    done = scripts.call("init", "suites/own.yaml", "--from-command", "python train.py")
    assert done.returncode == 0, done.stderr
    text = (scripts.folder / "suites" / "own.yaml").read_text()
    assert '  command: "python train.py --seed {seed} --max_steps {max_steps} {args}"' in text
    assert "# train.py names --seed, which was added." in text
    for wanted in (text, text.replace("  # changed: {args", "  changed: {args")):
        (scripts.folder / "suites" / "own.yaml").write_text(wanted)
        planned = scripts.call("plan", "suites/own.yaml")
        assert planned.returncode == 0, planned.stderr
        assert ("\n changed " in planned.stdout) == (wanted is not text)
    assert f"each trial: 200 steps, and is stopped then, in {scripts.folder}" in planned.stdout


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """Of a command that takes twenty seconds in all."""
    folder = tmp_path_factory.mktemp("seen")
    (folder / "train.py").write_text(SCRIPT)
    with contextlib.chdir(folder):
        return observe("python train.py --sleep 0.1", print)


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("python run.py --bf16 True --seed=3", "python run.py --seed={seed} {args}"),
        ("python  run.py --sleep 0", "python  run.py --sleep 0 {args}"),
        ("python run.py --max_iters 9 --bf16 yes", "python run.py --max_iters {max_steps} --bf16 yes {args}"),
        ("python run.py seed=3 +run.max_steps=9", "python run.py seed={seed} +run.max_steps={max_steps} {args}"),
        (
            "torchrun --nproc_per_node=2 run.py --training.steps 9 --data-seed 4",
            "torchrun --nproc_per_node={world_size} run.py --training.steps {max_steps} --data-seed 4 {args}",
        ),
        ("""python run.py --json '{"seed": 3}'""", """python run.py --json '{{"seed": 3}}' {args}"""),
    ],
)  # fmt: skip
def test_only_what_can_be_told_becomes_a_placeholder(
    seen: Observed, tmp_path: Path, command: str, written: str
) -> None:
    text = suite_text(command, seen, tmp_path)
    (tmp_path / "suite.yaml").write_text(text)
    document = plain(read_document(tmp_path / "suite.yaml"))
    assert document["job"]["command"] == written
    assert ("Each trial needs a seed of its own" in text) == ("{seed}" not in written)
    assert document["choices"] == ({"world_size": 2} if "nproc" in command else {})
    assert document["job"]["max_steps"] == (9 if "9" in command else 200)


def test_a_long_training_is_cut_off_and_its_schedule_is_kept(seen: Observed, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(suite_text("python run.py --max-steps 50000", seen, tmp_path))
    job = plain(read_document(tmp_path / "suite.yaml"))["job"]
    assert job["max_steps"] == 50000
    assert 200 <= job["stop"] <= 1200, "two minutes of steps that take a tenth of a second or more"
    (tmp_path / "suite.yaml").write_text(suite_text("python run.py --max-steps 500", seen, tmp_path))
    assert plain(read_document(tmp_path / "suite.yaml"))["job"]["stop"] == "at_max_steps"


def test_an_existing_file_is_left_alone_and_nothing_is_run(scripts: Workplace) -> None:
    (scripts.folder / "suite.yaml").write_text("mine")
    done = scripts.call("init", "--from-command", "python -c \"open('ran', 'w')\"")
    assert done.returncode == 2
    assert done.stderr == "suite.yaml: exists already; name another file\n"
    done = scripts.call("init", "gone/suite.yaml", "--from-command", "python -c \"open('ran', 'w')\"")
    assert done.stderr == "gone/suite.yaml: there is no folder gone\n"
    assert (scripts.folder / "suite.yaml").read_text() == "mine"
    assert not (scripts.folder / "ran").exists()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("pythn train.py", "'pythn' is not found on PATH (did you mean 'python'?)"),
        ("python 'train.py", "cannot be split into words: no closing quotation"),
        ("", "--from-command: it is empty: write the training"),
        ("python train.py --fail", "RuntimeError: the data ended"),
        ("python nowhere.py", "there is no file "),
        (
            "python -c \"print('only this')\"",
            "; probe.watch(model, optimizer)`\nThe end of its output:\nonly this\n",
        ),
    ],
)
def test_a_command_of_which_no_suite_can_be_made(scripts: Workplace, command: str, told: str) -> None:
    done = scripts.call("init", "--from-command", command)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr or "--fail" in command
    assert not (scripts.folder / "suite.yaml").exists()


def test_ctrl_c_ends_the_command_and_all_that_it_started(scripts: Workplace) -> None:
    started = scripts.start("init", "--from-command", "sh -c 'python train.py --sleep 60; true'")

    def training() -> list[int]:
        return [pid for pid in all_pids() if (words := _words(pid))[1:2] == ["train.py"] and "60" in words]

    until(training)
    started.send_signal(signal.SIGINT)
    _, shown = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "interrupted; no suite was written" in shown
    assert not training()
    assert not (scripts.folder / "suite.yaml").exists()


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []
