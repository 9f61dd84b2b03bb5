"""Own code from a folder outside the package, run as a user runs it; and the README's shortest path."""

import json
from pathlib import Path

import pytest
from launch.harness import TINY_SUITE, Workplace

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


BROKEN = """
from torch.nn.functional import cross_entropy

def with_a_slip(logits, targets):
    return logits.no_such_method()

def a_mean(logits, targets):
    return cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


def test_broken_own_code_has_its_traceback_in_the_record_and_one_line_in_the_table(workplace):
    workplace.write("code: [ours]\n" + TINY_SUITE.replace("halves: {micro_batch_size: 2}", (
        'slip: {loss: "ourloss:with_a_slip"}\n'
        '  mean: {loss: "ourloss:a_mean"}\n'
        '  gone: {optimizer: {name: "ourloss:Optimiser", lr: 1e-3}}'
    )))  # fmt: skip
    ours = workplace.folder / "ours"
    ours.mkdir()
    (ours / "ourloss.py").write_text(BROKEN)
    done = workplace.call("run", "tiny.yaml", "--seeds", "0")
    assert done.returncode == 3
    details = {r["trial"]["option"]: r["outcome"].get("detail", "") for r in workplace.records()}
    assert details["slip"].startswith("AttributeError: 'Tensor' object has no attribute 'no_such_method'")
    assert "in with_a_slip" in details["slip"]
    assert details["mean"].startswith("TypeError: loss ourloss:a_mean: expected the sum over tokens")
    assert "ourloss:Optimiser" in details["gone"].splitlines()[0]
    assert "has no Optimiser" in details["gone"].splitlines()[0]
    lines = [line for line in done.stdout.splitlines() if "no_such_method" in line]
    assert len(lines) == 1
    assert "Traceback" not in done.stdout


def test_a_transformers_folder_and_a_text_lead_to_a_verdict(workplace):
    """The README's command, with a tokenizer and a schedule that fit so little text."""
    workplace.write()
    model = workplace.folder / "my-model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "vocab_size": 512, "max_position_embeddings": 128,
    }))  # fmt: skip
    done = workplace.call(
        "run", "precision", "--set", "job.model={config: my-model}", "--set", 'job.data={text: ["*.txt"]}',
        "--set", "job.tokenizer.bpe=300", "--set", "job.max_steps=5", "--set", "job.seq_len=32", "--seeds", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = ranking(workplace, "precision")
    assert rows["bf16_mixed"]["identity"]["comparable"] is True
    told = " ".join(done.stdout.split())
    assert "No verdict: it is open whether the options hold" in told  # one seed
    assert "By the figures alone" in told
