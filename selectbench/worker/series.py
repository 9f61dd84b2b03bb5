"""The full series of a trial: what every step left behind, read from the device at window edges."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from selectbench.worker.step import StepTensors
from selectbench.worker.world import World

DIVERGED_ABOVE = 2.0
"""Times the first loss. A fresh model starts near ln(vocabulary), the loss of a uniform guess: twice that
is far worse than knowing nothing, and no warm-up or restart of a healthy run gets there."""
DIVERGED_OVER_STEPS = 10
"""Steps whose mean loss is judged, so that one bad batch is not a divergence."""


NORM_TOLERANCE = 1e-3
"""Relative difference of a rank's gradient norm from all ranks' mean: sums in another order stay far below."""


class RanksDisagreeError(RuntimeError):
    """Gradients were not brought together over the ranks."""


class Diverged(Exception):  # noqa: N818 - an outcome, not an error
    """The training left the numbers in which it can come back."""


class Series:
    """Per optimizer step of the job, in order: loss, gradient norm, whether applied, stream sum, tokens, seconds.

    Losses, stream sums and tokens are those of all ranks.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradient_norms: list[float | None] = []
        self.applied: list[bool] = []
        self.stream_sums: list[int] = []
        self.tokens: list[int] = []
        self.micro_batches: list[int] = []
        self.step_seconds: list[float] = []
        self.extra_step_seconds: list[float] = []

    def read(self, steps: Sequence[StepTensors], world: World) -> None:
        """Fetches the steps' scalars from the device; waits for it and for the other ranks. Raises Diverged."""
        known = len(self.losses)
        unknown = torch.full((), math.nan, device=world.device)
        norms = torch.stack([unknown if s.gradient_norm is None else s.gradient_norm for s in steps]).double()
        losses = torch.stack([s.loss for s in steps]).double()
        tokens = torch.tensor([s.tokens for s in steps], dtype=torch.int64, device=world.device)
        # Two exchanges for all of the window's steps.
        summed_losses, summed_norms = world.total(torch.stack([losses, norms.nan_to_num(0.0, 0.0, 0.0)])).tolist()
        streams, summed_tokens = world.total(torch.stack([torch.stack([s.stream for s in steps]), tokens])).tolist()
        found = norms.tolist()
        _check_agreement(found, summed_norms, known, world)
        self.losses += summed_losses
        self.gradient_norms += [None if s.gradient_norm is None else n for s, n in zip(steps, found, strict=True)]
        self.applied += torch.stack([s.applied for s in steps]).tolist()
        self.stream_sums += streams
        self.tokens += summed_tokens
        self.micro_batches += [s.micro_batches for s in steps]
        for step in range(known, len(self.losses)):
            self._check(step)

    def _check(self, step: int) -> None:
        loss = self.losses[step]
        if not math.isfinite(loss):
            raise Diverged(f"the loss of step {step} is {loss}")
        norm = self.gradient_norms[step]
        if self.applied[step] and norm is not None and not math.isfinite(norm):
            raise Diverged(f"the gradient norm of step {step} is {norm}, its loss {loss:.4f}")
        recent = self.losses[max(0, step + 1 - DIVERGED_OVER_STEPS) : step + 1]
        mean = sum(recent) / len(recent)
        if len(recent) == DIVERGED_OVER_STEPS and mean > DIVERGED_ABOVE * self.losses[0]:
            raise Diverged(
                f"the mean loss of the {DIVERGED_OVER_STEPS} steps to step {step} is {mean:.4f}, "
                f"more than {DIVERGED_ABOVE:g} times the first loss, {self.losses[0]:.4f}"
            )

    def write(self, path: Path, *, shares: Sequence[float], peak_learning_rates: Sequence[float]) -> None:
        """As JSON; numbers that are not finite become null.

        `shares`: of the peak learning rate, per step; `peak_learning_rates`: per parameter group.
        """
        content = {
            "loss_nats_per_token": _storable(self.losses),
            "gradient_norm": _storable(self.gradient_norms),
            "applied": self.applied,
            "learning_rate_share_of_peak": list(shares[: len(self.losses)]),
            "peak_learning_rates": list(peak_learning_rates),
            "step_seconds": self.step_seconds,
            "extra_step_seconds": self.extra_step_seconds,
        }
        path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _check_agreement(norms: list[float], sums: list[float], first_step: int, world: World) -> None:
    """Every rank must have found one gradient norm: a reduction left out would show here.

    `sums`: over the ranks, those that are not finite as 0. Raises RanksDisagreeError.
    """
    for step, (own, total) in enumerate(zip(norms, sums, strict=True), first_step):
        here, mean = own if math.isfinite(own) else 0.0, total / world.size
        if abs(here - mean) > NORM_TOLERANCE * abs(mean):
            raise RanksDisagreeError(
                f"the gradient norm of step {step} is {here:.6g} on rank {world.rank} and {mean:.6g} on average: "
                "the ranks do not train one model"
            )


def _storable(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in values]
