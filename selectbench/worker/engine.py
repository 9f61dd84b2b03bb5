"""Engines, which carry out what an optimizer step is made of: torch's own for one process, DDP and FSDP2."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from pydantic import ValidationError
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from selectbench.choices import Choices
from selectbench.choices.execution import BUCKET_ELEMENTS, PrecisionChoice, Zero
from selectbench.observe.selectbench_seen import dtype_name
from selectbench.suite.job import Job
from selectbench.worker import model
from selectbench.worker.evaluation import Forward, evaluation_forward, whole_weights
from selectbench.worker.runtime import World, local_part

if TYPE_CHECKING:
    from selectbench.worker.engine_zero import ZeroEngine


def first_scale(world_size: int) -> float:
    """torch.amp.GradScaler's first scale over the number of ranks.

    Libraries that average over ranks get a loss as many times larger, so the same gradients overflow at every
    number of ranks.
    """
    return 2.0**16 / world_size


def update_scale(
    scale: torch.Tensor, applied_in_a_row: torch.Tensor, applied: bool, *, growth_interval: int = 2000
) -> None:
    """Update the scale and the count after a step, in place, as torch.amp.GradScaler does.

    The scale is doubled after `growth_interval` applied steps in a row, and halved after a skipped one. It is
    float32, the count int32.
    """
    overflowed = torch.tensor(float(not applied))
    torch._amp_update_scale_(scale, applied_in_a_row, overflowed, 2.0, 0.5, growth_interval)


def gradient_scaler(choices: Choices, world: World) -> torch.amp.GradScaler | None:
    """Torch's gradient scaler where the precision needs one, None otherwise."""
    if not choices.precision.gradient_scaling:
        return None
    return torch.amp.GradScaler(world.device_type, init_scale=first_scale(world.size))


# fp32 master weights with a working copy in less precision, on one device.


class WorkingCopy:
    """A copy of a model for forward and backward pass, whose gradients go to the master's in fp32.

    A gradient is added to the master's as soon as autograd has it and then freed, so that micro-batches are
    accumulated in fp32 and no second set of gradients is kept.
    """

    def __init__(self, master: torch.nn.Module, dtype: torch.dtype) -> None:
        """Round the master's weights to `dtype` first, so that both begin from the same values."""
        self.module: Any = copy.deepcopy(master)
        model.cast_parameters(self.module, dtype)
        self._master_parameters: list[torch.Tensor] = []
        self._working_parameters: list[torch.Tensor] = []
        for master_parameter, parameter in zip(master.parameters(), self.module.parameters(), strict=True):
            master_parameter.data.copy_(parameter.data)
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_adding_to_master(master_parameter))
                self._master_parameters.append(master_parameter)
                self._working_parameters.append(parameter)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the updated master weights into the working copy, by one kernel on a GPU, not one per tensor."""
        torch._foreach_copy_(self._working_parameters, self._master_parameters)


def _adding_to_master(master: torch.nn.Parameter) -> Any:
    def add_gradient(parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad += gradient

    return add_gradient


# The parts of an optimizer step besides the forward pass; one class for each way of sharing the work.
#
# The loop calls, per step: `begin_step`, then per micro-batch `micro_batch` around forward pass and `backward`,
# then `clip_and_step`. On one device nothing here waits for it.


Engine: TypeAlias = "SingleEngine | ZeroEngine"
"""Trains a model with its optimizers on one of the ranks; `SingleEngine` documents its interface."""


class SingleEngine:
    """One process and one device: plain PyTorch, with gradient scaling where the precision needs it."""

    strategy = "single"
    """Class that wraps the model, for the certificate."""
    reduction_dtype: str | None = None
    """Dtype in which gradients are summed over ranks; None: a single rank sums nothing."""
    resolved_config: dict[str, Any] | None = None
    """DeepSpeed's configuration as it was used."""

    def __init__(self, module: Any, job: Job, choices: Choices, world: World) -> None:
        """Raises NotImplementedError where a choice can't be had.

        `module`: the model on the CPU with its initial weights in fp32, its attention kernel and checkpointing set,
        in training mode; its tensors may be mapped from a file and must not be written to.
        """
        self.world = world
        self._working: WorkingCopy | None = None
        self.module = self._prepared(module, choices)
        self._choices = choices
        self._uncompiled = self._wrapped(self._trained_module(choices), choices)
        self.forward = self._compiled(self._uncompiled, choices)
        """The model that a user's loop calls with token ids of shape (sequences, seq_len)."""
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizers: list[torch.optim.Optimizer] = choices.optimizer.build(self.module)
        """torch's optimizers that update this rank's part of the weights, without wrappers."""
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self._scaler = gradient_scaler(choices, world)
        # CUDA graphs write their outputs to the graph's own memory, which the next replay overwrites; a
        # gradient that exists beforehand is added to instead of aliasing that memory.
        self._keep_gradients = world.device_type == "cuda" and choices.compile.mode == "max-autotune"
        self._true = torch.ones((), dtype=torch.bool, device=world.device)
        if self._keep_gradients:
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)

    def _prepared(self, module: Any, choices: Choices) -> Any:
        """The module with its own weights on the device, in the dtype that the optimizer updates."""
        model.cast_parameters(module, getattr(torch, choices.precision.parameter_dtype), self.world.device)
        return module

    def _trained_module(self, choices: Choices) -> Any:
        if choices.precision.working_dtype is None:
            return self.module
        self._working = WorkingCopy(self.module, getattr(torch, choices.precision.working_dtype))
        return self._working.module

    def _compiled(self, module: Any, choices: Choices) -> Any:
        mode = choices.compile.mode
        return module if mode is None else torch.compile(module, mode=mode)

    def _wrapped(self, module: Any, choices: Choices) -> Any:
        return module

    def begin_step(self, share_of_peak: float) -> None:
        """Clear the gradients and set every group's learning rate to its peak times the share."""
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            optimizer.zero_grad(set_to_none=not self._keep_gradients)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share_of_peak

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Enter before the forward pass; `is_last`: gradients are complete after this backward pass."""
        yield

    def forward_loss(self, loss: model.SummedLoss) -> model.ForwardLoss:
        """Forward pass and loss of a micro-batch, compiled as one graph from ids to the loss, as in nanoGPT."""
        settings = loss, self._choices, self.world.device_type
        return model.forward_and_loss(self.forward, *settings, uncompiled=self._uncompiled)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradient.

        `loss` is a micro-batch's part of the step's loss: the sum of its token losses over the number of
        tokens of the whole step, all ranks and micro-batches. The update sees the sum of all parts.
        """
        (self._scaler.scale(loss) if self._scaler else loss).backward()

    def clip_and_step(self, max_norm: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the weights; returns two scalars on the device, the same on every rank.

        The global gradient norm before clipping, and whether the update was applied: gradient scaling
        skips a step whose gradients are not finite, every other precision applies all of them.
        """
        scaler = self._scaler
        if scaler:
            self._unscale(scaler)
        norm = self._norm()
        if max_norm is not None:
            clip_grads_with_norm_(self.parameters, max_norm, norm)
        for optimizer in self.optimizers:
            if scaler:
                scaler.step(optimizer)
            else:
                optimizer.step()
        if scaler:
            scaler.update()
        if self._working:
            self._working.refresh()
        return norm, norm.isfinite() if scaler else self._true

    def _norm(self) -> torch.Tensor:
        return get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def _unscale(self, scaler: torch.amp.GradScaler) -> None:
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)
        if len(self.optimizers) > 1:
            # The scaler judges each optimizer alone; a step is applied by all of them or by none.
            overflows = [f for o in self.optimizers for f in scaler._found_inf_per_device(o).values()]
            any_overflow = torch.stack(overflows).amax(dim=0)
            for flag in overflows:
                flag.copy_(any_overflow)

    def working_dtype(self) -> str:
        """Dtype of the weights that forward and backward pass use, read from these."""
        return dtype_name({p.dtype for p in self.stored_parameters()})

    def evaluation(self) -> AbstractContextManager[Forward]:
        """A forward pass in fp32 without dropout, with the master weights where there are any.

        All ranks enter it together and make the same number of calls.
        """
        if self._working is None:
            return evaluation_forward(self.module)
        # Forward passes have written to the buffers of the working copy.
        buffers = dict(self._working.module.named_buffers())
        return evaluation_forward(self.module, dict(self.module.named_parameters()) | buffers)

    def stored_parameters(self) -> list[torch.Tensor]:
        """The model's parameters that this rank stores between steps: its shards where they are sharded."""
        return list((self._working.module if self._working else self.module).parameters())

    def stored_gradients(self) -> list[torch.Tensor] | None:
        """Gradients of this rank between the last backward pass and the update; None: the engine hides them."""
        return [p.grad for p in self.parameters if p.grad is not None]


# torch's engines for several ranks: DDP, and FSDP2, which shards every block's parameters, gradients and state.


class RanksEngine(SingleEngine):
    """What DDP and FSDP have in common: a wrapper that averages gradients over ranks."""

    def forward_loss(self, loss: model.SummedLoss) -> model.ForwardLoss:
        """Forward pass, and the loss compiled separately.

        DDP is compiled as a whole, split at the buckets, so that reductions overlap; the root of FSDP, around the
        compiled blocks, gathers its parameters between graphs.
        """
        return model.forward_and_loss(self.forward, loss, self._choices, self.world.device_type)

    def backward(self, loss: torch.Tensor) -> None:
        """The wrapper averages gradients over ranks, but the sum is needed."""
        super().backward(loss * self.world.size)


class DdpEngine(RanksEngine):
    """torch's DistributedDataParallel around what one process would train."""

    strategy = "DistributedDataParallel"

    def _trained_module(self, choices: Choices) -> Any:
        if choices.precision.working_dtype is not None:  # the table of combinations says so too
            raise NotImplementedError("DDP keeps no master weights beside the copy that it reduces")
        return super()._trained_module(choices)

    def _wrapped(self, module: Any, choices: Choices) -> Any:
        # A static graph is recorded in the first step, where torch (pytorch#143580) can't leave out a reduction.
        # An extra one is harmless: the average of averaged plus new gradients is the average of their sum.
        self._records_graph = choices.strategy.static_graph
        device, behaviour = self.world.device, getattr(module, "behaviour", None)
        self._replica = DistributedDataParallel(
            module,
            device_ids=[device] if self.world.device_type == "cuda" else None,
            bucket_cap_mb=choices.strategy.bucket_cap_mb,
            gradient_as_bucket_view=choices.strategy.gradient_as_bucket_view,
            static_graph=choices.strategy.static_graph,
            # A static graph finds unused parameters by itself.
            find_unused_parameters=bool(behaviour and (behaviour.without_gradient or behaviour.random_modules))
            and not choices.strategy.static_graph,
        )
        return self._replica

    @property
    def reduction_dtype(self) -> str | None:  # type: ignore[override]
        """Dtype of the gradients in the buckets; None where a communication hook may change it."""
        if self._replica._get_ddp_logging_data().get("comm_hook"):
            return None
        return dtype_name({p.grad.dtype for p in self.parameters if p.grad is not None}) or None

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Reduce gradients only in the last micro-batch; DDP decides that in the forward pass."""
        with nullcontext() if is_last or self._records_graph else self._replica.no_sync():
            yield
        if is_last:
            self._records_graph = False


class FsdpEngine(RanksEngine):
    """torch's `fully_shard` on every block and on the whole model."""

    strategy = "FSDPModule"

    def _prepared(self, module: Any, choices: Choices) -> Any:
        """Shard each block, then the rest; master weights, where there are any, are the shards."""
        self._empty = model.empty_copy(module)
        self._policy = _policy(choices.precision.working_dtype)
        mesh = init_device_mesh(self.world.device_type, (self.world.size,))
        for block in model.blocks_of(module):
            if choices.compile.mode is not None:
                block.compile(mode=choices.compile.mode)
            self._shard(block, mesh, choices, reshard=choices.strategy.reshard_after_forward)
        # The root's parameters are needed until the end of the forward pass and first in the backward pass.
        return self._shard(module, mesh, choices, reshard=False)

    def _shard(self, part: Any, mesh: DeviceMesh, choices: Choices, *, reshard: bool) -> Any:
        """Cast and shard a part; part by part, so that no rank ever copies the whole model."""
        precision = choices.precision
        dtype = getattr(torch, precision.parameter_dtype)
        model.cast_parameters(part, dtype, self.world.device, through=precision.working_dtype, copy=False)
        return fully_shard(part, mesh=mesh, reshard_after_forward=reshard, mp_policy=self._policy)

    def _trained_module(self, choices: Choices) -> Any:
        return self.module  # its policy makes the working copies

    def _compiled(self, module: Any, choices: Choices) -> Any:
        return module  # block by block, before they were sharded

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Reduce gradients only in the last micro-batch; before that they accumulate unsharded."""
        self.module.set_requires_gradient_sync(is_last)
        yield

    def _norm(self) -> torch.Tensor:
        norm = super()._norm()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @property
    def reduction_dtype(self) -> str | None:  # type: ignore[override]
        """Dtype of reductions in the sharded parts: that of the policy, else that of the shards."""
        return self._dtype_of_groups("reduce_dtype")

    def working_dtype(self) -> str:
        """Dtype in which the sharded parts are gathered."""
        return self._dtype_of_groups("param_dtype")

    def _dtype_of_groups(self, policy: str) -> str:
        groups = [g for part in _sharded_parts(self.module) if (g := part._get_fsdp_state()._fsdp_param_group)]
        stored = {p.dtype for p in self.parameters}
        stated = [getattr(group.mp_policy, policy) for group in groups]
        return dtype_name({d for dtype in stated for d in ({dtype} if dtype else stored)})

    def evaluation(self) -> AbstractContextManager[Forward]:
        """Evaluate the sharded model where it computes in fp32; else gather its weights for the evaluation."""
        if self._policy.param_dtype is None and all(p.dtype == torch.float32 for p in self.parameters):
            return self._evaluation_of_shards()
        weights = {name: value.float() for name, value in whole_weights(Forward(self.module, {}))}
        return evaluation_forward(self._empty, weights | dict(self.module.named_buffers()))

    @contextmanager
    def _evaluation_of_shards(self) -> Iterator[Forward]:
        with evaluation_forward(self.module) as logits:
            yield logits
        for part in _sharded_parts(self.module):
            part.reshard()  # a forward pass leaves weights gathered for a backward pass, which does not come

    def stored_parameters(self) -> list[torch.Tensor]:
        """The rank's shards."""
        return [local_part(p) for p in self.module.parameters()]

    def stored_gradients(self) -> list[torch.Tensor] | None:
        """The rank's shards of the reduced gradients."""
        return [local_part(p.grad) for p in self.parameters if p.grad is not None]


def _sharded_parts(module: Any) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _policy(working_dtype: str | None) -> MixedPrecisionPolicy:
    if working_dtype is None:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=getattr(torch, working_dtype), reduce_dtype=torch.float32)


# DeepSpeed's configuration for a job, with precisions set to mean the same as those of the other engines.


def deepspeed_config(
    strategy: Zero,
    precision: PrecisionChoice,
    *,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    clip_norm: float | None,
    parameters: int,
) -> dict[str, Any]:
    """The mapping that `deepspeed.initialize` takes: the job's settings, overridden by the suite's `config`.

    `parameters`: number of the model's; a bucket for more would only waste memory.
    """
    bucket = min(parameters + parameters % 2, BUCKET_ELEMENTS)
    zero: dict[str, Any] = {"stage": strategy.stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if strategy.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    job: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        # Its throughput timer waits for the device in every step.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        **_precision(precision),
    }
    return merged(job, strategy.config)


def _precision(precision: PrecisionChoice) -> dict[str, Any]:
    """Reductions and accumulated gradients in the dtype of the parameters that are updated."""
    dtype = {"float32": "fp32", "bfloat16": "bf16"}[precision.parameter_dtype]
    common: dict[str, Any] = {"communication_data_type": dtype, "data_types": {"grad_accum_dtype": dtype}}
    if precision.autocast_dtype:
        # With no module listed as safe for it, no gradient is reduced in the lower precision.
        common["torch_autocast"] = {
            "enabled": True, "dtype": precision.autocast_dtype, "lower_precision_safe_modules": [],
        }  # fmt: skip
    if precision.working_dtype:
        common["bf16"] = {"enabled": True}
    elif precision.parameter_dtype == "bfloat16":
        common["bf16"] = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if "bf16" in common:
        common["bf16"]["check_grad_overflow"] = False
    return common


class WrongConfigError(RuntimeError):
    """A setting that DeepSpeed does not know or accept."""


@contextmanager
def readable_config_errors() -> Iterator[None]:
    """Turn DeepSpeed's error about a setting into one line that names it as the suite does."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, ("zero_optimization", *first["loc"])))
        message = f"strategy zero: config.{path}: {first['msg']}, found {first['input']!r}"
        raise WrongConfigError(message) from error


def merged(defaults: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`defaults` with the values of `overrides`; nested mappings are merged key by key."""
    nested = [key for key in overrides if isinstance(overrides[key], dict) and isinstance(defaults.get(key), dict)]
    return {**defaults, **overrides, **{key: merged(defaults[key], overrides[key]) for key in nested}}


def resolved(config: Any) -> dict[str, Any]:
    """The settings given to a `deepspeed.runtime.config.DeepSpeedConfig`, with all of ZeRO's filled in."""
    settings: dict[str, Any] = dict(config._param_dict)
    zero = config.zero_config.model_dump(mode="json", exclude_none=True)
    return {**settings, "train_batch_size": config.train_batch_size, "zero_optimization": zero}
