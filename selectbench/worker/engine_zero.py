"""DeepSpeed ZeRO: optimizer state, gradients and parameters divided among the ranks, by stage."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from selectbench.choices import Choices
from selectbench.observe.selectbench_seen import dtype_name
from selectbench.suite.job import Job
from selectbench.worker import model
from selectbench.worker.engine import deepspeed_config, first_scale, readable_config_errors, resolved, update_scale
from selectbench.worker.evaluation import Forward, evaluation_forward, whole_weights, with_two_weights
from selectbench.worker.runtime import World, set_patience

for _module in ("stage3", "muon.muon_optimizer"):
    # DeepSpeed imports these when an engine is made, the second with all of torch's compiler: over a second.
    with contextlib.suppress(ImportError):
        importlib.import_module(f"deepspeed.runtime.zero.{_module}")
if get_accelerator().device_name() == "cuda":
    # What CUDA says is free, which stages 1 and 2 ask before they flatten the weights. Its own way asks NVML
    # for the device whose number stands in CUDA_VISIBLE_DEVICES. A run names its GPUs there by UUID, which is no
    # number (ValueError, DeepSpeed PR 8510), and CUDA's numbers need not be NVML's; a MIG slice has none in NVML.
    get_accelerator().available_memory = lambda index=None: torch.cuda.mem_get_info(index)[0]


class ZeroEngine:
    """A DeepSpeed engine around this job's optimizer."""

    def __init__(self, module: Any, job: Job, choices: Choices, world: World) -> None:
        """Take the arguments of `SingleEngine`; raises what that raises."""
        # DeepSpeed calls collectives by names that newer versions of torch rename.
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
        self.world = world
        self._choices = choices
        self.module = module
        self._empty = model.empty_copy(module)
        self.optimizers = _built_optimizer(module, choices)
        self._groups = self.optimizers[0].param_groups
        self._peaks = [group["lr"] for group in self._groups]
        with readable_config_errors():
            self._engine = self._initialized(job, choices)
        self.forward = self._engine
        self.strategy = f"{type(self._engine).__name__} zero {self._engine.zero_optimization_stage()}"
        self.reduction_dtype: str | None = dtype_name({self._engine.communication_data_type})
        self._zero: Any = self._engine.optimizer
        self._fill_groups()
        self._scale = torch.tensor(first_scale(world.size)) if choices.precision.gradient_scaling else None
        self._applied_in_a_row = torch.zeros((), dtype=torch.int32)
        self._true = torch.ones((), dtype=torch.bool, device=world.device)
        self.resolved_config: dict[str, Any] | None = resolved(self._engine._config)

    def _initialized(self, job: Job, choices: Choices) -> Any:
        config = deepspeed_config(
            choices.strategy, choices.precision, micro_batch_size=choices.micro_batch_size,
            gradient_accumulation_steps=job.gradient_accumulation_steps(choices.micro_batch_size, self.world.size),
            clip_norm=job.clip_norm, parameters=sum(p.numel() for p in self.module.parameters()),
        )  # fmt: skip
        if self.world.device_type == "cpu":
            # It would compile an operation for tensor-parallel inference, a minute's work; gloo does all that ZeRO
            # needs.
            getattr(deepspeed.ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False
        self._move_weights(config, choices)
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        with contextlib.redirect_stdout(io.StringIO()):  # it prints reports of memory; its warnings are logged
            engine = deepspeed.initialize(model=self.module, optimizer=self.optimizers[0], config=config)[0]
        # torch's scaler in it lets each rank and each group of parameters decide alone whether to skip a step.
        engine.optimizer.torch_autocast_gradscaler = None
        set_patience()
        for name, buffer in self.module.named_buffers():
            if buffer.dtype != buffers[name].dtype:
                buffer.data = buffers[name].to(buffer.device)  # rotary frequencies below fp32 are other ones
        if choices.compile.mode is not None:
            engine.compile(compile_kwargs={"mode": choices.compile.mode})
        return engine

    def _move_weights(self, config: dict[str, Any], choices: Choices) -> None:
        """Move the weights to the device; in stage 3 part by part, so that no rank ever holds the whole model."""
        dtype = getattr(torch, choices.precision.working_dtype or choices.precision.parameter_dtype)
        if choices.strategy.stage < 3:
            model.cast_parameters(self.module, dtype, self.world.device)
            return
        for part in [*model.blocks_of(self.module), self.module]:
            model.cast_parameters(part, dtype, self.world.device)
            with contextlib.redirect_stdout(io.StringIO()):
                deepspeed.zero.Init(module=part, config_dict_or_path=config)

    def begin_step(self, share_of_peak: float) -> None:
        """Set every group's learning rate to its own peak times the share; DeepSpeed clears the gradients."""
        for group, peak in zip(self._groups, self._peaks, strict=True):
            group["lr"] = peak * share_of_peak

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Enter before the forward pass; `is_last`: gradients are complete after this backward pass."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        yield

    def forward_loss(self, loss: model.SummedLoss) -> model.ForwardLoss:
        """Forward pass, and the loss compiled separately, as DeepSpeed compiles the module inside of its engine."""
        return model.forward_and_loss(self.forward, loss, self._choices, self.world.device_type)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradient: not divided by the micro-batches, and DeepSpeed's mean over ranks undone."""
        if self._scale is not None:
            self._zero.override_loss_scale(float(self._scale))
        self._engine.backward(loss * self.world.size, scale_wrt_gas=False)

    def clip_and_step(self, max_norm: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the weights; returns the global gradient norm before clipping, and whether it was applied."""
        self._zero.clip_grad = max_norm or 0.0
        self._empty_groups()
        self._engine.step()
        self._fill_groups()
        applied = bool(self._engine.was_step_applied())
        if self._scale is not None:
            update_scale(self._scale, self._applied_in_a_row, applied)
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.world.device)
        return norm, self._true if applied else ~self._true

    def _empty_groups(self) -> None:
        """Empty the optimizer's groups: stage 3 fills one at a time while it updates."""
        if hasattr(self._zero, "sub_group_to_group_id"):
            for group in self._groups:
                group["params"] = []

    def _fill_groups(self) -> None:
        """Between steps have the optimizer's groups name what it updates, in stage 3 too."""
        for number, group in getattr(self._zero, "sub_group_to_group_id", {}).items():
            self._groups[group]["params"].append(self._zero.fp32_partitioned_groups_flat[number])

    def working_dtype(self) -> str:
        """Dtype of the module's own parameters, which DeepSpeed updates from its master weights."""
        return dtype_name({p.dtype for p in self.module.parameters()})

    def evaluation(self) -> AbstractContextManager[Forward]:
        """Evaluate with whole weights; stage 3 gathers them module by module where it computes in fp32 anyway."""
        precision = self._choices.precision
        if precision.working_dtype is not None:
            weights = dict(self._master_weights())
        elif self._choices.strategy.stage == 3 and precision.parameter_dtype == "float32":
            return self._evaluation_of_shards()
        else:
            weights = {name: value.float() for name, value in whole_weights(Forward(self.module, {}))}
        return evaluation_forward(self._empty, weights | dict(self.module.named_buffers()))

    @contextmanager
    def _evaluation_of_shards(self) -> Iterator[Forward]:
        with evaluation_forward(self.module) as logits:
            yield logits
        # A forward pass leaves weights gathered for a backward pass, which does not come; as DeepSpeed's step does.
        self._zero.empty_partition_cache()
        if persistent := self._zero.persistent_parameters:
            persistent[0].all_gather(persistent)

    def _master_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and full master weights in fp32; every rank takes part."""
        for name, parameter in self.module.named_parameters():
            whole = deepspeed.utils.safe_get_full_fp32_param(parameter).float()
            yield name, whole.view(getattr(parameter, "ds_shape", parameter.shape))

    def stored_parameters(self) -> list[torch.Tensor]:
        """The parameters that this rank stores; in stage 3 its shards, and whole ones that DeepSpeed keeps so."""
        parameters = list(self.module.parameters())
        shards = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
        whole = [p.data for p in parameters if getattr(p, "ds_persist", True)]
        return [tensor for tensor in shards + whole if tensor.numel()]

    def stored_gradients(self) -> list[torch.Tensor] | None:
        """The gradients in the ZeRO optimizer's buffers, each tensor once."""
        gradients = {tensor.data_ptr(): tensor for tensor in _gradients(self._zero) if tensor.numel()}
        return list(gradients.values()) or None


def _built_optimizer(module: Any, choices: Choices) -> list[torch.optim.Optimizer]:
    """The optimizer, as a list. Raises NotImplementedError for one of own code that DeepSpeed can't run."""
    optimizers: list[torch.optim.Optimizer] = choices.optimizer.build(module)
    if len(optimizers) > 1:
        raise NotImplementedError(f"optimizer {choices.optimizer.name}: DeepSpeed has one, this makes several")
    if with_two_weights(optimizers):
        raise NotImplementedError(
            f"optimizer {choices.optimizer.name}: it is evaluated at other weights than it trains at, and "
            "DeepSpeed keeps copies that it can't switch"
        )
    return optimizers


def _gradients(zero: Any) -> Iterator[torch.Tensor]:
    """The gradients in any of its optimizers: stages 1 and 2, stage 3, stage 1 in bf16 with fp32 gradients."""
    yield from getattr(zero, "fp32_groups_gradients_flat", [])
    for partitions in getattr(zero, "averaged_gradients", {}).values():
        yield from partitions or []
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):  # of an offloaded optimizer
        yield from (group.grad for group in getattr(zero, name, []) if group.grad is not None)
