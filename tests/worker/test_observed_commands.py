"""What a command's processes told, made into a trial's result: what is timed, and what is verified."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from selectbench.record.record import Trial
from selectbench.record.wire import CommandOrder, Finished
from selectbench.worker.command import Rank, _fault, _finished, _looks

STEPS = 30


def order(**changes: Any) -> CommandOrder:
    settings: dict[str, Any] = {
        "arguments": ["python", "train.py"], "directory": "/", "environment": {}, "world_size": 1,
        "max_steps": STEPS, "stop": "at_max_steps", "warmup_steps": 5, "heldout": None, "heldout_sha256": None,
        "heldout_tokens": 0, "seq_len": None, "trial_folder": "/", **changes,
    }  # fmt: skip
    return CommandOrder(trial=Trial(trial_id="one", option="one", seed=1, settings=msgspec.Raw(b"{}")), **settings)


def rank(number: int = 0, looks: tuple[int, ...] = (), **model: Any) -> Rank:
    """One process, whose steps take a second each and one that is looked at ten."""
    seconds = [10.0 if step in looks else 1.0 for step in range(1, STEPS + 1)]
    steps = [
        {"step": n, "at": sum(seconds[:n]), "micro_batches": 1, "rows": 1, "tokens": 8, "token_digest": "0" * 16,
         "rates": [0.1], "loss": 4.0, "gradient_norm": 1.0, "skipped": False, "pause_seconds": 0.0}
        for n in range(1, STEPS + 1)
    ]  # fmt: skip
    kind = {"parameters": 8, "trainable_parameters": 8, "weights_sha256": "a" * 64, "weights_bf16_sha256": "b" * 64,
            "parameter_dtype": "float32", "strategy": "single", "tf32": False, "compiled": False}  # fmt: skip
    first = {"optimizers": ["SGD"], "optimizer_settings": [], "own_loss": 4.0, "loss_convention": "mean",
             "compute_dtype": "float32", "update_norm": 0.5, "left_out_parameters": 0}  # fmt: skip
    told = [{"step": step, "own_loss": 4.0, "agrees": True} for step in looks]
    return Rank({"rank": number, "at": 0.0}, {**kind, **model}, steps, first, told, end={"left_out_parameters": 0})


def finished(*ranks: Rank, **changes: Any) -> Finished:
    assert _fault(order(**changes), list(ranks), 0) is None
    return _finished(order(**changes), list(ranks), 0.0, {})


def test_a_timed_step_is_looked_at_and_in_no_figure_of_speed() -> None:
    warm_up, drawn = _looks(order())
    assert warm_up == 5
    assert 7 <= drawn < STEPS
    assert _looks(order(warmup_steps=1, max_steps=12)) == []
    plain, seen = finished(rank()).measurement, finished(rank(looks=(warm_up, drawn)))
    assert (plain.timed_steps, plain.timed_seconds) == (25, 25.0)
    assert (seen.measurement.timed_steps, seen.measurement.timed_seconds) == (24, 24.0)
    # The windows leave it out too.
    assert [end - start for start, end in seen.timed_windows] == [drawn - 6.0, 30.0 - drawn]
    assert seen.script is not None
    assert "in 3 steps alone" in seen.script.not_seen["later steps"]


@pytest.mark.parametrize("other", [None, "c" * 64])
def test_weights_in_parts_are_not_verified_in_words(other: str | None) -> None:
    """A digest that one rank alone has, or that ranks do not share, is of no whole model."""
    first = rank(strategy="FullyShardedDataParallel", **({} if other else {"weights_sha256": None}))
    seen = finished(first, rank(1, weights_sha256=other), world_size=2)
    assert seen.identity is not None
    assert seen.script is not None
    for name in ("initial_weights_sha256", "first_step_gradient_norm", "first_step_update_norm"):
        assert getattr(seen.identity, name) is None
        assert seen.script.not_seen[name].endswith("not put together (FullyShardedDataParallel)")
        assert name not in seen.script.conventions
    assert seen.script.weights_bf16_sha256 is None


def test_settings_that_are_others_in_the_last_step_are_named() -> None:
    seen = rank()
    seen.first_step["optimizer_settings"] = ["betas 0.9, 0.95", "weight_decay 0.1"]
    assert seen.end is not None
    seen.end["optimizer_settings"] = ["betas 0.9, 0.95", "weight_decay 0"]
    assert finished(seen).identity.optimizer == [
        "SGD", "betas 0.9, 0.95", "weight_decay 0.1", "weight_decay 0 in the last step"
    ]  # fmt: skip
