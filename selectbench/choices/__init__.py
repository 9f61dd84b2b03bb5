"""Every dimension that an option may vary, and the registry of what each can be.

To add a choice, write its class in the module of its dimension and name it in that module's tuple.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict

from selectbench.choices import execution
from selectbench.choices.choice import Choice, Strict, one_of
from selectbench.choices.combinations import Situation, combination_reason
from selectbench.choices.model import ADAPTATIONS, FullTraining, Model, Tokenizer
from selectbench.choices.optimizer import OPTIMIZERS
from selectbench.gpu.devices import MatmulDtype
from selectbench.machine import Machine

REGISTRY: dict[str, tuple[type[Choice], ...]] = {
    "optimizer": OPTIMIZERS, "precision": execution.PRECISIONS, "attention": execution.ATTENTIONS,
    "compile": execution.COMPILATIONS, "activation_checkpointing": execution.CHECKPOINTINGS,
    "loss": execution.LOSSES, "adaptation": ADAPTATIONS, "strategy": execution.STRATEGIES,
    "framework": execution.FRAMEWORKS,
}  # fmt: skip
"""What each dimension can be."""


_CHECKPOINTING: Any = one_of(*REGISTRY["activation_checkpointing"])
_SWITCH = BeforeValidator(lambda value: ("full" if value else "off") if isinstance(value, bool) else value)
"""`true` and `false` as words for on and off."""


class AnyChoices(Strict):
    """What makes an option, whatever the job is."""

    if TYPE_CHECKING:  # each subclass declares these fields itself, at their places among its other fields
        world_size: int | Literal["auto"]
        python: str | None

    def by_dimension(self) -> dict[str, Choice]:
        """The chosen value of every dimension that is a class of the registry."""
        return {}

    def as_written(self) -> dict[str, Any]:
        """The keys as a suite writes them."""
        return self.model_dump(mode="json")

    def ranks(self, machine: Machine) -> int:
        """The number of ranks; `auto` is one rank for each GPU that the run has taken on its nodes."""
        return machine.device_count * machine.nodes if self.world_size == "auto" else self.world_size

    @property
    def matmul_dtype(self) -> MatmulDtype:
        """The dtype of matrix products. A command's is not known; no share of a peak is reported for one."""
        return "float32"


class Choices(AnyChoices):
    """One value for every dimension: what makes an option."""

    model_config = ConfigDict(strict=False, allow_inf_nan=True)

    optimizer: one_of(*REGISTRY["optimizer"])  # type: ignore[valid-type]
    """Which optimizer, with its learning rate."""
    precision: one_of(*REGISTRY["precision"]) = execution.Fp32()  # type: ignore[valid-type]
    """How numbers are kept and multiplied."""
    micro_batch_size: execution.MicroBatchSize
    """Sequences per forward pass and rank; gradient accumulation steps follow from it."""
    activation_checkpointing: Annotated[_CHECKPOINTING, _SWITCH] = execution.CheckpointingOff()
    """Whether activations are recomputed in the backward pass (true or false)."""
    attention: one_of(*REGISTRY["attention"]) = execution.Sdpa()  # type: ignore[valid-type]
    """Which kernel computes attention."""
    compile: one_of(*REGISTRY["compile"]) = execution.CompileOff()  # type: ignore[valid-type]
    """Whether torch.compile compiles the model."""
    loss: one_of(*REGISTRY["loss"]) = execution.CrossEntropy()  # type: ignore[valid-type]
    """What the training minimises."""
    adaptation: one_of(*REGISTRY["adaptation"]) = FullTraining()  # type: ignore[valid-type]
    """What of the model is trained."""
    strategy: one_of(*REGISTRY["strategy"]) = execution.Single()  # type: ignore[valid-type]
    """How the job is laid out over ranks."""
    world_size: execution.WorldSize = 1
    """Ranks: a number, or auto for one per idle GPU."""
    framework: one_of(*REGISTRY["framework"]) = execution.Native()  # type: ignore[valid-type]
    """Which training loop runs the job."""
    model: Model | None = None
    """Another model than the job's, or fields of it that differ: then the architecture is what is compared."""
    tokenizer: Tokenizer | None = None
    """Another tokenizer than the job's: then losses and perplexities do not compare, bits per byte do."""
    global_batch_size: execution.GlobalBatchSize | None = None
    """Another global batch than the job's, in sequences per optimizer step: then the steps are as many more or
    fewer, so that every option trains on the same number of tokens."""
    python: execution.Interpreter | None = None
    """Path of the interpreter that trains, relative to the suite: another virtual environment, another torch.
    The bench's own where not given."""

    def by_dimension(self) -> dict[str, Choice]:
        """The chosen value of every dimension that is a class of the registry."""
        values: dict[str, Any] = {name: getattr(self, name) for name in REGISTRY}
        return values

    @property
    def matmul_dtype(self) -> MatmulDtype:
        """The dtype of matrix products: autocast's, else the working copy's, else the weights' own."""
        dtype: MatmulDtype = (
            self.precision.autocast_dtype or self.precision.working_dtype or self.precision.parameter_dtype
        )
        return "tf32" if dtype == "float32" and self.precision.tf32 else dtype

    def unsupported_reason(
        self, machine: Machine, *, micro_batches: int = 1, task: str = "causal_lm", data: str = "text"
    ) -> str | None:
        """The first reason why this machine can't run the option, or None.

        `micro_batches`: micro-batches per step and rank; `task`, `data`: the job's task and the kind of its data.
        """
        for dimension, choice in self.by_dimension().items():
            if reason := choice.unsupported_reason(machine):
                return f"{dimension} {getattr(choice, 'name', '')}: {reason}"
        situation = Situation(self, machine.device, micro_batches, task, data)
        return combination_reason(situation) or self.strategy.unsupported_world_size(self.ranks(machine), machine)
