"""The same rows and initial weights through every framework: equal digests, weights and first losses."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from observe.watched import Run, run

SUMMED = "sum over the step's tokens divided by its labels before the shift"
OURS = "mean over the step's tokens"
FRAMEWORKS = [
    pytest.param("trainer.py", SUMMED, marks=pytest.mark.slow),
    pytest.param("accelerated.py", OURS, marks=pytest.mark.slow),
    *(
        pytest.param(script, how, marks=[pytest.mark.long, pytest.mark.skipif(not find_spec(name), reason=name)])
        for script, how, name in [("fabric.py", OURS, "lightning"), ("sft.py", SUMMED, "trl")]
    ),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("plain"), "--style", "hf", forked=True)


@pytest.mark.parametrize("micro", ["4", "2"])
@pytest.mark.parametrize(("script", "convention"), FRAMEWORKS)
def test_a_framework_trains_as_a_plain_loop(
    plain: Run, tmp_path: Path, script: str, convention: str, micro: str
) -> None:
    seen = run(tmp_path, "--micro", micro, script=script, stop="natural_end", forked=micro == "2")
    assert seen.status == 0, seen.output
    for key in ("weights_sha256", "weights_bf16_sha256", "parameters", "name", "dropout"):
        assert seen.one("model")[key] == plain.one("model")[key]
    for key in ("rows", "tokens", "token_digest"):
        assert [step[key] for step in seen.all("step")] == [step[key] for step in plain.all("step")]
    first, ours = seen.one("first_step"), plain.one("first_step")
    assert first["own_loss"] == pytest.approx(ours["own_loss"], abs=1e-5)
    assert (first["loss_convention"], first["compute_dtype"]) == (convention, "float32")
    assert seen.one("evaluation")["tokens"] == plain.one("evaluation")["tokens"] == 320
    assert [step["micro_batches"] for step in seen.all("step")] == [4 // int(micro)] * 6
    assert seen.one("end")["reason"] == "exit"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["trainer.py", "accelerated.py"])
def test_a_framework_on_two_ranks_says_so(plain: Run, tmp_path: Path, script: str) -> None:
    seen = run(tmp_path, "--micro", "2", script=script, ranks=2, max_steps=3)
    assert seen.status == 0, seen.output
    for rank in (0, 1):
        assert seen.one("model", rank)["strategy"] == "DistributedDataParallel"
        assert seen.one("model", rank)["weights_sha256"] == plain.one("model")["weights_sha256"]
        assert len(seen.all("step", rank)) == 3


@pytest.mark.long
@pytest.mark.skipif(not find_spec("litgpt"), reason="litgpt")
def test_litgpts_pretraining_is_seen(plain: Run, tmp_path: Path) -> None:
    """It runs a copy without contents forward and backward first, which is not a step."""
    seen = run(tmp_path, "--micro", "2", script="litgpt_pretrain.py", stop="natural_end")
    assert seen.status == 0, seen.output
    assert [step["token_digest"] for step in seen.all("step")] == [s["token_digest"] for s in plain.all("step")]
    assert seen.one("first_step")["loss_convention"] == OURS
    assert (seen.one("model")["compiled"], seen.one("evaluation")["tokens"]) == (True, 320)
