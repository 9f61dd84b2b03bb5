"""A script with a loop of its own, as it is: what is seen of it, in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from observe.watched import run

STYLES = ["targets", "bare", "hf"]


@pytest.mark.parametrize("style", STYLES)
def test_all_that_is_seen_of_a_plain_script(tmp_path: Path, style: str) -> None:
    seen = run(tmp_path, "--style", style, "--decay")
    assert seen.status == 0, seen.output
    assert [line["event"] for line in seen.ranks[0]] == [
        "start", "model", "step", "first_step", *["step"] * 5, "evaluation", "end"
    ]  # fmt: skip
    printed = [float(line.split()[-1]) for line in seen.printed("rank 0 step")]
    assert [step["loss"] for step in seen.all("step")][:5] == pytest.approx(printed, rel=1e-7)
    assert [step["rates"] for step in seen.all("step")] == [
        [pytest.approx(1e-2 * (1 - 0.15 * number))] for number in range(6)
    ]
    first, model, end = seen.one("first_step"), seen.one("model"), seen.one("end")
    assert first["own_loss"] == pytest.approx(printed[0], rel=1e-6)
    assert first["loss_convention"] == "mean over the step's tokens"
    assert (first["compute_dtype"], first["gradient_dtype"]) == ("float32", "float32")
    assert first["optimizers"] == ["AdamW(for_loop)"]
    assert (model["strategy"], model["compiled"], model["device"]) == ("single", False, "cpu")
    assert {step["tokens"] for step in seen.all("step")} == {64}
    assert (end["step"], end["reason"]) == (6, "max_steps")
    assert end["parameter_bytes"] == 4 * model["parameters"]
    assert end["optimizer_state_bytes"] > 2 * end["parameter_bytes"]
