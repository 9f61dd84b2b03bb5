"""A script with a loop of its own, as it is: what is seen of it, in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from observe.watched import Run, run

WAYS = [
    "--style targets", "--style bare", "--style hf", "--micro 2", "--bf16", "--fp16 --overflow 3",
    "--two-optimizers", "--closure --micro 2", "--workers 2 --validate 2 --save 3",
    "--optimizer SGD --dropout 0.2", "--decay",
]  # fmt: skip


def printed(seen: Run) -> list[str]:
    """What must be the same whether a script is observed or not."""
    return sorted(line for what in ("rank", "weights", "graphs", "validation") for line in seen.printed(what))


@pytest.mark.parametrize("style", ["targets", "bare", "hf"])
def test_all_that_is_seen_of_a_plain_script(tmp_path: Path, style: str) -> None:
    # One of them as a user starts it, the others in a process forked where torch has been imported.
    seen = run(tmp_path, "--style", style, "--decay", forked=style != "targets")
    assert seen.status == 0, seen.output
    assert [line["event"] for line in seen.ranks[0]] == [
        "start", "model", "step", "first_step", *["step"] * 5, "evaluation", "end"
    ]  # fmt: skip
    losses = [float(line.split()[-1]) for line in seen.printed("rank 0 step")]
    assert [step["loss"] for step in seen.all("step")][:5] == pytest.approx(losses, rel=1e-7)
    assert [step["rates"] for step in seen.all("step")] == [
        [pytest.approx(1e-2 * (1 - 0.15 * number))] for number in range(6)
    ]
    first, model, end = seen.one("first_step"), seen.one("model"), seen.one("end")
    assert first["own_loss"] == pytest.approx(losses[0], rel=1e-6)
    assert first["loss_convention"] == "mean over the step's tokens"
    assert (first["compute_dtype"], first["gradient_dtype"]) == ("float32", "float32")
    assert first["optimizers"] == ["AdamW(for_loop)"]
    assert (model["strategy"], model["compiled"], model["device"]) == ("single", False, "cpu")
    assert {step["tokens"] for step in seen.all("step")} == {64}
    assert (end["step"], end["reason"]) == (6, "max_steps")
    assert end["parameter_bytes"] == end["gradient_bytes"] == 4 * model["parameters"]
    assert end["optimizer_state_bytes"] > 2 * end["parameter_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_script_never_notices(tmp_path: Path, way: str) -> None:
    """Losses and final weights are bit for bit those of the script alone, also past the held-out evaluation."""
    arguments = [*way.split(), "--steps", "8"]
    seen = run(tmp_path / "observed", *arguments, stop="natural_end", forked=True)
    alone = run(tmp_path / "alone", *arguments, observed=False, forked=True)
    assert printed(seen) == printed(alone)
    assert (seen.status, alone.status, alone.ranks) == (0, 0, {})
    assert len(seen.all("step")) == 8
    assert seen.one("evaluation")["tokens"] == 320
    assert (seen.one("end")["reason"], seen.one("end")["step"]) == ("exit", 8)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "method", "step"])
def test_what_is_compiled_stays_as_many_graphs(tmp_path: Path, what: str) -> None:
    seen = run(tmp_path / "observed", "--compile", what, "--decay", stop="natural_end")
    alone = run(tmp_path / "alone", "--compile", what, "--decay", observed=False)
    assert printed(seen) == printed(alone)
    assert len(seen.all("step")) == 6, seen.output
    assert seen.one("model")["compiled"] == (what != "step")
    assert seen.one("first_step")["compute_dtype"] == "float32"
    assert "problem" not in seen.one("evaluation")


def test_a_step_that_a_scaler_skips_is_told(tmp_path: Path) -> None:
    seen = run(tmp_path, "--fp16", "--overflow", "3", forked=True)
    assert [step["skipped"] for step in seen.all("step")] == [False, False, True, False, False, False]
    assert [step["loss"] is None for step in seen.all("step")] == [False, False, True, False, False, False]
    assert seen.one("first_step")["compute_dtype"] == "float16"


def test_losses_that_a_script_does_not_divide_have_their_convention(tmp_path: Path) -> None:
    """Found by the sum of what goes backward, which is twice our own."""
    first = run(tmp_path, "--sum", "--micro", "2", "--steps", "2", max_steps=2, forked=True).one("first_step")
    assert first["loss_convention"] == "sum of the micro-batches' means"


def test_where_the_stop_is_swallowed_the_process_ends_at_the_next_step(tmp_path: Path) -> None:
    seen = run(tmp_path, "--swallow")
    assert (seen.status, seen.printed("swallowed"), seen.printed("weights")) == (0, ["swallowed"], [])
    assert len(seen.all("step")) == 6


def test_a_model_called_past_its_call_is_found_where_the_script_says_so(tmp_path: Path) -> None:
    told = run(tmp_path / "told", "--style", "past", "--watch", forked=True)
    assert (len(told.all("step")), told.one("evaluation")["tokens"]) == (6, 320)
    untold = run(tmp_path / "untold", "--style", "past", forked=True)
    assert untold.one("problem")["what"].startswith("6 updates without a training forward")
    assert untold.one("end")["step"] == 0
