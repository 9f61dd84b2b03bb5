"""Own code from a folder outside the package, run as a user runs it; and the README's shortest path."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from launch.harness import TINY_SUITE, Workplace

import selectbench
from selectbench.launch.own_code import check_own_code
from selectbench.machine import inspect_machine
from selectbench.suite.load import load_suite

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_code"
QUICK = ("--seeds", "0", "--set", "job.max_steps=6", "--set", "job.timing.min_timed_seconds=0.1")


@pytest.fixture
def workplace(tmp_path):
    return Workplace(tmp_path)


def ranking(workplace, suite):
    (folder,) = workplace.run_folders(suite)
    return {row["option"]: row for row in json.loads((folder / "ranking.json").read_text())["rows"]}


def test_the_example_runs_and_every_row_is_the_same_job(workplace):
    done = workplace.call("run", str(EXAMPLE / "suite.yaml"), *QUICK)
    assert done.returncode == 0, done.stderr
    rows = ranking(workplace, "own_code")
    assert all(row["n"] == 1 for row in rows.values())
    assert all(row["identity"]["violations"] == [] for row in rows.values())
    assert rows["our_loop"]["identity"]["differs_as_declared"] == ["framework"]
    loss = {name: row["metrics"]["final_loss"]["value"] for name, row in rows.items()}
    assert loss["our_loop"] == pytest.approx(loss["built_in"], rel=1e-6)
    assert loss["our_loop_ddp"] == pytest.approx(loss["built_in"], rel=1e-5)
    assert loss["our_loss"] != loss["built_in"] != loss["our_optimizer"]
    files = {r["trial"]["option"]: set(r["watched"]["code_files"]) for r in workplace.records("own_code")}
    assert files["our_loop"] - files["built_in"] == {"ourlib/loop.py"}
    assert files["our_loop"] & files["built_in"] == {"ourlib/__init__.py", "ourlib/model.py"}


METRICS = """
def spread(model, tokenizer, texts, scale=1.0):
    values = [parameter.std().item() for name, parameter in model.named_parameters() if name.endswith("wte.weight")]
    assert "number" in texts[0] and tokenizer(texts[0])["input_ids"]
    return scale * values[0]
"""


def test_a_metric_of_own_code_decides_and_stands_everywhere_that_others_do(workplace):
    slow = "slow: {optimizer: {name: adamw, lr: 1e-5}}"
    workplace.write(
        "code: [ours]\ndecide: {objective: spread, constraints: [spread >= 0.5x baseline, flat <= 100]}\n"
        + TINY_SUITE.replace("halves: {micro_batch_size: 2}", slow).replace("every_steps: 3}", """metrics: {
        spread: {call: "ourmetric:spread", better: more, settings: {scale: 10.0}},
        flat: {call: "ourmetric:spread", better: less}}}""")
    )  # fmt: skip
    (workplace.folder / "ours").mkdir()
    (workplace.folder / "ours" / "ourmetric.py").write_text(METRICS)
    done = workplace.call("run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    found = ranking(workplace, "tiny")
    for row in found.values():
        assert row["metrics"]["spread"]["value"] == pytest.approx(10 * row["metrics"]["flat"]["value"])
        assert [c["verdict"] for c in row["constraints"][1:]] == ["holds"]
    assert found["whole"]["metrics"]["spread"]["value"] > found["slow"]["metrics"]["spread"]["value"]
    assert next(iter(found)) == "whole"
    (folder,) = workplace.run_folders("tiny")
    assert "spread" in done.stdout
    assert "flat↓" in done.stdout or "flat ↓" in done.stdout, done.stdout
    report = (folder / "report.md").read_text()
    assert "Ranked by spread (more is better)" in report
    assert "spread_ratio_to_baseline" in (folder / "ranking.csv").read_text().splitlines()[0]
    assert "| flat |" in workplace.call("report", str(folder), "slow").stdout
    run = selectbench.load(folder)
    assert run.to_pandas("trials").groupby("option")["flat"].mean()["whole"] > 0
    assert run.to_pandas("options").set_index("option")["spread_ratio"]["whole"] == 1
    copy = shutil.copytree(folder, workplace.folder / "copy")
    gate = ("gate", str(copy), "--against", str(folder), "--limit")
    held = workplace.call(*gate, "spread >= 0.9x reference", "--json")
    assert held.returncode == 4, "equal scores of two seeds alone prove nothing"
    assert {check["limit"] for check in json.loads(held.stdout)["checks"]} == {"spread >= 0.9x reference"}
    assert "unknown metric 'spraed' (did you mean 'spread'?)" in workplace.call(*gate, "spraed > 1").stderr
    before = report
    assert workplace.call("report", str(folder)).returncode == 0
    assert (folder / "report.md").read_text() == before
    (workplace.folder / "ours" / "ourmetric.py").write_text(METRICS.replace("texts, scale=1.0", "texts"))
    planned = workplace.call("plan", "tiny.yaml")
    assert planned.returncode == 2
    assert "eval.metrics.spread ourmetric:spread: got an unexpected keyword argument 'scale'" in planned.stderr


BROKEN = """
from torch.nn.functional import cross_entropy

def with_a_slip(logits, targets):
    return logits.no_such_method()

def a_mean(logits, targets):
    return cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


def test_broken_own_code_is_told_and_once_mended_only_what_used_it_is_retried(workplace):
    """A traceback is in the record alone, its last line in the table."""
    good = BROKEN.replace("with_a_slip", "unused").replace(
        ", targets.flatten()", ', targets.flatten(), reduction="sum"'
    )
    workplace.write("code: [ours]\n" + TINY_SUITE.replace("halves: {micro_batch_size: 2}", (
        'slip: {loss: "ourloss:with_a_slip"}\n'
        '  mean: {loss: "ourloss:a_mean"}\n'
        '  good: {loss: "ourgood:a_mean"}'
    )))  # fmt: skip
    ours = workplace.folder / "ours"
    ours.mkdir()
    (ours / "ourloss.py").write_text(BROKEN)
    (ours / "ourgood.py").write_text(good)
    words = ("run", "tiny.yaml", "--seeds", "0")
    done = workplace.call(*words)
    assert done.returncode == 3
    details = {r["trial"]["option"]: r["outcome"].get("detail", "") for r in workplace.records()}
    assert details["slip"].startswith("AttributeError: 'Tensor' object has no attribute 'no_such_method'")
    assert "in with_a_slip" in details["slip"]
    assert details["mean"].startswith("TypeError: loss ourloss:a_mean: expected the sum over tokens")
    lines = [line for line in done.stdout.splitlines() if "no_such_method" in line]
    assert len(lines) == 1
    assert "Traceback" not in done.stdout
    assert sorted(ran(workplace)) == [("good", 1), ("mean", 1), ("slip", 1), ("whole", 1)]
    (ours / "ourloss.py").write_text(good + "\nwith_a_slip = a_mean\n")
    done = workplace.call(*words, "--retry-failed")
    assert done.returncode == 0, done.stderr
    assert sorted(ran(workplace)[4:]) == [("mean", 2), ("slip", 2)]
    (ours / "ourgood.py").write_text("# mended though it had not failed\n" + good)
    more = ("run", "tiny.yaml", "--extend", "@latest", "--seeds", "1")
    done = workplace.call(*more)
    assert done.returncode == 2
    assert "own code was changed since 1 of its trials ran (such as good, seed 0): put it back, or" in done.stderr
    assert workplace.call(*words, "--retry-failed").returncode == 0
    assert ran(workplace)[6:] == [("good", 2)]
    done = workplace.call(*more)  # all of its trials are of this code now
    assert done.returncode == 0, done.stderr
    assert sorted(ran(workplace)[7:]) == [("good", 1), ("mean", 1), ("slip", 1), ("whole", 1)]
    assert len(workplace.run_folders()) == 1
    rows = ranking(workplace, "tiny")
    assert {name: row["identity"]["violations"] for name, row in rows.items()} == {name: [] for name in rows}
    (ours / "sizes.json").write_text("{}")  # of what is no module nobody knows who read it
    assert workplace.call(*words, "--retry-failed").returncode == 0
    assert sorted(ran(workplace)) == [("good", 1), ("mean", 1), ("slip", 1), ("whole", 1)]
    assert len(workplace.run_folders()) == 2


def ran(workplace):
    """Options and numbers of attempts in the newest run, in their order."""
    return [(record["trial"]["option"], record["attempt"]) for record in workplace.records()]


OPTIONS = {
    "gone": ('{optimizer: {name: "ourlib:Mind", lr: 1}}',
             "optimizer ourlib:Mind: {ours}/ourlib.py has no Mind (did you mean 'Mine'?)"),
    "slip": ('{optimizer: {name: "ourlib:Mine", lr: 1, settings: {momentun: 0.9}}}',
             ("optimizer ourlib:Mine: got an unexpected keyword argument 'momentun': it takes (params, lr, "
             "momentum=0.0) and is called as Mine(parameter_groups, lr=..., momentun=...)")),
    "package": ('{loss: "needs:loss"}',
                "loss needs:loss: importing needs: No module named 'no_such_package'"),
    "raises": ('{loss: "raises:loss"}', ("loss raises:loss: importing it raises ZeroDivisionError: division by "
               "zero ({ours}/raises.py, line 1)")),
    "exits": ('{loss: "exits:loss"}',
              "loss exits:loss: importing it raises SystemExit: 3 ({ours}/exits.py, line 1)"),
    "constant": ('{loss: "ourlib:CONSTANT"}', "loss ourlib:CONSTANT: expected a class or function, it is a int"),
    "loop": ('{framework: "ourlib:loss"}',
             ("framework ourlib:loss: missing a required argument: 'targets': it takes (logits, targets) and is "
             "called as loss(trial)")),
    "model": ('{model: {family: "ourlib:Net", settings: {deep: 3}}}',
              ("model ourlib:Net: missing a required argument: 'width': it takes (vocab_size, seq_len, width, "
              "deep) and is called as Net(vocab_size=..., seq_len=..., deep=...)")),
    "module": ('{loss: "ourlb:loss"}',
               ("loss ourlb:loss: there is no module ourlb (did you mean 'ourlib'?) in {ours} (the suite's "
               "`code`), nor is it installed")),
}  # fmt: skip
OURLIB = """
import threading, torch
threading.Thread(target=threading.Event().wait).start()
CONSTANT = 3
class Mine(torch.optim.SGD):
    def __init__(self, params, lr, momentum=0.0): super().__init__(params, lr=lr, momentum=momentum)
def loss(logits, targets): return logits.sum()
class Net:
    def __init__(self, vocab_size, seq_len, width, deep): ...
"""


def with_own_code(workplace, options, **files):
    ours = workplace.folder / "ours"
    ours.mkdir()
    for name, text in {"ourlib": OURLIB, **files}.items():
        (ours / f"{name}.py").write_text(text)
    workplace.write("code: [ours]\n" + TINY_SUITE.replace("halves: {micro_batch_size: 2}", "\n  ".join(options)))
    return ours


@pytest.mark.parametrize("command", ["plan", "run"])
def test_own_code_that_is_not_there_or_takes_other_arguments_is_told_before_anything_trains(workplace, command):
    ours = with_own_code(
        workplace, [f"{name}: {choices}" for name, (choices, _) in OPTIONS.items()],
        needs="import no_such_package", raises="1/0", exits="raise SystemExit(3)",
    )  # fmt: skip
    done = workplace.call(command, "tiny.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    lines = (workplace.folder / "tiny.yaml").read_text().splitlines()
    expected = []
    for name, (choices, said) in OPTIONS.items():
        (line,) = (number for number, text in enumerate(lines) if text == f"  {name}: {choices}")
        column = lines[line].index('"') + 1
        expected.append(f"tiny.yaml:{line + 1}:{column}: option {name}: {said.format(ours=ours)}")
    assert sorted(done.stderr.splitlines()) == sorted(expected)
    assert workplace.run_folders() == []


def test_own_code_that_can_be_called_is_planned_with_the_options_own_interpreter(workplace):
    options = ['ours: {loss: "ourlib:loss"}', f'other: {{loss: "ourlib:gone", python: {sys.executable}}}']
    with_own_code(workplace, options)
    done = workplace.call("plan", "tiny.yaml")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(r"tiny\.yaml:\d+:\d+: option other: loss ourlib:gone: ", line)
    assert line.endswith("ourlib.py has no gone (it has threading, torch, CONSTANT, Mine, loss, Net)")
    assert workplace.call("plan", "tiny.yaml", "--set", "options.other.loss=ourlib:loss").returncode == 0


def test_own_code_that_ends_its_process_or_never_ends_to_be_imported(workplace):
    with_own_code(workplace, ['ours: {loss: "aborts:loss"}'], aborts="import os; os.abort()", sleeps=SLEEPING)
    done = workplace.call("plan", "tiny.yaml")
    assert done.returncode == 2
    assert "suite tiny: importing own code (aborts:loss) ended its process with status -6" in done.stderr
    suite = load_suite(
        str(workplace.folder / "tiny.yaml"), device="cpu", settings=["options.ours.loss=sleeps:loss"]
    )
    (note,) = check_own_code(suite, inspect_machine("cpu"), workplace.folder / "tiny.yaml", seconds=3)
    assert note == "own code was not checked: importing it (sleeps:loss) takes longer than 3 s"


SLEEPING = "import subprocess; subprocess.run(['sleep', '1000'])"


def test_a_transformers_folder_and_a_text_lead_to_a_verdict(workplace):
    """The README's command, with a tokenizer and a schedule that fit so little text."""
    workplace.write()
    model = workplace.folder / "my-model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "vocab_size": 2048, "max_position_embeddings": 128,
    }))  # fmt: skip
    done = workplace.call(
        "run", "precision", "--set", "job.model={config: my-model}", "--set", 'job.data={text: ["*.txt"]}',
        "--set", "job.tokenizer.bpe=300", "--set", "job.max_steps=5", "--set", "job.seq_len=32", "--seeds", "0",
        "--no-screen",  # a processor may be slow in bf16
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = ranking(workplace, "precision")
    assert rows["bf16_mixed"]["identity"]["comparable"] is True
    told = " ".join(done.stdout.split())
    assert "No verdict: it is open whether the options hold" in told  # one seed
    assert "By the measured figures alone" in told
    rows_told = "the model has rows for 2,048 tokens, and the data have 300: 111,872 of "
    nothing = "fp32: ALARM: nothing was learnt: a final loss of "
    (folder,) = workplace.run_folders("precision")
    for shown in (told, (folder / "report.md").read_text(), (folder / "report.html").read_text()):
        assert rows_told in shown
        assert nothing in shown
    assert "Nothing was learnt by " in told
    assert f"warning: {rows_told}" in " ".join(done.stderr.split())
