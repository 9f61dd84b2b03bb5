"""How a job is run: precision, attention kernel, compilation, loss, training loop, strategy, interpreter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from selectbench.choices.choice import Choice, Needs, OwnCall, OwnName, OwnSettings, free_of, load
from selectbench.errors import did_you_mean
from selectbench.machine import Machine

if TYPE_CHECKING:
    import torch

    SummedLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# Precisions. A mixed precision is autocast over fp32 parameters with fp32 gradients and reductions.


AUTOCAST = "Micikevicius et al. 2018, arXiv:1710.03740; docs.pytorch.org/docs/stable/amp.html"
DTYPES = frozenset({"compute_dtype", "matmul_tf32", "sdpa_backends"})
"""Flash attention takes half precision alone: on a GPU a precision decides on the backend too."""


class PrecisionChoice(Choice):
    """How numbers are kept and multiplied, as torch's dtype names."""

    needs: ClassVar[Needs] = Needs(packages=("torch",))
    may_change: ClassVar[frozenset[str]] = DTYPES
    parameter_dtype: ClassVar[str] = "float32"
    """The dtype of parameters, gradients and (unless the optimizer quantises it) optimizer state."""
    autocast_dtype: ClassVar[str | None] = None
    """The dtype of matrix products under autocast; None: no autocast."""
    tf32: ClassVar[bool] = False
    """Whether fp32 matrix products may use TF32 tensor cores."""
    gradient_scaling: ClassVar[bool] = False
    """Whether the loss is scaled, and steps with infinite gradients are skipped."""
    working_dtype: ClassVar[str | None] = None
    """The dtype of the copy of the parameters that forward and backward pass use; None: they use no copy."""
    name: str

    def expected_identity(self) -> dict[str, Any]:
        """The dtypes that the optimizer updates and that the passes use, and whether TF32 is on."""
        working = self.working_dtype or self.parameter_dtype
        return {"parameter_dtype": self.parameter_dtype, "working_dtype": working, "matmul_tf32": self.tf32}


class Fp32(PrecisionChoice):
    """Single precision throughout, TF32 off."""

    source: ClassVar[str] = "IEEE 754 binary32; torch.backends.cuda.matmul.fp32_precision = 'ieee'"
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("float32", "single", "none", "no"), "fp32")
    name: Literal["fp32"] = "fp32"


class Tf32(PrecisionChoice):
    """Single precision whose matrix products round their inputs to 10 bits of mantissa."""

    source: ClassVar[str] = (
        "docs.nvidia.com, TF32 in the Ampere architecture; torch.backends.cuda.matmul.fp32_precision"
    )
    needs: ClassVar[Needs] = Needs(device="cuda", compute_capability=(8, 0), packages=("torch",))
    tf32: ClassVar[bool] = True
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("tensorfloat32",), "tf32")
    name: Literal["tf32"] = "tf32"


class Bf16Mixed(PrecisionChoice):
    """bfloat16 autocast over fp32 parameters."""

    source: ClassVar[str] = AUTOCAST
    needs: ClassVar[Needs] = Needs(compute_capability=(8, 0), packages=("torch",))
    autocast_dtype: ClassVar[str | None] = "bfloat16"
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("bf16", "bfloat16", "amp", "autocast"), "bf16_mixed")
    name: Literal["bf16_mixed"] = "bf16_mixed"


class Fp16Mixed(PrecisionChoice):
    """float16 autocast over fp32 parameters with dynamic gradient scaling; skipped steps are counted."""

    source: ClassVar[str] = AUTOCAST
    may_change: ClassVar[frozenset[str]] = DTYPES | {"steps_applied"}
    waits: ClassVar[str | None] = "once in every step, unless the optimizer is fused"  # GradScaler.step
    autocast_dtype: ClassVar[str | None] = "float16"
    gradient_scaling: ClassVar[bool] = True
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("fp16", "float16", "fp16amp", "half"), "fp16_mixed")
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
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("bf16full", "bf16true", "purebf16"), "bf16_pure")
    name: Literal["bf16_pure"] = "bf16_pure"


PRECISIONS: tuple[type[Choice], ...] = (Fp32, Tf32, Bf16Mixed, Fp16Mixed, Bf16Master, Bf16Pure)


def precision_for(machine: Machine) -> tuple[PrecisionChoice, str]:
    """The half precision that the machine has units for, else fp32 on a CPU; and why, as a clause.

    fp16 is mixed with gradient scaling, which every GPU can do. GPUs of unknown compute capability are assumed to
    have bf16.
    """
    if machine.device == "cpu":
        if "bfloat16" in machine.cpu_units:
            return Bf16Mixed(), "the processor has instructions for bf16"
        return Fp32(), "the processor has no instructions for bf16"
    least, capability = Bf16Mixed.needs.compute_capability, machine.compute_capability
    assert least is not None
    if capability is None:
        return Bf16Mixed(), "no GPU reports its compute capability"
    version = ".".join(map(str, capability))
    if capability >= least:
        return Bf16Mixed(), f"compute capability {version} has bf16"
    return Fp16Mixed(), f"compute capability {version} has no bf16, which needs {'.'.join(map(str, least))}"


# How the model's arithmetic is carried out: attention kernel, compilation, checkpointing.


class AttentionChoice(Choice):
    """Which kernel computes attention while training; evaluation has one kernel for all options, in fp32."""

    needs: ClassVar[Needs] = Needs(packages=("torch", "transformers"))
    may_change: ClassVar[frozenset[str]] = frozenset({"attention", "sdpa_backends"})


class Eager(AttentionChoice):
    """The formula as written: softmax(QK^T / sqrt(d_k)) V, with the score matrix in memory."""

    source: ClassVar[str] = "Vaswani et al. 2017, arXiv:1706.03762"
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("naive", "math", "manual"), "eager")
    # No fused kernel: a compiler may put one in place of the formula, which then is a violation.
    fixed_identity: ClassVar[Mapping[str, Any]] = {"attention": "eager", "sdpa_backends": []}
    name: Literal["eager"] = "eager"


class Sdpa(AttentionChoice):
    """torch's scaled_dot_product_attention, which picks a fused kernel: the certificate says which."""

    source: ClassVar[str] = "docs.pytorch.org: torch.nn.functional.scaled_dot_product_attention"
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("scaleddotproductattention", "torch"), "sdpa")
    fixed_identity: ClassVar[Mapping[str, Any]] = {"attention": "sdpa"}
    name: Literal["sdpa"] = "sdpa"


class FlashAttention2(AttentionChoice):
    """The flash-attn package's kernel; needs fp16 or bf16 inputs."""

    source: ClassVar[str] = "Dao 2023, arXiv:2307.08691"
    needs: ClassVar[Needs] = Needs(
        device="cuda", compute_capability=(8, 0), packages=("flash-attn>=2.3",), install="pip install flash-attn"
    )
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("flash", "flashattention", "flashattn", "flashattn2", "fa2"), "flash_attention_2"
    )
    fixed_identity: ClassVar[Mapping[str, Any]] = {"attention": "flash_attention_2"}
    name: Literal["flash_attention_2"] = "flash_attention_2"


ATTENTIONS: tuple[type[Choice], ...] = (Eager, Sdpa, FlashAttention2)


class CompileChoice(Choice):
    """Whether torch.compile compiles the model, and the built-in losses with it.

    A loss of your own runs as it is: where it is to be compiled, put `torch.compile` around it. It may not
    change the kernel of attention unnoticed: `sdpa_backends` is none of what it declares.
    """

    mode: ClassVar[str | None] = None
    """torch.compile's mode; None: the model runs as it is."""
    may_change: ClassVar[frozenset[str]] = frozenset({"compiled"})
    source: ClassVar[str] = "Ansel et al. 2024, doi:10.1145/3620665.3640366; torch.compile"


class CompileOff(CompileChoice):
    """No compilation."""

    fixed_identity: ClassVar[Mapping[str, Any]] = {"compiled": False}
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("none", "no", "false"), "off")
    name: Literal["off"] = "off"


class CompileDefault(CompileChoice):
    """torch.compile in its default mode, a private cache per trial."""

    needs: ClassVar[Needs] = Needs(packages=("torch",), compiler=True)
    preload: ClassVar[tuple[str, ...]] = ("torch._inductor.compile_fx",)
    mode: ClassVar[str | None] = "default"
    fixed_identity: ClassVar[Mapping[str, Any]] = {"compiled": True}
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("on", "yes", "inductor", "torchcompile"), "default")
    name: Literal["default"] = "default"


class CompileMaxAutotune(CompileDefault):
    """torch.compile that measures several kernels per operation; slow to start."""

    mode: ClassVar[str | None] = "max-autotune"
    name: Literal["max-autotune"] = "max-autotune"  # type: ignore[assignment]


COMPILATIONS: tuple[type[Choice], ...] = (CompileOff, CompileDefault, CompileMaxAutotune)


class CheckpointingChoice(Choice):
    """Whether activations are recomputed in the backward pass."""

    enabled: ClassVar[bool] = False
    source: ClassVar[str] = "Chen et al. 2016, arXiv:1604.06174; transformers' gradient_checkpointing_enable"


class CheckpointingOff(CheckpointingChoice):
    """Activations are kept."""

    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("none", "no"), "off")
    name: Literal["off"] = "off"


class CheckpointingFull(CheckpointingChoice):
    """Each transformer block's activations are recomputed."""

    enabled: ClassVar[bool] = True
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("on", "yes"), "full")
    name: Literal["full"] = "full"


CHECKPOINTINGS: tuple[type[Choice], ...] = (CheckpointingOff, CheckpointingFull)


# What the training minimises. The evaluation on held-out text is cross-entropy whatever the training loss.


SUM_TOLERANCE = 1e-2
"""Largest relative difference between a loss and the sum over its two halves that still counts as rounding."""


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
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("ce", "crossentropyloss", "nll"), "cross_entropy")
    name: Literal["cross_entropy"] = "cross_entropy"

    def build(self) -> SummedLoss:
        """The function of torch, summed."""
        from torch.nn.functional import cross_entropy

        return lambda logits, targets: cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


class OwnLoss(LossChoice):
    """A loss of your own: `function(logits, targets, **settings)` returns the sum of the tokens' losses.

    Logits are float, (sequences, seq_len, vocabulary); targets are int64, (sequences, seq_len). `compile` leaves
    it as it is: put `torch.compile` around it where it is to be compiled.
    """

    source: ClassVar[str] = "your own code"
    name: OwnName
    """`package.module:function`, importable from a folder of the suite's `code`, or installed."""
    settings: Annotated[OwnSettings, free_of("logits", "targets")] = Field(default_factory=dict)
    """More keyword arguments."""

    @property
    def call(self) -> OwnCall:
        """How the function that `build` returns calls it."""
        return OwnCall("loss", self.name, ("logits", "targets"), tuple(self.settings))

    def build(self) -> SummedLoss:
        """The function with its settings; it raises TypeError unless it gets a scalar. Raises OwnCodeError."""
        import torch

        function = load(self.name, "loss")
        checked = False

        def summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            nonlocal checked
            loss = function(logits, targets, **self.settings)
            if not isinstance(loss, torch.Tensor) or loss.ndim:
                actual = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise TypeError(f"loss {self.name}: expected a scalar tensor, the sum over tokens; found {actual}")
            if checked:
                return loss
            # Checked in the first call only: a sum over all tokens equals the sums over two halves, added up.
            checked = True
            whole, detached, half = loss.detach(), logits.detach(), (logits.shape[1] + 1) // 2
            parts = [(detached[:, :half], targets[:, :half]), (detached[:, half:], targets[:, half:])]
            with torch.no_grad():
                sum_of_parts = sum(function(*part, **self.settings) for part in parts)
            if not torch.allclose(sum_of_parts.float(), whole.float(), rtol=SUM_TOLERANCE):
                raise TypeError(
                    f"loss {self.name}: expected the sum over tokens; of all of them it is {float(whole):.6g}, of "
                    f"the first and the last half together {float(sum_of_parts):.6g} (a mean? sum instead)"
                )
            return loss

        return summed


LOSSES: tuple[type[Choice], ...] = (CrossEntropy, OwnLoss)


# Which training loop runs the job. Each class names a function of the worker, `module:function`.


ACCELERATE_INSTALL = "pip install 'selectbench[accelerate]'"


class FrameworkChoice(Choice):
    """A training loop."""

    needs: ClassVar[Needs] = Needs(packages=("torch",))
    may_change: ClassVar[frozenset[str]] = frozenset({"framework"})


class Native(FrameworkChoice):
    """selectbench's own loop."""

    source: ClassVar[str] = "a plain PyTorch training loop"
    loop: ClassVar[str] = "selectbench.worker.loop:train"
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("torch", "pytorch"), "native")
    name: Literal["native"] = "native"
    fixed_identity: ClassVar[Mapping[str, Any]] = {"framework": "native"}


class HfTrainer(FrameworkChoice):
    """transformers' Trainer, on the same token stream, schedule and evaluation."""

    source: ClassVar[str] = "huggingface.co/docs/transformers/main_classes/trainer"
    needs: ClassVar[Needs] = Needs(
        packages=("torch", "transformers", "accelerate>=1.1"), install=ACCELERATE_INSTALL
    )
    waits: ClassVar[str | None] = "twice for every micro-batch"  # logging_nan_inf_filter, on by default
    # accelerate imports DeepSpeed wherever it is installed.
    preload: ClassVar[tuple[str, ...]] = ("selectbench.worker.hf_trainer", "selectbench.worker.engine_zero")
    loop: ClassVar[str] = "selectbench.worker.hf_trainer:train"
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("trainer", "transformers", "hf"), "hf_trainer")
    name: Literal["hf_trainer"] = "hf_trainer"
    fixed_identity: ClassVar[Mapping[str, Any]] = {"framework": "transformers.Trainer"}


class OwnFramework(FrameworkChoice):
    """A training loop of your own: `function(trial, **settings)`, given the trial's model, batches and recorder."""

    source: ClassVar[str] = "your own code"
    name: OwnName
    """`package.module:function`, importable from a folder of the suite's `code`, or installed."""
    settings: Annotated[OwnSettings, free_of("trial")] = Field(default_factory=dict)
    """More keyword arguments."""

    @property
    def loop(self) -> str:
        """The name itself."""
        return self.name

    @property
    def call(self) -> OwnCall:
        """How `worker.loop.train_with` calls it."""
        return OwnCall("framework", self.name, ("trial",), tuple(self.settings))


FRAMEWORKS: tuple[type[Choice], ...] = (Native, HfTrainer, OwnFramework)


# How the job is laid out over ranks. Each class names the engine of the worker that carries it out.


MicroBatchSize = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
GlobalBatchSize = Annotated[int, Field(strict=True, ge=1, le=1 << 22)]
WorldSize = Annotated[int, Field(strict=True, ge=1, le=1 << 16)] | Literal["auto"]

LAYOUT = frozenset({"strategy", "world_size"})
DEEPSPEED_INSTALL = "pip install 'selectbench[deepspeed]'"


@dataclass(frozen=True)
class Weights:
    """The weights that a strategy divides among ranks and gathers."""

    parameters: int
    largest_unit: float
    """Parameters that are gathered at a time: two blocks, and what lies outside the blocks."""
    updated_bytes: int
    """Bytes of one parameter in the dtype that the optimizer updates."""
    used_bytes: int
    """Bytes of one parameter in the dtype that the forward and backward passes use."""
    has_working_copy: bool
    ranks: int
    accumulates: bool
    """Whether a step has several micro-batches."""


class StrategyChoice(Choice):
    """A way of sharing the work between ranks."""

    may_change: ClassVar[frozenset[str]] = LAYOUT
    engine: ClassVar[str]
    """The worker's class, `module:Class`; a string because the bench never imports it."""
    shards: ClassVar[frozenset[str]] = frozenset()
    """Model states that are divided among the ranks: `parameters`, `gradients`, `optimizer_state`. If empty, every
    rank's optimizer has whole parameters, as the model has them."""
    combines_as: ClassVar[str | None] = None
    """Another strategy that wraps the model alike, whose rules in `combinations` hold for this one too, or None."""

    def sharded(self) -> frozenset[str]:
        """Which model states this strategy divides among the ranks."""
        return self.shards

    def gathered_bytes(self, weights: Weights) -> float:
        """Bytes that a rank holds for a while besides its share of the model states."""
        del weights
        return 0.0

    def unsupported_world_size(self, world_size: int, machine: Machine) -> str | None:
        """Why this strategy can't run so many ranks here, or None."""
        return ranks_problem(world_size, machine)


def ranks_problem(ranks: int, machine: Machine) -> str | None:
    """Why this machine can't run so many ranks under any strategy, or None."""
    if machine.device == "cuda" and ranks > (gpus := machine.device_count * machine.nodes):
        return f"world_size {ranks} needs as many GPUs, this run has {gpus}"
    if ranks > 1 and ranks % machine.nodes:
        return f"world_size {ranks} can't be shared evenly by {machine.nodes} nodes"
    return None


class Single(StrategyChoice):
    """One process on one device."""

    source: ClassVar[str] = "a plain PyTorch training loop"
    engine: ClassVar[str] = "selectbench.worker.engine:SingleEngine"
    fixed_identity: ClassVar[Mapping[str, Any]] = {"strategy": "single"}
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("none", "no", "singlegpu", "onegpu"), "single")
    name: Literal["single"] = "single"

    def unsupported_world_size(self, world_size: int, machine: Machine) -> str | None:
        """Why it can't run so many ranks: it runs one only."""
        return None if world_size == 1 else f"strategy single runs one rank, world_size is {world_size}"


class Ddp(StrategyChoice):
    """Every rank holds the whole model; gradients are averaged in buckets during the backward pass."""

    source: ClassVar[str] = "Li et al. 2020, arXiv:2006.15704; torch.nn.parallel.DistributedDataParallel"
    needs: ClassVar[Needs] = Needs(packages=("torch",))
    engine: ClassVar[str] = "selectbench.worker.engine:DdpEngine"
    fixed_identity: ClassVar[Mapping[str, Any]] = {"strategy": "DistributedDataParallel"}
    combines_as: ClassVar[str | None] = "ddp"
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("distributeddataparallel", "dataparallel"), "ddp")
    name: Literal["ddp"] = "ddp"
    bucket_cap_mb: Annotated[float, Field(gt=0, le=1 << 20)] = 25.0
    """Size of a gradient bucket in MiB, as torch names it."""
    gradient_as_bucket_view: bool = True
    """Gradients live in the buckets themselves: one copy of them less in memory."""
    static_graph: bool = False
    """Promise that every step uses the same parameters in the same order."""

    def gathered_bytes(self, weights: Weights) -> float:
        """A second copy of the gradients, besides their buckets, unless the gradients live in these."""
        return 0.0 if self.gradient_as_bucket_view else float(weights.updated_bytes * weights.parameters)


class Fsdp(StrategyChoice):
    """FSDP2: parameters, gradients and optimizer state sharded by block, gathered where they are used."""

    source: ClassVar[str] = "Zhao et al. 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard"
    needs: ClassVar[Needs] = Needs(packages=("torch>=2.6",))
    engine: ClassVar[str] = "selectbench.worker.engine:FsdpEngine"
    fixed_identity: ClassVar[Mapping[str, Any]] = {"strategy": "FSDPModule"}
    shards: ClassVar[frozenset[str]] = frozenset({"parameters", "gradients", "optimizer_state"})
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("fsdp2", "fullyshardeddataparallel", "fullyshard"), "fsdp"
    )
    name: Literal["fsdp"] = "fsdp"
    reshard_after_forward: bool = True
    """Free gathered parameters after the forward pass and gather them again for the backward pass."""

    def gathered_bytes(self, weights: Weights) -> float:
        """Whole parameters while they are used, and whole gradients while they are accumulated."""
        whole = weights.largest_unit if self.reshard_after_forward else weights.parameters
        return weights.used_bytes * (whole + (weights.parameters if weights.accumulates else 0))


SET_BY_THE_JOB = frozenset({
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "fp16", "bf16", "torch_autocast", "amp", "communication_data_type", "data_types",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "seq_parallel_communication_data_type",
})  # fmt: skip
"""Keys of DeepSpeed's configuration that follow from the job and the other choices."""
SECTIONS = frozenset({
    "activation_checkpointing", "aio", "check_overflow", "checkpoint", "comms_logger", "compile", "csv_monitor",
    "disable_allgather", "disable_python_gc", "dump_state", "flops_profiler", "gradient_allreduce_op",
    "gradient_predivide_factor", "graph_harvesting", "log_level", "managed_gradient_accumulation",
    "memory_breakdown", "prescale_gradients", "sparse_gradients", "steps_per_print", "tensorboard", "timers",
    "wall_clock_breakdown", "zero_optimization",
})  # fmt: skip
"""The other keys that DeepSpeed reads; it silently ignores keys that it does not know."""
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's own default size of its two buckets each, of gradients and of parameters, which it allocates whole
(deepspeed.ai/docs/config-json)."""
STAGES = {
    1: frozenset({"optimizer_state"}),
    2: frozenset({"optimizer_state", "gradients"}),
    3: frozenset({"optimizer_state", "gradients", "parameters"}),
}


class Zero(StrategyChoice):
    """DeepSpeed ZeRO: optimizer state (1), gradients too (2), parameters too (3) divided among the ranks."""

    source: ClassVar[str] = "Rajbhandari et al. 2020, arXiv:1910.02054; deepspeed.ai/docs/config-json"
    needs: ClassVar[Needs] = Needs(packages=("deepspeed>=0.17",), install=DEEPSPEED_INSTALL)
    waits: ClassVar[str | None] = "one to three times in every step"  # for overflows, by stage
    preload: ClassVar[tuple[str, ...]] = ("selectbench.worker.engine_zero",)
    engine: ClassVar[str] = "selectbench.worker.engine_zero:ZeroEngine"
    also_called: ClassVar[Mapping[str, str]] = {
        **{f"zero{stage}": f"{{name: zero, stage: {stage}}}" for stage in (1, 2, 3)},
        **{f"zerostage{stage}": f"{{name: zero, stage: {stage}}}" for stage in (1, 2, 3)},
        "deepspeed": "{name: zero, stage: 2}",
    }
    name: Literal["zero"] = "zero"
    stage: Literal[1, 2, 3]
    """ZeRO's stage."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory and update there."""
    config: dict[str, Any] = Field(default_factory=dict)
    """More of DeepSpeed's own configuration, laid over ours key by key; batch sizes, clipping, precision and
    optimizer follow from the job and may not be given."""

    @field_validator("config")
    @classmethod
    def _leaves_the_job_alone(cls, config: dict[str, Any]) -> dict[str, Any]:
        zero = config.get("zero_optimization")
        stage = {"zero_optimization.stage"} if isinstance(zero, dict) and "stage" in zero else set()
        if taken := sorted((SET_BY_THE_JOB & config.keys()) | stage):
            raise ValueError(f"config may not set {', '.join(taken)}: the suite's own keys decide that")
        if unknown := sorted(config.keys() - SECTIONS):
            known = f" (ZeRO's own settings stand under zero_optimization; known: {', '.join(sorted(SECTIONS))})"
            hint = did_you_mean(unknown[0], sorted(SECTIONS)) or known
            raise ValueError(f"config: DeepSpeed knows no {unknown[0]}{hint}")
        return config

    def expected_identity(self) -> dict[str, Any]:
        """The engine with its stage."""
        return {"strategy": f"DeepSpeedEngine zero {self.stage}"}

    def sharded(self) -> frozenset[str]:
        """The model states that its stage divides: each stage divides more of them."""
        return STAGES[self.stage]

    def gathered_bytes(self, weights: Weights) -> float:
        """DeepSpeed's master weights and two of its buckets."""
        master = 0.0 if weights.has_working_copy else weights.updated_bytes * weights.parameters / weights.ranks
        return master + 2.0 * weights.used_bytes * min(weights.parameters, BUCKET_ELEMENTS)


STRATEGIES: tuple[type[Choice], ...] = (Single, Ddp, Fsdp, Zero)


# The software stack: the interpreter that runs the worker, so that two virtual environments can be compared.


Interpreter = Annotated[str, Field(min_length=1)]


def interpreter_problem(path: str) -> str | None:
    """Why this absolute path can't be run as an interpreter, with the nearest fix, or None."""
    file = Path(path)
    suggestion: Path | str | None
    if file.is_dir():
        wrong = f"{path} is a folder, expected an interpreter"
        suggestion = next((p for p in (file / "bin" / "python", file / "python") if p.is_file()), None)
    elif not file.is_file():
        wrong, suggestion = f"there is no interpreter {path}", shutil.which(file.name)
    else:
        return None if os.access(path, os.X_OK) else f"{path} is not executable"
    return wrong + (f" (did you mean '{suggestion}'?)" if suggestion else "")
