"""A regression test for each way in which a prototype of the observer was led astray.

1  Hooks of modules are traced and split graphs: `test_plain_scripts.test_what_is_compiled_...`; the
   model is what covers all that is updated, not a part that is called first: `part_first`.
2  A compiled `optimizer.step` traces hooks away: the same test with `step`; one compiled in a function: here.
3  A forward and backward of a copy on meta is no training: `on_meta`; litgpt's own in `test_observed_frameworks`.
4  The last micro-batch inside of `step(closure)`: `last_in_a_closure`.
6  What a model returns need not be logits: `hidden_states`.
7  Losses that go backward in parts: `in_chunks`; undivided ones in `test_plain_scripts`, HF's partial ones in
   `test_observed_frameworks`.
8  Optimizers within optimizers count once: `nested`.
9  Renamed and cast weights: `renamed`; under ranks and frameworks in their files.
10 Padding: `test_ranks_and_cuts.test_padding_counts_on_neither_side`.
11 Models called past `__call__`: `test_plain_scripts.test_a_model_called_past_its_call_is_found_...`.
12 Nothing is raised into the script: `test_failures`.
13 Nothing is kept at the end: `plain`; compiled ranks in `test_compiled_ranks`.
14 Workers write nothing: `workers`; `python -I`: `test_an_isolated_script_...`.
15 Optimizers in backward: `in_backward`.
16 The stop: `test_plain_scripts.test_where_the_stop_is_swallowed_...`; everything there ends with status 0 by it.
17 A script's own validation and saving fall out of the windows: `pauses`.

5, Lightning's Trainer, is not observed yet.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from observe.watched import OBSERVE, SCRIPTS, Run, run


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(
        tmp_path_factory.mktemp("cases"),
        script="pitfalls.py",
        stop="natural_end",
        max_steps=4,
        heldout=None,
        looks=[3],
    )


def of(cases: Run, name: str) -> Run:
    """What is observed of one of them."""
    ends = dict(re.findall(r"^(\w+) ended with (\d+)$", cases.output, re.MULTILINE))
    assert ends[name] == "0", cases.output
    return Run(0, cases.output, {0: cases.ranks[list(ends).index(name)]})


def trained(seen: Run, *keys: str) -> list[Any]:
    return [[step[key] for key in keys] for step in seen.all("step")]


@pytest.mark.parametrize(
    "name", ["on_meta", "last_in_a_closure", "in_chunks", "nested", "workers", "in_backward", "pauses", "looked_at"]
)
def test_the_same_steps_are_seen_however_they_are_made(cases: Run, name: str) -> None:
    plain, other = of(cases, "plain"), of(cases, name)
    assert len(plain.all("step")) == 4
    if name != "workers":  # which read other rows
        assert trained(other, "tokens", "token_digest") == trained(plain, "tokens", "token_digest")
        losses = zip(other.all("step"), plain.all("step"), strict=True)
        assert all(one["loss"] == pytest.approx(two["loss"], rel=1e-4) for one, two in losses)
    assert other.one("model")["weights_sha256"] == plain.one("model")["weights_sha256"]
    if name not in ("workers", "in_backward"):  # where no gradient outlives its backward
        norms = [seen.all("step")[0]["gradient_norm"] for seen in (other, plain)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert other.one("first_step")["loss_convention"].startswith("mean over the step's tokens")
    assert other.all("problem") == []
    assert (other.one("end")["step"], other.one("end")["reason"]) == (4, "exit")


def test_the_model_is_what_holds_all_that_is_updated(cases: Run) -> None:
    seen = of(cases, "part_first")
    assert (seen.one("model")["name"], len(seen.all("step"))) == ("Whole", 4)
    assert [step["micro_batches"] for step in seen.all("step")] == [1] * 4


def test_an_update_that_is_compiled_within_a_function_is_missed_and_said(cases: Run) -> None:
    seen = of(cases, "step_in_a_function")
    assert seen.all("step") == []
    assert seen.one("problem")["what"].startswith("4 training forwards without an update")


def test_what_are_no_logits_is_not_taken_for_them(cases: Run) -> None:
    seen = of(cases, "hidden_states")
    first = seen.one("first_step")
    assert (first["own_loss"], first["loss_convention"]) == (None, None)
    assert first["logits"].startswith("not found: of (4, 16) tokens the model gives output (4, 16, 32)")


def test_a_loss_is_known_by_the_targets_behind_it(cases: Run) -> None:
    """The rows' last targets, which the tokens do not tell, are read there; that some are left out shows there."""
    whole = "mean over the step's tokens"
    found = {name: of(cases, name).one("first_step") for name in ("plain", "shifted", "in_chunks", "of_some")}
    assert found["plain"]["loss_convention"] == found["shifted"]["loss_convention"] == whole
    assert found["in_chunks"]["loss_convention"].startswith(f"{whole}, to 2 %")
    # Of an untrained model the means over some and over all are within 2 % of each other.
    assert found["of_some"]["loss_convention"] is None
    assert found["of_some"]["own_loss"] == pytest.approx(of(cases, "of_some").all("step")[0]["loss"], rel=0.02)


def test_what_changes_after_the_first_step_is_seen(cases: Run) -> None:
    assert [look["agrees"] for look in of(cases, "plain").all("look")] == [True]
    seen = of(cases, "other_targets")
    assert [look["agrees"] for look in seen.all("look")] == [False]
    ends = [seen.one(event)["optimizer_settings"] for event in ("first_step", "end")]
    assert [[one for one in end if one.startswith("weight_decay")] for end in ends] == [
        ["weight_decay 0.01"], ["weight_decay 0.5"]
    ]  # fmt: skip


def test_what_the_first_update_gets_is_read_where_it_is_made(cases: Run) -> None:
    norms = {name: of(cases, name).one("first_step")["update_norm"] for name in ("plain", "nested", "in_backward")}
    closure = of(cases, "last_in_a_closure").one("first_step")["update_norm"]
    assert [closure, *norms.values()] == pytest.approx([norms["plain"]] * 4, rel=1e-5)
    assert of(cases, "in_backward").all("step")[0]["gradient_norm"] is None


def test_a_renamed_and_cast_model_has_the_digest_of_what_is_rounded(cases: Run) -> None:
    plain, seen = (of(cases, name).one("model") for name in ("plain", "renamed"))
    assert seen["weights_bf16_sha256"] == plain["weights_bf16_sha256"]
    assert seen["weights_sha256"] != plain["weights_sha256"]


def test_model_and_optimizer_are_free_once_the_script_lets_them_go(cases: Run) -> None:
    assert cases.printed("kept") == ["kept [False, False]"]


def test_nested_optimizers_are_one(cases: Run) -> None:
    seen = of(cases, "nested")
    assert seen.one("first_step")["optimizers"] == ["Container"]
    assert trained(seen, "rates") == [[[1e-2]]] * 4


def test_pauses_are_those_after_saving_and_validating(cases: Run) -> None:
    pauses = [step["pause_seconds"] for step in of(cases, "pauses").all("step")]
    assert pauses[0] == 0.0
    assert all(0.1 < pause < 5 for pause in pauses[1:])


def test_an_isolated_script_with_a_copy_of_the_probe_is_observed(tmp_path: Path) -> None:
    """Under `-I` the environment's paths are not read, by which the observer comes in otherwise."""
    for file in (SCRIPTS / "isolated.py", SCRIPTS / "models.py", OBSERVE.parent / "probe.py"):
        shutil.copy(file, tmp_path)
    seen = run(tmp_path, script=tmp_path / "isolated.py", python=("-I",), max_steps=4)
    assert (seen.status, len(seen.all("step")), seen.all("problem")) == (0, 4, []), seen.output
    assert (seen.one("evaluation")["tokens"], seen.one("end")["reason"]) == (320, "max_steps")


SHARES = """
import os, sys
sys.path.insert(0, sys.argv[1])
import selectbench_seen as seen
block = b"x" * (64 << 20)
before = seen.private_bytes(), seen.process_bytes("smaps_rollup", "Pss")
ends = os.pipe()
if not (child := os.fork()):
    os.close(ends[1])
    os.read(ends[0], 1)
    os._exit(len(block) and 0)
after = seen.private_bytes(), seen.process_bytes("smaps_rollup", "Pss")
os.close(ends[1])
os.waitpid(child, 0)
print(*(was - now for was, now in zip(before, after)))
"""


def test_memory_that_a_forked_worker_shares_counts_whole() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARES, str(OBSERVE)], capture_output=True, text=True, check=True, timeout=120
    )
    less_held, less_by_share = map(int, done.stdout.split())
    assert abs(less_held) < 8 << 20
    assert less_by_share > 24 << 20
