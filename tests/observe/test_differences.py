"""Each difference between two runs of a job shows in exactly its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from observe.watched import HELD_OUT, Run, run


def fields(seen: Run) -> dict[str, Any]:
    """All that a job is held against another by."""
    model, first, steps = seen.one("model"), seen.one("first_step"), seen.all("step")
    return {
        "initial weights": (model["weights_sha256"], model["weights_bf16_sha256"]),
        "tokens per step": [step["tokens"] for step in steps],
        "digests": [step["token_digest"] for step in steps],
        "rates": [step["rates"] for step in steps],
        "first loss": first["own_loss"],
        "dropout": model["dropout"],
        "optimizer": first["optimizers"],
        "state": first["optimizer_state_dtype"],
        "compute": first["compute_dtype"],
    }


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def as_agreed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("agreed"), "--style", "hf", "--steps", "4", max_steps=4, forked=True)


@pytest.mark.parametrize(
    ("difference", "shown"),
    [
        ("", set()),
        ("--seed 5", {"initial weights", "first loss"}),
        ("--rows 5", {"tokens per step", "digests", "first loss"}),
        ("--data-seed 5", {"digests", "first loss"}),
        ("--reverse", {"digests", "first loss"}),
        ("--decay", {"rates"}),
        ("--lr 0.003", {"rates"}),
        ("--dropout 0.3", {"dropout", "first loss"}),
        ("--optimizer SGD", {"optimizer", "state"}),
        ("--bf16", {"compute", "first loss"}),
    ],
)
def test_a_difference_shows_in_its_fields(as_agreed: Run, tmp_path: Path, difference: str, shown: set[str]) -> None:
    other = run(tmp_path, "--style", "hf", "--steps", "4", *difference.split(), max_steps=4, forked=True)
    one, two = fields(as_agreed), fields(other)
    assert {name for name in one if one[name] != two[name]} == shown


def test_another_held_out_set_shows_in_the_evaluation_alone(as_agreed: Run, tmp_path: Path) -> None:
    shorter = len(HELD_OUT) - 100
    other = run(tmp_path, "--style", "hf", "--steps", "4", max_steps=4, heldout_tokens=shorter, forked=True)
    assert fields(other) == fields(as_agreed)
    assert other.one("evaluation")["loss_sum"] != as_agreed.one("evaluation")["loss_sum"]
