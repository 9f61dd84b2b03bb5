"""What the training minimises. The evaluation on held-out text is cross-entropy whatever the training loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from selectbench.choices.choice import Choice, Needs, OwnName
from selectbench.choices.own import OwnSettings, free_of, load

if TYPE_CHECKING:
    import torch

    SummedLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


SUM_TOLERANCE = 1e-2
"""Relative difference between a loss and the sum of its halves' that is rounding."""


class LossChoice(Choice):
    """A training loss."""

    needs: ClassVar[Needs] = Needs(packages=("torch",))
    may_change: ClassVar[frozenset[str]] = frozenset({"loss", "first_step_loss", "first_step_gradient_norm"})
    is_compiled: ClassVar[bool] = False
    """Whether `compile` compiles it with the model."""

    def build(self) -> SummedLoss:
        """A function of logits and targets.

        Logits: float, (sequences, seq_len, vocabulary); targets: int64, (sequences, seq_len), already the
        next token of each position. It returns a scalar: the sum of the tokens' losses in nats, not their
        mean, so that it does not depend on how a step is cut.
        """
        raise NotImplementedError


class CrossEntropy(LossChoice):
    """Cross-entropy of the next token."""

    source: ClassVar[str] = "torch.nn.functional.cross_entropy"
    is_compiled: ClassVar[bool] = True
    name: Literal["cross_entropy"] = "cross_entropy"

    def build(self) -> SummedLoss:
        """The function of torch, summed."""
        from torch.nn.functional import cross_entropy

        return lambda logits, targets: cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def _free(settings: dict[str, Any]) -> dict[str, Any]:
    return free_of(settings, ("logits", "targets"))


class OwnLoss(LossChoice):
    """A loss of your own: `function(logits, targets, **settings)` returns the sum of the tokens' losses.

    Logits are float, (sequences, seq_len, vocabulary); targets are int64, (sequences, seq_len). `compile` leaves
    it as it is: put `torch.compile` around it where it is to be compiled.
    """

    source: ClassVar[str] = "your own code"
    name: OwnName
    """`package.module:function`, importable from a folder of the suite's `code`, or installed."""
    settings: Annotated[OwnSettings, AfterValidator(_free)] = Field(default_factory=dict)
    """More keyword arguments."""

    def build(self) -> SummedLoss:
        """The function with its settings; it raises TypeError where no scalar comes back. Raises OwnCodeError."""
        import torch

        function = load(self.name, "loss")
        checked = False

        def summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss = function(logits, targets, **self.settings)
            if not isinstance(loss, torch.Tensor) or loss.ndim:
                found = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise TypeError(f"loss {self.name}: expected a scalar tensor, the sum over tokens; found {found}")
            if not checked:
                check(logits.detach(), targets, loss.detach())
            return loss

        def check(logits: torch.Tensor, targets: torch.Tensor, whole: torch.Tensor) -> None:
            """Once: a sum over tokens is the sum of the sums over two parts of them."""
            nonlocal checked
            checked = True
            half = (logits.shape[1] + 1) // 2
            parts = [(logits[:, :half], targets[:, :half]), (logits[:, half:], targets[:, half:])]
            with torch.no_grad():
                of_parts = sum(function(*part, **self.settings) for part in parts)
            if not torch.allclose(of_parts.float(), whole.float(), rtol=SUM_TOLERANCE):
                raise TypeError(
                    f"loss {self.name}: expected the sum over tokens; of all of them it is {float(whole):.6g}, of "
                    f"the first and the last half together {float(of_parts):.6g} (a mean? sum instead)"
                )

        return summed
