"""The comparison with a bare loop: the same job on both sides, pairs that are kept, what it says in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_bare_loop
import pytest
import torch
from bare_loop import FULL, TINY, bare_model
from gpu_bare_loop import ALL_AS_EXPECTED, NO_GPU, PAIRS_ARE_LEFT, TO_BE_EXPLAINED, Kept, main, suite_of, verdict

from selectbench.planning.memory import size_of
from selectbench.suite.job import Job
from selectbench.suite.load import load_suite
from selectbench.worker.model import new_model


@pytest.fixture(params=[FULL, TINY], ids=lambda size: size.name)
def suite(request, tmp_path):
    (tmp_path / "tokens.bin").write_bytes(bytes(1000))
    (tmp_path / "suite.yaml").write_text(json.dumps(suite_of(request.param, tmp_path / "tokens.bin")))
    return request.param, load_suite(str(tmp_path / "suite.yaml"), device="cpu")


def test_both_train_the_same_job(suite):
    size, ours = suite
    (option,) = ours.options
    with torch.device("meta"):
        model = bare_model(size)
    layout = size_of(ours.job.model, size.vocab_size, size.seq_len)
    assert layout is not None
    assert layout.all_parameters == sum(p.numel() for p in model.parameters())
    assert ours.job.tokens_per_step == size.tokens_per_step
    assert ours.job.clip_norm == 1.0
    choices, optimizer = option.choices, option.choices.optimizer
    named = (choices.compile.name, choices.precision.name, choices.attention.name, optimizer.name)
    assert named == ("default", "bf16_mixed", "sdpa", "adamw")
    assert (optimizer.implementation, optimizer.beta1, optimizer.beta2) == ("fused", 0.9, 0.95)
    assert (optimizer.lr, optimizer.weight_decay) == (size.lr, size.weight_decay)


def test_the_bare_model_is_gpt2():
    """With the same weights it has the same loss."""
    content = suite_of(TINY, Path("tokens.bin"))
    ours = new_model(Job.model_validate({**content["job"]}), TINY.vocab_size, attention="sdpa")
    model = bare_model(TINY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(theirs(ours, name))
    ids = torch.randint(TINY.vocab_size, (2, TINY.seq_len + 1), generator=torch.Generator().manual_seed(0))
    logits = ours(input_ids=ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert model(ids[:, :-1], ids[:, 1:].contiguous()).item() == pytest.approx(loss.item(), rel=1e-6)


NAMES = {"attn": "attn.c_attn", "proj": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}


def theirs(gpt2: Any, name: str) -> torch.Tensor:
    """transformers' parameter of a bare one's name; its matrices lie transposed."""
    parts = name.split(".")
    if parts[0] == "blocks":
        parts = ["h", parts[1], NAMES.get(parts[2], parts[2]), parts[3]]
    found = gpt2.get_parameter(".".join(["transformer", *parts]))
    return found.T if parts[0] == "h" and found.dim() == 2 else found


@pytest.fixture
def speeds(monkeypatch) -> Iterator[list[tuple[str, float]]]:
    """Runs that take no time: what each side would have measured, in the order in which it is asked."""
    made: list[tuple[str, float]] = []
    left = {"ours": iter([99.0, 98.0, 97.0, 101.0]), "bare": iter([100.0] * 4)}

    def run(side: str) -> float:
        made.append((side, next(left[side])))
        return made[-1][1]

    monkeypatch.setattr(gpu_bare_loop, "facts_of", lambda size: {"device": "cpu", "torch": "2.13.0", "bf16": False})
    monkeypatch.setattr(gpu_bare_loop, "ours", lambda *_: run("ours"))
    monkeypatch.setattr(gpu_bare_loop, "bare", lambda *_: run("bare"))
    return made


def test_pairs_take_turns_and_go_on_where_they_were_broken_off(speeds, tmp_path, capsys):
    call = ["--results", str(tmp_path), "--tiny", "--pairs", "3"]
    assert main([*call, "--at-most", "1"]) == PAIRS_ARE_LEFT
    assert main(call) == ALL_AS_EXPECTED
    assert [side for side, _ in speeds] == ["ours", "bare", "bare", "ours", "ours", "bare"]
    kept = json.loads((tmp_path / "bare_loop_tiny.json").read_text())
    assert [pair["ours"] / pair["bare"] for pair in kept["pairs"]] == [0.99, 0.98, 0.97]
    assert kept["median_ratio"] == 0.98
    assert "median of 3 pairs 0.9800 (0.9700 to 0.9900)" in capsys.readouterr().out
    assert main(call) == ALL_AS_EXPECTED  # nothing is left to run
    assert len(speeds) == 6


def test_pairs_of_another_machine_are_not_mixed_in(speeds, tmp_path):
    path = tmp_path / "kept.json"
    Kept.open(path, {"device": "one"}).add({"ours": 1.0, "bare": 1.0})
    assert len(Kept.open(path, {"device": "one"}).pairs) == 1
    assert Kept.open(path, {"device": "another"}).pairs == []


@pytest.mark.parametrize(("ratio", "status"), [(0.981, ALL_AS_EXPECTED), (0.979, TO_BE_EXPLAINED)])
def test_the_aim_is_held_to(tmp_path, ratio, status):
    facts = {"device": "a GPU", "torch": "2.13.0"}
    kept = Kept(tmp_path / "kept.json", facts, [{"ours": ratio, "bare": 1.0, "first": "ours"}])
    assert verdict(kept, 1, FULL) == status


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_nothing_is_claimed(tmp_path, capsys):
    assert main(["--results", str(tmp_path)]) == NO_GPU
    assert "--tiny runs anywhere" in capsys.readouterr().out


@pytest.mark.slow
def test_a_pair_of_real_runs(tmp_path):
    assert main(["--results", str(tmp_path), "--tiny", "--pairs", "1"]) == ALL_AS_EXPECTED
    (pair,) = json.loads((tmp_path / "bare_loop_tiny.json").read_text())["pairs"]
    assert pair["ours"] > 0
    assert pair["bare"] > 0
    assert len(list((tmp_path / "bare_loop").iterdir())) == 1
