"""Precisions. A mixed precision is autocast over fp32 parameters with fp32 gradients and reductions."""

from typing import Any, ClassVar, Literal

from selectbench.choices.choice import Choice, Needs
from selectbench.machine import Machine

AUTOCAST = "Micikevicius et al. 2018, arXiv:1710.03740; docs.pytorch.org/docs/stable/amp.html"
DTYPES = frozenset({"compute_dtype", "matmul_tf32", "sdpa_backends"})
"""Flash attention takes half precision alone: on a GPU a precision decides on the backend too."""


class PrecisionChoice(Choice):
    """How numbers are kept and multiplied, as torch's dtype names."""

    needs: ClassVar[Needs] = Needs(packages=("torch",))
    may_change: ClassVar[frozenset[str]] = DTYPES
    parameter_dtype: ClassVar[str] = "float32"
    """Of parameters, gradients and (unless the optimizer quantises it) optimizer state."""
    autocast_dtype: ClassVar[str | None] = None
    """Of matrix products under autocast; None: no autocast."""
    tf32: ClassVar[bool] = False
    """Whether fp32 matrix products may use TF32 tensor cores."""
    gradient_scaling: ClassVar[bool] = False
    """Whether the loss is scaled, and steps with infinite gradients are skipped."""
    working_dtype: ClassVar[str | None] = None
    """Of the copy of the parameters that forward and backward pass use; None: the parameters themselves."""
    name: str

    def asks_for(self) -> dict[str, Any]:
        """The dtypes that the optimizer updates and that the passes use, and TF32."""
        working = self.working_dtype or self.parameter_dtype
        return {"parameter_dtype": self.parameter_dtype, "working_dtype": working, "matmul_tf32": self.tf32}


class Fp32(PrecisionChoice):
    """Single precision throughout, TF32 off."""

    source: ClassVar[str] = "IEEE 754 binary32; torch.backends.cuda.matmul.fp32_precision = 'ieee'"
    name: Literal["fp32"] = "fp32"


class Tf32(PrecisionChoice):
    """Single precision whose matrix products round their inputs to 10 bits of mantissa."""

    source: ClassVar[str] = (
        "docs.nvidia.com, TF32 in the Ampere architecture; torch.backends.cuda.matmul.fp32_precision"
    )
    needs: ClassVar[Needs] = Needs(device="cuda", compute_capability=(8, 0), packages=("torch",))
    tf32: ClassVar[bool] = True
    name: Literal["tf32"] = "tf32"


class Bf16Mixed(PrecisionChoice):
    """bfloat16 autocast over fp32 parameters."""

    source: ClassVar[str] = AUTOCAST
    needs: ClassVar[Needs] = Needs(compute_capability=(8, 0), packages=("torch",))
    autocast_dtype: ClassVar[str | None] = "bfloat16"
    name: Literal["bf16_mixed"] = "bf16_mixed"


class Fp16Mixed(PrecisionChoice):
    """float16 autocast over fp32 parameters with dynamic gradient scaling; skipped steps are counted."""

    source: ClassVar[str] = AUTOCAST
    may_change: ClassVar[frozenset[str]] = DTYPES | {"steps_applied"}
    waits: ClassVar[str | None] = "once in every step, unless the optimizer is fused"  # GradScaler.step
    autocast_dtype: ClassVar[str | None] = "float16"
    gradient_scaling: ClassVar[bool] = True
    name: Literal["fp16_mixed"] = "fp16_mixed"


class Bf16Master(PrecisionChoice):
    """bfloat16 working parameters and activations over fp32 master weights, which the optimizer updates.

    Gradients of a micro-batch are bfloat16, accumulated and reduced over ranks in fp32. The master weights
    begin as the initial weights rounded to bfloat16, as every implementation can have them.
    """

    source: ClassVar[str] = f"{AUTOCAST}; DeepSpeed's bf16, FSDP2's MixedPrecisionPolicy(param_dtype, reduce_dtype)"
    needs: ClassVar[Needs] = Needs(compute_capability=(8, 0), packages=("torch",))
    may_change: ClassVar[frozenset[str]] = DTYPES | {"working_dtype"}
    working_dtype: ClassVar[str | None] = "bfloat16"
    name: Literal["bf16_master"] = "bf16_master"


class Bf16Pure(PrecisionChoice):
    """Everything in bfloat16: parameters, gradients and optimizer state, without fp32 master weights."""

    source: ClassVar[str] = (
        "Kalamkar et al. 2019, arXiv:1905.12322 (the format); no master weights is this choice's point"
    )
    needs: ClassVar[Needs] = Needs(compute_capability=(8, 0), packages=("torch",))
    may_change: ClassVar[frozenset[str]] = DTYPES | {
        "parameter_dtype", "working_dtype", "gradient_dtype", "optimizer_state_dtype", "reduction_dtype",
    }  # fmt: skip
    parameter_dtype: ClassVar[str] = "bfloat16"
    name: Literal["bf16_pure"] = "bf16_pure"


def precision_for(machine: Machine) -> tuple[PrecisionChoice, str]:
    """The half precision that the machine has units for, else fp32 on a CPU; and why, as a clause.

    fp16 is mixed with gradient scaling, which every GPU can do. Where nothing tells the GPUs' compute capability
    they are taken to have bf16.
    """
    if machine.device == "cpu":
        if "bfloat16" in machine.cpu_units:
            return Bf16Mixed(), "the processor has instructions for bf16"
        return Fp32(), "the processor has no instructions for bf16"
    least, found = Bf16Mixed.needs.compute_capability, machine.compute_capability
    assert least is not None
    if found is None:
        return Bf16Mixed(), "no GPU tells its compute capability"
    words = ".".join(map(str, found))
    if found >= least:
        return Bf16Mixed(), f"compute capability {words} has bf16"
    return Fp16Mixed(), f"compute capability {words} has no bf16, which needs {'.'.join(map(str, least))}"
