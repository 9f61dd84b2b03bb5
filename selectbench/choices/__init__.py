"""Every dimension that an option may vary, and the registry of what each can be.

To add a choice, write its class in the module of its dimension and name it in the union below.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from selectbench.choices.choice import OWN, Choice, Needs, OwnName, is_own, one_of, tag_of
from selectbench.choices.combinations import Situation, combination_reason
from selectbench.choices.execution import (
    Bf16Master,
    Bf16Mixed,
    Bf16Pure,
    CheckpointingFull,
    CheckpointingOff,
    CompileDefault,
    CompileMaxAutotune,
    CompileOff,
    CrossEntropy,
    Ddp,
    Eager,
    FlashAttention2,
    Fp16Mixed,
    Fp32,
    Fsdp,
    GlobalBatchSize,
    HfTrainer,
    Interpreter,
    MicroBatchSize,
    Native,
    OwnFramework,
    OwnLoss,
    Sdpa,
    Single,
    Tf32,
    WorldSize,
    Zero,
)
from selectbench.choices.model import FullTraining, Lora, Model, Qlora, Tokenizer
from selectbench.choices.optimizer import (
    Adafactor,
    Adam,
    AdamW,
    AdamW8bit,
    AdEMAMix8bit,
    Lion,
    Lion8bit,
    Muon,
    OwnOptimizer,
    PagedAdamW8bit,
    ScheduleFreeAdamW,
    Sgd,
)
from selectbench.machine import Machine

REGISTRY: dict[str, tuple[type[Choice], ...]] = {
    "optimizer": (
        Sgd, Adam, AdamW, Adafactor, Lion, Muon, AdamW8bit, PagedAdamW8bit, Lion8bit, AdEMAMix8bit,
        ScheduleFreeAdamW, OwnOptimizer,
    ),
    "precision": (Fp32, Tf32, Bf16Mixed, Fp16Mixed, Bf16Master, Bf16Pure),
    "attention": (Eager, Sdpa, FlashAttention2),
    "compile": (CompileOff, CompileDefault, CompileMaxAutotune),
    "activation_checkpointing": (CheckpointingOff, CheckpointingFull),
    "loss": (CrossEntropy, OwnLoss),
    "adaptation": (FullTraining, Lora, Qlora),
    "strategy": (Single, Ddp, Fsdp, Zero),
    "framework": (Native, HfTrainer, OwnFramework),
}  # fmt: skip


def _switch(value: object) -> object:
    """`true` and `false` as words for on and off."""
    return {True: "full", False: "off"}[value] if isinstance(value, bool) else value


_CHECKPOINTING: Any = one_of(*REGISTRY["activation_checkpointing"])


class Choices(BaseModel):
    """One value for every dimension: what makes an option."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer: one_of(*REGISTRY["optimizer"])  # type: ignore[valid-type]
    """Which optimizer, with its learning rate."""
    precision: one_of(*REGISTRY["precision"]) = Fp32()  # type: ignore[valid-type]
    """How numbers are kept and multiplied."""
    micro_batch_size: MicroBatchSize
    """Sequences per forward pass and rank; gradient accumulation steps follow from it."""
    activation_checkpointing: Annotated[_CHECKPOINTING, BeforeValidator(_switch)] = CheckpointingOff()
    """Whether activations are recomputed in the backward pass (true or false)."""
    attention: one_of(*REGISTRY["attention"]) = Sdpa()  # type: ignore[valid-type]
    """Which kernel computes attention."""
    compile: one_of(*REGISTRY["compile"]) = CompileOff()  # type: ignore[valid-type]
    """Whether torch.compile compiles the model."""
    loss: one_of(*REGISTRY["loss"]) = CrossEntropy()  # type: ignore[valid-type]
    """What the training minimises."""
    adaptation: one_of(*REGISTRY["adaptation"]) = FullTraining()  # type: ignore[valid-type]
    """What of the model is trained."""
    strategy: one_of(*REGISTRY["strategy"]) = Single()  # type: ignore[valid-type]
    """How the job is laid out over ranks."""
    world_size: WorldSize = 1
    """Ranks: a number, or auto for one per idle GPU."""
    framework: one_of(*REGISTRY["framework"]) = Native()  # type: ignore[valid-type]
    """Which training loop runs the job."""
    model: Model | None = None
    """Another model than the job's, or fields of it that differ: then the architecture is what is compared."""
    tokenizer: Tokenizer | None = None
    """Another tokenizer than the job's: then losses and perplexities do not compare, bits per byte do."""
    global_batch_size: GlobalBatchSize | None = None
    """Another global batch than the job's, in sequences per optimizer step: then the steps are as many more or
    fewer, so that every option trains on the same number of tokens."""
    python: Interpreter | None = None
    """Path of the interpreter that trains, relative to the suite: another virtual environment, another torch.
    The bench's own where not given."""

    def each(self) -> dict[str, Choice]:
        """The chosen value of every dimension that is a class of the registry."""
        values: dict[str, Any] = {name: getattr(self, name) for name in REGISTRY}
        return values

    def ranks(self, machine: Machine) -> int:
        """The number of ranks; `auto` is one for each GPU that the run has taken, which are the idle ones."""
        return machine.device_count if self.world_size == "auto" else self.world_size

    def unsupported_reason(
        self, machine: Machine, *, micro_batches: int = 1, task: str = "causal_lm", data: str = "text"
    ) -> str | None:
        """The first reason why this machine can't run the option, or None.

        `micro_batches`: of a step on each rank; `task`, `data`: the job's task and the kind of its data.
        """
        reasons = (self._reason(name, choice, machine) for name, choice in self.each().items())
        situation = Situation(self, machine.device, micro_batches, task, data)
        return (
            next(filter(None, reasons), None)
            or combination_reason(situation)
            or self.strategy.unsupported_world_size(self.ranks(machine), machine)
        )

    @staticmethod
    def _reason(dimension: str, choice: Any, machine: Machine) -> str | None:
        reason = choice.unsupported_reason(machine)
        return f"{dimension} {choice.name}: {reason}" if reason else None


__all__ = ["OWN", "REGISTRY", "Choice", "Choices", "Needs", "OwnName", "is_own", "tag_of"]
