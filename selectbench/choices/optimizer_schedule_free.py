"""Schedule-free AdamW: an average of the weights stands in for the decay of the learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from selectbench.choices.choice import Needs
from selectbench.choices.optimizer import (
    OPTIMIZER_FIELDS,
    Fraction,
    LearningRate,
    NonNegative,
    OptimizerChoice,
    decay_groups,
    trainable,
)

if TYPE_CHECKING:
    import torch

SCHEDULE_FREE_INSTALL = "pip install 'selectbench[schedulefree]'"


class ScheduleFreeAdamW(OptimizerChoice):
    """AdamW whose gradients are taken between its iterates and their average, which is what is evaluated.

    After the job's warm-up the learning rate stays at its peak, whatever the job's lr_schedule. Every
    evaluation is of the average. A model with batch norm has its statistics from the training alone.
    """

    source: ClassVar[str] = (
        "Defazio et al. 2024, arXiv:2405.15682; schedulefree.AdamWScheduleFree, its defaults but for weight_decay"
    )
    # Since 1.3 decay in the warm-up goes with the learning rate, as AdamW's.
    needs: ClassVar[Needs] = Needs(packages=("torch", "schedulefree>=1.4"), install=SCHEDULE_FREE_INSTALL)
    may_change: ClassVar[frozenset[str]] = OPTIMIZER_FIELDS | {"learning_rate_shape_sha256"}
    classes: ClassVar[tuple[str, ...]] = ("AdamWScheduleFree",)
    lr_range: ClassVar[tuple[float, float] | None] = (1e-3, 1e-1)
    lr_range_source: ClassVar[str] = "1 to 10 times AdamW's rate, as the authors advise (schedulefree's README)"
    schedule_shape: ClassVar[Literal["constant"] | None] = "constant"
    name: Literal["schedule_free_adamw"] = "schedule_free_adamw"
    lr: LearningRate
    """Learning rate from the end of the warm-up on; 1 to 10 times AdamW's peak, by the library's authors."""
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the average in the point at which gradients are taken; 0.95 or 0.98 for very long trainings."""
    beta2: Fraction = 0.999
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.1
    """Decay of matrices and embeddings, of the point at which gradients are taken."""

    def caveat(self, device: str) -> str | None:
        """Its schedule is another one, and its training losses are of other weights than its evaluations."""
        return (
            "schedule_free_adamw keeps its learning rate after the warm-up, where others follow the job's "
            "lr_schedule; evaluations are of its averaged weights, losses in training of those that it trains at"
        )

    def state_bytes(self, element_bytes: int) -> float | None:
        """The iterate that the gradients move and the second moment; the average is not kept beside them."""
        return 2 * element_bytes

    def build(self, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """schedulefree.AdamWScheduleFree, without a warm-up of its own."""
        import schedulefree

        return [
            schedulefree.AdamWScheduleFree(
                decay_groups(trainable(model), self.weight_decay),
                lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps,
            )
        ]  # fmt: skip
