"""How the job is laid out over ranks. Each class names the engine of the worker that carries it out."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from selectbench.choices.choice import Choice, Needs
from selectbench.errors import did_you_mean
from selectbench.machine import Machine

MicroBatchSize = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
GlobalBatchSize = Annotated[int, Field(strict=True, ge=1, le=1 << 22)]
WorldSize = Annotated[int, Field(strict=True, ge=1, le=1 << 16)] | Literal["auto"]

LAYOUT = frozenset({"strategy", "world_size"})
DEEPSPEED_INSTALL = "pip install 'selectbench[deepspeed]'"


class StrategyChoice(Choice):
    """A way of sharing the work between ranks."""

    may_change: ClassVar[frozenset[str]] = LAYOUT
    engine: ClassVar[str]
    """The worker's class, `module:Class`; a string because the bench never imports it."""
    wrapper: ClassVar[str]
    """What a trial finds around its model, as the certificate names it."""
    shards: ClassVar[frozenset[str]] = frozenset()
    """Model states that are divided among the ranks: `parameters`, `gradients`, `optimizer_state`."""

    def asks_for(self) -> dict[str, Any]:
        """What wraps the model."""
        return {"strategy": self.wrapper}

    def sharded(self) -> frozenset[str]:
        """Which model states this strategy divides among the ranks."""
        return self.shards

    def unsupported_world_size(self, world_size: int, machine: Machine) -> str | None:
        """Why this strategy can't run so many ranks here, or None."""
        if machine.device == "cuda" and world_size > machine.device_count:
            return f"world_size {world_size} needs as many GPUs, this run has {machine.device_count}"
        return None


class Single(StrategyChoice):
    """One process on one device."""

    source: ClassVar[str] = "a plain PyTorch training loop"
    engine: ClassVar[str] = "selectbench.worker.engine:SingleEngine"
    wrapper: ClassVar[str] = "single"
    name: Literal["single"] = "single"

    def unsupported_world_size(self, world_size: int, machine: Machine) -> str | None:
        """Only one rank."""
        return None if world_size == 1 else f"strategy single runs one rank, world_size is {world_size}"


class Ddp(StrategyChoice):
    """Every rank holds the whole model; gradients are averaged in buckets during the backward pass."""

    source: ClassVar[str] = "Li et al. 2020, arXiv:2006.15704; torch.nn.parallel.DistributedDataParallel"
    needs: ClassVar[Needs] = Needs(packages=("torch",))
    engine: ClassVar[str] = "selectbench.worker.engine_ddp:DdpEngine"
    wrapper: ClassVar[str] = "DistributedDataParallel"
    name: Literal["ddp"] = "ddp"
    bucket_cap_mb: Annotated[float, Field(gt=0, le=1 << 20)] = 25.0
    """Size of a gradient bucket in MiB, as torch names it."""
    gradient_as_bucket_view: bool = True
    """Gradients live in the buckets themselves: one copy of them less in memory."""
    static_graph: bool = False
    """Promise that every step uses the same parameters in the same order."""


class Fsdp(StrategyChoice):
    """FSDP2: parameters, gradients and optimizer state sharded by block, gathered where they are used."""

    source: ClassVar[str] = "Zhao et al. 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard"
    needs: ClassVar[Needs] = Needs(packages=("torch>=2.6",))
    engine: ClassVar[str] = "selectbench.worker.engine_fsdp:FsdpEngine"
    wrapper: ClassVar[str] = "FSDPModule"
    shards: ClassVar[frozenset[str]] = frozenset({"parameters", "gradients", "optimizer_state"})
    name: Literal["fsdp"] = "fsdp"
    reshard_after_forward: bool = True
    """Free gathered parameters after the forward pass and gather them again for the backward pass."""


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
"""Keys that DeepSpeed reads besides; it passes over others without a word."""
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
    wrapper: ClassVar[str] = "DeepSpeedEngine zero"
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
        inside = {"zero_optimization.stage"} if isinstance(zero, dict) and "stage" in zero else set()
        if taken := sorted((SET_BY_THE_JOB & config.keys()) | inside):
            raise ValueError(f"config may not set {', '.join(taken)}: the suite's own keys decide that")
        if unknown := sorted(config.keys() - SECTIONS):
            known = f" (ZeRO's own settings stand under zero_optimization; known: {', '.join(sorted(SECTIONS))})"
            hint = did_you_mean(unknown[0], sorted(SECTIONS)) or known
            raise ValueError(f"config: DeepSpeed knows no {unknown[0]}{hint}")
        return config

    def asks_for(self) -> dict[str, Any]:
        """The engine with its stage."""
        return {"strategy": f"{self.wrapper} {self.stage}"}

    def sharded(self) -> frozenset[str]:
        """Grows with the stage."""
        return STAGES[self.stage]
