"""What goes with what: combinations of optimizer, strategy and precision that can't be had, and why.

The table is not declared but found: a test runs every combination on two ranks and compares it with one
process; what it sees raise, or train another algorithm, is what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from selectbench.choices import Choices

BITSANDBYTES = frozenset({"lion", "adamw_8bit", "paged_adamw_8bit", "lion_8bit", "ademamix_8bit"})
ZERO = frozenset({"zero 1", "zero 2", "zero 3"})


@dataclass(frozen=True)
class Exclusion:
    """Options that agree with every condition given can't be had."""

    strategies: frozenset[str]
    """`ddp`, `fsdp`, `zero 1`: as `strategy_of` writes them."""
    finding: Literal["raises", "differs"]
    """What happens where it is tried: an error, or silently another algorithm."""
    reason: str
    """Why, with what to take instead where there is something."""
    optimizers: frozenset[str] | None = None
    """By name; None: all."""
    implementation: str | None = None
    """Of an optimizer of torch; None: all."""
    precisions: frozenset[str] | None = None
    """By name; None: all."""
    compiled: bool | None = None
    """Whether the model is compiled; None: either."""
    offloaded: bool | None = None
    """Whether the optimizer's state is in host memory; None: either."""

    def excludes(self, choices: Choices) -> bool:
        """Whether these choices agree with every condition."""
        return (
            strategy_of(choices) in self.strategies
            and (self.optimizers is None or choices.optimizer.name in self.optimizers)
            and self.implementation in (None, getattr(choices.optimizer, "implementation", None))
            and (self.precisions is None or choices.precision.name in self.precisions)
            and self.compiled in (None, choices.compile.mode is not None)
            and self.offloaded in (None, getattr(choices.strategy, "offload_optimizer", False))
        )


EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(
        strategies=frozenset({"ddp"}), precisions=frozenset({"bf16_master"}), finding="raises",
        reason="DDP keeps no master weights beside the copy that it reduces: fsdp and zero do",
    ),
    Exclusion(
        strategies=frozenset({"fsdp"}), optimizers=BITSANDBYTES, finding="raises",
        reason="bitsandbytes can't update FSDP2's sharded tensors: zero works",
    ),
    Exclusion(
        strategies=frozenset({"fsdp"}), optimizers=frozenset({"adafactor"}), finding="raises",
        reason="torch's Adafactor can't update FSDP2's sharded tensors",
    ),
    Exclusion(
        strategies=frozenset({"fsdp"}), optimizers=frozenset({"sgd"}), implementation="fused", finding="raises",
        reason="torch's fused SGD can't update FSDP2's sharded tensors: set implementation: foreach",
    ),
    Exclusion(
        strategies=ZERO, optimizers=frozenset({"muon"}), finding="raises",
        reason="DeepSpeed flattens the matrices that muon orthogonalises: ddp and fsdp work",
    ),
    Exclusion(
        strategies=ZERO, optimizers=frozenset({"adafactor"}), finding="differs",
        reason="DeepSpeed flattens the matrices whose rows and columns adafactor averages, which makes it another "
        "algorithm: ddp works",
    ),
    Exclusion(
        strategies=ZERO, optimizers=frozenset({"schedule_free_adamw"}), finding="raises",
        reason="DeepSpeed keeps copies of the weights that its optimizer can't switch to the averaged ones, which "
        "are to be evaluated: ddp and fsdp work",
    ),
    Exclusion(
        strategies=frozenset({"zero 3"}), compiled=True, finding="raises",
        reason="torch.compile compiles ZeRO-3's gathering anew for every module until it gives up: zero 1, 2 work",
    ),
    Exclusion(
        strategies=ZERO, precisions=frozenset({"bf16_pure"}), offloaded=True, finding="raises",
        reason="where there are no fp32 master weights DeepSpeed offloads its own Adam only: without "
        "offload_optimizer it works",
    ),
)  # fmt: skip


def strategy_of(choices: Choices) -> str:
    """The strategy's name, with its stage where it has stages."""
    stage = getattr(choices.strategy, "stage", None)
    return str(choices.strategy.name) if stage is None else f"{choices.strategy.name} {stage}"


def exclusion_of(choices: Choices) -> Exclusion | None:
    """The first that excludes these choices."""
    return next((e for e in EXCLUSIONS if e.excludes(choices)), None)


def combination_reason(choices: Choices) -> str | None:
    """Why these choices can't be had together, on any device and number of ranks, or None."""
    found = exclusion_of(choices)
    if found is None:
        return None
    conditions = [
        f"optimizer {choices.optimizer.name}" if found.optimizers else None,
        f"precision {choices.precision.name}" if found.precisions else None,
        f"compile {choices.compile.name}" if found.compiled else None,
        "offload_optimizer" if found.offloaded else None,
    ]
    return f"{', '.join(filter(None, conditions))} with strategy {strategy_of(choices)}: {found.reason}"


def accumulation_reason(choices: Choices, device: str, micro_batches: int) -> str | None:
    """Why these choices can't be had with so many micro-batches a step on a device, `cpu` or `cuda`, or None.

    A CUDA graph's gradient lies in the graph's own memory, which its next run overwrites: it must be added to one
    that exists already (torch._inductor.cudagraph_trees, the message on gradients). `SingleEngine` and DDP have
    such ones; FSDP, ZeRO-1 and the Trainer begin each step without. No GPU has shown yet that it goes well there.
    """
    if device != "cuda" or choices.compile.name != "max-autotune" or micro_batches == 1:
        return None
    trainer = choices.framework.name == "hf_trainer"
    strategy = strategy_of(choices)
    if not trainer and strategy not in ("fsdp", "zero 1"):
        return None
    holder = "framework hf_trainer" if trainer else f"strategy {strategy}"
    return (
        f"compile max-autotune with {holder} and {micro_batches} micro-batches a step: it keeps gradients in "
        "memory that CUDA graphs may overwrite: take compile default, or a micro_batch_size of a rank's whole part"
    )
