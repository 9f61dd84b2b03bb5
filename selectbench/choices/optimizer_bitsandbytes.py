"""Optimizers of bitsandbytes: Lion, and optimizers whose state is kept in 8-bit blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from selectbench.choices.choice import Needs
from selectbench.choices.optimizer import AdamW, Fraction, NonNegative, OptimizerChoice, decay_groups, trainable

if TYPE_CHECKING:
    import torch

BLOCKWISE = "Dettmers et al. 2022, arXiv:2110.02861"
BLOCK = 256
"""State elements that share a scale, in the versions that are asked for."""


class BitsAndBytesChoice(OptimizerChoice):
    """An optimizer of bitsandbytes; tensors under 4,096 elements keep 32-bit state, as the library does."""

    needs: ClassVar[Needs] = Needs(packages=("bitsandbytes>=0.46",))
    waits: ClassVar[str | None] = "after every parameter in every step"  # Optimizer8bit.step's sync_gpu
    preload: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    class_name: ClassVar[str]
    states: ClassVar[int]
    """State elements per parameter."""
    eight_bit: ClassVar[bool] = True
    lr_range: ClassVar[tuple[float, float] | None] = AdamW.lr_range
    lr_range_source: ClassVar[str] = f"that of the 32-bit optimizer, whose steps it takes ({BLOCKWISE})"

    def asks_for(self) -> dict[str, Any]:
        """The library's class."""
        return {"optimizer": [self.class_name]}

    def state_bytes(self, element_bytes: int) -> float | None:
        """A byte an element and an fp32 scale for each block, or fp32 whatever dtype is updated."""
        return self.states * (1 + 4 / BLOCK if self.eight_bit else 4)

    def build(self, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """The library's class with this choice's settings."""
        import bitsandbytes

        kind: Any = getattr(bitsandbytes.optim, self.class_name)
        return [kind(decay_groups(trainable(model), self.weight_decay), lr=self.lr, **self.settings())]

    def settings(self) -> dict[str, object]:
        """Keyword arguments besides parameters, learning rate and weight decay."""
        raise NotImplementedError


class AdamW8bit(BitsAndBytesChoice):
    """AdamW with 8-bit moments."""

    source: ClassVar[str] = f"{BLOCKWISE}; bitsandbytes.optim.AdamW8bit"
    class_name: ClassVar[str] = "AdamW8bit"
    states: ClassVar[int] = 2
    name: Literal["adamw_8bit"] = "adamw_8bit"
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.95
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""

    def settings(self) -> dict[str, object]:
        """Moments' decays and eps."""
        return {"betas": (self.beta1, self.beta2), "eps": self.eps}


class PagedAdamW8bit(AdamW8bit):
    """AdamW with 8-bit moments in pages that can move to host memory; on a CPU nothing is paged."""

    source: ClassVar[str] = "Dettmers et al. 2023, arXiv:2305.14314; bitsandbytes.optim.PagedAdamW8bit"
    waits: ClassVar[str | None] = "after every parameter in every step, and once more at its end"
    class_name: ClassVar[str] = "PagedAdamW8bit"
    name: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"  # type: ignore[assignment]

    def caveat(self, device: str) -> str | None:
        """Paging is between GPU and host memory."""
        return "nothing is paged on a CPU: its figures are adamw_8bit's" if device == "cpu" else None


class Lion(BitsAndBytesChoice):
    """Lion: the sign of an interpolated momentum; one 32-bit state per parameter."""

    source: ClassVar[str] = "Chen et al. 2023, arXiv:2302.06675; bitsandbytes.optim.Lion32bit"
    class_name: ClassVar[str] = "Lion32bit"
    states: ClassVar[int] = 1
    eight_bit: ClassVar[bool] = False
    lr_range: ClassVar[tuple[float, float] | None] = (3e-5, 3e-3)
    lr_range_source: ClassVar[str] = (
        "a tenth of AdamW's: 3 to 10 times smaller is usual (Chen et al. 2023, arXiv:2302.06675, section 5)"
    )
    name: Literal["lion"] = "lion"
    beta1: Fraction = 0.9
    """Weight of the momentum in the update."""
    beta2: Fraction = 0.99
    """Decay of the momentum."""
    weight_decay: NonNegative = 1.0
    """Decoupled decay; the paper uses 3 to 10 times AdamW's with a learning rate as much smaller."""

    def settings(self) -> dict[str, object]:
        """The two interpolation weights."""
        return {"betas": (self.beta1, self.beta2)}


class Lion8bit(Lion):
    """Lion with 8-bit momentum."""

    source: ClassVar[str] = f"Chen et al. 2023, arXiv:2302.06675; {BLOCKWISE}; bitsandbytes.optim.Lion8bit"
    class_name: ClassVar[str] = "Lion8bit"
    eight_bit: ClassVar[bool] = True
    name: Literal["lion_8bit"] = "lion_8bit"  # type: ignore[assignment]


class AdEMAMix8bit(BitsAndBytesChoice):
    """AdEMAMix with 8-bit moments: AdamW with a second, slow average of the gradient."""

    source: ClassVar[str] = "Pagliardini et al. 2024, arXiv:2409.03137; bitsandbytes.optim.AdEMAMix8bit"
    class_name: ClassVar[str] = "AdEMAMix8bit"
    states: ClassVar[int] = 3
    lr_range_source: ClassVar[str] = (
        "AdamW's, as in the paper's comparison (Pagliardini et al. 2024, arXiv:2409.03137)"
    )
    name: Literal["ademamix_8bit"] = "ademamix_8bit"
    beta1: Fraction = 0.9
    """Decay of the fast first moment."""
    beta2: Fraction = 0.999
    """Decay of the second moment."""
    beta3: Fraction = 0.9999
    """Decay of the slow first moment."""
    alpha: NonNegative = 5.0
    """Weight of the slow moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""

    def settings(self) -> dict[str, object]:
        """Three decays, the slow moment's weight and eps."""
        return {"betas": (self.beta1, self.beta2, self.beta3), "alpha": self.alpha, "eps": self.eps}
